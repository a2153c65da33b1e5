"""The HTTP interface for people and monitoring."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from aiohttp import web

from pysidecar.address import Address
from pysidecar.admin.connections import Connections, ConnectionsPage
from pysidecar.admin.metrics import CONTENT_TYPE_LATEST, Metrics
from pysidecar.admin.pieces import Turns
from pysidecar.admin.request_metrics import metrics_of_requests
from pysidecar.admin.requests import Requests, RequestsPage
from pysidecar.admin.services import Services, ServicesPage
from pysidecar.admin.trace import Traced, TracePage
from pysidecar.background import in_background
from pysidecar.dataplane import lib
from pysidecar.web.gate import Gate, Limits, current_connection
from pysidecar.web.server import GatedServer, is_for_us

__all__ = ["AdminServer", "Observed"]

LIMITS = Limits(connections=lib.DP_ADMIN_CONNECTIONS, of_a_peer=lib.DP_ADMIN_CONNECTIONS // 4)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Observed(Connections, Requests, Services, Traced, Protocol):
    """What the admin interface shows of a sidecar."""

    metrics: Metrics

    @property
    def rules(self) -> dict[str, Any]:
        """Those in the kernel that belong to it, by direction."""

    async def refresh(self) -> None:
        """Brings up to date what the metrics cannot ask for at once."""

    @property
    def state(self) -> str:
        """Such as ``serving``; only then the sidecar is ready."""

    def takeover_status(self) -> Mapping[str, Any] | None:
        """How takeover does; None: it is off."""

    def descriptors(self) -> Mapping[str, Any]:
        """How many file descriptors are left for connections; their ``state`` is ``full`` where
        there are none."""


class AdminServer:
    """Serves `GET` requests on a listener that the caller opened."""

    def __init__(self, observed: Observed, listener: socket.socket) -> None:
        self._observed = observed
        self.address = Address(*listener.getsockname()[:2])
        self.gate = Gate(listener, "admin", LIMITS)
        self._turns = Turns()
        self._services = ServicesPage(observed, self._turns)
        self._trace = TracePage(observed)
        application = web.Application(middlewares=[_one_request, _only_addressed_to_us])
        application.router.add_get("/", self._index)
        application.router.add_get("/ready", self._ready)
        application.router.add_get("/connections", ConnectionsPage(observed, self._turns).answer)
        application.router.add_get("/services", self._services.answer)
        application.router.add_get("/takeover", self._takeover)
        application.router.add_get("/requests", RequestsPage(observed, self._turns).answer)
        application.router.add_get("/config", self._config)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/debug/trace", self._trace.answer)
        self._server = GatedServer(application, self.gate)

    async def start(self) -> None:
        """Answers from here on."""
        await self._server.start()
        self._services.start()

    @property
    def trace_readers(self) -> int:
        """How many read the trace now."""
        return self._trace.readers

    async def stop(self) -> None:
        """Ends at once, also when a client is slow."""
        self._services.stop()
        self._trace.close()
        await self._server.stop()

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(
            text="pysidecar\n"
            "  /ready        200 while connections are accepted, and what may hinder it soon\n"
            "  /connections  live connections; ?closed=N adds the N latest that closed;\n"
            "                limit=N, format=ndjson and filters such as destination=10.0.0.0/8:\n"
            "                see pysidecar connections --help\n"
            "  /services     services and their endpoints, and how they do; service=NAME\n"
            "  /takeover     the registry, and how many services are registered there\n"
            "  /requests     those that ended lately; list=failed: that failed; list=slowest:\n"
            "                the slowest of the last five minutes; limit=N, format=ndjson and\n"
            "                filters such as service=NAME, status=5xx: see pysidecar requests\n"
            "                --help\n"
            "  /config       the configuration in effect, and the rules in the kernel\n"
            "  /metrics      for Prometheus\n"
            "  /debug/trace  what happens to connections, as it happens; session=ID,\n"
            "                process=NAME, pid=N, destination=10.0.0.0/8, seconds=N:\n"
            "                see pysidecar debug trace --help\n"
        )

    async def _ready(self, request: web.Request) -> web.Response:
        state = self._observed.state
        descriptors = self._observed.descriptors()
        if state == "serving" and descriptors["state"] == "full":
            state = "full"
        return web.json_response(
            {"state": state, "descriptors": descriptors}, status=200 if state == "serving" else 503
        )

    async def _takeover(self, request: web.Request) -> web.Response:
        return web.json_response(self._observed.takeover_status())

    async def _config(self, request: web.Request) -> web.Response:
        return await in_background(
            lambda: web.json_response(
                {**self._observed.config.to_plain(), "rules": self._observed.rules}
            )
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        await self._observed.refresh()
        texts = [self._observed.metrics.render()]
        pieces = metrics_of_requests(self._observed)
        while (piece := await self._turns.next(pieces)) is not None:
            texts.append(piece.encode())
        return web.Response(body=b"".join(texts), headers={"Content-Type": CONTENT_TYPE_LATEST})


@web.middleware
async def _one_request(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """A connection has one request and one answer: whoever asks again, connects again, and nobody
    keeps a place for nothing."""
    connection = current_connection()
    connection.begin_answer()
    try:
        response = await handler(request)
    except web.HTTPException as error:
        if error.status >= 400:
            connection.gate.complain(f"a bad request ({error.status} {error.reason})")
        error.force_close()
        raise
    response.force_close()
    return response


@web.middleware
async def _only_addressed_to_us(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """See ``is_for_us``: a web page must not read along."""
    if not is_for_us(request):
        raise web.HTTPForbidden(text="expected an IP address or localhost as Host\n")
    return await handler(request)
