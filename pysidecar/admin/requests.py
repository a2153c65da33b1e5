"""``/requests``: those that ended lately, and the slowest of the last minutes, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from aiohttp import web

from pysidecar.access_log import describe_request
from pysidecar.admin.pieces import Turns, answer, encode
from pysidecar.config import Config
from pysidecar.dataplane import RequestRecord
from pysidecar.selection import RequestSelection, SelectionError, select_requests
from pysidecar.web.gate import current_connection
from pysidecar.web.peer import is_trusted

__all__ = ["Requests", "RequestsPage"]


class Requests(Protocol):
    """Whose requests are shown."""

    config: Config

    def recent_requests(self) -> Iterator[Sequence[RequestRecord]]:
        """The latest ones, newest first, in pieces."""

    def failed_requests(self) -> Iterator[Sequence[RequestRecord]]:
        """The latest of those that failed, likewise."""

    def slowest_requests(self) -> Iterator[Sequence[RequestRecord]]:
        """The slowest of the last minutes, slowest first, in pieces."""


class RequestsPage:
    """Answers requests for requests."""

    def __init__(self, requests: Requests, turns: Turns) -> None:
        self._requests = requests
        self._turns = turns

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """A JSON array, or an object a line where the client asks for it. Not for other users of
        this host: paths may hold what only clients and services know, and the access log, which has
        them, too, is nobody else's."""
        if not is_trusted(current_connection().peer):
            raise web.HTTPForbidden(
                text="requests are shown to root and to the user as whom the sidecar runs\n"
            )
        try:
            selection = select_requests(request.query.items())
        except SelectionError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        return await answer(request, self._turns, self._entries(selection))

    def _list(self, name: str) -> Iterator[Sequence[RequestRecord]]:
        match name:
            case "slowest":
                return self._requests.slowest_requests()
            case "failed":
                return self._requests.failed_requests()
        return self._requests.recent_requests()

    def _entries(self, selection: RequestSelection) -> Iterator[list[str]]:
        query = self._requests.config.access_log.query
        left = selection.limit
        for records in self._list(selection.list):
            found = [record for record in records if selection.fits(record)][:left]
            yield [encode(describe_request(record, query=query)) for record in found]
            if left is not None:
                left -= len(found)
                if left == 0:
                    return
