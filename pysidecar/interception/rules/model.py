"""What the rules shall do, and the names by which ours are recognised.

A way of interception says what it needs in a ``Ruleset`` of its own; nothing here knows which ways
there are.

Everything that is made in the kernel carries one of the fixed names below, so that it can be found
and removed again without remembering anything.
"""

from __future__ import annotations

import abc
import hashlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import ClassVar

from pysidecar.address import Address
from pysidecar.destinations import ALL_PORTS, Network, PortRange, without
from pysidecar.direction import Direction
from pysidecar.errors import StartError

__all__ = [
    "APPLICATION_SOURCES",
    "LOOPBACKS",
    "ROUTE_PROTOCOL",
    "ROUTE_TABLE",
    "RULE_PRIORITY",
    "InboundRules",
    "IptablesChain",
    "IptablesRule",
    "NftChain",
    "NftFeature",
    "NftRule",
    "PolicyRule",
    "RulesError",
    "Ruleset",
    "check_mark",
    "fingerprint",
]

ROUTE_TABLE = 15006
"""Our routing table: one ``local default dev lo`` for each family."""
RULE_PRIORITY = 15006
"""Preference of our policy routing rules: after ``local`` (0), before ``main`` (32766)."""
ROUTE_PROTOCOL = 150
"""Who made a route or policy rule (``rtm_protocol``); free in iproute2's ``rt_protos``."""

LOOPBACKS: dict[socket.AddressFamily, Network] = {
    socket.AF_INET: IPv4Network("127.0.0.0/8"),
    socket.AF_INET6: IPv6Network("::1/128"),
}
APPLICATION_SOURCES: dict[socket.AddressFamily, str] = {
    socket.AF_INET: "127.0.0.6",
    socket.AF_INET6: "fd70:7973:6964:6563::6",
}
"""Where tproxy's connections to the application come from when the source is not preserved. An
address of their own tells both directions of exactly these connections, so that they stay out of
conntrack; and the application cannot mistake them for someone on this host, whom it may trust. IPv4
has it in 127.0.0.0/8 (Istio uses the same one); IPv6 has one loopback address only, so it is a
unique local one that a policy rule keeps on this host."""


class RulesError(StartError):
    """Why rules could not be changed; the text says what is in the way and what to do."""


def _by_family(listen: Sequence[Address]) -> dict[socket.AddressFamily, Address]:
    found: dict[socket.AddressFamily, Address] = {}
    for address in listen:
        if address.family in found:
            raise ValueError(f"expected one address of each family, not also {address}")
        if not 1 <= address.port <= 0xFFFF:
            raise ValueError(f"expected a port from 1 to 65535, since rules name it: {address}")
        found[address.family] = address
    if not found:
        raise ValueError("expected an address to listen on")
    return found


def check_mark(mark: int) -> None:
    """Raises ValueError for what cannot be one."""
    if not 1 <= mark <= 0xFFFFFFFF:
        raise ValueError(f"expected a mark from 1 to 0xffffffff, not {mark:#x}")


@dataclass(frozen=True, slots=True, order=True)
class PolicyRule:
    """A policy routing rule for packets of this host; whatever matches is for this host too."""

    family: socket.AddressFamily
    source: str | None = None
    destination: str | None = None

    def __str__(self) -> str:
        """As ``ip`` would be told."""
        words = ["ip", "-6" if self.family == socket.AF_INET6 else "-4", "rule", "add"]
        if self.source is not None:
            words += ["from", self.source]
        if self.destination is not None:
            words += ["to", self.destination]
        words += ["iif", "lo", "lookup", str(ROUTE_TABLE)]
        words += ["priority", str(RULE_PRIORITY), "protocol", str(ROUTE_PROTOCOL)]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class NftRule:
    """``counter`` names the counter of its purpose, or is None; it stands where {counter} is."""

    text: str
    purpose: str
    counter: str | None = None


@dataclass(frozen=True, slots=True)
class NftChain:
    """``hook`` is its type, hook and priority."""

    name: str
    hook: str
    rules: tuple[NftRule, ...]


@dataclass(frozen=True, slots=True)
class NftFeature:
    """What rules need of the kernel: the module that has it, a rule that needs it, and the hook of
    that rule's chain."""

    name: str
    module: str
    rule: str
    hook: str


@dataclass(frozen=True, slots=True)
class IptablesRule:
    """``purpose`` begins with its counter's name if it has a ``counted``."""

    text: str
    purpose: str


@dataclass(frozen=True, slots=True)
class IptablesChain:
    """``built_in`` is the chain that jumps here, if any."""

    table: str
    name: str
    rules: tuple[IptablesRule, ...]
    built_in: str | None = None


@dataclass(frozen=True)
class Ruleset(abc.ABC):
    """All that one direction needs in the kernel; a backend brings it there.

    ``listen`` is where the rules point: at most one address of each family; a family without one is
    left alone. Raises ValueError for what cannot work, saying what was expected.
    """

    direction: ClassVar[Direction]
    """Each has rules of its own."""

    listen: tuple[Address, ...]

    def __post_init__(self) -> None:
        _by_family(self.listen)

    @property
    def by_family(self) -> dict[socket.AddressFamily, Address]:
        """Where the rules point."""
        return _by_family(self.listen)

    @property
    def policy_rules(self) -> tuple[PolicyRule, ...]:
        """What brings the application's answers back to the sidecar, if anything has to."""
        return ()

    @abc.abstractmethod
    def nft_chains(self) -> Iterable[NftChain]:
        """The rules as nft has them."""

    def nft_features(self) -> Iterable[NftFeature]:
        """What they need, to tell what a kernel lacks that refuses them."""
        return ()

    def nft_obstacle(self) -> str | None:
        """What is in nft's way here that is not the kernel's lack."""
        return None

    @abc.abstractmethod
    def iptables_chains(self, family: socket.AddressFamily) -> Iterator[IptablesChain]:
        """The rules as iptables has them; the names of chains begin with
        ``iptables.chain_prefix``."""


@dataclass(frozen=True)
class InboundRules(Ruleset):
    """Which inbound connections go to the sidecar. ``ports`` of None are all."""

    direction: ClassVar[Direction] = Direction.INBOUND

    ports: tuple[PortRange, ...] | None = None
    exclude_ports: tuple[PortRange, ...] = ()
    preserve_source: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.captured:
            raise ValueError("expected a port that is not excluded")

    @property
    def captured(self) -> tuple[PortRange, ...]:
        """The ports whose connections are taken: never the listener's own."""
        own = [PortRange.single(address.port) for address in self.listen]
        return without(ALL_PORTS if self.ports is None else self.ports, [*self.exclude_ports, *own])


def fingerprint(text: str) -> str:
    """Tells whether rules in the kernel are of this text: they carry it in a comment."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
