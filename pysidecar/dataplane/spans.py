"""Spans: what is known of requests that were sampled."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any, NamedTuple

from pysidecar.dataplane._native import ffi, lib
from pysidecar.dataplane.requests import RequestRecord, decode_request, unpack_request

__all__ = ["TRACE_FORMS", "SpanRecord", "native_tracing", "read_spans"]

TRACE_FORMS = {
    "w3c": int(lib.DP_TRACE_W3C),
    "b3": int(lib.DP_TRACE_B3),
    "b3multi": int(lib.DP_TRACE_B3_MULTI),
    "sofa": int(lib.DP_TRACE_SOFA),
}
"""How a request says to which trace it belongs."""

_FIELDS = dict(ffi.typeof("struct dp_span").fields)
_SIZE = ffi.sizeof("struct dp_span")
_REQUEST_SIZE = ffi.sizeof("struct dp_request")
_TAIL = struct.Struct(
    f"={lib.DP_SPAN_ID_BYTES}s{lib.DP_AUTHORITY_BYTES}s{lib.DP_TRACE_STATE_BYTES}s"
)
assert _FIELDS["parent_id"].offset == _REQUEST_SIZE
assert _REQUEST_SIZE + _TAIL.size == _SIZE


class SpanRecord(NamedTuple):
    """A request that was sampled, and its place in its trace. ``began_ns`` is since 1970.
    ``parent_id`` is in hexadecimal digits, None where none is known; ``authority`` is HTTP's host
    with its port, ``state`` W3C's ``tracestate``."""

    request: RequestRecord
    began_ns: int
    duration_ns: int
    parent_id: str | None
    authority: str | None
    state: str | None


def read_spans(spans: Any, count: int) -> list[SpanRecord]:
    """From an array of ``struct dp_span``."""
    data = ffi.buffer(spans, count * _SIZE)
    return [_read_span(data, start) for start in range(0, count * _SIZE, _SIZE)]


def _read_span(data: Any, start: int) -> SpanRecord:
    raw = unpack_request(data, start)
    parent, authority, state = _TAIL.unpack_from(data, start + _REQUEST_SIZE)
    return SpanRecord(
        request=decode_request(raw),
        began_ns=raw.began_ns,
        duration_ns=raw.duration_ns,
        parent_id=parent.hex() if any(parent) else None,
        authority=_text(authority),
        state=_text(state),
    )


def _text(padded: bytes) -> str | None:
    return padded.partition(b"\0")[0].decode("ascii", "backslashreplace") or None


def native_tracing(forms: list[str], sample: Fraction) -> Any:
    """A ``struct dp_tracing``; without forms nothing is traced. The bound is that of
    OpenTelemetry's ``TraceIdRatioBased``."""
    numbers = [TRACE_FORMS[form] for form in forms]
    bound = round(sample * (1 << 64))
    return ffi.new(
        "struct dp_tracing *",
        {
            "forms": numbers + [0] * (int(lib.DP_TRACE_FORMS) - len(numbers)),
            "all": int(bound >= 1 << 64),
            "bound": min(bound, (1 << 64) - 1),
        },
    )
