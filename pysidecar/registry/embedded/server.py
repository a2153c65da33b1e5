"""Serves a registry to sidecars: see ``docs/takeover.md``."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final, cast

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.background import without_collector
from pysidecar.registry import RegistryError
from pysidecar.registry.embedded import wire
from pysidecar.registry.embedded.state import State
from pysidecar.registry.embedded.store import Lease, Store
from pysidecar.registry.service import Registration, ServiceKey
from pysidecar.text import printable
from pysidecar.web.peer import Peer, peer_of

__all__ = ["RegistryServer"]

log = logging.getLogger(__name__)

MOST_CONNECTIONS: Final = 512
MOST_SUBSCRIPTIONS: Final = 131_072
_SHARE: Final = 4
"""A peer that is not trusted has at most this part of both."""

_GREETING_TIMEOUT: Final = 5.0  # seconds from the connect
_SLOW: Final = 10.0  # seconds in which a client that does not keep up has to read what waits for it
_MOST_UNREAD: Final = 1 << 20  # bytes that wait for a client, from which on it is sent less
_PUSH_PAUSE: Final = 0.005  # seconds in which changes of a service come together
_TURN: Final = 262_144  # bytes that are made and sent until the loop has its turn
_ITEM: Final = 2048  # bytes that each push counts for, at least
_MOST_TEXTS: Final = 16  # that are kept for the next one who is pushed the same
_BACKLOG: Final = 4096  # the kernel's net.core.somaxconn is the real limit
_TAKEN_AT_ONCE: Final = 50  # requests of a client, until others get their turn
_TICK: Final = 0.2  # seconds from one look at the leases to the next
_STALL: Final = 1.0  # seconds without a look, after which no client could have been heard
_RETURN: Final = 10.0  # seconds after a restart within which each client is back
_COMPLAINT_PAUSE: Final = 10.0  # seconds from one line in the log to the next


class RegistryServer:
    """Serves on a listener that the caller opened."""

    def __init__(self, listener: socket.socket, state: State | None) -> None:
        self.address = Address(*listener.getsockname()[:2])
        self.store = Store(self._changed)
        self.watchers: dict[ServiceKey, dict[_Connection, None]] = {}
        self.subscriptions: dict[Peer, int] = {}
        self._listener = listener
        self._restored = state
        self._state: State | None = None  # until it is read
        self._loop: asyncio.AbstractEventLoop
        self._server: asyncio.Server
        self.connections: dict[_Connection, None] = {}
        self.strangers: dict[_Connection, None] = {}  # those that have not greeted yet
        self._crowds: dict[Peer, int] = {}  # connections of each
        self._ready: OrderedDict[_Connection, None] = OrderedDict()  # to be sent something
        self._turning: asyncio.Handle | None = None
        self._texts: dict[ServiceKey, bytes] = {}  # of what changed lately
        self._ticking: asyncio.Task[None]
        self._complaints = _Complaints()

    async def start(self) -> None:
        """With what was there before, and serves from here on."""
        self._loop = asyncio.get_running_loop()
        if self._restored is not None:
            self._restored.start(self.store.places)
            with without_collector():
                self._restore(self._restored)
            self._state = self._restored
        self._ticking = self._loop.create_task(self._tick())
        self._server = await self._loop.create_server(
            lambda: _Connection(self), sock=self._listener, backlog=_BACKLOG
        )

    async def stop(self) -> None:
        """Tells the clients, and writes what is to be remembered."""
        self._server.close()
        self._ticking.cancel()
        if self._turning is not None:
            self._turning.cancel()
        for connection in list(self.connections):
            connection.fail("the registry ends")
        if self._state is not None:
            await self._state.close()

    # ---- connections ----

    def welcome(self, connection: _Connection) -> None:
        """Makes room for it where it can; raises RegistryError."""
        peer = connection.peer
        crowded = self._crowds.get(peer, 0) >= MOST_CONNECTIONS // (1 if _is_own(peer) else _SHARE)
        if crowded or len(self.connections) >= MOST_CONNECTIONS:
            strangers = (each for each in self.strangers if not crowded or each.peer == peer)
            strange = next(strangers, None)
            if strange is None:
                count = self._crowds[peer] if crowded else len(self.connections)
                raise RegistryError(f"there are {count} connections already")
            strange.fail("another client needs the place")
            self.forget(strange)
        self.connections[connection] = self.strangers[connection] = None
        self._crowds[peer] = self._crowds.get(peer, 0) + 1

    def forget(self, connection: _Connection) -> None:
        """It is closed."""
        self.strangers.pop(connection, None)
        self._ready.pop(connection, None)
        if connection in self.connections:
            del self.connections[connection]
            self._crowds[connection.peer] -= 1
            if not self._crowds[connection.peer]:
                del self._crowds[connection.peer]

    def complain(self, text: str, peer: Peer) -> None:
        """Strangers get few lines in the log, however much they do."""
        self._complaints.say(text, peer)

    # ---- pushes ----

    def _changed(self, service: ServiceKey, address: Address) -> None:
        if self._state is not None:
            held = self.store.at(service, address)
            if held is not None:
                self._state.put(service, held)
            else:
                self._state.delete(service, address)
        self._texts.pop(service, None)
        for connection in self.watchers.get(service, ()):
            connection.push(service)

    def ready(self, connection: _Connection) -> None:
        """It has something to be sent. Each gets a piece, and then the next one its own: nobody who
        asks for much keeps the others waiting."""
        self._ready[connection] = None
        if self._turning is None:
            self._turning = self._loop.call_later(_PUSH_PAUSE, self._turn)

    def _turn(self) -> None:
        left, began = _TURN, self._loop.time()
        while self._ready and left > 0:
            connection, _ = self._ready.popitem(last=False)
            left -= max(connection.send_piece(), _ITEM)
            if connection.has_more:
                self._ready[connection] = None
        if self._ready:
            took = self._loop.time() - began  # others have as much time
            self._turning = self._loop.call_later(took, self._turn)
        else:
            self._turning = None
            self._texts.clear()

    def text_of(self, service: ServiceKey) -> bytes:
        """What is pushed of it: the same for all who watch it."""
        text = self._texts.get(service)
        if text is None:
            name = wire.text_of_service(service)
            instances = ",".join(held.text for held in self.store.held(service))
            text = f'{{"service":{name},"instances":[{instances}]}}\n'.encode()
            if len(self._texts) >= _MOST_TEXTS:
                self._texts.clear()
            self._texts[service] = text
        return text

    # ---- leases ----

    def now(self) -> float:
        """The clock of leases: nobody sets it."""
        return time.monotonic()

    async def _tick(self) -> None:
        last = self.now()
        while True:
            await asyncio.sleep(_TICK)
            now = self.now()
            if now - last > _STALL:
                # This process was stopped, or had no CPU: what clients said meanwhile is still to
                # be read, and clients that lost us come back first.
                self.store.prolong(now - last + _RETURN)
            last = now
            over = set(self.store.expire(now))
            for connection in list(self.connections):
                if connection.lease in over:
                    connection.fail("it was silent for too long")

    def _restore(self, state: State) -> None:
        """Nobody could be heard while the registry was away: all leases begin anew, and last at
        least until their clients are back."""
        leases: dict[int, Lease] = {}
        for each in state.remembered():
            lease = leases.get(each.lease)
            if lease is None:
                lease = leases[each.lease] = self.store.open(
                    each.owner,
                    trusted=each.trusted,
                    timeout=each.timeout,
                    now=self.now(),
                    number=each.lease,
                )
                lease.deadline = self.now() + max(each.timeout, _RETURN)
            try:
                self.store.register(lease, each.registration, each.text)
            except RegistryError:
                state.delete(each.registration.service, each.registration.instance.address)
        if leases:
            log.info("remembers the registrations of %d clients", len(leases))


class _Connection(asyncio.Protocol):
    """A client: its lease, and what it watches."""

    def __init__(self, server: RegistryServer) -> None:
        self.peer: Peer = ""
        self.lease: Lease | None = None
        self._server = server
        self._transport: asyncio.Transport
        self._input = bytearray()
        self._watched: set[ServiceKey] = set()
        self._pending: OrderedDict[ServiceKey, None] = OrderedDict()  # to be pushed
        self._listing: Iterator[bytes] | None = None
        self._full = False  # the client does not read as much as it is sent
        self._closed = False
        self._waits = False  # for its next turn
        self._timer: asyncio.TimerHandle | None = None

    # ---- asyncio ----

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is its own
        self._transport.set_write_buffer_limits(_MOST_UNREAD)
        self.peer = peer_of(transport.get_extra_info("socket"))
        try:
            self._server.welcome(self)
        except RegistryError as error:
            self.fail(str(error), complain=True)
            return
        self._allow(_GREETING_TIMEOUT, "it said nothing")

    @override
    def data_received(self, data: bytes) -> None:
        self._input += data
        if not self._waits:
            self._read_on()

    def _read_on(self) -> None:
        """Takes what there is, and lets others have their turn where it is much."""
        self._waits = False
        begin = 0
        for _ in range(_TAKEN_AT_ONCE):
            end = self._input.find(b"\n", begin)
            if self._closed or end < 0:
                break
            self._take(bytes(self._input[begin:end]))
            begin = end + 1
        else:
            self._waits = True
            asyncio.get_running_loop().call_soon(self._read_on)
        del self._input[:begin]
        if not self._waits and len(self._input) >= wire.MOST_BYTES_OF_REQUEST:
            self.fail("a request is too long", complain=True)
        self._pace()

    def _pace(self) -> None:
        """Reads as much as is served, and as the client reads itself."""
        if self._closed:
            self._input.clear()
        elif self._waits or self._full:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    @override
    def pause_writing(self) -> None:
        self._full = True
        self._pace()
        self._allow(_SLOW, "it reads too slowly")

    @override
    def resume_writing(self) -> None:
        self._full = False
        if self._closed:
            return
        self._calm()
        if self.has_more:
            self._server.ready(self)
        self._pace()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._calm()
        self._server.forget(self)
        for service in list(self._watched):
            self._unwatch(service)
        if self.lease is not None and not self.lease.places:
            self._server.store.end(self.lease)

    # ---- what it is told ----

    def push(self, service: ServiceKey) -> None:
        """All that is registered of it then is sent, once: soon, and as the client reads."""
        self._pending[service] = None
        if not self._full:
            self._server.ready(self)

    @property
    def has_more(self) -> bool:
        """Whether there is something to be sent, and the client reads."""
        return not (self._full or self._closed) and bool(self._pending or self._listing)

    def send_piece(self) -> int:
        """Something of that; how many bytes."""
        piece = None
        if self._full or self._closed:
            return 0
        if self._pending:
            service, _ = self._pending.popitem(last=False)
            piece = self._server.text_of(service)
        elif self._listing is not None:
            piece = next(self._listing, None)
            if piece is None:
                self._listing = None
        if piece:
            self._transport.write(piece)
        return len(piece or b"")

    def fail(self, reason: str, *, complain: bool = False) -> None:
        """Says why, as far as it is read, and closes."""
        if self._closed:
            return
        self._closed = True
        if complain:
            self._server.complain(reason, self.peer)
        if self._full:
            self._transport.abort()
            return
        self._transport.write(wire.text_of({"closing": reason}).encode() + b"\n")
        self._transport.close()
        self._allow(_SLOW, "")

    def _answer(self, number: int, **more: Any) -> None:
        if not self._closed:
            self._transport.write(wire.text_of({"id": number, **more}).encode() + b"\n")

    # ---- what it says ----

    def _take(self, line: bytes) -> None:
        if len(line) > wire.MOST_BYTES_OF_REQUEST:
            self.fail("a request is too long", complain=True)
            return
        try:
            message = wire.read_line(line)
            number = message.get("id")
            if type(number) is not int or abs(number) >= 1 << 53:
                raise ValueError("expected a whole number as id")
            do = self._requests.get(str(message.get("do")))
            if do is None or (self.lease is None and do is not _Connection._hello):
                raise ValueError("expected hello, and then something else that is known")
        except ValueError as error:
            self.fail(f"not a request: {error}", complain=True)
            return
        if self.lease is not None:
            self.lease.deadline = self._server.now() + self.lease.timeout
        try:
            more = do(self, number, message)
        except (RegistryError, ValueError) as error:
            self._answer(number, ok=False, error=str(error))
        else:
            if more is not None:
                self._answer(number, ok=True, **more)

    def _hello(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("registry") != wire.VERSION:
            raise ValueError(f"expected registry: {wire.VERSION}, the version of the protocol")
        if self.lease is not None:
            raise ValueError("expected hello once")
        asked = message.get("timeout")
        if not isinstance(asked, int | float):
            raise ValueError("expected seconds as timeout")
        timeout = float(min(max(asked, wire.TIMEOUTS[0]), wire.TIMEOUTS[1]))
        self.lease = self._server.store.open(
            self.peer, trusted=_is_own(self.peer), timeout=timeout, now=self._server.now()
        )
        self._server.strangers.pop(self, None)
        self._calm()
        return {"registry": wire.VERSION, "timeout": timeout}

    def _register(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        service = wire.read_service(message.get("service"))
        instance = wire.read_instance(message.get("instance"))
        assert self.lease is not None
        self._server.store.register(self.lease, Registration(service, instance))
        return {}

    def _unregister(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        service = wire.read_service(message.get("service"))
        address = wire.read_address(message.get("address"))
        assert self.lease is not None
        self._server.store.unregister(self.lease, service, address)
        return {}

    def _subscribe(self, number: int, message: dict[str, Any]) -> None:
        service = wire.read_service(message.get("service"))
        if service not in self._watched:
            self._watch(service)
        self._answer(number, ok=True)
        self.push(service)

    def _unsubscribe(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        service = wire.read_service(message.get("service"))
        if service in self._watched:
            self._unwatch(service)
        return {}

    def _renew(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _end(self, number: int, message: dict[str, Any]) -> None:
        assert self.lease is not None
        self._server.store.end(self.lease)
        self._answer(number, ok=True)
        self.fail("as you say")

    def _list(self, number: int, message: dict[str, Any]) -> None:
        if self._listing is not None:
            raise ValueError("expected one list at a time")
        self._listing = self._listed(number, self._server.store.services)
        self._server.ready(self)

    _requests: Final[dict[str, Callable[[_Connection, int, dict[str, Any]], Any]]] = {
        "hello": _hello,
        "register": _register,
        "unregister": _unregister,
        "subscribe": _subscribe,
        "unsubscribe": _unsubscribe,
        "renew": _renew,
        "end": _end,
        "list": _list,
    }

    # ---- watching and listing ----

    def _watch(self, service: ServiceKey) -> None:
        counts = self._server.subscriptions
        share = 1 if _is_own(self.peer) else _SHARE
        own, all_of_them = counts.get(self.peer, 0), sum(counts.values())
        if own >= MOST_SUBSCRIPTIONS // share or all_of_them >= MOST_SUBSCRIPTIONS:
            raise RegistryError(f"there are {own} subscriptions of {self.peer}, the limit")
        counts[self.peer] = own + 1
        self._watched.add(service)
        self._server.watchers.setdefault(service, {})[self] = None

    def _unwatch(self, service: ServiceKey) -> None:
        self._watched.discard(service)
        self._pending.pop(service, None)
        watchers = self._server.watchers[service]
        del watchers[self]
        if not watchers:
            del self._server.watchers[service]
        counts = self._server.subscriptions
        counts[self.peer] -= 1
        if not counts[self.peer]:
            del counts[self.peer]

    def _listed(self, number: int, services: list[ServiceKey]) -> Iterator[bytes]:
        """A line for each service, and the answer at the end."""
        for service in services:
            now = self._server.now()
            instances = ",".join(
                f'{{"instance":{held.text},"owner":{_quoted(held.lease.owner)},'
                f'"lease":{max(0.0, held.lease.deadline - now):.1f}}}'
                for held in self._server.store.held(service)
            )
            name = wire.text_of_service(service)
            yield f'{{"id":{number},"listed":{name},"held":[{instances}]}}\n'.encode()
        yield wire.text_of({"id": number, "ok": True}).encode() + b"\n"

    # ---- patience ----

    def _allow(self, seconds: float, complaint: str) -> None:
        self._calm()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._give_up, complaint)

    def _calm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, complaint: str) -> None:
        self._closed = True
        if complaint:
            self._server.complain(complaint, self.peer)
        self._transport.abort()


class _Complaints:
    """About clients, some of which are no sidecars."""

    def __init__(self) -> None:
        self._next = 0.0
        self._silent = 0

    def say(self, text: str, peer: Peer) -> None:
        now = time.monotonic()
        if now < self._next:
            self._silent += 1
            return
        more = f"; {self._silent} more since the last such line" if self._silent else ""
        log.warning("a client is closed: %s (%s)%s", printable(text), peer, more)
        self._silent = 0
        self._next = now + _COMPLAINT_PAUSE


@lru_cache(64)
def _quoted(owner: Peer) -> str:
    return wire.text_of(owner)


def _is_own(peer: Peer) -> bool:
    """Root, or the user as whom the registry runs."""
    return peer in ("uid 0", f"uid {os.geteuid()}")
