"""As much of HTTP/1.1 as the admin interface needs: requests without a body, answered one after the
other on connections that are limited in number, in time and in what they may send."""

from __future__ import annotations

import asyncio
import errno
import http
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from pysidecar.admin.peer import Peer, peer_of
from pysidecar.dataplane import lib

__all__ = ["HttpServer", "Request", "RequestError", "Response", "parse_request"]

log = logging.getLogger(__name__)

MOST_CONNECTIONS: Final[int] = lib.DP_ADMIN_CONNECTIONS
"""At a time; the data plane leaves as many file descriptors for them."""
MOST_OF_A_PEER: Final = MOST_CONNECTIONS // 4
"""Of one user of this host, or of one other host."""
MOST_BYTES: Final = 16384
"""Of a request's line and headers."""

HEAD_TIMEOUT = 5.0  # seconds for a request to be complete, from the connect or its first byte
IDLE_TIMEOUT = 60.0  # between two requests
ANSWER_TIMEOUT = 30.0  # for the client to take the answer

_ACCEPT_BATCH = 16  # connections that are accepted before others get their turn
_ACCEPT_PAUSE = 0.1  # seconds, when there are no file descriptors
_COMPLAINT_PAUSE = 10.0  # seconds from one line in the log to the next

_END = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]+) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0-\x08\x0a-\x1f\x7f]*?)[ \t]*")


