"""Bolt v1 and Dubbo as bytes: as little of them as a client and a server of faults need."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BOLT", "DUBBO", "Answer", "Request", "Wire"]


@dataclass(frozen=True, slots=True)
class Request:
    id: int
    method: str
    content: bytes
    heartbeat: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    id: int
    status: int
    content: bytes
    heartbeat: bool = False


class Wire(Protocol):
    name: str
    good: int
    """Statuses: the service's answer, ..."""
    timeout: int
    unreachable: frozenset[int]
    malformed: int
    refused: int

    def request(self, request: Request, timeout_ms: int = 10_000) -> bytes: ...

    def answer(self, answer: Answer) -> bytes: ...

    def read(self, connection: socket.socket) -> Request | Answer:
        """Raises ConnectionError at the end."""

    def huge(self, id_: int) -> bytes:
        """The head of an answer that announces gigabytes."""


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            raise ConnectionError("ended")
        data += more
    return data


class _Bolt:
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
        head = self._request.pack(1, 1, 1, 1, request.id, 1, timeout_ms, *lengths)
        return head + self._class + headers + request.content

    def answer(self, answer: Answer) -> bytes:
        if answer.heartbeat:
            return self._answer.pack(1, 0, 0, 1, answer.id, 1, 0, 0, 0, 0)
        lengths = (len(self._class), 0, len(answer.content))
        head = self._answer.pack(1, 0, 2, 1, answer.id, 1, answer.status, *lengths)
        return head + self._class + answer.content

    def huge(self, id_: int) -> bytes:
        return self._answer.pack(1, 0, 2, 1, id_, 1, 0, 0, 0, 0xFFFF_FFF0)

    def read(self, connection: socket.socket) -> Request | Answer:
        start = _exactly(connection, 2)
        if start[1] == 0:
            rest = _exactly(connection, self._answer.size - 2)
            _, _, command, _, id_, _, status, *lengths = self._answer.unpack(start + rest)
            content = _exactly(connection, sum(lengths))[lengths[0] + lengths[1] :]
            return Answer(id_, status, content, heartbeat=command == 0)
        rest = _exactly(connection, self._request.size - 2)
        _, _, command, _, id_, _, _, *lengths = self._request.unpack(start + rest)
        body = _exactly(connection, sum(lengths))
        headers, content = body[lengths[0] : -lengths[2] or None], body[lengths[0] + lengths[1] :]
        method = self._texts(headers).get("sofa_head_method_name", "") if command else ""
        return Request(id_, method, content, heartbeat=command == 0)

    def _texts(self, headers: bytes) -> dict[str, str]:
        texts = []
        while headers:
            (size,) = struct.unpack(">i", headers[:4])
            texts.append(headers[4 : 4 + size].decode())
            headers = headers[4 + size :]
        return dict(zip(texts[::2], texts[1::2], strict=True))


class _Dubbo:
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
        return self._head.pack(0xDABB, 0xC2, 0, request.id, len(body)) + body

    def answer(self, answer: Answer) -> bytes:
        if answer.heartbeat:
            return self._head.pack(0xDABB, 0x22, 20, answer.id, 1) + b"N"
        body = b"\x94" + self._text(answer.content.decode()) + b"HZ"
        return self._head.pack(0xDABB, 0x02, answer.status, answer.id, len(body)) + body

    def huge(self, id_: int) -> bytes:
        return self._head.pack(0xDABB, 0x02, 20, id_, 0xFFFF_FFF0)

    def read(self, connection: socket.socket) -> Request | Answer:
        head = _exactly(connection, self._head.size)
        _, flags, status, id_, size = self._head.unpack(head)
        body = _exactly(connection, size)
        heartbeat = bool(flags & 0x20)
        if flags & 0x80:
            if heartbeat:
                return Request(id_, "", b"", heartbeat=True)
            texts = self._texts(body, 6)
            return Request(id_, texts[3], texts[5].encode())
        if heartbeat or status != self.good:
            return Answer(id_, status, b"", heartbeat)
        return Answer(id_, status, self._texts(body[1:], 1)[0].encode())

    def _text(self, text: str) -> bytes:
        """In ASCII, of fewer than 1,024 characters."""
        size = bytes([len(text)]) if len(text) < 32 else struct.pack(">H", 0x3000 + len(text))
        return size + text.encode("ascii")

    def _texts(self, body: bytes, count: int) -> list[str]:
        texts = []
        for _ in range(count):
            if body[0] < 32:
                size, body = body[0], body[1:]
            else:
                size, body = int.from_bytes(body[:2], "big") - 0x3000, body[2:]
            texts.append(body[:size].decode("ascii"))
            body = body[size:]
        return texts


BOLT: Wire = _Bolt()
DUBBO: Wire = _Dubbo()
