"""What the rules shall do: settings, and the names by which ours are recognised.

Everything that is made in the kernel carries one of the fixed names below, so that it can be found
and removed again without remembering anything.
"""

from __future__ import annotations

import enum
import hashlib
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from pysidecar.address import Address
from pysidecar.errors import StartError

__all__ = [
    "ALL_PORTS",
    "APPLICATION_SOURCES",
    "DEFAULT_INBOUND_LISTEN",
    "DEFAULT_OUTBOUND_LISTEN",
    "INBOUND_MARK",
    "LOOPBACKS",
    "OUTBOUND_MARK",
    "REFUSE_MARK",
    "ROUTE_PROTOCOL",
    "ROUTE_TABLE",
    "RULE_PRIORITY",
    "Direction",
    "InboundMode",
    "InboundSettings",
    "Network",
    "OutboundRedirectSettings",
    "OwnTraffic",
    "PolicyRule",
    "PortRange",
    "RulesError",
    "Ruleset",
]

Network = IPv4Network | IPv6Network

# Marks of packets, each the decimal number of a port that it has to do with. None has the bits
# 0x4000 and 0x8000, which mean "masquerade" and "drop" to kube-proxy.
INBOUND_MARK = 15006
"""SO_MARK of the inbound listeners and of the sockets from there to the application (tproxy)."""
OUTBOUND_MARK = 15001
"""SO_MARK of the sidecar's own connections, which outbound redirect leaves alone."""
REFUSE_MARK = 15008
"""First packets of connections that nobody takes; set and rejected by rules."""

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

DEFAULT_OUTBOUND_LISTEN = (Address("127.0.0.1", 15001), Address("::1", 15001))


class RulesError(StartError):
    """Why rules could not be changed; the text says what is in the way and what to do."""


