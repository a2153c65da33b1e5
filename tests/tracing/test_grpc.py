"""Traces of gRPC and HTTP/2: grpcio on both ends of two sidecars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from pysidecar.testing import Sidecar
from tests.interop.servers import free_port
from tests.tracing.collector import collecting

_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
_PARENT = "00f067aa0ba902b7"


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers with the traceparent that it got; the method Fail fails."""

    def service(self, details: Any) -> Any:
        def call(request: bytes, context: Any) -> bytes:
            if details.method.endswith("/Fail"):
                context.abort(grpc.StatusCode.NOT_FOUND, "as asked")
            metadata = dict(context.invocation_metadata())
            return str(metadata.get("traceparent")).encode()

        return grpc.unary_unary_rpc_method_handler(call)


@contextlib.contextmanager
def _serving() -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def test_metadata_has_the_trace() -> None:
    ports = free_port(), free_port()

    def settings(url: str, listen: int, endpoint: int, direction: str) -> dict[str, Any]:
        return {
            "services": {"echo": {"protocol": "grpc", "endpoints": [f"127.0.0.1:{endpoint}"]}},
            "listeners": [
                {"listen": f"127.0.0.1:{listen}", "service": "echo", "direction": direction}
            ],
            "tracing": {"otlp": url, "service_name": direction, "sample": "0%"},
        }

    with (
        collecting() as collector,
        _serving() as server,
        Sidecar(settings(collector.url, ports[1], server, "inbound")),
        Sidecar(settings(collector.url, ports[0], ports[1], "outbound")),
        grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel,
    ):
        metadata = [("traceparent", f"00-{_TRACE}-{_PARENT}-01")]
        echo = channel.unary_unary("/peer.Echo/Say")(b"", metadata=metadata, timeout=20)
        with pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary("/peer.Echo/Fail")(b"", metadata=metadata, timeout=20)
        spans = collector.wait_for(4)
        without = channel.unary_unary("/peer.Echo/Say")(b"", timeout=20)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert without == b"None"
    outer, inner, failing, _ = spans
    assert echo.decode() == f"00-{_TRACE}-{inner.id}-01"
    assert (outer.parent, inner.parent) == (_PARENT, outer.id)
    assert [span.kind for span in (outer, inner)] == ["CLIENT", "SERVER"]
    assert outer.name == "peer.Echo/Say"
    assert not outer.failed
    expected = {
        "rpc.system": "grpc",
        "rpc.service": "peer.Echo",
        "rpc.method": "Say",
        "rpc.grpc.status_code": 0,
    }
    assert expected.items() <= outer.attributes.items()
    assert failing.failed
    assert failing.attributes["rpc.grpc.status_code"] == 5
    assert failing.attributes["error.type"] == "5"
