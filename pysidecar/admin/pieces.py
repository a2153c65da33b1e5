"""Answers that are made a piece at a time, so that however long they are nothing else waits for
long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from aiohttp import web

__all__ = ["Turns", "answer", "encode"]

T = TypeVar("T")

_LINES = "application/x-ndjson"

encode = json.JSONEncoder().encode
"""An entry of an answer."""


class Turns:
    """However many answers are being made, one piece of one of them is made in a turn of the loop,
    and as much time as it took is left to others: what they do takes several turns."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def next(self, pieces: Iterator[T]) -> T | None:
        """The next piece, or None at the end."""
        async with self._turn:
            start = time.monotonic()
            piece = next(pieces, None)
            await asyncio.sleep(time.monotonic() - start)
            return piece


async def answer(
    request: web.Request, turns: Turns, entries: Iterator[list[str]]
) -> web.StreamResponse:
    """A JSON array, or an object a line where the client asks for it, of entries that come in
    pieces, of which some may be empty."""
    as_lines = _wants_lines(request)
    kind = _LINES if as_lines else "application/json"
    with contextlib.closing((_lines if as_lines else _array)(entries)) as pieces:
        piece = await turns.next(pieces)  # before the status is sent, in case that it fails
        response = web.StreamResponse(headers={"Content-Type": f"{kind}; charset=utf-8"})
        response.force_close()
        with contextlib.suppress(ConnectionError):  # the client has left
            await response.prepare(request)
            while piece is not None:
                await response.write(piece.encode())
                piece = await turns.next(pieces)
            await response.write_eof()
        return response


def _wants_lines(request: web.Request) -> bool:
    given = request.query.getall("format", [])
    if not given:
        return _LINES in request.headers.get("Accept", "")
    if given not in (["json"], ["ndjson"]):
        raise web.HTTPBadRequest(text="format: expected json or ndjson\n")
    return given == ["ndjson"]


def _lines(pieces: Iterable[list[str]]) -> Generator[str, None, None]:
    for entries in pieces:
        yield "".join(f"{entry}\n" for entry in entries)


def _array(pieces: Iterable[list[str]]) -> Generator[str, None, None]:
    before = "["
    for entries in pieces:
        yield before + ", ".join(entries) if entries else ""
        before = ", " if entries else before
    yield "]" if before != "[" else "[]"