class Direction(enum.Enum):
    """Of a connection, seen from the application."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"

    @property
    def table(self) -> str:
        """The nft table, of family inet."""
        return f"pysidecar_{self.value}"

    @property
    def chain_prefix(self) -> str:
        """What the names of our iptables chains begin with."""
        return "PYSIDECAR_IN_" if self is Direction.INBOUND else "PYSIDECAR_OUT_"


class InboundMode(enum.Enum):
    """How inbound connections get to the sidecar."""

    TPROXY = "tproxy"
    REDIRECT = "redirect"


DEFAULT_INBOUND_LISTEN: dict[InboundMode, tuple[Address, ...]] = {
    # The packet stays as it is and the socket is assigned, wherever it listens.
    InboundMode.TPROXY: (Address("127.0.0.1", 15006), Address("::1", 15006)),
    # The packet is sent to the address of the interface that it came through.
    InboundMode.REDIRECT: (Address("0.0.0.0", 15006), Address("::", 15006)),
}


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Both ends inclusive, 0 to 65535."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last <= 0xFFFF:
            raise ValueError(
                f"expected a range within 0 to 65535, smaller port first: {self.first}-{self.last}"
            )

    @classmethod
    def single(cls, port: int) -> PortRange:
        """One port."""
        return cls(port, port)


ALL_PORTS = (PortRange(1, 0xFFFF),)


def without(included: Iterable[PortRange], excluded: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """``included`` minus ``excluded``: disjoint, not adjacent and in order."""
    wanted = bytearray(0x10000)
    for value, ranges in ((1, included), (0, excluded)):
        for each in ranges:
            wanted[each.first : each.last + 1] = bytes([value]) * (each.last + 1 - each.first)
    found: list[PortRange] = []
    start = wanted.find(1)
    while start >= 0:
        end = wanted.find(0, start)
        end = end if end >= 0 else len(wanted)
        found.append(PortRange(start, end - 1))
        start = wanted.find(1, end)
    return tuple(found)


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


def _check_mark(mark: int) -> None:
    if not 1 <= mark <= 0xFFFFFFFF:
        raise ValueError(f"expected a mark from 1 to 0xffffffff, not {mark:#x}")


@dataclass(frozen=True, slots=True)
class InboundSettings:
    """Which inbound connections go to the sidecar, and how. Raises ValueError for what cannot
    work, saying what was expected.

    ``listen`` has at most one address of each family; a family without one is left alone.
    ``ports`` of None are all. ``preserve_source`` and ``mark`` are tproxy's alone;
    with ``preserve_source`` the sidecar connects to the application on loopback. (On the address
    that the client asked for, the client's connections and those in its name would differ in
    nothing but the client's port, which both pick at random: at times they would be the same.)
    """

    mode: InboundMode
    listen: tuple[Address, ...]
    ports: tuple[PortRange, ...] | None = None
    exclude_ports: tuple[PortRange, ...] = ()
    preserve_source: bool = False
    mark: int = INBOUND_MARK

    def __post_init__(self) -> None:
        listen = _by_family(self.listen)
        _check_mark(self.mark)
        if self.mark == REFUSE_MARK:
            raise ValueError(f"expected another mark: {self.mark} has a meaning in the rules")
        if self.mode is InboundMode.REDIRECT:
            if self.preserve_source:
                raise ValueError(
                    "expected mode tproxy for preserve_source: redirect cannot preserve it"
                )
            for address in listen.values():
                if ip_address(address.host).is_loopback:
                    raise ValueError(
                        f"expected 0.0.0.0 or [::] instead of {address} for mode redirect: the "
                        "kernel sends the connections to the address of the interface that they "
                        "came through"
                    )
        if not self.captured:
            raise ValueError("expected a port that is not excluded")

    @property
    def captured(self) -> tuple[PortRange, ...]:
        """The ports whose connections are taken: never the listener's own."""
        own = [PortRange.single(address.port) for address in self.listen]
        return without(ALL_PORTS if self.ports is None else self.ports, [*self.exclude_ports, *own])


@dataclass(frozen=True, slots=True)
class OwnTraffic:
    """By which signs the sidecar's own packets are left alone; one of them is enough.

    ``cgroup`` is a path in the cgroup v2 hierarchy, such as ``system.slice/pysidecar.service``.
    """

    marks: tuple[int, ...] = (OUTBOUND_MARK,)
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    cgroup: str | None = None

    def __post_init__(self) -> None:
        for mark in self.marks:
            _check_mark(mark)
        if not (self.marks or self.uids or self.gids or self.cgroup):
            raise ValueError(
                "expected a mark, uid, gid or cgroup that tells the sidecar's own traffic: without "
                "one it would be redirected to itself"
            )
        if self.cgroup is not None and (
            not self.cgroup.strip("/") or any(c in self.cgroup for c in '"\\\n\0')
        ):
            raise ValueError(f"expected the path of a cgroup, not {self.cgroup!r}")

    @property
    def cgroup_path(self) -> str | None:
        """Without slashes at its ends."""
        return self.cgroup.strip("/") if self.cgroup else None


@dataclass(frozen=True, slots=True)
class OutboundRedirectSettings:
    """Which outbound connections go to the sidecar. Raises ValueError for what cannot work.

    The kernel sends them to 127.0.0.1 and ::1, so the listeners are there or on a wildcard address.
    ``include_local`` takes connections to this host's own addresses too.
    """

    listen: tuple[Address, ...] = DEFAULT_OUTBOUND_LISTEN
    exclude_networks: tuple[Network, ...] = ()
    exclude_ports: tuple[PortRange, ...] = ()
    include_local: bool = False
    own: OwnTraffic = OwnTraffic()

    def __post_init__(self) -> None:
        for address in _by_family(self.listen).values():
            if address.host not in ("127.0.0.1", "::1", "0.0.0.0", "::"):
                raise ValueError(
                    f"expected 127.0.0.1 or [::1] instead of {address}: that is where the kernel "
                    "sends outbound connections"
                )
        if not self.captured:
            raise ValueError("expected a port that is not excluded")

    @property
    def captured(self) -> tuple[PortRange, ...]:
        """The ports whose connections are taken."""
        return without(ALL_PORTS, self.exclude_ports)

    def excluded(self, family: socket.AddressFamily) -> tuple[Network, ...]:
        """The excluded networks of a family, none within another."""
        networks = {n for n in self.exclude_networks if (n.version == 6) == _is_v6(family)}
        ordered = sorted(networks, key=lambda n: (n.prefixlen, int(n.network_address)))
        kept: list[Network] = []
        for network in ordered:
            if not any(_contains(wider, network) for wider in kept):
                kept.append(network)
        return tuple(sorted(kept, key=lambda n: int(n.network_address)))


def _is_v6(family: socket.AddressFamily) -> bool:
    return family == socket.AF_INET6


def _contains(wider: Network, network: Network) -> bool:
    return network.network_address in wider and network.prefixlen >= wider.prefixlen


@dataclass(frozen=True, slots=True, order=True)
class PolicyRule:
    """A policy routing rule for packets of this host; whatever matches is for this host too."""

    family: socket.AddressFamily
    source: str | None = None
    destination: str | None = None

    def __str__(self) -> str:
        """As ``ip`` would be told."""
        words = ["ip", "-6" if _is_v6(self.family) else "-4", "rule", "add"]
        if self.source is not None:
            words += ["from", self.source]
        if self.destination is not None:
            words += ["to", self.destination]
        words += ["iif", "lo", "lookup", str(ROUTE_TABLE)]
        words += ["priority", str(RULE_PRIORITY), "protocol", str(ROUTE_PROTOCOL)]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All that one direction needs in the kernel; a backend renders it."""

    settings: InboundSettings | OutboundRedirectSettings

    @property
    def direction(self) -> Direction:
        """Each has rules of its own."""
        if isinstance(self.settings, InboundSettings):
            return Direction.INBOUND
        return Direction.OUTBOUND

    @property
    def listen(self) -> dict[socket.AddressFamily, Address]:
        """Where the rules point, by family."""
        return _by_family(self.settings.listen)

    @property
    def policy_rules(self) -> tuple[PolicyRule, ...]:
        """What brings the application's answers back to the sidecar: only tproxy needs any."""
        settings = self.settings
        if not isinstance(settings, InboundSettings) or settings.mode is not InboundMode.TPROXY:
            return ()
        families = sorted(self.listen)
        if not settings.preserve_source:
            source = APPLICATION_SOURCES[socket.AF_INET6]
            return tuple(
                PolicyRule(family, destination=str(ip_network(source)))
                for family in families
                if _is_v6(family)
            )
        return tuple(PolicyRule(family, source=str(LOOPBACKS[family])) for family in families)


def fingerprint(text: str) -> str:
    """Tells whether rules in the kernel are of this text: they carry it in a comment."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
