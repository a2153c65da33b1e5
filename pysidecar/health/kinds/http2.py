"""HTTP/2 by prior knowledge, as much of it as a check needs, and ``http`` for services that speak
it: GET of a path.

The frames are made here, since a check is the same few bytes each time: that takes 3 µs, where the
library h2 takes 85, which would be 17% of a core with 10,000 endpoints each five seconds. Of an
answer's headers the status alone counts, and libnghttp2 finds it: services of HTTP/2 need that
library in any case, and HPACK is nothing to be written once more."""

from __future__ import annotations

import struct
from abc import abstractmethod

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.dataplane import http2_status
from pysidecar.health.kinds.conversation import MOST_BYTES, Conversation, Unserved, Verdict

__all__ = ["Http2Conversation", "Http2Get", "field", "new_field"]

_DATA, _HEADERS, _RESET, _SETTINGS = 0, 1, 3, 4
_PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_HEAD = struct.Struct(">BHBBI")  # of a frame: length in two parts, kind, flags, stream
_MOST_FRAME = 16384  # RFC 9113, 4.2: more needs our consent
_MOST_CHECKS = 1000  # on a connection, so that no stream id runs out
_LEAST_CREDIT = 16384  # of the connection, that is given back at once
_MOST_BODY = 48 << 10  # below the window of a stream, which is not given back
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


# No table for their headers, and no pushes.
_BEGIN = _PREFACE + _frame(_SETTINGS, 0, 0, struct.pack(">HIHI", 1, 0, 2, 0))


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


def field(static_index: int, value: bytes) -> bytes:
    """A header that nobody keeps, whose name is in the static table (RFC 7541, 6.2.2)."""
    return _integer(static_index, 4) + _text(value)


def new_field(name: bytes, value: bytes) -> bytes:
    """One whose name is not."""
    return b"\x00" + _text(name) + _text(value)


