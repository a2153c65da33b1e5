"""HTTP/2 between programs that nobody here wrote, through a sidecar."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop import servers
from tests.interop.servers import free_port, program
from tests.requests import programs
from tests.requests.fronts import Front, front
from tests.requests.programs import Program
from tests.waiting import PATIENCE, eventually

_NOBODY = "10.1.2.3"
"""An address that nobody has: hooked programs find the services there."""
_LARGE = os.urandom(3 << 20)


@dataclass(frozen=True)
class Mesh:
    """An nghttpd, an nginx and a Node, and the sidecar in front of them."""

    front: Front
    ports: dict[str, int]
    node: Program

    def url(self, service: str, path: str) -> str:
        return f"http://{self.front.address(service)}{path}"


def _nginx_settings(directory: Path, port: int) -> Path:
    """Each connection ends, with a GOAWAY, behind 50 requests."""
    file = directory / "nginx.conf"
    file.write_text(
        servers.nginx_preamble(directory)
        + f"""
http {{
    {servers.nginx_paths(directory)}
    keepalive_requests 50;
    server {{ listen 127.0.0.1:{port} http2; root {directory}; }}
}}
"""
    )
    return file


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    directory = tmp_path_factory.mktemp("http2")
    (directory / "small").write_text("small")
    (directory / "large").write_bytes(_LARGE)
    ports = {name: free_port() for name in ("nghttpd", "nginx", "node")}
    settings = _nginx_settings(directory, ports["nginx"])
    nghttpd = [program("nghttpd"), "--no-tls", "-a", "127.0.0.1", "--echo-upload"]
    commands: dict[str, list[str | Path]] = {
        "nghttpd": [*nghttpd, "--trailer", "x-end: 1", "-d", directory, str(ports["nghttpd"])],
        "nginx": [program("nginx"), "-c", settings, "-g", "daemon off;"],
    }
    with ExitStack() as stack:
        for name, command in commands.items():
            stack.enter_context(
                servers.running(
                    command,
                    log=directory / f"{name}.log",
                    ready=functools.partial(servers.accepts, ports[name]),
                )
            )
        node = stack.enter_context(programs.node_http2())
        node.ask("serve", port=ports["node"], name="node")
        services = {name: {"endpoints": [f"127.0.0.1:{port}"]} for name, port in ports.items()}
        routes = [
            {"match": {"destination": _NOBODY}, "action": "requests"},
            {"match": {"ports": [*ports.values()]}, "action": "requests"},
        ]
        requests = [{"match": {"host": _NOBODY}, "services": "node"}]
        more: dict[str, Any] = {"outbound": {"routes": routes}}
        made = stack.enter_context(front("http2", services, requests, settings=more))
        yield Mesh(made, ports, node)


def _run(*command: str | Path, environment: dict[str, str] | None = None) -> bytes:
    done = subprocess.run(
        [program(str(command[0])), *command[1:]],
        capture_output=True,
        timeout=2 * PATIENCE,
        env=servers.plain_environment(**(environment or {})),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- nghttp, h2load ----


def test_nghttp_gets_bodies_and_trailers(mesh: Mesh) -> None:
    assert _run("nghttp", mesh.url("nghttpd", "/large")) == _LARGE
    seen = _run("nghttp", "-nv", "--no-dep", mesh.url("nghttpd", "/small")).decode()
    assert re.search(r"recv \(stream_id=\d+\) x-end: 1", seen), seen


def test_nghttp_sends_a_large_body_with_a_trailer(mesh: Mesh, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(_LARGE)
    options = ("--trailer", "x-mine: 1", "-d", body)
    assert _run("nghttp", *options, mesh.url("nghttpd", "/upload")) == _LARGE


@pytest.mark.parametrize("server", ["nghttpd", "nginx"])
def test_h2load_sees_no_failure(mesh: Mesh, server: str) -> None:
    """With nginx, connections of the sidecar's go away all the time."""
    options = ("-n", "3000", "-c", "4", "-m", "32")
    assert _succeeded(_run("h2load", *options, mesh.url(server, "/small"))) == 3000


def _succeeded(output: bytes) -> int:
    text = output.decode()
    assert " 0 failed, 0 errored, 0 timeout" in text, text
    codes = re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", text)
    assert codes, text
    return int(codes[1])


