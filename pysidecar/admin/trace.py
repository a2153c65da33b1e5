"""``/debug/trace``: what happens to connections, as it happens, an object a line.

Workers note it only while somebody reads. However much that is and however many read, a reader has
bounded memory here, and a turn of the loop bounded work: what a reader does not take in time is
lost for it, and it is told how much that was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final, Protocol

from aiohttp import web

from pysidecar.dataplane import TRACE_PIECE, ConnectionRecord, TraceEvent
from pysidecar.selection import FILTERS, Predicate
from pysidecar.text import printable
from pysidecar.web.gate import current_connection

__all__ = ["Reader", "TracePage", "Traced"]

MOST_READERS: Final = 8
MOST_OF_A_PEER: Final = 4  # readers of one user of this host, or of one other host
MOST_LINES: Final = 8192  # that wait for a reader
MOST_SESSIONS: Final = 4096  # that a reader's filters are remembered for
MOST_EARLY: Final = 16  # events of a session before it is known whose it is
HEARTBEAT: Final = 1.0  # seconds after which a blank line is sent: who has gone is found out by it

_PAUSE = 0.02  # seconds between two looks, where there is little
_LINES_AT_ONCE = 512
_LONGEST = 86400.0  # seconds
_KEYS = ("process", "pid", "destination")
_FILTERS = {each.key: each for each in FILTERS if each.key in _KEYS}
_json = json.JSONEncoder(default=str).encode


class Traced(Protocol):
    """Whose connections are traced."""

    def trace(self, on: bool) -> None:
        """Whether there are events for ``take_trace``. Raises OSError where that cannot be."""

    def take_trace(self) -> tuple[Sequence[TraceEvent], int]:
        """Some of them, and how many were lost meanwhile."""

    def walk_connections(self) -> Iterator[Sequence[ConnectionRecord]]:
        """The live ones in pieces."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a reader wants; with neither sessions nor filters, everything."""

    sessions: frozenset[int] = frozenset()
    filters: tuple[tuple[Predicate, ...], ...] = ()
    seconds: float | None = None

    def fits(self, record: Any) -> bool:
        return all(any(one(record) for one in alternatives) for alternatives in self.filters)


@dataclass(slots=True, eq=False)
class Reader:
    """One that is being answered."""

    asked: _Asked
    peer: str
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    missed: int = 0
    _lines: deque[str] = field(default_factory=deque)
    # By session: whether it is wanted; where that is not known yet, its events so far.
    _known: OrderedDict[int, bool | list[TraceEvent]] = field(default_factory=OrderedDict)

    def learn(self, record: ConnectionRecord) -> None:
        """Of a connection that was there before."""
        if self.asked.fits(record):
            self._note(record.id, True)

    def choose(self, event: TraceEvent) -> Iterable[TraceEvent]:
        """Those that it wants, now that this event is known."""
        asked = self.asked
        if asked.sessions and event.session not in asked.sessions:
            return ()
        if not asked.filters:
            return (event,)
        return self._choose_by_filters(event) if event.session else ()

    def _choose_by_filters(self, event: TraceEvent) -> Iterable[TraceEvent]:
        known = self._known.get(event.session)
        match event.station.name:
            case "accepted":
                self._note(event.session, [event])
                return ()
            case "requested" if not isinstance(known, bool):
                early = [*(known or ()), event]
                wanted = self.asked.fits(_subject(early))
                self._note(event.session, wanted)
                return early if wanted else ()
            case "closed":
                self._known.pop(event.session, None)
        if isinstance(known, list):
            if len(known) < MOST_EARLY:
                known.append(event)
            return ()
        return (event,) if known else ()

    def _note(self, session: int, what: bool | list[TraceEvent]) -> None:
        self._known[session] = what
        if len(self._known) > MOST_SESSIONS:
            self._known.popitem(last=False)

    @property
    def waiting(self) -> int:
        """Lines that it has not taken."""
        return len(self._lines)

    def put(self, line: str) -> None:
        """Adds a line, or counts it as missed."""
        if len(self._lines) < MOST_LINES:
            self._lines.append(line)
        else:
            self.missed += 1
        self.filled.set()

    def take(self) -> str:
        """What is to be sent now; nothing is a heartbeat."""
        count = min(len(self._lines), _LINES_AT_ONCE)
        lines = [self._lines.popleft() for _ in range(count)]
        if self.missed and not self._lines:  # where they are missing
            lines.append(_json({"missed": self.missed}) + "\n")
            self.missed = 0
        if not self._lines:
            self.filled.clear()
        return "".join(lines) or "\n"


def _subject(events: Iterable[TraceEvent]) -> SimpleNamespace:
    """What the filters look at of a record."""
    values: dict[str, Any] = {}
    for event in events:
        values.update(event.values)
    return SimpleNamespace(
        process=values.get("process"),
        pid=values.get("pid"),
        original_destination=values.get("destination"),
    )


