"""Servers that others wrote find our checks in order: nghttp2's, gRPC's, SOFABolt's, SOFARPC's,
Dubbo's."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.dataplane import HAS_HTTP2
from pysidecar.health.checks import CheckedService, HealthChecks
from tests.interop.servers import free_port, program
from tests.requests import programs
from tests.waiting import PATIENCE, eventually

FAST = {"interval": "100ms", "timeout": "10s"}


def check(
    address: Address,
    until: Callable[[list[tuple[int, Address, bool]], int], bool],
    protocol: str = "tcp",
    **settings: str,
) -> str | None:
    """Checks until what was told, and how many checks passed, are so. What the last one found."""

    async def run() -> str | None:
        told: list[tuple[int, Address, bool]] = []
        checks = HealthChecks(told.extend, most=10)
        checked = HealthCheck.model_validate({**FAST, **settings})
        checks.set([CheckedService(1, "any", protocol, checked, (address,))])
        try:
            async with asyncio.timeout(PATIENCE):
                while not until(told, next(iter(checks.results()))[2]):
                    await asyncio.sleep(0.005)
            health = checks.of(1, address)
            assert health is not None
            return health.problem
        finally:
            checks.close()

    return asyncio.run(run())


def passes(told: list[tuple[int, Address, bool]], passed: int) -> bool:
    assert all(healthy for _, _, healthy in told)
    return passed >= 5


def fails(told: list[tuple[int, Address, bool]], passed: int) -> bool:
    return not told[-1][2]


# ---- gRPC ----


class Health(grpc.GenericRpcHandler):  # type: ignore[misc]
    """``grpc.health.v1.Health``, with a status for each service."""

    def service(self, details: Any) -> Any:
        if details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(self._check)

    def _check(self, request: bytes, context: Any) -> bytes:
        status = {"": 1, "shop.Orders": 2}.get(request[2:].decode(), 0)
        if status == 0:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return bytes((8, status))


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=(Health(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Address("127.0.0.1", port)
    server.stop(None).wait()


def test_a_grpc_server_says_how_it_is(server: Address) -> None:
    assert check(server, passes, type="grpc") is None
    problem = check(server, fails, type="grpc", service="shop.Orders")
    assert problem == "its health status is NOT_SERVING"
    problem = check(server, fails, type="grpc", service="shop.Nothing")
    assert problem == "its answer has no health status"


def test_a_grpc_server_is_not_asked_in_another_protocol(server: Address) -> None:
    assert check(server, fails, type="http", path="/") in (
        "its answer is not HTTP/1.1",
        "it ended the connection",
        "connection reset by peer",
    )


# ---- HTTP/2 ----

needs_http2 = pytest.mark.skipif(not HAS_HTTP2, reason="built without libnghttp2")


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """nghttpd, which speaks nothing but HTTP/2, and encodes headers as it likes."""
    root = tmp_path_factory.mktemp("web")
    (root / "health").write_bytes(b"well" * 8000)
    (root / "long").write_bytes(bytes(1 << 20))
    port = free_port()
    command = [program("nghttpd"), "--no-tls", "--htdocs", str(root), "-a", "127.0.0.1", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        eventually(lambda: is_listening(port), "nghttpd to listen")
        yield Address("127.0.0.1", port)
        server.kill()


@needs_http2
@pytest.mark.parametrize("protocol", ["http2", "grpc"])
@pytest.mark.parametrize("path", ["/health", "/long"])
def test_http_services_of_http2_are_asked_in_it(web: Address, protocol: str, path: str) -> None:
    assert check(web, passes, protocol, type="http", path=path) is None


@needs_http2
def test_what_a_server_of_http2_does_not_have_is_no_health(web: Address) -> None:
    assert check(web, fails, "http2", path="/nothing") == "its answer is 404"
    assert check(web, passes, "http2") is None  # that it can be connected


@needs_http2
def test_a_grpc_server_answers_http_in_its_own_way(server: Address) -> None:
    problem = check(server, fails, "grpc", type="http", path="/health")
    assert problem is not None
    assert problem.startswith(("its answer is 4", "it reset the stream"))


# ---- Java ----


def test_bolt_servers_answer_heartbeats() -> None:
    bolt, rpc = free_port(), free_port()
    with programs.sofa() as server:
        server.ask("serve", library="bolt", port=bolt, name="raw", services="a")
        server.ask("serve", library="sofarpc", port=rpc, name="one", services="a")
        assert check(Address("127.0.0.1", bolt), passes, type="bolt") is None
        assert check(Address("127.0.0.1", rpc), passes, type="bolt") is None


def test_a_dubbo_provider_answers_heartbeats() -> None:
    port = free_port()
    with programs.dubbo() as server:
        server.ask("serve", port=port, name="one", services="1.0 blue")
        assert check(Address("127.0.0.1", port), passes, type="dubbo") is None