class Http2Conversation(Conversation):
    """The same request on one stream after the other. ``headers`` is its header block."""

    def __init__(self, headers: bytes, body: bytes | None) -> None:
        self._headers = headers
        self._request_body = body
        self._stream = -1
        self._is_open = False
        self._heard = b""
        self._block: bytes | None = None  # of headers that are not complete
        self._ends = False  # the answer, with them
        self._body_bytes = 0
        self._taken = 0
        self._reply = b""
        self._ending = False

    @abstractmethod
    def begin(self) -> None:
        """Another answer."""

    @abstractmethod
    def take_head(self, block: bytes) -> None:
        """A whole header block of it: interim answers, its own, its trailers."""

    @abstractmethod
    def take_body(self, data: bytes) -> None:
        """A piece of its body."""

    @abstractmethod
    def judge(self) -> str | None:
        """The problem, of the whole answer."""

    @override
    def ask(self) -> bytes:
        begins = self._stream < 0
        self._stream += 2
        self._is_open = True
        self._body_bytes = 0
        self.begin()
        body = self._request_body
        flags = _END_HEADERS | (_END_STREAM if body is None else 0)
        asked = _frame(_HEADERS, flags, self._stream, self._headers)
        if body is not None:
            asked += _frame(_DATA, _END_STREAM, self._stream, body)
        return _BEGIN + asked if begins else asked

    @override
    def hear(self, data: bytes) -> Verdict | None:
        heard = self._heard + data
        verdict = None
        at = 0
        while len(heard) - at >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(heard, at)
            size = high << 16 | low
            if size > _MOST_FRAME:
                raise ValueError("its answer is not HTTP/2")
            end = at + _HEAD.size + size
            if len(heard) < end:
                break
            payload = heard[at + _HEAD.size : end]
            at = end
            verdict = self._frame_came(kind, flags, stream, payload) or verdict
        self._heard = heard[at:]
        if len(self._reply) > MOST_BYTES:
            raise ValueError("it asks for too much")
        if self._ending and not self._is_open:
            return Verdict(verdict.problem if verdict else None, keep=False)
        return verdict

    @override
    def take_reply(self) -> bytes:
        reply, self._reply = self._reply, b""
        return reply

    def _frame_came(self, kind: int, flags: int, stream: int, payload: bytes) -> Verdict | None:
        if self._block is not None and kind != _CONTINUATION:
            raise ValueError("its answer is not HTTP/2")
        if kind == _DATA:
            return self._data_came(flags, stream, payload)
        if kind in (_HEADERS, _CONTINUATION):
            return self._headers_came(kind, flags, stream, payload)
        if kind == _SETTINGS and not flags & _ACK:
            self._reply += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._reply += _frame(_PING, _ACK, 0, payload)
        elif kind == _GOAWAY:
            self._go_away(payload)
        elif kind == _RESET and stream == self._stream and self._is_open:
            self._is_open = False
            return Verdict(f"it reset the stream: {int.from_bytes(payload, 'big')}", keep=False)
        return None

    def _go_away(self, payload: bytes) -> None:
        self._ending = True
        if self._is_open and int.from_bytes(payload[:4], "big") < self._stream:
            raise Unserved

    def _headers_came(self, kind: int, flags: int, stream: int, payload: bytes) -> Verdict | None:
        if kind == _HEADERS:
            payload = _unpad(payload) if flags & _PADDED else payload
            self._block = payload[5:] if flags & _PRIORITY else payload
            self._ends = bool(flags & _END_STREAM)
        elif self._block is None:
            raise ValueError("its answer is not HTTP/2")
        else:
            self._block += payload
        if len(self._block) > MOST_BYTES:
            raise ValueError("the head of its answer is too long")
        if not flags & _END_HEADERS:
            return None
        block, self._block = self._block, None
        if stream != self._stream or not self._is_open:
            return None
        self.take_head(block)
        return self._end() if self._ends else None

    def _data_came(self, flags: int, stream: int, payload: bytes) -> Verdict | None:
        self._taken += len(payload)
        if self._taken >= _LEAST_CREDIT:
            self._reply += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken))
            self._taken = 0
        if stream != self._stream or not self._is_open:
            return None
        self.take_body(_unpad(payload) if flags & _PADDED else payload)
        self._body_bytes += len(payload)
        if flags & _END_STREAM:
            return self._end()
        if self._body_bytes > _MOST_BODY:
            return self._end()._replace(keep=False)  # nobody reads the rest
        return None

    def _end(self) -> Verdict:
        self._is_open = False
        keep = not self._ending and self._stream < 2 * _MOST_CHECKS
        return Verdict(self.judge(), keep)


def _unpad(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ValueError("its answer is not HTTP/2")
    return payload[1 : len(payload) - payload[0]]


class Http2Get(Http2Conversation):
    """GET of a path, to be answered with 200 to 299."""

    def __init__(self, settings: HealthCheck, address: Address) -> None:
        assert settings.path is not None
        headers = (
            b"\x82\x86",  # :method GET, :scheme http
            field(4, settings.path.encode()),
            field(1, (settings.host or str(address)).encode()),
            field(58, b"pysidecar-health-check"),
            field(19, b"*/*"),
        )
        super().__init__(b"".join(headers), None)
        self._status: int | None = None

    @override
    def begin(self) -> None:
        self._status = None

    @override
    def take_head(self, block: bytes) -> None:
        if self._status is not None:
            return  # trailers
        status = http2_status(block)
        if status is None:
            raise ValueError("the head of its answer has no status")
        if status >= 200:
            self._status = status

    @override
    def take_body(self, data: bytes) -> None:
        if self._status is None:
            raise ValueError("its answer has a body before its head")

    @override
    def judge(self) -> str | None:
        if self._status is None:
            return "its answer is interim only"
        return None if self._status <= 299 else f"its answer is {self._status}"
