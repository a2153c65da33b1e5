"""gRPC's own Python, synchronous and asyncio, on both ends of a sidecar."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from pysidecar.address import Address
from tests.requests.support import RequestPlane
from tests.waiting import PATIENCE, eventually

SERVICE = "test.Echo"


class Service:
    """All four forms of a call; messages are bytes."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Back, with what came in a header in a trailer."""
        context.set_trailing_metadata((("x-sum", str(len(request))),))
        if request == b"fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "there is none: \u00e9")
        return request

    def server_stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """So many times; without end for "forever"."""
        context.add_callback(self.cancelled.set)
        count = int(request) if request.isdigit() else 1 << 30
        for at in range(count):
            yield b"%d" % at

    def client_stream(self, requests: Iterable[bytes], _: grpc.ServicerContext) -> bytes:
        """All in one."""
        return b"".join(requests)

    def both_stream(self, requests: Iterable[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        """Each as it comes."""
        yield from requests

    def handler(self, name: str = SERVICE) -> grpc.GenericRpcHandler:
        """For a server."""
        return grpc.method_handlers_generic_handler(
            name,
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream),
                "ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream),
                "BothStream": grpc.stream_stream_rpc_method_handler(self.both_stream),
            },
        )


@pytest.fixture(scope="module")
def service() -> Service:
    """What is served."""
    return Service()


@pytest.fixture(scope="module")
def plane(service: Service) -> Iterator[RequestPlane]:
    """Before a server of gRPC, with health and reflection."""
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((service.handler(),))
    checks = health.HealthServicer()
    checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with RequestPlane("grpc", [Address("127.0.0.1", port)]) as plane:
            yield plane
    finally:
        server.stop(None).wait(PATIENCE)


@pytest.fixture(scope="module")
def channel(plane: RequestPlane) -> Iterator[grpc.Channel]:
    """To the sidecar."""
    with grpc.insecure_channel(str(plane.address)) as channel:
        yield channel


def test_all_forms_of_a_call(channel: grpc.Channel) -> None:
    unary = channel.unary_unary(f"/{SERVICE}/Unary")
    answer, call = unary.with_call(b"x" * 100_000, timeout=PATIENCE)
    assert answer == b"x" * 100_000
    assert ("x-sum", "100000") in call.trailing_metadata()
    assert unary(b"", timeout=PATIENCE) == b""
    server_stream = channel.unary_stream(f"/{SERVICE}/ServerStream")
    assert list(server_stream(b"1000", timeout=PATIENCE)) == [b"%d" % at for at in range(1000)]
    client_stream = channel.stream_unary(f"/{SERVICE}/ClientStream")
    parts = [b"%d," % at for at in range(1000)]
    assert client_stream(iter(parts), timeout=PATIENCE) == b"".join(parts)
    both_stream = channel.stream_stream(f"/{SERVICE}/BothStream")
    assert list(both_stream(iter(parts), timeout=PATIENCE)) == parts


def test_statuses_of_the_service_pass(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary(f"/{SERVICE}/Unary")(b"fail", timeout=PATIENCE)
    error: Any = failure.value
    assert (error.code(), error.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "there is none: \u00e9",
    )
    with pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary(f"/{SERVICE}/Unknown")(b"", timeout=PATIENCE)
    error = failure.value
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_cancelled_call_reaches_the_service(channel: grpc.Channel, service: Service) -> None:
    service.cancelled.clear()
    call = channel.unary_stream(f"/{SERVICE}/ServerStream")(b"forever", timeout=PATIENCE)
    assert next(call) == b"0"
    call.cancel()
    eventually(service.cancelled.is_set, "the service to learn of it")


def test_a_deadline_ends_a_call(channel: grpc.Channel) -> None:
    call = channel.unary_stream(f"/{SERVICE}/ServerStream")(b"forever", timeout=0.3)
    with pytest.raises(grpc.RpcError) as failure:
        for _ in call:
            pass
    error: Any = failure.value
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_health_and_reflection_pass(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    answer = stub.Check(request, timeout=PATIENCE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    reflected = reflection_pb2_grpc.ServerReflectionStub(channel)
    (listed,) = reflected.ServerReflectionInfo(iter([asked]), timeout=PATIENCE)
    names = {each.name for each in listed.list_services_response.service}
    assert health.SERVICE_NAME in names


def test_failures_of_ours_are_statuses() -> None:
    with RequestPlane("grpc", []) as plane, grpc.insecure_channel(str(plane.address)) as channel:
        with pytest.raises(grpc.RpcError) as failure:
            channel.unary_unary(f"/{SERVICE}/Unary")(b"", timeout=PATIENCE)
        error: Any = failure.value
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "no_endpoint")


def test_asyncio_calls_at_once(plane: RequestPlane) -> None:
    async def parts(count: int) -> AsyncIterator[bytes]:
        for at in range(count):
            yield b"%d," % at

    async def run() -> None:
        async with grpc.aio.insecure_channel(str(plane.address)) as channel:
            unary = channel.unary_unary(f"/{SERVICE}/Unary")
            bodies = [b"%d" % at * 50 for at in range(200)]
            answers = await asyncio.gather(*(unary(body, timeout=PATIENCE) for body in bodies))
            assert answers == bodies
            call = channel.stream_stream(f"/{SERVICE}/BothStream")(parts(100), timeout=PATIENCE)
            assert [each async for each in call] == [b"%d," % at for at in range(100)]

    asyncio.run(run())