# ---- curl ----


def test_curl_by_prior_knowledge(mesh: Mesh, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(_LARGE)
    options = ("-sS", "--fail", "--http2-prior-knowledge", "--data-binary", f"@{body}")
    assert _run("curl", *options, mesh.url("nghttpd", "/upload")) == _LARGE


def test_a_hooked_curl_reaches_its_original_destination(mesh: Mesh) -> None:
    url = f"http://127.0.0.1:{mesh.ports['nghttpd']}"
    options = ("-sS", "--fail", "--http2-prior-knowledge", "-w", "%{http_version}")
    hooked = mesh.front.sidecar.environment
    assert _run("curl", *options, f"{url}/small", environment=hooked) == b"small2"
    found = mesh.front.sidecar.wait_for_request("127.0.0.1", path="/small")
    assert (found.protocol, found.upstream) == ("http2", f"127.0.0.1:{mesh.ports['nghttpd']}")


# ---- who asks for an upgrade from HTTP/1.1 (curl --http2, Java) is answered in HTTP/1.1 ----


@pytest.fixture(scope="module")
def upgrading(mesh: Mesh) -> Iterator[Front]:
    services = {"node": {"protocol": "http2", "endpoints": [f"127.0.0.1:{mesh.ports['node']}"]}}
    requests: list[dict[str, Any]] = [{"services": "node"}]
    with front("auto", {}, requests, settings={"services": services}) as made:
        yield made


def test_an_upgrade_to_http2_is_not_taken(upgrading: Front) -> None:
    options = ("-sS", "--fail", "--http2", "-X", "PUT", "-d", "a", "-w", " %{http_version}")
    assert _run("curl", *options, f"http://{upgrading.address()}/echo") == b"node a 1.1"


def test_java_asks_for_an_upgrade_and_is_answered(upgrading: Front) -> None:
    with programs.java_http() as java:
        answer = java.ask(
            "burst",
            address=upgrading.address(),
            path="/echo",
            version="HTTP_2",
            count=200,
            concurrency=8,
            size=1000,
        )
    assert answer == {"right": "200"}


# ---- Node ----


@pytest.mark.parametrize("way", ["listener", "service", "original destination"])
def test_node_gets_its_own_answers(mesh: Mesh, way: str) -> None:
    addresses = {"listener": mesh.front.address("node"), "service": f"{_NOBODY}:80"}
    address = addresses.get(way, f"127.0.0.1:{mesh.ports['node']}")
    hooked = None if way == "listener" else mesh.front.sidecar.environment
    with programs.node_http2(hooked) as client:
        small = client.start("burst", address=address, count=300, concurrency=50)
        large = client.start("burst", address=address, count=4, concurrency=4, size=1 << 20)
        both = client.start("duplex", address=address, count=50, size=10_000)
        assert small.result(2 * PATIENCE) == {"right": "300"}
        assert large.result(2 * PATIENCE) == {"right": "4"}
        assert both.result(2 * PATIENCE) == {"value": "true"}


def test_a_client_that_closes_in_order_gets_its_answers(mesh: Mesh) -> None:
    answer = mesh.node.ask(
        "burst",
        address=mesh.front.address("node"),
        count=300,
        concurrency=20,
        each=30,
    )
    assert answer == {"right": "300"}


def test_a_request_that_is_taken_back_ends_at_the_server(mesh: Mesh) -> None:
    before = int(mesh.node.ask("cancelled")["value"])
    mesh.node.ask("cancel", address=mesh.front.address("node"))
    eventually(lambda: int(mesh.node.ask("cancelled")["value"]) > before, "the server to learn it")


def test_a_server_that_retires_loses_no_request(mesh: Mesh) -> None:
    """It sends its clients away, and another one is there."""
    ports = [free_port(), free_port()]
    with programs.node_http2() as server:
        for port in ports:
            server.ask("serve", port=port, name="node")
        endpoints = [f"127.0.0.1:{port}" for port in ports]
        with front("http2", {"two": {"endpoints": endpoints}}, []) as two:
            burst = mesh.node.start("burst", address=two.address("two"), count=1000, concurrency=20)
            two.sidecar.wait_for_request("two", timeout=PATIENCE)
            server.ask("retire", port=ports[0])
            assert burst.result(2 * PATIENCE) == {"right": "1000"}
