"""``/connections``: connections as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from aiohttp import web

from pysidecar.access_log import describe_connection
from pysidecar.admin.pieces import Turns, answer, encode
from pysidecar.dataplane import WALK_PIECE, ConnectionRecord
from pysidecar.selection import Selection, SelectionError, select

__all__ = ["Connections", "ConnectionsPage"]


class Connections(Protocol):
    """Whose connections are shown."""

    def walk_connections(self) -> Iterator[Sequence[ConnectionRecord]]:
        """The live ones in pieces."""

    def closed_connections(self, limit: int) -> Sequence[ConnectionRecord]:
        """The latest ones that closed, newest last."""


class ConnectionsPage:
    """Answers requests for connections."""

    def __init__(self, connections: Connections, turns: Turns) -> None:
        self._connections = connections
        self._turns = turns

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """A JSON array, or an object a line where the client asks for it."""
        try:
            selection = select(request.query.items())
        except SelectionError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        return await answer(request, self._turns, self._entries(selection))

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


def _entry(record: ConnectionRecord, state: str) -> str:
    described: dict[str, Any] = describe_connection(record)
    return encode({"id": record.id, "state": state, **described, "route": record.route})
