"""Spans in OpenTelemetry's terms, sent by its exporters. Importing this takes a while, and is done
by the thread that sends."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from pysidecar.config import Tracing as Settings
from pysidecar.dataplane import FAILURES, Direction, Flag, Protocol, SpanRecord

__all__ = ["OtlpSender", "SpanMaker"]

_HTTP_PORT = 80
_METHODS = frozenset("CONNECT DELETE GET HEAD OPTIONS PATCH POST PUT QUERY TRACE".split())
_HTTP_VERSIONS = {Protocol.HTTP: "1.1", Protocol.HTTP2: "2"}
_RPC_SYSTEMS = {
    Protocol.BOLT: "sofa_rpc",
    Protocol.DUBBO: "apache_dubbo",
    Protocol.GRPC: "grpc",
}

Attributes = dict[str, str | int | Sequence[str]]


class SpanMaker:
    """Makes spans of records. With ``query``, URLs have their query."""

    def __init__(self, settings: Settings, *, query: bool) -> None:
        version = importlib.metadata.version("pysidecar")
        self._query = query
        self._scope = InstrumentationScope("pysidecar", version)
        self._resource = Resource.create(
            {**settings.resource, "service.name": settings.service_name}
        )

    def make(self, record: SpanRecord) -> ReadableSpan:
        """One span, which has ended. Attributes are those of OpenTelemetry's semantic conventions
        for HTTP and RPC, and our own, which begin with ``pysidecar.``."""
        request = record.request
        is_client = request.direction is Direction.OUTBOUND
        attributes = _of_all(record, is_client)
        name = (
            self._add_http(record, attributes, is_client)
            if request.protocol in _HTTP_VERSIONS
            else _add_rpc(record, attributes)
        )
        error = _error(record, is_client)
        if error is not None:
            attributes["error.type"] = error
        return ReadableSpan(
            name=name,
            context=_context(record),
            parent=_parent(record),
            resource=self._resource,
            attributes=attributes,
            kind=SpanKind.CLIENT if is_client else SpanKind.SERVER,
            instrumentation_scope=self._scope,
            status=Status(StatusCode.UNSET if error is None else StatusCode.ERROR),
            start_time=record.began_ns,
            end_time=record.began_ns + record.duration_ns,
        )

    def _add_http(self, record: SpanRecord, attributes: Attributes, is_client: bool) -> str:
        """Returns the name of the span."""
        request = record.request
        method = request.method or ""
        known = method in _METHODS
        attributes["http.request.method"] = method if known else "_OTHER"
        if not known and method:
            attributes["http.request.method_original"] = method
        if request.status is not None:
            attributes["http.response.status_code"] = request.status
        host, port = _split_authority(record.authority)
        if host:
            attributes["server.address"] = host
            attributes["server.port"] = port
        path, _, query = (request.path or "").partition("?")
        attributes["network.protocol.version"] = _HTTP_VERSIONS[request.protocol]
        attributes["url.scheme"] = "http"
        attributes["url.path"] = path
        if query and self._query:
            attributes["url.query"] = query
        if is_client and record.authority:
            full = f"{path}?{query}" if query and self._query else path
            attributes["url.full"] = f"http://{record.authority}{full}"
        return method if known else "HTTP"


def _of_all(record: SpanRecord, is_client: bool) -> Attributes:
    request = record.request
    attributes: Attributes = {"pysidecar.attempts": request.attempts}
    if request.service:
        attributes["pysidecar.service"] = request.service
    if request.flags:
        attributes["pysidecar.flags"] = [flag.name.lower() for flag in request.flags]
    peer = request.upstream if is_client else request.source
    if peer is not None:
        attributes["network.peer.address"] = peer.host
        attributes["network.peer.port"] = peer.port
    if not is_client and request.source is not None:
        attributes["client.address"] = request.source.host
    return attributes


def _add_rpc(record: SpanRecord, attributes: Attributes) -> str:
    """Returns the name of the span."""
    request = record.request
    service, method = request.path, request.method
    if request.protocol is Protocol.GRPC and service and service.startswith("/"):
        service, _, method = service[1:].rpartition("/")
    attributes["rpc.system"] = _RPC_SYSTEMS.get(request.protocol, request.protocol.name.lower())
    if service:
        attributes["rpc.service"] = service
    if method:
        attributes["rpc.method"] = method
    if request.status is not None and request.protocol is Protocol.GRPC:
        attributes["rpc.grpc.status_code"] = request.status
    elif request.status is not None:
        attributes["rpc.response.status_code"] = str(request.status)
    if request.direction is Direction.OUTBOUND and request.upstream is not None:
        attributes["server.address"] = request.upstream.host
        attributes["server.port"] = request.upstream.port
    return "/".join(part for part in (service, method) if part) or "call"


def _split_authority(authority: str | None) -> tuple[str | None, int]:
    try:
        parts = urlsplit(f"//{authority or ''}")
        return parts.hostname, parts.port or _HTTP_PORT
    except ValueError:
        return None, _HTTP_PORT


def _error(record: SpanRecord, is_client: bool) -> str | None:
    """A word of ours, or the status; None where it went well. That a client asked for what there is
    not is no error of a server."""
    request = record.request
    for flag in request.flags:
        if flag in FAILURES or flag is Flag.SERVICE_ERROR:
            return flag.name.lower()
    if request.status is None:
        return None
    if request.status_class == 5 or (is_client and request.status_class == 4):
        return str(request.status)
    return None


def _context(record: SpanRecord) -> SpanContext:
    request = record.request
    return SpanContext(
        int(request.trace_id or "0", 16),
        int(request.span_id or "0", 16),
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([record.state]) if record.state else None,
    )


def _parent(record: SpanRecord) -> SpanContext | None:
    if record.parent_id is None:
        return None
    return SpanContext(
        int(record.request.trace_id or "0", 16),
        int(record.parent_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )


class OtlpSender:
    """Sends spans to a collector, with one connection that is kept open. ``timeout`` is in seconds,
    for a batch with all that is tried again of it."""

    def __init__(self, settings: Settings, *, query: bool, timeout: float) -> None:
        # Whoever runs us hears from us once that the collector is away, and not with every batch.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._maker = SpanMaker(settings, query=query)
        make = _grpc_exporter if settings.protocol == "grpc" else _http_exporter
        self._exporter = make(settings, timeout)

    def send(self, records: Sequence[SpanRecord]) -> bool:
        """Whether the collector has taken them."""
        spans = [self._maker.make(record) for record in records]
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Gives up what is tried again. From any thread."""
        self._exporter.shutdown()


def _http_exporter(settings: Settings, timeout: float) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    has_path = urlsplit(settings.otlp).path not in ("", "/")
    return OTLPSpanExporter(
        endpoint=settings.otlp if has_path else f"{settings.otlp.rstrip('/')}/v1/traces",
        certificate_file=str(settings.ca) if settings.ca is not None else None,
        headers=dict(settings.headers),
        timeout=timeout,
    )


def _grpc_exporter(settings: Settings, timeout: float) -> SpanExporter:
    from grpc import ssl_channel_credentials
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    authorities = settings.ca.read_bytes() if settings.ca is not None else None
    insecure = settings.otlp.startswith("http:")
    return OTLPSpanExporter(
        endpoint=settings.otlp,
        insecure=insecure,
        credentials=None if insecure else ssl_channel_credentials(authorities),
        headers=dict(settings.headers),
        timeout=timeout,
    )
