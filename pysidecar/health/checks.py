"""Which endpoints are asked, and what their answers mean for requests."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.health.kinds import conversation_for
from pysidecar.health.prober import Prober, Target

__all__ = ["CheckedService", "Health", "HealthChecks"]

log = logging.getLogger(__name__)

_MOST_LINES = 20  # of the log, in such a time
_PERIOD = 10.0  # seconds

Apply = Callable[[Sequence[tuple[int, Address, bool]]], None]
"""As ``DataPlane.set_health``."""


@dataclass(frozen=True, slots=True)
class CheckedService:
    """A service whose endpoints are asked; ``number`` is the data plane's name for it."""

    number: int
    name: str
    protocol: str
    settings: HealthCheck
    endpoints: Collection[Address]


class Health:
    """How an endpoint is. It is healthy until its first check says otherwise: a sidecar that starts
    would else refuse everything until then."""

    __slots__ = ("checked", "healthy", "in_a_row", "problem", "since", "target")

    def __init__(self, target: Target | None = None) -> None:
        self.target = target
        self.healthy = True
        self.checked = False
        """Whether one check passed, or made it unhealthy."""
        self.in_a_row = 0
        """Checks that said the opposite of ``healthy``."""
        self.problem: str | None = None
        """Of the last check."""
        self.since = time.time()
        """When ``healthy`` became what it is."""

    def hear(self, problem: str | None, settings: HealthCheck) -> bool:
        """What a check said. Whether it changes ``healthy``."""
        self.problem = problem
        if (problem is None) == self.healthy:
            self.in_a_row = 0
            self.checked |= self.healthy
            return False
        self.in_a_row += 1
        needed = settings.unhealthy_after if self.healthy else settings.healthy_after
        if self.in_a_row < needed and self.checked:
            return False
        self.healthy = not self.healthy
        self.checked = True
        self.in_a_row = 0
        self.since = time.time()
        return True

    def describe(self) -> dict[str, object]:
        """For ``/services``."""
        return {
            "healthy": self.healthy,
            "checked": self.checked,
            "since": round(self.since, 3),
            "problem": self.problem,
        }


class _Service:
    """One of them, with what is known of its endpoints."""

    def __init__(self, checked: CheckedService) -> None:
        self.checked = checked
        self.endpoints: dict[Address, Health] = {}
        self.results: Counter[bool] = Counter()
        """Checks, by whether they passed."""


class HealthChecks:
    """Asks the endpoints that ``set`` names, and tells ``apply`` of those that are not what they
    were. ``own`` says which listener of the sidecar's an address is: it is not asked. In an event
    loop."""

    def __init__(
        self,
        apply: Apply,
        *,
        most: int,
        own: Callable[[Address], str | None] = lambda address: None,
        mark: int = 0,
    ) -> None:
        self._apply = apply
        self._own = own
        self._prober: Prober | None = None
        self._make_prober = partial(Prober, most=most, mark=mark)
        self._services: dict[int, _Service] = {}
        self._lines = 0
        self._lines_until = 0.0

    def set(self, services: Iterable[CheckedService]) -> None:
        """These are asked from here on, and no others. What is known of an endpoint that stays goes
        on to be."""
        wanted = {service.number: service for service in services}
        changes: list[tuple[int, Address, bool]] = []
        for number in self._services.keys() - wanted.keys():
            service = self._services.pop(number)
            changes += self._forget(service, list(service.endpoints))
        for number, checked in wanted.items():
            known = self._services.get(number)
            if known is None:
                known = self._services[number] = _Service(checked)
            elif known.checked == checked:
                continue
            changes += self._update(known, checked)
        if changes:
            self._apply(changes)

    def close(self) -> None:
        """Asks nobody any more."""
        if self._prober is not None:
            self._prober.close()
            self._prober = None

    # ---- what others see ----

    def of(self, number: int, address: Address) -> Health | None:
        """What is known of an endpoint of that service; None: it is not asked."""
        service = self._services.get(number)
        return service.endpoints.get(address) if service is not None else None

    def results(self) -> Iterable[tuple[str, str, int, int]]:
        """Name and protocol of each service, and how many checks passed and failed."""
        for service in self._services.values():
            checked = service.checked
            yield checked.name, checked.protocol, service.results[True], service.results[False]

    @property
    def late(self) -> int:
        """Checks that had to wait, or could not be made, for lack of connections."""
        return self._prober.late if self._prober is not None else 0

    @property
    def connections(self) -> int:
        """That are open."""
        return self._prober.connections if self._prober is not None else 0

    # ---- from one set to the next ----

    def _forget(
        self, service: _Service, addresses: Iterable[Address]
    ) -> list[tuple[int, Address, bool]]:
        for address in addresses:
            health = service.endpoints.pop(address)
            if health.target is not None and self._prober is not None:
                self._prober.remove(health.target)
        return [(service.checked.number, address, True) for address in addresses]

    def _update(
        self, service: _Service, checked: CheckedService
    ) -> list[tuple[int, Address, bool]]:
        before, service.checked = service.checked, checked
        endpoints = set(checked.endpoints)
        gone = [address for address in service.endpoints if address not in endpoints]
        changes = self._forget(service, gone)
        if before.settings != checked.settings:
            for address, health in service.endpoints.items():
                if health.target is not None and self._prober is not None:
                    self._prober.remove(health.target)
                health.target = self._begin(service, address, health)
        for address in checked.endpoints:
            if address in service.endpoints:
                continue
            health = service.endpoints[address] = Health()
            health.target = self._begin(service, address, health)
            # Whatever an endpoint of that address was before.
            changes.append((checked.number, address, health.healthy))
        return changes

    def _begin(self, service: _Service, address: Address, health: Health) -> Target | None:
        checked = service.checked
        if (own := self._own(address)) is not None:
            health.healthy = False
            health.problem = f"it is the sidecar's own listener, {own}"
            return None
        if self._prober is None:
            try:
                self._prober = self._make_prober()
            except OSError as error:
                log.error("no health checks can be made: %s", error.strerror)
                return None
        settings = checked.settings
        kind = conversation_for(settings, checked.protocol)
        target = Target(
            address,
            interval=settings.interval,
            timeout=settings.timeout,
            converse=partial(kind, settings, address) if kind is not None else None,
            told=partial(self._told, service, address, health),
        )
        self._prober.add(target)
        return target

    # ---- answers ----

    def _told(
        self, service: _Service, address: Address, health: Health, problem: str | None
    ) -> None:
        checked = service.checked
        service.results[problem is None] += 1
        if not health.hear(problem, checked.settings):
            return
        self._apply([(checked.number, address, health.healthy)])
        if health.healthy:
            self._log(logging.INFO, "%s: %s is healthy again", checked.name, address)
        else:
            self._log(logging.WARNING, "%s: %s is unhealthy: %s", checked.name, address, problem)

    def _log(self, level: int, text: str, *arguments: object) -> None:
        """A few lines in a row: where a network fails, all endpoints do."""
        now = time.monotonic()
        if now >= self._lines_until:
            if self._lines > _MOST_LINES:
                log.warning(
                    "%d more endpoints became healthy or unhealthy: see /services",
                    self._lines - _MOST_LINES,
                )
            self._lines, self._lines_until = 0, now + _PERIOD
        self._lines += 1
        if self._lines <= _MOST_LINES:
            log.log(level, text, *arguments)
