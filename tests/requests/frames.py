"""Bolt v1 and Dubbo as bytes: as little of them as a client and a server of faults need."""

from __future__ import annotations

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass

__all__ = ["BOLT", "DUBBO", "Answer", "Request", "Wire"]


@dataclass(frozen=True, slots=True)
class Request:
    id: int
    method: str
    content: bytes
    heartbeat: bool = False
    oneway: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    id: int
    status: int
    content: bytes
    heartbeat: bool = False


Reading = Generator[int, bytes, Request | Answer]
"""Yields how many bytes it wants, and is sent them."""


class Wire(ABC):
    name: str
    good: int
    """Statuses: the service's answer, ..."""
    timeout: int
    unreachable: frozenset[int]
    malformed: int
    refused: int

    @abstractmethod
    def request(self, request: Request, timeout_ms: int = 10_000) -> bytes: ...

    @abstractmethod
    def answer(self, answer: Answer) -> bytes: ...

    @abstractmethod
    def huge(self, id_: int) -> bytes:
        """The head of an answer that announces gigabytes."""

    @abstractmethod
    def _reading(self) -> Reading: ...

    def read(self, connection: socket.socket) -> Request | Answer:
        """Raises ConnectionError at the end."""
        reading = self._reading()
        size = next(reading)
        while True:
            try:
                size = reading.send(_exactly(connection, size))
            except StopIteration as end:
                return _read(end)

    async def read_from(self, reader: asyncio.StreamReader) -> Request | Answer:
        """Raises asyncio.IncompleteReadError at the end."""
        reading = self._reading()
        size = next(reading)
        while True:
            try:
                size = reading.send(await reader.readexactly(size))
            except StopIteration as end:
                return _read(end)


def _read(end: StopIteration) -> Request | Answer:
    assert isinstance(end.value, Request | Answer)
    return end.value


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            raise ConnectionError("ended")
        data += more
    return data


class _Bolt(Wire):
    name = "bolt"
    good = 0
    timeout = 7
    unreachable = frozenset({0x10})
    malformed = 9
    refused = 6
    # proto, type, command, version, id, codec, timeout; lengths of class, header and content.
    _request = struct.Struct(">BBHBIBiHHI")
    # The same with a status.
    _answer = struct.Struct(">BBHBIBHHHI")
    _class = b"java.lang.String"

    def request(self, request: Request, timeout_ms: int = 10_000) -> bytes:
        if request.heartbeat:
            return self._request.pack(1, 1, 0, 1, request.id, 1, timeout_ms, 0, 0, 0)
        headers = b"".join(
            struct.pack(">i", len(text)) + text
            for text in (b"service", b"any", b"sofa_head_method_name", request.method.encode())
        )
        lengths = (len(self._class), len(headers), len(request.content))
        head = self._request.pack(
            1, 2 if request.oneway else 1, 1, 1, request.id, 1, timeout_ms, *lengths
        )
        return head + self._class + headers + request.content

    def answer(self, answer: Answer) -> bytes:
        if answer.heartbeat:
            return self._answer.pack(1, 0, 0, 1, answer.id, 1, 0, 0, 0, 0)
        lengths = (len(self._class), 0, len(answer.content))
        head = self._answer.pack(1, 0, 2, 1, answer.id, 1, answer.status, *lengths)
        return head + self._class + answer.content

    def huge(self, id_: int) -> bytes:
        return self._answer.pack(1, 0, 2, 1, id_, 1, 0, 0, 0, 0xFFFF_FFF0)

    def _reading(self) -> Reading:
        start = yield 2
        if start[1] == 0:
            rest = yield self._answer.size - 2
            _, _, command, _, id_, _, status, *lengths = self._answer.unpack(start + rest)
            content = (yield sum(lengths))[lengths[0] + lengths[1] :]
            return Answer(id_, status, content, heartbeat=command == 0)
        rest = yield self._request.size - 2
        _, kind, command, _, id_, _, _, *lengths = self._request.unpack(start + rest)
        body = yield sum(lengths)
        headers, content = body[lengths[0] : -lengths[2] or None], body[lengths[0] + lengths[1] :]
        method = self._texts(headers).get("sofa_head_method_name", "") if command else ""
        return Request(id_, method, content, heartbeat=command == 0, oneway=kind == 2)

    def _texts(self, headers: bytes) -> dict[str, str]:
        texts = []
        while headers:
            (size,) = struct.unpack(">i", headers[:4])
            texts.append(headers[4 : 4 + size].decode())
            headers = headers[4 + size :]
        return dict(zip(texts[::2], texts[1::2], strict=True))


class _Dubbo(Wire):
    name = "dubbo"
    good = 20
    timeout = 31
    unreachable = frozenset({35, 40, 50, 60, 70, 80, 90, 100})
    malformed = 50
    refused = 40
    _head = struct.Struct(">HBBQI")  # magic, flags, status, id, size

    def request(self, request: Request, timeout_ms: int = 10_000) -> bytes:
        if request.heartbeat:
            return self._head.pack(0xDABB, 0xE2, 0, request.id, 1) + b"N"
        fields = ("2.0.2", "any", "1.0", request.method, "Ljava/lang/String;")
        body = b"".join(map(self._text, fields)) + self._text(request.content.decode())
        body += b"H" + self._text("path") + self._text("any")
        body += self._text("timeout") + self._text(str(timeout_ms)) + b"Z"
        flags = 0x82 if request.oneway else 0xC2
        return self._head.pack(0xDABB, flags, 0, request.id, len(body)) + body

    def answer(self, answer: Answer) -> bytes:
        if answer.heartbeat:
            return self._head.pack(0xDABB, 0x22, 20, answer.id, 1) + b"N"
        body = b"\x94" + self._text(answer.content.decode()) + b"HZ"
        return self._head.pack(0xDABB, 0x02, answer.status, answer.id, len(body)) + body

    def huge(self, id_: int) -> bytes:
        return self._head.pack(0xDABB, 0x02, 20, id_, 0xFFFF_FFF0)

    def _reading(self) -> Reading:
        head = yield self._head.size
        _, flags, status, id_, size = self._head.unpack(head)
        body = yield size
        heartbeat = bool(flags & 0x20)
        if flags & 0x80:
            if heartbeat:
                return Request(id_, "", b"", heartbeat=True)
            texts = self._texts(body, 6)
            return Request(id_, texts[3], texts[5].encode(), oneway=not flags & 0x40)
        if heartbeat or status != self.good:
            return Answer(id_, status, b"", heartbeat)
        return Answer(id_, status, self._texts(body[1:], 1)[0].encode())

    def _text(self, text: str) -> bytes:
        """In ASCII."""
        data = text.encode("ascii")
        if len(data) < 32:
            return bytes([len(data)]) + data
        chunks = b""
        while len(data) > 0xFFFF:  # that are not the last
            chunks += b"R\xff\xff" + data[:0xFFFF]
            data = data[0xFFFF:]
        return chunks + b"S" + struct.pack(">H", len(data)) + data

    def _texts(self, body: bytes, count: int) -> list[str]:
        texts = []
        for _ in range(count):
            text = b""
            while body[:1] == b"R":
                text += body[3 : 3 + 0xFFFF]
                body = body[3 + 0xFFFF :]
            if body[0] < 32:
                size, body = body[0], body[1:]
            else:
                assert body[:1] == b"S", body[:1]
                size, body = int.from_bytes(body[1:3], "big"), body[3:]
            texts.append((text + body[:size]).decode("ascii"))
            body = body[size:]
        return texts


BOLT: Wire = _Bolt()
DUBBO: Wire = _Dubbo()
