"""gRPC of Go and of Java on both ends of a sidecar, which are other implementations of HTTP/2 than
its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.interop import servers
from tests.interop.servers import free_port, program
from tests.requests import programs
from tests.requests.fronts import Front, front
from tests.requests.programs import Program
from tests.waiting import PATIENCE, eventually

_HOSTS = {"go": "10.1.2.3", "java": "10.1.2.4"}
"""Addresses that nobody has: hooked programs find the services there."""
_LANGUAGES = tuple(_HOSTS)


@dataclass(frozen=True)
class Mesh:
    """A program of each language, client and server, and the sidecar in front of the servers."""

    front: Front
    programs: dict[str, Program]
    hooked: Program
    ports: dict[str, int]

    def address(self, server: str) -> str:
        return self.front.address(server)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with ExitStack() as stack:
        peers = {
            "go": stack.enter_context(programs.go_grpc()),
            "java": stack.enter_context(programs.java_grpc()),
        }
        ports = {name: free_port() for name in _LANGUAGES}
        services = {name: {"endpoints": [f"127.0.0.1:{port}"]} for name, port in ports.items()}
        requests = [{"match": {"host": host}, "services": name} for name, host in _HOSTS.items()]
        routes = [
            {"match": {"destination": [*_HOSTS.values()]}, "action": "requests"},
            {"match": {"ports": [*ports.values()]}, "action": "requests"},
        ]
        settings: dict[str, Any] = {"outbound": {"routes": routes}}
        made = stack.enter_context(front("grpc", services, requests, settings=settings))
        hooked = stack.enter_context(programs.java_grpc(made.sidecar.environment))
        for name, program in peers.items():
            program.ask("serve", port=ports[name], name=name)
        yield Mesh(made, peers, hooked, ports)


@pytest.fixture(params=itertools.product(_LANGUAGES, _LANGUAGES), ids=" to ".join)
def pair(request: pytest.FixtureRequest, mesh: Mesh) -> tuple[Program, Program, str]:
    """A client, a server, and the server's address."""
    client, server = request.param
    return mesh.programs[client], mesh.programs[server], mesh.address(server)


Pair = tuple[Program, Program, str]


def test_all_forms_of_a_call(pair: Pair) -> None:
    client, _, address = pair
    many = client.start("forms", address=address, count=500, size=100)
    large = client.start("forms", address=address, count=3, size=3 << 20)
    assert many.result(PATIENCE) == large.result(PATIENCE) == {"value": "right"}


def test_each_call_gets_its_own_answer(pair: Pair) -> None:
    client, _, address = pair
    small = client.start("burst", address=address, count=500, concurrency=50, size=20)
    large = client.start("burst", address=address, count=8, concurrency=4, size=1 << 20)
    assert small.result(PATIENCE) == {"right": "500"}
    assert large.result(PATIENCE) == {"right": "8"}


def test_statuses_of_the_service_pass(pair: Pair) -> None:
    client, _, address = pair
    failed = client.ask("call", address=address, text="fail")
    assert "there is none: \u00e9" in failed["message"]
    assert "NOT" in failed["message"].upper() or failed["error"] == "NotFound"


def test_a_deadline_ends_a_call_at_both_ends(pair: Pair) -> None:
    client, server, address = pair
    before = int(server.ask("cancelled")["value"])
    failed = client.ask("call", address=address, text="wait", deadline=200)
    assert "DEADLINE" in (failed["error"] + failed["message"]).upper()
    eventually(lambda: int(server.ask("cancelled")["value"]) > before, "the server to learn of it")


def test_a_call_that_is_taken_back_ends_at_the_server(pair: Pair) -> None:
    client, server, address = pair
    before = int(server.ask("cancelled")["value"])
    assert client.ask("cancel", address=address) == {"value": "0"}
    eventually(lambda: int(server.ask("cancelled")["value"]) > before, "the server to learn of it")