class TracePage:
    """Answers requests for trace events."""

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self._readers: dict[Reader, None] = {}
        self._pump: asyncio.Task[None] | None = None
        self._closed = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Events until the client has gone, or the seconds that it asks for are over."""
        connection = current_connection()
        reader = Reader(_parse(request.query.items()), connection.peer)
        self._check_room(reader)
        response = web.StreamResponse(
            headers={"Content-Type": "application/x-ndjson; charset=utf-8"}
        )
        response.force_close()
        self._join(reader)
        try:
            with contextlib.suppress(ConnectionError):  # the client has left
                await response.prepare(request)
                await self._look_at_open(reader)
                ends_at = _now() + (reader.asked.seconds or _LONGEST)
                while (left := ends_at - _now()) > 0 and not self._closed:
                    await response.write(reader.take().encode())
                    connection.go_on()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(min(HEARTBEAT, left)):
                            await reader.filled.wait()
                await response.write(reader.take().encode())
                await response.write_eof()
        finally:
            self._leave(reader)
        return response

    @property
    def readers(self) -> int:
        """How many there are now."""
        return len(self._readers)

    def close(self) -> None:
        """Nobody is shown anything any more."""
        self._closed = True
        for reader in list(self._readers):
            self._leave(reader)
            reader.filled.set()

    def _check_room(self, reader: Reader) -> None:
        crowd = sum(each.peer == reader.peer for each in self._readers)
        if self._closed or len(self._readers) >= MOST_READERS or crowd >= MOST_OF_A_PEER:
            raise web.HTTPServiceUnavailable(
                text=f"too many read the trace: {MOST_READERS} may at a time, {MOST_OF_A_PEER} of "
                "one user\n"
            )

    def _join(self, reader: Reader) -> None:
        if not self._readers:
            try:
                self._traced.trace(True)
            except OSError as error:
                raise web.HTTPServiceUnavailable(text=f"{error.strerror}\n") from None
            self._pump = asyncio.get_running_loop().create_task(self._run())
        self._readers[reader] = None

    def _leave(self, reader: Reader) -> None:
        if reader not in self._readers:
            return
        del self._readers[reader]
        if not self._readers:
            if self._pump is not None:
                self._pump.cancel()
            self._pump = None
            self._traced.trace(False)

    async def _look_at_open(self, reader: Reader) -> None:
        """Whose the sessions are that were there before."""
        if not reader.asked.filters:
            return
        for records in self._traced.walk_connections():
            for record in records:
                reader.learn(record)
            await asyncio.sleep(0)

    async def _run(self) -> None:
        """Takes events while there are readers. As much time as that takes is left to others."""
        while True:
            start = time.monotonic()
            events, missed = self._traced.take_trace()
            self._distribute(events, missed)
            spent = time.monotonic() - start
            await asyncio.sleep(spent if len(events) >= TRACE_PIECE // 2 else max(spent, _PAUSE))

    def _distribute(self, events: Sequence[TraceEvent], missed: int) -> None:
        """Each event becomes a line once, however many want it."""
        clock_ns = time.time_ns() - time.monotonic_ns()
        lines: dict[int, str] = {}
        for reader in self._readers:
            if missed:
                reader.missed += missed
                reader.filled.set()
            for event in events:
                for chosen in reader.choose(event):
                    line = lines.get(id(chosen))
                    if line is None:
                        line = lines[id(chosen)] = _line(chosen, clock_ns)
                    reader.put(line)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _line(event: TraceEvent, clock_ns: int) -> str:
    """``clock_ns`` makes the time of day of the event's."""
    time_us = (event.time_ns + clock_ns) // 1000
    moment = datetime.fromtimestamp(time_us // 1_000_000, UTC) + timedelta(
        microseconds=time_us % 1_000_000
    )
    entry = {
        "time": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "session": event.session or None,
        "worker": event.worker,
        "station": event.station.name,
        "text": event.station.text,
        **event.values,
    }
    return _json(entry) + "\n"


def _parse(parameters: Iterable[tuple[str, str]]) -> _Asked:
    sessions: set[int] = set()
    filters: dict[str, list[Predicate]] = {}
    seconds: float | None = None
    for key, value in parameters:
        try:
            if key == "session":
                sessions.add(_number(value))
            elif key == "seconds":
                seconds = _seconds(value)
            elif key in _FILTERS:
                filters.setdefault(key, []).append(_FILTERS[key].parse(value))
            else:
                known = ", ".join(["session", *_KEYS, "seconds"])
                raise ValueError(f"unknown key: expected one of {known}")
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{printable(key[:40])}: {error}\n") from None
    return _Asked(frozenset(sessions), tuple(tuple(each) for each in filters.values()), seconds)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) == 0:
        raise ValueError("expected the id of a connection, as /connections gives it")
    return int(text)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number <= _LONGEST:
        raise ValueError(f"expected a number of seconds up to {_LONGEST:.0f}")
    return number
