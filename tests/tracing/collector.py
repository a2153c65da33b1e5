"""A collector of OpenTelemetry's protocol, over HTTP and gRPC, that keeps what it gets: the service
is that of OpenTelemetry's published definitions, the servers are Python's and gRPC's own."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as RawSpan

from tests.waiting import eventually

__all__ = ["Collector", "Span", "collecting"]


class Span(NamedTuple):
    """One span; ids are in hexadecimal digits, ``parent`` is empty where it has none."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    state: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    failed: bool
    began_ns: int
    ended_ns: int


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _spans(request: Any) -> Iterator[Span]:
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope in resource_spans.scope_spans:
            for raw in scope.spans:
                yield Span(
                    service=resource["service.name"],
                    name=raw.name,
                    kind=RawSpan.SpanKind.Name(raw.kind).removeprefix("SPAN_KIND_"),
                    trace=raw.trace_id.hex(),
                    id=raw.span_id.hex(),
                    parent=raw.parent_span_id.hex(),
                    state=raw.trace_state,
                    attributes=_attributes(raw.attributes),
                    resource=resource,
                    failed=raw.status.code == 2,
                    began_ns=raw.start_time_unix_nano,
                    ended_ns=raw.end_time_unix_nano,
                )


class Collector:
    """What has come so far. While ``holding`` is set, nothing is answered."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.headers: list[dict[str, str]] = []
        self.holding = threading.Event()
        self.released = threading.Event()
        self.url = ""

    def take(self, headers: dict[str, str], request: Any) -> None:
        self.headers.append(headers)
        self.spans.extend(_spans(request))
        if self.holding.is_set():
            self.released.wait(30)

    def wait_for(self, count: int, *, trace: str | None = None) -> list[Span]:
        """So many spans, of that trace if one is given, in the order in which they began."""

        def found() -> list[Span] | None:
            spans = [span for span in self.spans if trace in (None, span.trace)]
            return spans if len(spans) >= count else None

        spans = eventually(found, lambda: f"{count} spans among {self.spans}")
        return sorted(spans, key=lambda span: span.began_ns)


def _http_handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            assert self.headers["content-type"] == "application/x-protobuf"
            headers = {name.lower(): value for name, value in self.headers.items()}
            collector.take(headers, ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            with contextlib.suppress(ConnectionError):  # who did not wait for it
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


class _Service(TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:
        headers = {name: str(value) for name, value in context.invocation_metadata()}
        self._collector.take(headers, request)
        return ExportTraceServiceResponse()


@contextlib.contextmanager
def _over_http(collector: Collector, port: int) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", port), _http_handler(collector)) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def _over_grpc(collector: Collector, port: int) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    register: Any = add_TraceServiceServicer_to_server  # without types
    register(_Service(collector), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield bound
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def collecting(protocol: str = "http", port: int = 0) -> Iterator[Collector]:
    """A collector at its own port, or at that one."""
    collector = Collector()
    serve = {"http": _over_http, "grpc": _over_grpc}[protocol]
    with serve(collector, port) as bound:
        collector.url = f"http://127.0.0.1:{bound}"
        try:
            yield collector
        finally:
            collector.released.set()
