"""NAT: connections come to the sidecar's own address, and conntrack remembers where from."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.config import Config, Match, Outbound
from pysidecar.dataplane import Transport
from pysidecar.destinations import ALL_PORTS, Network, PortRange, without
from pysidecar.direction import Direction
from pysidecar.interception.kernel import InboundInterception, KernelInterception
from pysidecar.interception.rules.iptables import NOT_OURS, chain_prefix, for_ports
from pysidecar.interception.rules.model import (
    InboundRules,
    IptablesChain,
    IptablesRule,
    NftChain,
    NftFeature,
    NftRule,
    Ruleset,
    check_mark,
)
from pysidecar.interception.rules.nft import IP, as_set, only_captured, plain, redirects
from pysidecar.marks import OUTBOUND_MARK

__all__ = [
    "InboundRedirect",
    "InboundRedirectRules",
    "OutboundRedirect",
    "OutboundRedirectRules",
    "OwnTraffic",
]

_NAT_HOOK = "nat hook output priority -110"
_FEATURES = (
    NftFeature(
        "connection tracking and NAT (Linux 5.2 for inet)",
        "nf_nat, nft_chain_nat",
        "accept",
        _NAT_HOOK,
    ),
    NftFeature("REDIRECT", "nft_redir", "meta l4proto tcp redirect to :15001", _NAT_HOOK),
    NftFeature("address type lookup", "nft_fib_inet", "fib daddr type local", _NAT_HOOK),
)


@dataclass(frozen=True)
class InboundRedirectRules(InboundRules):
    """The kernel sends connections to the address of the interface that they came through."""

    def __post_init__(self) -> None:
        if self.preserve_source:
            raise ValueError(
                "expected mode tproxy for preserve_source: redirect cannot preserve it"
            )
        for address in self.by_family.values():
            if ip_address(address.host).is_loopback:
                raise ValueError(
                    f"expected 0.0.0.0 or [::] instead of {address} for mode redirect: the "
                    "kernel sends the connections to the address of the interface that they "
                    "came through"
                )
        super().__post_init__()

    @override
    def nft_chains(self) -> tuple[NftChain, ...]:
        return (_inbound_nft_chain(self),)

    @override
    def nft_features(self) -> tuple[NftFeature, ...]:
        return _FEATURES

    @override
    def iptables_chains(self, family: socket.AddressFamily) -> Iterator[IptablesChain]:
        return _inbound_iptables_chains(self, family)


class InboundRedirect(InboundInterception[InboundRedirectRules]):
    """Inbound connections, at the price of a conntrack entry each."""

    name = "redirect"
    transport = Transport.REDIRECT
    rules = InboundRedirectRules
    default_listen = (Address("0.0.0.0", 15006), Address("::", 15006))


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
            check_mark(mark)
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

    @property
    def cgroup_rule(self) -> str | None:
        """How nft tells it."""
        path = self.cgroup_path
        return path and f'socket cgroupv2 level {path.count("/") + 1} "{path}"'


@dataclass(frozen=True)
class OutboundRedirectRules(Ruleset):
    """Which outbound connections go to the sidecar.

    The kernel sends them to 127.0.0.1 and ::1, so the listeners are there or on a wildcard address.
    """

    direction: ClassVar[Direction] = Direction.OUTBOUND

    exclude_networks: tuple[Network, ...] = ()
    exclude_ports: tuple[PortRange, ...] = ()
    own: OwnTraffic = OwnTraffic()

    def __post_init__(self) -> None:
        for address in self.by_family.values():
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
        version = 6 if family == socket.AF_INET6 else 4
        networks = {network for network in self.exclude_networks if network.version == version}
        ordered = sorted(networks, key=lambda n: (n.prefixlen, int(n.network_address)))
        kept: list[Network] = []
        for network in ordered:
            if not any(_contains(wider, network) for wider in kept):
                kept.append(network)
        return tuple(sorted(kept, key=lambda n: int(n.network_address)))

    @override
    def nft_chains(self) -> tuple[NftChain, ...]:
        return (_outbound_nft_chain(self),)

    @override
    def nft_features(self) -> Iterator[NftFeature]:
        yield from _FEATURES
        if rule := self.own.cgroup_rule:
            yield NftFeature(
                "matching of cgroups (Linux 5.13)", "nft_socket", f"{rule} return", _NAT_HOOK
            )

    @override
    def nft_obstacle(self) -> str | None:
        if (path := self.own.cgroup_path) is None:
            return None
        # nft resolves it by this directory, whatever is mounted there.
        directory = Path("/sys/fs/cgroup", path)
        if directory.is_dir() and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return None
        return (
            f"there is no cgroup {directory}: nft needs the cgroup v2 hierarchy mounted at "
            "/sys/fs/cgroup; tell the sidecar's own traffic by mark, uid or gid instead"
        )

    @override
    def iptables_chains(self, family: socket.AddressFamily) -> Iterator[IptablesChain]:
        return _outbound_iptables_chains(self, family)


def _contains(wider: Network, network: Network) -> bool:
    return network.network_address in wider and network.prefixlen >= wider.prefixlen


class OutboundRedirect(KernelInterception[OutboundRedirectRules]):
    """Outbound connections of programs that the hook does not reach, such as static ones."""

    name = "redirect"
    direction = Direction.OUTBOUND
    transport = Transport.REDIRECT
    listen_key = "outbound.redirect.listen"

    @classmethod
    @override
    def section_of(cls, config: Config) -> tuple[Outbound, Sequence[Address], bool]:
        redirect = config.outbound.redirect
        assert redirect is not None
        return config.outbound, redirect.listen, "listen" in redirect.model_fields_set

    @classmethod
    @override
    def rules_of(
        cls, section: Outbound, listen: Sequence[Address] = (), own_ports: Sequence[int] = ()
    ) -> OutboundRedirectRules:
        redirect = section.redirect
        assert redirect is not None
        networks: list[Network] = []
        ports: list[PortRange] = []
        for index, exclude in enumerate(section.exclude):
            if exclude.ports is None:
                networks += exclude.destination
            elif {*exclude.destination} >= {*Match().destination}:
                ports += exclude.ports
            else:
                raise ValueError(
                    f"expected either destination or ports in exclude[{index}]: redirect cannot "
                    "exclude ports of some destinations only"
                )
        return OutboundRedirectRules(
            listen=tuple(listen) or redirect.listen,
            exclude_networks=tuple(networks),
            exclude_ports=tuple(ports),
            own=OwnTraffic(
                marks=(redirect.mark,) if redirect.mark is not None else (),
                uids=redirect.uids,
                gids=redirect.gids,
                cgroup=redirect.cgroup,
            ),
        )


# ---- nft ----


def _inbound_nft_chain(wanted: InboundRedirectRules) -> NftChain:
    """After everyone else's destination NAT, which has priority -100: what they send elsewhere is
    not for the application here."""
    rules = [
        NftRule('iif "lo" return', "not what comes from this host"),
        NftRule("meta l4proto != tcp return", "not other protocols"),
        *only_captured(wanted.captured),
        NftRule("fib daddr type != local return", "not what is forwarded"),
        *redirects(wanted),
    ]
    return NftChain("prerouting", "nat hook prerouting priority -90", tuple(rules))


def _outbound_nft_chain(wanted: OutboundRedirectRules) -> NftChain:
    """Before everyone else's destination NAT, which has priority -100: the sidecar learns what the
    application asked for, and the sidecar's own connections go through theirs."""
    own = wanted.own
    signs = []
    if own.marks:
        signs.append(f"meta mark {as_set(own.marks)}")
    if own.uids:
        signs.append(f"meta skuid {as_set(own.uids)}")
    if own.gids:
        signs.append(f"meta skgid {as_set(own.gids)}")
    if rule := own.cgroup_rule:
        signs.append(rule)
    rules = [
        NftRule("meta l4proto != tcp return", "not other protocols"),
        *(NftRule(f"{sign} {{counter}} return", "sent by the sidecar", "own") for sign in signs),
    ]
    rules.append(NftRule("fib daddr type local return", "not what stays on this host"))
    rules += only_captured(wanted.captured)
    for family in wanted.by_family:
        if networks := wanted.excluded(family):
            match = f"{IP[family]} daddr {as_set(map(plain, networks))}"
            rules.append(NftRule(f"{match} {{counter}} return", "excluded networks", "excluded"))
    rules += redirects(wanted)
    # The kernel asks NAT chains for the first packet of a connection only: these count connections.
    return NftChain("output", "nat hook output priority -110", tuple(rules))


