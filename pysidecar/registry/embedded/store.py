"""What is registered, by whom, and for how long: without I/O and without a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from pysidecar.address import Address
from pysidecar.registry import MAX_INSTANCES, RegistryError
from pysidecar.registry.embedded import wire
from pysidecar.registry.service import Instance, Registration, ServiceKey

__all__ = ["Held", "Lease", "Store"]

MOST_REGISTRATIONS: Final = 131_072
MOST_BYTES: Final = 128 << 20
"""Of all registrations, as text."""
MOST_BYTES_OF_SERVICE: Final = 8 << 20
"""A push tells all of them: it stays below what clients take."""
_SHARE: Final = 4
"""One owner who is not trusted has at most this part of both."""

Place = tuple[ServiceKey, Address]


@dataclass(slots=True, eq=False)
class Lease:
    """Until when what one client registered counts."""

    number: int
    owner: str
    """Who may replace and remove it: that one, and who is trusted."""

    trusted: bool
    timeout: float
    """Seconds without a sign of the client."""

    deadline: float
    """In the time of whoever calls ``Store.expire``."""

    places: dict[Place, None] = field(default_factory=dict)


@dataclass(slots=True)
class Held:
    """A registration that counts."""

    instance: Instance
    text: str
    """As ``wire`` writes the instance."""

    lease: Lease


@dataclass(slots=True)
class _Sum:
    registrations: int = 0
    bytes: int = 0

    def add(self, held: Held, sign: int) -> None:
        self.registrations += sign
        self.bytes += sign * len(held.text)


class Store:
    """``changed`` is told of each place that has another registration, or none any more."""

    def __init__(self, changed: Callable[[ServiceKey, Address], None]) -> None:
        self._changed = changed
        self._services: dict[ServiceKey, dict[Address, Held]] = {}
        self._sizes: dict[ServiceKey, int] = {}
        self._leases: dict[int, Lease] = {}
        self._sum = _Sum()
        self._owners: dict[str, _Sum] = {}
        self._last_number = 0

    # ---- leases ----

    def open(
        self, owner: str, *, trusted: bool, timeout: float, now: float, number: int = 0
    ) -> Lease:
        """A new one, with nothing registered; or one of before, with its number."""
        number = number or self._last_number + 1
        self._last_number = max(self._last_number, number)
        lease = Lease(number, owner, trusted, timeout, now + timeout)
        self._leases[lease.number] = lease
        return lease

    def end(self, lease: Lease) -> None:
        """All that it has is gone."""
        self._leases.pop(lease.number, None)
        for service, address in list(lease.places):
            self._remove(service, address)

    def expire(self, now: float) -> list[Lease]:
        """Ends those whose time is over, and returns them."""
        over = [lease for lease in self._leases.values() if lease.deadline <= now]
        for lease in over:
            self.end(lease)
        return over

    def prolong(self, seconds: float) -> None:
        """Of a time in which nobody could give a sign."""
        for lease in self._leases.values():
            lease.deadline += seconds

    # ---- registrations ----

    def register(self, lease: Lease, registration: Registration, text: str = "") -> None:
        """``text``: as ``wire`` writes the instance. Raises RegistryError."""
        service, instance = registration.service, registration.instance
        held = Held(instance, text or wire.text_of_instance(instance), lease)
        before = self._services.get(service, {}).get(instance.address)
        if before is not None:
            _check_owner(before, lease)
            if before.lease is lease and before.text == held.text:
                return
        self._check_room(service, held, before)
        if before is not None:
            self._forget(service, before)
        self._services.setdefault(service, {})[instance.address] = held
        self._sizes[service] = self._sizes.get(service, 0) + len(held.text)
        lease.places[service, instance.address] = None
        self._sum.add(held, 1)
        self._owners.setdefault(lease.owner, _Sum()).add(held, 1)
        self._changed(service, instance.address)

    def unregister(self, lease: Lease, service: ServiceKey, address: Address) -> None:
        """Raises RegistryError where it is another owner's."""
        held = self._services.get(service, {}).get(address)
        if held is not None:
            _check_owner(held, lease)
            self._remove(service, address)

    def _remove(self, service: ServiceKey, address: Address) -> None:
        instances = self._services[service]
        self._forget(service, instances.pop(address))
        if not instances:
            del self._services[service], self._sizes[service]
        self._changed(service, address)

    def _forget(self, service: ServiceKey, held: Held) -> None:
        lease = held.lease
        del lease.places[service, held.instance.address]
        self._sizes[service] -= len(held.text)
        self._sum.add(held, -1)
        own = self._owners[lease.owner]
        own.add(held, -1)
        if not own.registrations:
            del self._owners[lease.owner]

    def _check_room(self, service: ServiceKey, held: Held, before: Held | None) -> None:
        added = len(held.text) - (len(before.text) if before else 0)
        count = 0 if before else 1
        if len(self._services.get(service, ())) + count > MAX_INSTANCES:
            raise RegistryError(f"the service has {MAX_INSTANCES} instances, the limit")
        if self._sizes.get(service, 0) + added > MOST_BYTES_OF_SERVICE:
            raise RegistryError("the service's instances are too large together")
        own = self._owners.get(held.lease.owner, _Sum())
        for sums, share, whose in (
            (self._sum, 1, "the registry has"),
            (own, 1 if held.lease.trusted else _SHARE, f"{held.lease.owner} has"),
        ):
            if sums.registrations + count > MOST_REGISTRATIONS // share:
                raise RegistryError(f"{whose} {sums.registrations} registrations, the limit")
            if sums.bytes + added > MOST_BYTES // share:
                raise RegistryError(f"{whose} {sums.bytes} bytes of registrations, the limit")

    # ---- reading ----

    @property
    def services(self) -> list[ServiceKey]:
        """Those with instances, in the order in which they came."""
        return list(self._services)

    def held(self, service: ServiceKey) -> list[Held]:
        """Its registrations."""
        return list(self._services.get(service, {}).values())

    def at(self, service: ServiceKey, address: Address) -> Held | None:
        """The registration there."""
        return self._services.get(service, {}).get(address)

    def places(self) -> Iterator[tuple[ServiceKey, Held]]:
        """All of them. Nothing may be changed meanwhile."""
        for service, instances in self._services.items():
            for held in instances.values():
                yield service, held


def _check_owner(held: Held, lease: Lease) -> None:
    if held.lease.owner != lease.owner and not lease.trusted:
        raise RegistryError(f"it was registered by {held.lease.owner}")
