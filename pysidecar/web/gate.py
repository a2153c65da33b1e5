"""Who gets a connection to one of our HTTP interfaces, and for how long. aiohttp, which answers,
takes everybody for ever."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from aiohttp.http_exceptions import HttpProcessingError
from typing_extensions import override

from pysidecar.web.peer import Peer, peer_of

__all__ = ["BadRequestFilter", "Connection", "Gate", "Limits", "current_connection"]

log = logging.getLogger(__name__)

_ACCEPT_BATCH = 16  # connections that are accepted before others get their turn
_ACCEPT_PAUSE = 0.1  # seconds, when there are no file descriptors
_COMPLAINT_PAUSE = 10.0  # seconds from one line in the log to the next


@dataclass(frozen=True, slots=True)
class Limits:
    """What one interface allows."""

    connections: int
    """At a time; the data plane has to leave as many file descriptors for them."""

    of_a_peer: int
    """Of those, of one user of this host, or of one other host."""

    request_bytes: int = 65536
    """aiohttp itself refuses lines of more than 8,190."""

    request_timeout: float = 5.0
    """Seconds until the request is complete: from the connect, or from the first byte of one that
    follows another."""

    answer_timeout: float = 30.0
    """Seconds for the answer to be made, and for the client to take it."""

    idle_timeout: float = 60.0
    """Seconds without another request, where there may be one."""


class Connection(asyncio.Protocol):
    """Stands before aiohttp's own protocol for one connection."""

    def __init__(self, gate: Gate, inner: asyncio.Protocol, peer: Peer) -> None:
        self.gate = gate
        self.peer = peer
        self.waiting = True  # for a request to be complete
        self.idle = False  # after an answer
        self._limits = gate.limits
        self._inner = inner
        self._received = 0  # bytes of this request
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._aborted = False

    def begin_answer(self) -> None:
        """The request is complete. What else comes is not read."""
        self.waiting = False
        self._allow(self._limits.answer_timeout)
        if self._transport is not None:
            self._transport.pause_reading()

    def end_answer(self) -> None:
        """All of it has been written: another request may come."""
        if self._aborted or self._transport is None or self._transport.is_closing():
            return
        self.waiting = self.idle = True
        self._received = 0
        self._allow(self._limits.idle_timeout)
        self._transport.resume_reading()

    def go_on(self) -> None:
        """The client has taken what there was of a long answer: there is as much time for more."""
        if self._timer is not None and not self._timer.cancelled():  # it is not closed
            self._allow(self._limits.answer_timeout)

    def abort(self) -> None:
        """Closes it, whatever has been sent or is still to be."""
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()

    def _allow(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is its own
        if self._aborted:
            # aiohttp never hears of it: it would begin when it has been told of the end.
            self._transport.abort()
            return
        self._allow(self._limits.request_timeout)
        _current.set(self)  # aiohttp's task for this connection begins in the next line
        self._inner.connection_made(transport)

    @override
    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self.idle:
            self.idle = False
            self._allow(self._limits.request_timeout)
        if self.waiting and self._received > self._limits.request_bytes:
            self.gate.complain("a request is too long")
            self.abort()
        else:
            self._inner.data_received(data)

    @override
    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    @override
    def pause_writing(self) -> None:
        self._inner.pause_writing()

    @override
    def resume_writing(self) -> None:
        self._inner.resume_writing()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.gate.forget(self)
        if self._timer is None:  # it was aborted before it was made
            return
        self._timer.cancel()
        self._inner.connection_lost(exc)


_current: contextvars.ContextVar[Connection] = contextvars.ContextVar("connection")


def current_connection() -> Connection:
    """The one whose request is handled in this task."""
    return _current.get()


class Gate:
    """Accepts connections from a listener that the caller opened, for protocols that ``serve``
    makes. ``name`` says in the log which interface it is.

    A peer (a user of this host, or another host) that has as many connections as it may have loses
    one without a request for a new one, and so do all together: the oldest that had its answer, or
    else the oldest. Where each has its request, the new one is refused.
    """

    def __init__(self, listener: socket.socket, name: str, limits: Limits) -> None:
        self.refused = 0
        self.bad_requests = 0
        self.limits = limits
        self.name = name
        self._listener = listener
        self._serve: Callable[[], asyncio.Protocol]
        self._connections: dict[Connection, None] = {}  # the oldest first
        self._welcomes: set[asyncio.Task[object]] = set()
        self._next_complaint = 0.0
        self._silent = 0  # complaints since the last one in the log

    @property
    def connections(self) -> int:
        """That are open."""
        return len(self._connections)

    def open(self, serve: Callable[[], asyncio.Protocol]) -> None:
        """Accepts from here on."""
        self._serve = serve
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Ends all of them at once."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for welcome in self._welcomes:
            welcome.cancel()
        for connection in list(self._connections):
            connection.abort()

    def complain(self, text: str, connection: Connection | None = None) -> None:
        """Counts a bad request. Strangers get few lines in the log, however much they do."""
        self.bad_requests += 1
        self._say(text, (connection or current_connection()).peer)

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self._connections.pop(connection, None)

    def _say(self, text: str, peer: Peer) -> None:
        now = time.monotonic()
        if now < self._next_complaint:
            self._silent += 1
            return
        more = f"; {self._silent} more since the last such line" if self._silent else ""
        log.warning("%s: %s (%s)%s", self.name, text, peer, more)
        self._silent = 0
        self._next_complaint = now + _COMPLAINT_PAUSE

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
        peer = peer_of(accepted)
        if not self._has_room(peer):
            self.refused += 1
            self._say("too many connections at a time, one is refused", peer)
            accepted.close()
            return
        accepted.setblocking(False)
        connection = Connection(self, self._serve(), peer)
        self._connections[connection] = None
        loop = asyncio.get_running_loop()
        welcome: asyncio.Task[object] = loop.create_task(
            loop.connect_accepted_socket(lambda: connection, accepted)
        )
        self._welcomes.add(welcome)
        welcome.add_done_callback(self._welcomes.discard)

    def _has_room(self, peer: Peer) -> bool:
        """Makes some where it can."""
        crowd = [each for each in self._connections if each.peer == peer]
        if len(crowd) < self.limits.of_a_peer:
            crowd = list(self._connections)
            if len(crowd) < self.limits.connections:
                return True
        waiting = [each for each in crowd if each.waiting]
        if not waiting:
            return False
        loser = next((each for each in waiting if each.idle), waiting[0])
        self.forget(loser)
        loser.abort()
        return True


class BadRequestFilter(logging.Filter):
    """Of aiohttp's own log, what is not about a client that leaves, or its bad request, which it
    would print with a traceback and the client's own bytes."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError):  # it left before it had its answer
            return False
        if not isinstance(error, HttpProcessingError):
            return record.levelno >= logging.WARNING
        self._gate.complain("a request is not HTTP")
        return False
