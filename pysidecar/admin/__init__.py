"""The HTTP interface for people and monitoring."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from pysidecar.access_log import describe_connection
from pysidecar.address import Address
from pysidecar.admin.http import HttpServer, Request, RequestError, Response
from pysidecar.admin.metrics import CONTENT_TYPE_LATEST, Metrics
from pysidecar.config import Config
from pysidecar.dataplane import ConnectionRecord

__all__ = ["AdminServer", "Observed"]

_Page = Callable[[Request], Awaitable[Response]]


class Observed(Protocol):
    """What the admin interface shows of a sidecar."""

    config: Config
    metrics: Metrics

    @property
    def rules(self) -> dict[str, Any]:
        """Those in the kernel that belong to it, by direction."""

    async def refresh(self) -> None:
        """Brings up to date what the metrics cannot ask for at once."""

    @property
    def state(self) -> str:
        """Such as ``serving``; only then the sidecar is ready."""

    def connections(self) -> Sequence[ConnectionRecord]:
        """The live ones."""

    def closed_connections(self, limit: int) -> Sequence[ConnectionRecord]:
        """The latest ones that closed, newest last."""


class AdminServer:
    """Serves `GET` requests on a listener that the caller opened."""

    def __init__(self, observed: Observed, listener: socket.socket) -> None:
        self._observed = observed
        self.address = Address(*listener.getsockname()[:2])
        self._listener = listener
        self.http = HttpServer(listener, self._answer)
        self._pages: dict[str, _Page] = {
            "/": self._index,
            "/ready": self._ready,
            "/connections": self._connections,
            "/config": self._config,
            "/metrics": self._metrics,
        }

    def start(self) -> None:
        """Answers from here on."""
        self.http.start()

    async def stop(self) -> None:
        """Ends at once, also when a client is slow."""
        await self.http.stop()
        self._listener.close()

    async def _answer(self, request: Request) -> Response:
        page = self._pages.get(request.path)
        if page is None:
            raise RequestError(
                HTTPStatus.NOT_FOUND, f"expected one of {', '.join(self._pages)} as path"
            )
        return await page(request)

    async def _index(self, request: Request) -> Response:
        return Response(
            b"pysidecar\n"
            b"  /ready        200 while connections are accepted\n"
            b"  /connections  live connections; ?closed=N adds the N latest that closed\n"
            b"  /config       the configuration in effect, and the rules in the kernel\n"
            b"  /metrics      for Prometheus\n"
        )

    async def _ready(self, request: Request) -> Response:
        state = self._observed.state
        status = HTTPStatus.OK if state == "serving" else HTTPStatus.SERVICE_UNAVAILABLE
        return _json({"state": state}, status)

    async def _connections(self, request: Request) -> Response:
        asked = request.query.get("closed", "0")
        if not (asked.isascii() and asked.isdigit()) or len(asked) > 9:
            raise RequestError(HTTPStatus.BAD_REQUEST, "closed: expected a whole number")
        entries = [_entry(record, "open") for record in self._observed.connections()]
        entries += [
            _entry(record, "closed") for record in self._observed.closed_connections(int(asked))
        ]
        return _json(entries)

    async def _config(self, request: Request) -> Response:
        plain = self._observed.config.to_plain()
        return _json({**plain, "rules": self._observed.rules})

    async def _metrics(self, request: Request) -> Response:
        await self._observed.refresh()
        return Response(self._observed.metrics.render(), CONTENT_TYPE_LATEST)


def _json(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(json.dumps(value).encode(), "application/json; charset=utf-8", status)


def _entry(record: ConnectionRecord, state: str) -> dict[str, Any]:
    return {"id": record.id, "state": state, **describe_connection(record)}
