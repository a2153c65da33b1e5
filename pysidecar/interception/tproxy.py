"""Transparent proxying: connections come unchanged to a socket that has the client's destination.

See the kernel's Documentation/networking/tproxy.rst.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.dataplane import Transport
from pysidecar.interception.kernel import InboundInterception
from pysidecar.interception.rules.iptables import NOT_OURS, chain_prefix, for_ports
from pysidecar.interception.rules.model import (
    APPLICATION_SOURCES,
    LOOPBACKS,
    InboundRules,
    IptablesChain,
    IptablesRule,
    NftChain,
    NftFeature,
    NftRule,
    PolicyRule,
    check_mark,
)
from pysidecar.interception.rules.nft import FIRST, IP, NFPROTO, only_captured, plain
from pysidecar.marks import INBOUND_MARK, REFUSE_MARK
from pysidecar.socket_options import SocketOption, mark_option, transparent_option

__all__ = ["TproxyRules", "TransparentProxy"]


@dataclass(frozen=True)
class TproxyRules(InboundRules):
    """With ``preserve_source`` the sidecar connects to the application on loopback. (On the address
    that the client asked for, the client's connections and those in its name would differ in
    nothing but the client's port, which both pick at random: at times they would be the same.)
    """

    mark: int = INBOUND_MARK

    def __post_init__(self) -> None:
        check_mark(self.mark)
        if self.mark == REFUSE_MARK:
            raise ValueError(f"expected another mark: {self.mark} has a meaning in the rules")
        super().__post_init__()

    @property
    @override
    def policy_rules(self) -> tuple[PolicyRule, ...]:
        families = sorted(self.by_family)
        if not self.preserve_source:
            source = APPLICATION_SOURCES[socket.AF_INET6]
            return tuple(
                PolicyRule(family, destination=str(ip_network(source)))
                for family in families
                if family == socket.AF_INET6
            )
        return tuple(PolicyRule(family, source=str(LOOPBACKS[family])) for family in families)

    @override
    def nft_chains(self) -> tuple[NftChain, ...]:
        return (_tproxy_in(self), _REFUSE, _tproxy_out(self))

    @override
    def nft_features(self) -> Iterator[NftFeature]:
        hook = "filter hook prerouting priority raw"
        yield NftFeature("address type lookup", "nft_fib_inet", "fib daddr type local", hook)
        yield NftFeature("notrack", "nft_ct", "notrack", hook)
        for family, address in self.by_family.items():
            ip = IP[family]
            rule = f"meta nfproto {NFPROTO[family]} meta l4proto tcp tproxy {ip} to {address}"
            version = "4" if ip == "ip" else "6"
            modules = f"nft_tproxy, nf_tproxy_ipv{version}"
            yield NftFeature(f"TPROXY for IPv{version}", modules, rule, hook)
        yield NftFeature(
            "REJECT",
            "nft_reject_inet",
            "meta l4proto tcp reject with tcp reset",
            "filter hook input priority filter",
        )

    @override
    def iptables_chains(self, family: socket.AddressFamily) -> Iterator[IptablesChain]:
        return _iptables_chains(self, family)


class TransparentProxy(InboundInterception[TproxyRules]):
    """Inbound connections without conntrack, with the client's address if wanted."""

    name = "tproxy"
    transport = Transport.TPROXY
    rules = TproxyRules
    # The packet stays as it is and the socket is assigned, wherever it listens.
    default_listen = (Address("127.0.0.1", 15006), Address("::1", 15006))

    @override
    def listener_options(self, family: socket.AddressFamily) -> tuple[SocketOption, ...]:
        """Marked, and what they accept inherits the mark: so the rules know its packets."""
        return (transparent_option(family), mark_option(self.ruleset.mark))

    @property
    @override
    def application_mark(self) -> int:
        return self.ruleset.mark

    @override
    def application_source(self, family: socket.AddressFamily) -> str | None:
        """The client's address, or one that only the sidecar uses."""
        if self.ruleset.preserve_source or family not in self.ruleset.by_family:
            return None
        return APPLICATION_SOURCES[family]


# ---- nft ----


def _tproxy_in(wanted: TproxyRules) -> NftChain:
    """One chain before conntrack: what the sidecar takes never gets to know it.

    The tproxy statement looks for the connection's socket first, then for the listener, and the
    rest of its rule is only for what has found a transparent one. So connections that the
    application had before stay the application's, its own outbound ones too; and a first packet
    that gets past the rule has found nobody.
    """
    rules = [
        NftRule('iif "lo" return', "not what comes from this host"),
        NftRule("meta l4proto != tcp return", "not other protocols"),
        *only_captured(wanted.captured),
        NftRule("fib daddr type != local return", "not what is forwarded"),
    ]
    for family, address in wanted.by_family.items():
        proto = f"meta nfproto {NFPROTO[family]}"
        take = f"{proto} meta l4proto tcp tproxy {IP[family]} to {address} notrack {{counter}}"
        rules += [
            NftRule(f"{FIRST} {take} accept", "a new connection to the sidecar", "connections"),
            NftRule(
                f"{FIRST} {proto} meta mark set {REFUSE_MARK} accept",
                "the sidecar does not listen",
            ),
            NftRule(f"{take} accept", "a connection of the sidecar", "received"),
        ]
    return NftChain("prerouting", "filter hook prerouting priority raw", tuple(rules))


# Not in the chain before conntrack: to that, and so to a stateful firewall, the answer would be one
# that nobody asked for. A refused connection leaves no entry.
_REFUSE = NftChain(
    "input",
    "filter hook input priority filter - 10",
    (
        NftRule(
            f"meta mark {REFUSE_MARK} meta l4proto tcp {{counter}} reject with tcp reset",
            "refused because the sidecar does not listen",
            "refused",
        ),
    ),
)


def _tproxy_out(wanted: TproxyRules) -> NftChain:
    """The other direction, and the connections to the application, past conntrack too."""
    rules = [
        NftRule("meta l4proto != tcp return", "not other protocols"),
        NftRule(
            f"meta mark {wanted.mark} notrack {{counter}} accept", "sent by the sidecar", "sent"
        ),
    ]
    purpose = "the application's answers to the sidecar"
    for family in wanted.by_family:
        ip = IP[family]
        notrack = "meta l4proto tcp notrack {counter}"
        if not wanted.preserve_source:
            match = f"{ip} daddr {APPLICATION_SOURCES[family]} {notrack}"
        else:
            loopback = LOOPBACKS[family]
            match = f"{ip} saddr {plain(loopback)} {ip} daddr != {plain(loopback)} {notrack}"
        rules.append(NftRule(f"{match} accept", purpose, "answers"))
    return NftChain("output", "filter hook output priority raw", tuple(rules))


# ---- iptables ----


def _iptables_chains(wanted: TproxyRules, family: socket.AddressFamily) -> Iterator[IptablesChain]:
    """As with nft, but CT belongs to one table, TPROXY to another and REJECT to a third.

    TPROXY silently drops what nobody listens for. So that such connections are refused all the
    same, a first packet that comes again within 1.2 seconds (the kernel's first retransmission is
    after one) is not given to TPROXY but rejected: the sidecar would have answered the first. And
    it is not kept from conntrack, to which an answer to a packet never seen would be invalid.
    """
    prefix = chain_prefix(wanted.direction)
    listen = wanted.by_family[family]
    captured = wanted.captured
    seconds = "--hashlimit-above 50/minute --hashlimit-burst 1"
    again = (
        f"-p tcp -m hashlimit {seconds} --hashlimit-mode srcip,srcport,dstip,dstport "
        "--hashlimit-name pysidecar --hashlimit-htable-max 262144 --hashlimit-htable-expire 2000"
    )
    tproxy = f"-j TPROXY --on-port {listen.port} --on-ip {listen.host} --tproxy-mark 0x0/0x0"
    yield IptablesChain(
        "raw",
        f"{prefix}PREROUTING",
        (
            *NOT_OURS,
            *for_ports(captured, f"--syn {{}} -j {prefix}FIRST", "to captured ports"),
            IptablesRule(
                "-p tcp ! --syn -m socket --transparent -j CT --notrack",
                "to the sidecar, of a connection that is there",
            ),
        ),
        "PREROUTING",
    )
    yield IptablesChain(
        "raw",
        f"{prefix}FIRST",
        (
            IptablesRule("-p tcp -m socket --transparent -j CT --notrack", "comes again, answered"),
            IptablesRule("-p tcp -m socket --transparent -j RETURN", "comes again, answered"),
            IptablesRule(f"{again} -j MARK --set-mark {REFUSE_MARK}", "comes again, unanswered"),
            IptablesRule(f"-m mark --mark {REFUSE_MARK} -j RETURN", "comes again, unanswered"),
            IptablesRule("-p tcp -j CT --notrack", "new"),
        ),
    )
    yield IptablesChain(
        "mangle",
        f"{prefix}PREROUTING",
        (*NOT_OURS, *for_ports(captured, f"{{}} -j {prefix}TAKE", "to captured ports")),
        "PREROUTING",
    )
    yield IptablesChain(
        "mangle",
        f"{prefix}TAKE",
        (
            IptablesRule(
                "-p tcp ! --syn -m socket -j RETURN", "belongs to a connection that is there"
            ),
            IptablesRule(f"-m mark --mark {REFUSE_MARK} -j RETURN", "to be refused"),
            IptablesRule(f"-p tcp {tproxy}", "connections to the sidecar"),
        ),
    )
    yield IptablesChain(
        "filter",
        f"{prefix}INPUT",
        (
            IptablesRule(
                f"-p tcp -m mark --mark {REFUSE_MARK} -j REJECT --reject-with tcp-reset",
                "refused because the sidecar does not listen",
            ),
        ),
        "INPUT",
    )
    own = f"-p tcp -m mark --mark {wanted.mark}"
    purpose = "answers of the application to the sidecar"
    raw = [
        IptablesRule(f"{own} -j CT --notrack", "sent by the sidecar"),
        IptablesRule(f"{own} -j RETURN", "by the sidecar"),
    ]
    notrack = "-j CT --notrack"
    if not wanted.preserve_source:
        raw.append(IptablesRule(f"-p tcp -d {APPLICATION_SOURCES[family]} {notrack}", purpose))
    else:
        loopback = LOOPBACKS[family]
        raw.append(IptablesRule(f"-p tcp -s {loopback} ! -d {loopback} {notrack}", purpose))
    yield IptablesChain("raw", f"{prefix}OUTPUT", tuple(raw), "OUTPUT")