@pytest.mark.parametrize("server", _LANGUAGES)
def test_a_server_that_sends_its_clients_away_loses_no_call(mesh: Mesh, server: str) -> None:
    """As MaxConnectionAge does: each of its connections gets a GOAWAY, after 30 ms."""
    port = free_port()
    mesh.programs[server].ask("serve", port=port, name="brief", age=30)
    with front("grpc", {"brief": {"endpoints": [f"127.0.0.1:{port}"]}}, []) as brief:
        bursts = [
            client.start(
                "burst", address=brief.address("brief"), count=3000, concurrency=20, size=10
            )
            for client in mesh.programs.values()
        ]
        assert [burst.result(2 * PATIENCE) for burst in bursts] == [{"right": "3000"}] * 2
        flags = {flag for each in brief.sidecar.requests() for flag in each.flags}
        assert flags <= {"retried"}


@pytest.mark.parametrize("server", _LANGUAGES)
@pytest.mark.parametrize("way", ["service", "original destination"])
def test_a_hooked_client(mesh: Mesh, server: str, way: str) -> None:
    direct = f"127.0.0.1:{mesh.ports[server]}"
    address = f"{_HOSTS[server]}:80" if way == "service" else direct
    burst = mesh.hooked.start("burst", address=address, count=300, concurrency=20, size=20)
    forms = mesh.hooked.start("forms", address=address, count=300, size=1000)
    assert burst.result(2 * PATIENCE) == {"right": "300"}
    assert forms.result(2 * PATIENCE) == {"value": "right"}
    reached = "" if way == "service" else "test.Echo"
    log = eventually(
        lambda: [
            each
            for each in mesh.front.sidecar.requests()
            if (each.upstream, each.service) == (direct, reached or server)
        ],
        "its requests",
    )
    assert {each.protocol for each in log} == {"grpc"}


# ---- nginx with grpc_pass, on both ends ----


@pytest.fixture(scope="module")
def chain(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an nginx that asks a sidecar, which asks an nginx, which asks Go."""
    directory = tmp_path_factory.mktemp("nginx")
    first, second = free_port(), free_port()
    with front("grpc", {"nginx": {"endpoints": [f"127.0.0.1:{second}"]}}, []) as between:
        file = directory / "nginx.conf"
        passed = {first: between.address("nginx"), second: f"127.0.0.1:{mesh.ports['go']}"}
        hosts = "".join(
            f"""
    server {{
        listen 127.0.0.1:{port} http2;
        client_max_body_size 0;
        location / {{ grpc_pass grpc://{to}; }}
    }}"""
            for port, to in passed.items()
        )
        http = f"http {{ {servers.nginx_paths(directory)} {hosts} }}\n"
        file.write_text(servers.nginx_preamble(directory) + http)
        with servers.running(
            [program("nginx"), "-c", file, "-g", "daemon off;"],
            log=directory / "log",
            ready=lambda: servers.accepts(first) and servers.accepts(second),
        ):
            yield f"127.0.0.1:{first}"


def test_nginx_passes_calls_on(mesh: Mesh, chain: str) -> None:
    client = mesh.programs["go"]
    burst = client.start("burst", address=chain, count=300, concurrency=20, size=20)
    forms = client.start("forms", address=chain, count=100, size=1000)
    large = client.start("forms", address=chain, count=2, size=3 << 20)
    assert burst.result(2 * PATIENCE) == {"right": "300"}
    assert forms.result(2 * PATIENCE) == large.result(PATIENCE) == {"value": "right"}
    failed = client.ask("call", address=chain, text="fail")
    assert (failed["error"], failed["message"]) == ("NotFound", "there is none: \u00e9")


# ---- a sidecar that ends ----


def test_a_sidecar_that_drains_loses_no_call(mesh: Mesh) -> None:
    """One of two that stand in front of a server, of which another sidecar knows."""
    server = {"endpoints": [f"127.0.0.1:{mesh.ports['go']}"]}
    with front("grpc", {"go": server}, []) as left, front("grpc", {"go": server}, []) as right:
        both = {"endpoints": [left.address("go"), right.address("go")]}
        with front("grpc", {"both": both}, []) as outer:
            bursts = [
                client.start(
                    "burst", address=outer.address("both"), count=1000, concurrency=10, size=10
                )
                for client in mesh.programs.values()
            ]
            left.sidecar.wait_for_request("go", timeout=PATIENCE)
            left.sidecar.stop(PATIENCE)
            assert [burst.result(2 * PATIENCE) for burst in bursts] == [{"right": "1000"}] * 2
