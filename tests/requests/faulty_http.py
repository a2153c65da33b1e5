"""An HTTP/1.1 server of faults: the path says which."""

from __future__ import annotations

import fcntl
import socket
import termios
from collections.abc import Callable

from tests.requests.upstreams import reset
from tests.waiting import eventually

__all__ = ["FAULTS", "TRAP", "serve"]

TRAP = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nTRAP"
"""An answer that nobody asked for: no client may ever see it."""

_TCP_CLOSE = 7  # include/net/tcp_states.h
_SILENCE = 30.0  # longer than anybody waits

Fault = Callable[[socket.socket], None]


def _answer(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"\r\n".join((b"HTTP/1.1 " + status, *fields))
    return head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _says(data: bytes) -> Fault:
    """Sends that and goes on with the next request."""
    return lambda connection: connection.sendall(data)


def _says_and_closes(data: bytes) -> Fault:
    def fault(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    return fault


def _says_and_resets(data: bytes) -> Fault:
    def fault(connection: socket.socket) -> None:
        connection.sendall(data)
        eventually(lambda: _has_arrived(connection), "all of it arrives before the reset")
        reset(connection)

    return fault


def _has_arrived(connection: socket.socket) -> bool:
    """Whether all that was sent has, or never will."""
    waiting = bytearray(4)
    fcntl.ioctl(connection, termios.TIOCOUTQ, waiting)
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return not any(waiting) or state == _TCP_CLOSE


def _is_silent(data: bytes = b"") -> Fault:
    def fault(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.settimeout(_SILENCE)
        while connection.recv(65536):
            pass
        connection.close()

    return fault


_OK = b"HTTP/1.1 200 OK\r\n"
_HALF = _OK + b"Content-Length: 1000\r\n\r\n" + bytes(500)
_HALF_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"

FAULTS: dict[str, Fault] = {
    "fine": _says(_answer(b"fine")),
    # Before an answer.
    "closes": lambda connection: connection.close(),
    "resets": _says_and_resets(b""),
    "silent": _is_silent(),
    # In its head.
    "closes-in-head": _says_and_closes(_OK + b"Content-Le"),
    "resets-in-head": _says_and_resets(_OK + b"Content-Le"),
    "garbage": _says(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "two-lengths": _says(
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 40\r\n\r\nTRAP" + TRAP
    ),
    "both-lengths": _says(
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + TRAP
    ),
    "obs-fold": _says(b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n"),
    "endless-head": _says(_OK + b"X-Padding: " + bytes(1 << 20).hex().encode()),
    # In its body.
    "closes-in-body": _says_and_closes(_HALF),
    "resets-in-body": _says_and_resets(_HALF),
    "closes-in-chunks": _says_and_closes(_HALF_CHUNKED),
    "resets-in-chunks": _says_and_resets(_HALF_CHUNKED),
    "bad-chunk": _says(_HALF_CHUNKED + b"xyz\r\n" + TRAP),
    "silent-in-body": _is_silent(_HALF),
    # Behind it.
    "too-much": _says(_answer(b"fine") + TRAP),
    "body-of-204": _says(b"HTTP/1.1 204 No Content\r\n\r\n" + TRAP),
    "body-of-304": _says(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n" + TRAP),
    "twice": _says(_answer(b"fine") * 2),
}


def _body_size(head: bytes) -> int | None:
    """None: chunked."""
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            return int(value)
    return 0


class _Requests:
    """What comes over a connection, one request after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    def _until(self, what: bytes) -> bytes:
        while what not in self._buffer:
            if not (data := self._connection.recv(65536)):
                return b""
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(what)
        return found + what

    def head(self) -> bytes:
        """Empty at the end."""
        return self._until(b"\r\n\r\n")

    def skip(self, head: bytes) -> None:
        """The body."""
        size = _body_size(head)
        if size is None:
            self._until(b"0\r\n\r\n")
            return
        while len(self._buffer) < size:
            if not (data := self._connection.recv(65536)):
                return
            self._buffer += data
        self._buffer = self._buffer[size:]


def serve(connection: socket.socket) -> None:
    requests = _Requests(connection)
    while head := requests.head():
        name = head.split(b" ", 2)[1].decode().strip("/")
        requests.skip(head)
        FAULTS[name](connection)
