"""``/services``: services and their endpoints, and how they do, as JSON."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from aiohttp import web

from pysidecar.address import Address
from pysidecar.admin.lately import PERIOD, Lately, LookedAt, Pace
from pysidecar.admin.pieces import Turns, answer, encode
from pysidecar.dataplane import STATUS_CLASSES, EndpointSums, RequestTally, ServiceSums
from pysidecar.text import printable

__all__ = ["HealthResults", "Services", "ServicesPage"]

_SHOWN = 40  # characters of an unknown key
_LISTED = 64  # of what a service has many of, until others have their turn
_SKIPPED = 16  # pieces of endpoints that hardly any is taken from, until others have their turn


class HealthResults(NamedTuple):
    """What health checks add up to: ``of_services`` has name, protocol, how many passed and failed;
    ``late`` are those that had to wait for a connection, of which so many are open."""

    of_services: Sequence[tuple[str, str, int, int]] = ()
    late: int = 0
    connections: int = 0


class Services(LookedAt, Protocol):
    """Whose services are shown."""

    def unserved(self) -> RequestTally:
        """What requests add up to that reached none."""

    def service_details(self, service: ServiceSums) -> dict[str, Any]:
        """What else is known of one. An iterator is a list that may be long."""

    def endpoint_details(self, endpoint: EndpointSums) -> dict[str, Any]:
        """How one is: ``health`` in a word, and the ``reason``."""

    def health_results(self) -> HealthResults:
        """Of the health checks."""


class ServicesPage:
    """Answers requests for services. From ``start`` on it looks at them now and then."""

    def __init__(self, services: Services, turns: Turns) -> None:
        self._services = services
        self._turns = turns
        self._lately = Lately(services)
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look."""
        self._watch = asyncio.get_running_loop().create_task(self._look())

    def stop(self) -> None:
        """Looks no more."""
        if self._watch is not None:
            self._watch.cancel()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            for _ in self._lately.look():
                await asyncio.sleep(0)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """A JSON array, or an object a line where the client asks for it."""
        for key in request.query:
            if key not in ("service", "format"):
                raise web.HTTPBadRequest(
                    text=f"{printable(key[:_SHOWN])}: unknown key: expected service or format\n"
                )
        wanted = frozenset(request.query.getall("service", []))
        with contextlib.closing(self._entries(wanted)) as entries:
            return await answer(request, self._turns, entries)

    def _entries(self, wanted: frozenset[str]) -> Generator[list[str], None, None]:
        """Those with such a name, or all; a piece may have none."""
        # A reload meanwhile may put some elsewhere, so that they come twice.
        endpoints: defaultdict[int, dict[Address, EndpointSums]] = defaultdict(dict)
        numbers: set[int] | None = set() if wanted else None
        if numbers is not None:
            for services in self._services.services():
                numbers.update(each.number for each in services if each.name in wanted)
                yield []
        for count, found in enumerate(self._services.endpoints(of=numbers)):
            for endpoint in found:
                endpoints[endpoint.service][endpoint.address] = endpoint
            if numbers is None or count % _SKIPPED == 0:
                yield []
        seen: set[int] = set()
        for services in self._services.services():
            entries = []
            for each in services:
                if each.number not in seen and (not wanted or each.name in wanted):
                    entries.append(
                        (yield from self._described(each, endpoints[each.number].values()))
                    )
                seen.add(each.number)
            yield entries
        unserved = self._services.unserved()
        if unserved.requests and not wanted:
            nothing = {"service": None, "protocol": None, "role": None}
            yield [encode({**nothing, **_sums(unserved), "endpoints": []})]

    def _described(
        self, service: ServiceSums, endpoints: Iterable[EndpointSums]
    ) -> Generator[list[str], None, str]:
        """The entry of it. There may be very many endpoints: others have their turn meanwhile."""
        tally = service.tally
        details = self._services.service_details(service)
        lists = {key: value for key, value in details.items() if isinstance(value, Iterator)}
        lists["endpoints"] = (self._endpoint(service.number, each) for each in endpoints)
        text = encode(
            {
                "service": service.name,
                "protocol": service.protocol.name.lower(),
                "role": service.role.name.lower(),
                **{key: value for key, value in details.items() if key not in lists},
                "available": service.available,
                "panic": service.panic,
                "active": tally.active,
                "pending": tally.pending,
                "retrying": service.retries,
                "at_limit": [bound.name.lower() for bound in service.reached],
                **_sums(tally),
                **_pace(self._lately.pace(service.number, tally)),
            }
        )
        parts = [text.removesuffix("}")]
        for key, items in lists.items():
            parts.append(f', "{key}": [')
            texts: list[str] = []
            for item in items:
                texts.append(encode(item))
                if len(texts) % _LISTED == 0:
                    yield []
            parts.append(f"{', '.join(texts)}]")
        return "".join([*parts, "}"])

    def _endpoint(self, service: int, endpoint: EndpointSums) -> dict[str, Any]:
        tally = endpoint.tally
        return {
            "address": str(endpoint.address),
            "weight": endpoint.weight,
            "ejected": endpoint.ejected or endpoint.ejected_for > 0,
            "other_zone": endpoint.other_zone,
            **self._services.endpoint_details(endpoint),
            "active": tally.active,
            "connections": tally.connections,
            "requests": tally.requests,
            "failures": tally.failures,
            **_pace(self._lately.pace((service, endpoint.address), tally)),
        }


def _sums(tally: RequestTally) -> dict[str, Any]:
    return {
        "connections": tally.connections,
        "requests": tally.requests,
        "failures": tally.failures,
        "attempts": tally.attempts,
        "bytes_sent": tally.bytes_sent,
        "bytes_received": tally.bytes_received,
        "statuses": {
            name: count for name, count in zip(STATUS_CLASSES, tally.statuses, strict=True) if count
        },
        "flags": {flag.name.lower(): count for flag, count in tally.flags.items()},
    }


def _pace(pace: Pace) -> dict[str, float | None]:
    return {
        "rate": round(pace.rate, 2),
        "p50_ms": None if pace.p50 is None else round(pace.p50 * 1000, 3),
        "p99_ms": None if pace.p99 is None else round(pace.p99 * 1000, 3),
    }