class RequestError(Exception):
    """Why a request is not answered with what it asked for."""

    def __init__(self, status: http.HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has no body. ``query`` has the last value of each name."""

    method: str
    path: str
    query: Mapping[str, str]
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Response:
    """Sent with its length; HEAD gets the headers only."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: http.HTTPStatus = http.HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self, *, keep_alive: bool, body: bool = True) -> bytes:
        """As it is sent."""
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "X-Content-Type-Options: nosniff",
            f"Connection: {'keep-alive' if keep_alive else 'close'}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        head = "".join(f"{line}\r\n" for line in lines) + "\r\n"
        return head.encode("latin-1") + (self.body if body else b"")


def parse_request(head: bytes) -> Request:
    """Reads a request's line and headers, without the empty line. Raises RequestError."""
    first, *lines = re.split(rb"\r?\n", head)
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise _bad("expected a request line such as GET / HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise _bad("expected headers such as Host: localhost")
        name = header[1].decode().lower()
        if name == "host" and name in headers:
            raise _bad("expected one Host header")
        headers[name] = header[2].decode("latin-1")
    method, target, minor = match[1].decode(), match[2].decode(), match[3]
    if method not in ("GET", "HEAD"):
        raise RequestError(http.HTTPStatus.METHOD_NOT_ALLOWED, "expected GET or HEAD")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise _bad("expected no body")
    if minor == b"1" and "host" not in headers:
        raise _bad("expected a Host header")
    try:
        own = target.startswith("/")
        url = urlsplit(f"http://{headers.get('host', '')}{target}" if own else target)
        host = url.hostname
    except ValueError:
        raise _bad("expected a path and a Host that are well-formed") from None
    if not url.path.startswith("/") or url.scheme != "http":
        raise _bad("expected a path")
    _check_host(host)
    connection = headers.get("connection", "").lower()
    return Request(
        method,
        url.path,
        dict(parse_qsl(url.query, keep_blank_values=True)),
        keep_alive=connection == "keep-alive" if minor == b"0" else connection != "close",
    )


def _bad(text: str) -> RequestError:
    return RequestError(http.HTTPStatus.BAD_REQUEST, text)


def _check_host(host: str | None) -> None:
    """A name that is not ours is a web page that got our address under its own name (DNS
    rebinding): it must not read along."""
    if host is None or host == "localhost":
        return
    try:
        ip_address(host)
    except ValueError:
        raise RequestError(
            http.HTTPStatus.FORBIDDEN, "expected an IP address or localhost as Host"
        ) from None


@dataclass(eq=False, slots=True)
class _Connection:
    socket: socket.socket
    peer: Peer
    idle: bool = True  # waits for the first byte of a request
    task: asyncio.Task[None] | None = None


class _Complaints:
    """Lines in the log about what strangers do: few, however much they do."""

    def __init__(self) -> None:
        self._next = 0.0
        self._silent = 0

    def add(self, text: str, peer: Peer) -> None:
        now = time.monotonic()
        if now < self._next:
            self._silent += 1
            return
        more = f"; {self._silent} more since the last such line" if self._silent else ""
        log.warning("admin: %s (%s)%s", text, peer, more)
        self._silent = 0
        self._next = now + _COMPLAINT_PAUSE


class HttpServer:
    """Answers requests on a listener that the caller opened.

    A peer (a user of this host, or another host) that has as many connections as it may have loses
    the one that is idle for longest for a new one, and so do all together; where none is idle, the
    new one is refused.
    """

    def __init__(
        self, listener: socket.socket, handle: Callable[[Request], Awaitable[Response]]
    ) -> None:
        self.refused = 0
        self.bad_requests = 0
        self._listener = listener
        self._handle = handle
        self._connections: dict[_Connection, None] = {}  # in the order of their last request
        self._complaints = _Complaints()

    @property
    def connections(self) -> int:
        """That are open."""
        return len(self._connections)

    def start(self) -> None:
        """Answers from here on."""
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def stop(self) -> None:
        """Ends at once, also when a client is slow."""
        asyncio.get_running_loop().remove_reader(self._listener)
        tasks = [connection.task for connection in self._connections if connection.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                accepted, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause_accepting()
                    return
                continue  # the client is gone already
            self._welcome(accepted)

    def _pause_accepting(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(_ACCEPT_PAUSE, self._go_on_accepting)

    def _go_on_accepting(self) -> None:
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _welcome(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        peer = peer_of(accepted)
        of_peer = [each for each in self._connections if each.peer == peer]
        if len(of_peer) >= MOST_OF_A_PEER:
            welcome = self._make_room(of_peer)
        elif len(self._connections) >= MOST_CONNECTIONS:
            welcome = self._make_room(list(self._connections))
        else:
            welcome = True
        if not welcome:
            self.refused += 1
            self._complaints.add("too many connections at a time, one is refused", peer)
            accepted.close()
            return
        connection = _Connection(accepted, peer)
        self._connections[connection] = None
        connection.task = asyncio.get_running_loop().create_task(self._serve(connection))

    def _make_room(self, among: list[_Connection]) -> bool:
        for connection in among:
            if connection.idle:
                self._forget(connection)
                return True
        return False

    def _forget(self, connection: _Connection) -> None:
        """Closes it, in this very moment."""
        if connection in self._connections:
            del self._connections[connection]
            if connection.task is not None and connection.task is not asyncio.current_task():
                connection.task.cancel()
            # Before the number is another connection's.
            asyncio.get_running_loop().remove_reader(connection.socket)
            connection.socket.close()

    async def _serve(self, connection: _Connection) -> None:
        try:
            await self._converse(connection)
        except (OSError, TimeoutError, EOFError):
            pass  # the client went away, or was too slow
        finally:
            self._forget(connection)

    async def _converse(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        received = b""
        keep_alive = True
        deadline = loop.time() + HEAD_TIMEOUT
        while keep_alive:
            head, received = await self._read_head(connection, received, deadline)
            answer, keep_alive = await self._answer(head, connection.peer)
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await loop.sock_sendall(connection.socket, answer)
            del answer
            self._connections[connection] = self._connections.pop(connection)
            deadline = loop.time() + IDLE_TIMEOUT

    async def _read_head(
        self, connection: _Connection, received: bytes, deadline: float
    ) -> tuple[bytes, bytes]:
        """A request's line and headers, and what follows them. Raises TimeoutError or EOFError."""
        loop = asyncio.get_running_loop()
        if received:
            deadline = loop.time() + HEAD_TIMEOUT
        while True:
            if end := _END.search(received):
                connection.idle = False
                return received[: end.start()].lstrip(b"\r\n"), received[end.end() :]
            if len(received) > MOST_BYTES:
                return received, b""  # which is no request
            connection.idle = not received
            async with asyncio.timeout_at(deadline):
                data = await loop.sock_recv(connection.socket, MOST_BYTES)
            if not data:
                raise EOFError
            if not received:
                deadline = min(deadline, loop.time() + HEAD_TIMEOUT)
            received += data

    async def _answer(self, head: bytes, peer: Peer) -> tuple[bytes, bool]:
        """And whether the connection goes on."""
        try:
            if len(head) > MOST_BYTES:
                raise RequestError(
                    http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"expected a request of at most {MOST_BYTES} bytes",
                )
            request = parse_request(head)
            response = await self._handle(request)
        except RequestError as error:
            self.bad_requests += 1
            self._complaints.add(f"bad request, {error}", peer)
            headers = {"Allow": "GET, HEAD"} if error.status == 405 else {}
            response = Response(f"{error}\n".encode(), status=error.status, headers=headers)
            return response.encode(keep_alive=False), False
        except Exception:
            log.exception("admin: a request failed")
            response = Response(
                b"an error of the sidecar's own; its log has it\n",
                status=http.HTTPStatus.INTERNAL_SERVER_ERROR,
            )
            return response.encode(keep_alive=False), False
        return (
            response.encode(keep_alive=request.keep_alive, body=request.method == "GET"),
            request.keep_alive,
        )
