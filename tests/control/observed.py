"""A sidecar that the admin interface shows, without one: what there is to see is given."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uvloop

from pysidecar.address import Address
from pysidecar.admin import AdminServer
from pysidecar.admin.services import HealthResults
from pysidecar.config import Config
from pysidecar.dataplane import (
    REQUEST_BOUNDS,
    STATUS_CLASSES,
    ConnectionRecord,
    Direction,
    EndpointSums,
    Flag,
    Protocol,
    RequestRecord,
    RequestTally,
    ServiceSums,
)
from tests.waiting import PATIENCE

REQUEST = RequestRecord(
    connection=17,
    began=datetime(2026, 1, 2, tzinfo=UTC),
    duration_ms=2.5,
    first_byte_ms=2.25,
    bytes_sent=120,
    bytes_received=2048,
    source=Address("10.1.2.3", 40000),
    upstream=Address("fd00::9", 8080),
    status=200,
    status_class=2,
    flags=(),
    attempts=1,
    protocol=Protocol.HTTP,
    direction=Direction.OUTBOUND,
    service="orders",
    method="GET",
    path="/v2/orders?token=secret",
)


def tally(statuses: dict[str, int] | None = None, **fields: Any) -> RequestTally:
    """Requests by status class, each of which took 2 ms; and other sums."""
    counts = statuses or {}
    bucket = next(i for i, bound in enumerate(REQUEST_BOUNDS) if bound >= 0.002)
    found = RequestTally(
        active=0,
        statuses=tuple(counts.get(name, 0) for name in STATUS_CLASSES),
        flags={},
        failures=counts.get("5xx", 0),
        attempts=sum(counts.values()),
        bytes_sent=100 * sum(counts.values()),
        bytes_received=1000 * sum(counts.values()),
        durations=tuple(
            tuple(counts.get(name, 0) * (i == bucket) for i in range(len(REQUEST_BOUNDS) + 1))
            for name in STATUS_CLASSES
        ),
        duration=tuple(0.002 * counts.get(name, 0) for name in STATUS_CLASSES),
        connections=0,
        pending=0,
    )
    return found._replace(**fields)


@dataclass
class Shown:
    """What there is to see. ``asked`` are the turns of the loop in which a piece was asked for."""

    requests: Sequence[RequestRecord] = ()
    slow_requests: Sequence[RequestRecord] = ()
    bad_requests: Sequence[RequestRecord] = ()
    service_sums: Sequence[ServiceSums] = ()
    endpoint_sums: Sequence[EndpointSums] = ()
    unserved_tally: RequestTally = field(default_factory=tally)
    connections: Sequence[ConnectionRecord] = ()
    closed: Sequence[ConnectionRecord] = ()
    config: Config = field(default_factory=Config)
    state: str = "serving"
    turn: int = 0
    asked: list[int] = field(default_factory=list)
    metrics: Any = None
    details: dict[str, dict[str, Any]] = field(default_factory=dict)  # by service

    def descriptors(self) -> dict[str, str]:
        return {"state": "enough"}

    async def refresh(self) -> None:
        class NoOthers:
            def render(self) -> bytes:
                return b""

        self.metrics = NoOthers()

    def walk_connections(self) -> Iterator[Sequence[ConnectionRecord]]:
        return self._pieces(self.connections)

    def closed_connections(self, limit: int) -> Sequence[ConnectionRecord]:
        return self.closed[-limit:] if limit else ()

    def recent_requests(self) -> Iterator[Sequence[RequestRecord]]:
        return self._pieces(self.requests)

    def failed_requests(self) -> Iterator[Sequence[RequestRecord]]:
        return self._pieces(self.bad_requests)

    def slowest_requests(self) -> Iterator[Sequence[RequestRecord]]:
        return self._pieces(self.slow_requests)

    def services(self, *, only_used: bool = False) -> Iterator[Sequence[ServiceSums]]:
        return self._pieces(self.service_sums)

    def endpoints(
        self, *, only_used: bool = False, of: Container[int] | None = None
    ) -> Iterator[Sequence[EndpointSums]]:
        return self._pieces(
            [each for each in self.endpoint_sums if of is None or each.service in of]
        )

    def service_details(self, service: ServiceSums) -> dict[str, Any]:
        return self.details.get(service.name, {})

    def endpoint_details(self, endpoint: EndpointSums) -> dict[str, Any]:
        if not endpoint.ejected:
            return {"health": "healthy", "reason": None}
        return {"health": "unreachable", "reason": "it could not be connected"}

    def health_results(self) -> HealthResults:
        return HealthResults()

    def takeover_status(self) -> dict[str, Any] | None:
        return None

    def unserved(self) -> RequestTally:
        return self.unserved_tally

    def _pieces(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(items), 10):
            self.asked.append(self.turn)
            yield items[start : start + 10]

    async def count_turns(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)


async def _ask(address: tuple[str, int], path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection(*address)
    with contextlib.closing(writer):
        writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()


def answers(shown: Shown, *paths: str) -> list[tuple[int, str]]:
    """Status and body of each, asked for at once."""

    async def converse() -> list[tuple[int, str]]:
        observed: Any = shown
        listener = socket.create_server(("127.0.0.1", 0))
        server = AdminServer(observed, listener)
        address = listener.getsockname()
        await server.start()
        turns = asyncio.ensure_future(shown.count_turns())
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.gather(*(_ask(address, path) for path in paths))
        finally:
            turns.cancel()
            await server.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(converse())


FLAGGED = REQUEST._replace(status=None, status_class=0, flags=(Flag.TIMEOUT,), path="/slow")
