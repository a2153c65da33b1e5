"""``grpc``: ``grpc.health.v1.Health/Check``, to be answered with ``SERVING``.

The frames of HTTP/2 are made here. A check is the same few bytes each time, and what counts of its
answer is the message in its DATA frames: no header has to be read, so there is no HPACK, and no
dependency on a library that would take many times as long for each check."""

from __future__ import annotations

import struct

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.health.kinds.conversation import MOST_BYTES, Conversation, Verdict

__all__ = ["GrpcHealth"]

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_HEAD = 9  # bytes of a frame's
_MOST_FRAME = 16384  # RFC 9113, 4.2: more needs our consent
_MOST_CHECKS = 1000  # on a connection, so that no stream id and no window runs out

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_PATH = b"/grpc.health.v1.Health/Check"
_SERVING = 1
_STATUSES = {0: "UNKNOWN", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """RFC 7541, 5.1."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes((first | value,))
    encoded = bytearray((first | most,))
    value -= most
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _text(text: bytes) -> bytes:
    return _integer(len(text), 7) + text


def _field(static_index: int, value: bytes) -> bytes:
    """A header that nobody keeps, whose name is in the static table (RFC 7541, 6.2.2)."""
    return _integer(static_index, 4) + _text(value)


def _headers(authority: bytes) -> bytes:
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            _field(4, _PATH),
            _field(1, authority),
            _field(31, b"application/grpc"),
            b"\x00" + _text(b"te") + _text(b"trailers"),
        )
    )


def _message(service: bytes) -> bytes:
    """``HealthCheckRequest``, with gRPC's prefix."""
    body = b"\x0a" + _varint(len(service)) + service if service else b""
    return b"\0" + struct.pack(">I", len(body)) + body


def _varint(value: int) -> bytes:
    return bytes((value,)) if value < 128 else bytes((value & 127 | 128, value >> 7))


class GrpcHealth(Conversation):
    """One stream after the other."""

    def __init__(self, settings: HealthCheck, address: Address) -> None:
        self._headers = _headers((settings.host or str(address)).encode())
        self._message = _message((settings.service or "").encode())
        self._stream = -1
        self._heard = b""
        self._body = b""
        self._taken = 0
        self._reply = b""
        self._ending = False

    @override
    def ask(self) -> bytes:
        begins = self._stream < 0
        self._stream += 2
        self._body = b""
        # No table for their headers, and no pushes.
        settings = struct.pack(">HIHI", 1, 0, 2, 0)
        return b"".join(
            (
                _PREFACE + _frame(_SETTINGS, 0, 0, settings) if begins else b"",
                _frame(_HEADERS, _END_HEADERS, self._stream, self._headers),
                _frame(_DATA, _END_STREAM, self._stream, self._message),
            )
        )

    @override
    def hear(self, data: bytes) -> Verdict | None:
        self._heard += data
        verdict = None
        at = 0
        while len(self._heard) - at >= _HEAD:
            size = int.from_bytes(self._heard[at : at + 3], "big")
            kind, flags, stream = struct.unpack_from(">BBI", self._heard, at + 3)
            if size > _MOST_FRAME:
                raise ValueError("its answer is not HTTP/2")
            if len(self._heard) - at < _HEAD + size:
                break
            payload = self._heard[at + _HEAD : at + _HEAD + size]
            at += _HEAD + size
            verdict = self._frame_came(kind, flags, stream, payload) or verdict
        self._heard = self._heard[at:]
        if len(self._reply) > MOST_BYTES:
            raise ValueError("it asks for too much")
        return verdict

    def _frame_came(self, kind: int, flags: int, stream: int, payload: bytes) -> Verdict | None:
        if kind == _SETTINGS and not flags & _ACK:
            self._reply += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._reply += _frame(_PING, _ACK, 0, payload)
        elif kind == _GOAWAY:
            self._ending = True
        elif kind == _RESET and stream == self._stream:
            return Verdict(f"it reset the stream: {int.from_bytes(payload, 'big')}", keep=False)
        elif kind == _DATA:
            self._take(payload, padded=bool(flags & _PADDED))
        if kind in (_DATA, _HEADERS) and stream == self._stream and flags & _END_STREAM:
            return self._judge()
        return None

    def _take(self, payload: bytes, *, padded: bool) -> None:
        self._body += payload[1 : len(payload) - payload[0]] if padded and payload else payload
        if len(self._body) > MOST_BYTES:
            raise ValueError("its answer is too long")
        self._taken += len(payload)
        if self._taken >= 16384:
            self._reply += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken))
            self._taken = 0

    def _judge(self) -> Verdict:
        keep = not self._ending and self._stream < 2 * _MOST_CHECKS
        if len(self._body) < 5:
            return Verdict("its answer has no health status", keep)
        status = 0
        body = self._body[5:]
        if len(body) >= 2 and body[0] == 0x08:
            status = body[1]
        if status == _SERVING:
            return Verdict(None, keep)
        return Verdict(f"its health status is {_STATUSES.get(status, status)}", keep)

    @override
    def take_reply(self) -> bytes:
        reply, self._reply = self._reply, b""
        return reply
