"""``/connections``: connections as JSON, a piece at a time, so that however many there are nothing
else waits for long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

from aiohttp import web

from pysidecar.access_log import describe_connection
from pysidecar.dataplane import WALK_PIECE, ConnectionRecord
from pysidecar.selection import Selection, SelectionError, select

__all__ = ["Connections", "ConnectionsPage"]

_LINES = "application/x-ndjson"
_json = json.JSONEncoder().encode


class Connections(Protocol):
    """Whose connections are shown."""

    def walk_connections(self) -> Iterator[Sequence[ConnectionRecord]]:
        """The live ones in pieces."""

    def closed_connections(self, limit: int) -> Sequence[ConnectionRecord]:
        """The latest ones that closed, newest last."""


class ConnectionsPage:
    """Answers requests for connections.

    However many requests there are, one piece of one answer is made in a turn of the loop, and as
    much time as it took is left to others: what they do takes several turns.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._turn = asyncio.Lock()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """A JSON array, or an object a line where the client asks for it."""
        as_lines = _wants_lines(request)
        try:
            selection = select(request.query.items())
        except SelectionError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        kind = _LINES if as_lines else "application/json"
        with contextlib.closing(
            (_lines if as_lines else _array)(self._entries(selection))
        ) as pieces:
            piece = await self._next(pieces)  # before the status is sent, in case that it fails
            response = web.StreamResponse(headers={"Content-Type": f"{kind}; charset=utf-8"})
            response.force_close()
            with contextlib.suppress(ConnectionError):  # the client has left
                await response.prepare(request)
                while piece is not None:
                    await response.write(piece.encode())
                    piece = await self._next(pieces)
                await response.write_eof()
            return response

    async def _next(self, pieces: Iterator[str]) -> str | None:
        async with self._turn:
            start = time.monotonic()
            piece = next(pieces, None)
            await asyncio.sleep(time.monotonic() - start)
            return piece

    def _entries(self, selection: Selection) -> Iterator[list[str]]:
        """Those that fit, piece by piece; a piece may have none. One that closes meanwhile may be
        among the open ones and then, with its final numbers, among the closed ones."""
        left = selection.limit
        for state, records in self._records(selection):
            found = [record for record in records if selection.fits(record)][:left]
            yield [_entry(record, state) for record in found]
            if left is not None:
                left -= len(found)
                if left == 0:
                    return

    def _records(self, selection: Selection) -> Iterator[tuple[str, Sequence[ConnectionRecord]]]:
        if selection.open:
            for piece in self._connections.walk_connections():
                yield "open", piece
        if selection.closed:
            closed = self._connections.closed_connections(selection.closed)
            for start in range(0, len(closed), WALK_PIECE):
                yield "closed", closed[start : start + WALK_PIECE]


def _wants_lines(request: web.Request) -> bool:
    given = request.query.getall("format", [])
    if not given:
        return _LINES in request.headers.get("Accept", "")
    if given not in (["json"], ["ndjson"]):
        raise web.HTTPBadRequest(text="format: expected json or ndjson\n")
    return given == ["ndjson"]


def _entry(record: ConnectionRecord, state: str) -> str:
    described: dict[str, Any] = describe_connection(record)
    return _json({"id": record.id, "state": state, **described, "route": record.route})


def _lines(pieces: Iterable[list[str]]) -> Generator[str, None, None]:
    for entries in pieces:
        yield "".join(f"{entry}\n" for entry in entries)


def _array(pieces: Iterable[list[str]]) -> Generator[str, None, None]:
    before = "["
    for entries in pieces:
        yield before + ", ".join(entries) if entries else ""
        before = ", " if entries else before
    yield "]" if before != "[" else "[]"
