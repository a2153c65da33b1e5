"""Servers that others wrote find our checks in order: gRPC's, SOFABolt's, SOFARPC's, Dubbo's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.health.checks import CheckedService, HealthChecks
from tests.interop.servers import free_port
from tests.requests import programs
from tests.waiting import PATIENCE

FAST = {"interval": "100ms", "timeout": "10s"}


def check(
    address: Address,
    until: Callable[[list[tuple[int, Address, bool]], int], bool],
    **settings: str,
) -> str | None:
    """Checks until what was told, and how many checks passed, are so. What the last one found."""

    async def run() -> str | None:
        told: list[tuple[int, Address, bool]] = []
        checks = HealthChecks(told.extend, most=10)
        checked = HealthCheck.model_validate({**FAST, **settings})
        checks.set([CheckedService(1, "any", "tcp", checked, (address,))])
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