# ---- iptables ----


def _inbound_iptables_chains(
    wanted: InboundRedirectRules, family: socket.AddressFamily
) -> Iterator[IptablesChain]:
    port = wanted.by_family[family].port
    target = f"{{}} -j REDIRECT --to-ports {port}"
    yield IptablesChain(
        "nat",
        f"{chain_prefix(wanted.direction)}PREROUTING",
        (*NOT_OURS, *for_ports(wanted.captured, target, "connections to the sidecar")),
        "PREROUTING",
    )


def _outbound_iptables_chains(
    wanted: OutboundRedirectRules, family: socket.AddressFamily
) -> Iterator[IptablesChain]:
    own = wanted.own
    signs = [f"-m mark --mark {mark}" for mark in own.marks]
    signs += [f"-m owner --uid-owner {uid}" for uid in own.uids]
    signs += [f"-m owner --gid-owner {gid}" for gid in own.gids]
    if path := own.cgroup_path:
        signs.append(f'-m cgroup --path "{path}"')
    rules = [
        IptablesRule("! -p tcp -j RETURN", "not other protocols"),
        *(IptablesRule(f"{sign} -j RETURN", "own, sent by the sidecar") for sign in signs),
    ]
    rules.append(
        IptablesRule("-m addrtype --dst-type LOCAL -j RETURN", "not what stays on this host")
    )
    rules += [
        IptablesRule(f"-d {network} -j RETURN", "excluded network")
        for network in wanted.excluded(family)
    ]
    target = f"{{}} -j REDIRECT --to-ports {wanted.by_family[family].port}"
    rules += for_ports(wanted.captured, target, "connections to the sidecar")
    yield IptablesChain(
        "nat",
        f"{chain_prefix(wanted.direction)}OUTPUT",
        tuple(rules),
        "OUTPUT",
    )
