"""How busy and how slow services and endpoints were in the last minute.

The data plane has sums since the start. Here they are looked at now and then, so that what has come
since a look about a minute ago can be told.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from pysidecar.address import Address
from pysidecar.dataplane import REQUEST_BOUNDS, EndpointSums, RequestTally, ServiceSums

__all__ = ["Lately", "LookedAt", "Pace", "quantile"]

PERIOD = 10.0  # seconds from one look to the next
WINDOW = 60.0  # seconds that a look is kept

Key = int | tuple[int, Address]
"""Of a service, by its number, or of an endpoint."""
_Counts = Sequence[int]  # of requests, by duration


class LookedAt(Protocol):
    """Whose services are looked at."""

    def services(self, *, only_used: bool = False) -> Iterator[Sequence[ServiceSums]]:
        """All, or those that requests have reached, in pieces."""

    def endpoints(
        self, *, only_used: bool = False, of: Container[int] | None = None
    ) -> Iterator[Sequence[EndpointSums]]:
        """Those of all services, or of those with these numbers, likewise."""


class Pace(NamedTuple):
    """``rate`` in requests a second; the others in seconds, None where there was no request."""

    rate: float
    p50: float | None
    p99: float | None


class Lately:
    """Tells the pace since the earliest look within the window, or since it was made."""

    def __init__(self, looked_at: LookedAt, clock: Callable[[], float] = time.monotonic) -> None:
        self._looked_at = looked_at
        self._clock = clock
        self._looks: deque[tuple[float, Mapping[Hashable, _Counts]]] = deque([(clock(), {})])

    def look(self) -> Iterator[None]:
        """To be done every PERIOD; in pieces, between which others may work."""
        seen: dict[Hashable, _Counts] = {}
        for services in self._looked_at.services(only_used=True):
            seen.update((each.number, by_duration(each.tally)) for each in services)
            yield
        for endpoints in self._looked_at.endpoints(only_used=True):
            seen.update(
                ((each.service, each.address), by_duration(each.tally)) for each in endpoints
            )
            yield
        now = self._clock()
        self._looks.append((now, seen))
        while len(self._looks) > 1 and self._looks[1][0] <= now - WINDOW:
            self._looks.popleft()

    def pace(self, key: Key, tally: RequestTally) -> Pace:
        """Of what has these sums now."""
        then, seen = self._looks[0]
        counts = by_duration(tally)
        before = seen.get(key)
        if before is not None and all(a <= b for a, b in zip(before, counts, strict=True)):
            counts = [b - a for a, b in zip(before, counts, strict=True)]
        seconds = max(self._clock() - then, 1e-3)
        return Pace(sum(counts) / seconds, quantile(counts, 0.5), quantile(counts, 0.99))


def by_duration(tally: RequestTally) -> _Counts:
    """Of all status classes together."""
    return [sum(counts) for counts in zip(*tally.durations, strict=True)]


def quantile(counts: _Counts, share: float) -> float | None:
    """An estimate in seconds, from how many lasted up to each of REQUEST_BOUNDS: as if they were
    spread evenly between two bounds. Whatever is beyond the last one counts as that."""
    rank = sum(counts) * share
    if rank == 0:
        return None
    below = 0.0
    for count, bound in zip(counts, REQUEST_BOUNDS, strict=False):
        if count >= rank:
            return below + (bound - below) * rank / count
        rank -= count
        below = bound
    return REQUEST_BOUNDS[-1]
