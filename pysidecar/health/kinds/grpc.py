"""``grpc``: ``grpc.health.v1.Health/Check``, to be answered with ``SERVING``. What counts of an
answer is the message in its body: no header has to be read."""

from __future__ import annotations

import struct

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.health.kinds.http2 import Http2Conversation, field, new_field

__all__ = ["GrpcHealth"]

_PATH = b"/grpc.health.v1.Health/Check"
_SERVING = 1
_STATUSES = {0: "UNKNOWN", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


def _headers(authority: bytes) -> bytes:
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            field(4, _PATH),
            field(1, authority),
            field(31, b"application/grpc"),
            new_field(b"te", b"trailers"),
        )
    )


def _message(service: bytes) -> bytes:
    """``HealthCheckRequest``, with gRPC's prefix."""
    body = b"\x0a" + _varint(len(service)) + service if service else b""
    return b"\0" + struct.pack(">I", len(body)) + body


def _varint(value: int) -> bytes:
    return bytes((value,)) if value < 128 else bytes((value & 127 | 128, value >> 7))


class GrpcHealth(Http2Conversation):
    """One stream after the other."""

    def __init__(self, settings: HealthCheck, address: Address) -> None:
        super().__init__(
            _headers((settings.host or str(address)).encode()),
            _message((settings.service or "").encode()),
        )
        self._body = b""

    @override
    def begin(self) -> None:
        self._body = b""

    @override
    def take_head(self, block: bytes) -> None:
        pass

    @override
    def take_body(self, data: bytes) -> None:
        self._body += data

    @override
    def judge(self) -> str | None:
        if len(self._body) < 5:
            return "its answer has no health status"
        status = 0
        body = self._body[5:]
        if len(body) >= 2 and body[0] == 0x08:
            status = body[1]
        if status == _SERVING:
            return None
        return f"its health status is {_STATUSES.get(status, status)}"
