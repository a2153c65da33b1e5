"""From what a registry tells of a service to the endpoints that requests go to.

A registry is believed no more than it has to be: it can name the endpoints of its services, and
cannot make the sidecar call itself, or what only this host reaches.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pysidecar.address import Address
from pysidecar.registry.refusal import refusal
from pysidecar.registry.service import Instance

__all__ = ["Endpoints", "Selection"]

_WARM_STEPS = 20  # in which a weight grows: a table for each, not for each second
_MOST_WEIGHT = 10_000
_LINK_LOCAL = b"\xa9\xfe"  # 169.254.0.0/16


def _spelled(host: str) -> tuple[str, bool]:
    """As usual, so that one address is one text; and whether it is an ordinary one of IPv4, as
    most are."""
    try:
        packed = socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return _spelled_otherwise(host), False
    first = packed[0]
    return host, 0 < first < 224 and first != 127 and not packed.startswith(_LINK_LOCAL)


@lru_cache(maxsize=65536)
def _spelled_otherwise(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


@dataclass(frozen=True, slots=True)
class Selection:
    """The endpoints, with weights, and when they will be others although nobody says so."""

    endpoints: tuple[tuple[Address, int], ...]
    zones: tuple[str, ...] = ()
    """Where these are, in their order; empty: not known of any."""
    warming: frozenset[Address] = frozenset()
    """Those whose weight grows."""
    changes: float = math.inf  # seconds since the epoch
    refused: tuple[tuple[Address, str], ...] = ()
    """Those that no request goes to, and why."""


@dataclass(slots=True)
class Endpoints:
    """How instances are chosen."""

    loopback: bool = False
    """See ``refusal``."""

    own: Mapping[Address, str] = field(default_factory=dict)
    """What of ours listens where: on each address that is spelled as usual, and 0.0.0.0, of which
    all of 127.0.0.0/8 is a part."""

    provider: Address | None = None
    """The address that we tell the registry."""

    def select(
        self, instances: Sequence[Instance], local: Iterable[Address], now: float
    ) -> Selection:
        """``local`` is where applications here provide the service: they are called themselves and
        not by way of the port that we told the registry. ``now`` is in seconds since the epoch."""
        found: dict[Address, tuple[int, str]] = {}
        warming: set[Address] = set()
        refused: list[tuple[Address, str]] = []
        changes = math.inf
        told = self.provider and Address(_spelled(self.provider.host)[0], self.provider.port)
        own_ports = {address.port for address in self.own}
        for instance in instances:
            weight, until = _weight(instance, now)
            if not weight:
                continue
            address = instance.address
            host, is_ordinary = _spelled(address.host)
            if host is not address.host:
                address = Address(host, address.port)
            addresses: tuple[Address, ...] = (address,)
            if told and host == told.host and address.port == told.port:
                addresses = tuple(local)
            elif is_ordinary and 0 < address.port <= 0xFFFF and address.port not in own_ports:
                pass  # as nearly all are
            elif reason := self._refusal(address, is_ordinary):
                refused.append((instance.address, reason))
                continue
            for each in addresses:
                found[each] = (weight, instance.zone)
            if until < math.inf:
                warming.update(addresses)
                changes = min(changes, until)
        zones = tuple(zone for _, zone in found.values())
        return Selection(
            tuple((address, weight) for address, (weight, _) in found.items()),
            zones if any(zones) else (),
            frozenset(warming),
            changes,
            tuple(refused),
        )

    def _refusal(self, address: Address, is_ordinary: bool) -> str | None:
        if not (is_ordinary and 0 < address.port <= 0xFFFF):
            reason = refusal(address, loopback=self.loopback)
            if reason is not None:
                return reason
        listener = self.own.get(address)
        if listener is None and address.host.startswith("127."):
            listener = self.own.get(Address("0.0.0.0", address.port))
        return listener and f"it is the sidecar's own listener, {listener}"


def _weight(instance: Instance, now: float) -> tuple[int, float]:
    """Now, and until when. As Dubbo and SOFARPC have it: in proportion to the time since the start,
    and never less than 1."""
    full = min(instance.weight, _MOST_WEIGHT)
    if full <= 0:
        return 0, math.inf
    age = now - instance.started
    if not instance.started or instance.warmup <= 0 or not 0 <= age < instance.warmup:
        return full, math.inf
    step = instance.warmup / _WARM_STEPS
    passed = int(age / step)
    return max(1, full * passed // _WARM_STEPS), instance.started + (passed + 1) * step
