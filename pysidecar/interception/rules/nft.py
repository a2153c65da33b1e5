"""The rules as nftables: one table for each direction, replaced in one transaction."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pysidecar.interception.rules import programs
from pysidecar.interception.rules.model import (
    APPLICATION_SOURCES,
    LOOPBACKS,
    REFUSE_MARK,
    Direction,
    InboundMode,
    InboundSettings,
    OutboundRedirectSettings,
    PortRange,
    RulesError,
    Ruleset,
    fingerprint,
)

__all__ = ["Nft"]

# A connection's first packet. Not just "syn": a reset connection's may carry more flags.
_FIRST = "tcp flags & (fin | syn | rst | ack) == syn"
_NFPROTO = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
_IP = {socket.AF_INET: "ip", socket.AF_INET6: "ip6"}


@dataclass(frozen=True, slots=True)
class _Rule:
    """``counter`` names the counter of its purpose, or is None; it stands where {counter} is."""

    text: str
    purpose: str
    counter: str | None = None


@dataclass(frozen=True, slots=True)
class _Chain:
    name: str
    hook: str
    rules: tuple[_Rule, ...]


class Nft:
    """Works in the network namespace of the calling thread."""

    name = "nft"

    def render(self, ruleset: Ruleset) -> str:
        """What ``apply`` sends to ``nft -f -``: it replaces our table, in one transaction."""
        chains = tuple(_chains(ruleset))
        return _render(ruleset.direction, chains, fingerprint(_render(ruleset.direction, chains)))

    def problems(self, ruleset: Ruleset) -> list[str]:
        """What is missing on this host; tried with a transaction that is not committed."""
        if programs.find("nft") is None:
            return [
                "the program nft is not installed, or not in PATH: install nftables, or use the "
                "backend iptables"
            ]
        settings = ruleset.settings
        if isinstance(settings, OutboundRedirectSettings) and (path := settings.own.cgroup_path):
            # nft resolves it by this directory, whatever is mounted there.
            directory = Path("/sys/fs/cgroup", path)
            if not directory.is_dir() or not Path("/sys/fs/cgroup/cgroup.controllers").exists():
                return [
                    f"there is no cgroup {directory}: nft needs the cgroup v2 hierarchy mounted at "
                    "/sys/fs/cgroup; tell the sidecar's own traffic by mark, uid or gid instead"
                ]
        answer = programs.run(["nft", "-c", "-f", "-"], self.render(ruleset))
        if answer.returncode == 0:
            return []
        reason = _first_error(answer.stderr)
        features = [
            f"the kernel lacks {feature}: load the module {module} or use a kernel that has it "
            f"(nft says: {reason})"
            for feature, module, rule, hook in _features(ruleset)
            if programs.run(["nft", "-c", "-f", "-"], _probe(rule, hook)).returncode != 0
        ]
        return features or [f"nft does not accept the rules: {reason}"]

    def is_applied(self, ruleset: Ruleset) -> bool:
        """Whether exactly these rules are there: all of them, in order, and no other."""
        chains = tuple(_chains(ruleset))
        version = fingerprint(_render(ruleset.direction, chains))
        wanted = [
            (chain.name, comment)
            for chain in chains
            for comment in _comments(chain, version if chain is chains[0] else None)
        ]
        return wanted == [
            (rule["chain"], rule.get("comment", ""))
            for rule in self._objects(ruleset.direction, "rule")
        ]

    def apply(self, ruleset: Ruleset, lock: int) -> None:
        """Makes the rules what they shall be, in one transaction. Raises RulesError, nothing
        having changed."""
        self._send(self.render(ruleset), lock)

    def delete(self, directions: Sequence[Direction], lock: int) -> bool:
        """Removes our tables. Returns whether there were any."""
        if programs.find("nft") is None:
            return False
        tables = [f"table inet {table}" for table in self._tables(directions)]
        if tables:
            # Adding it first makes it succeed also when someone else was faster.
            self._send("".join(f"add {table}\ndelete {table}\n" for table in tables), lock)
        return bool(tables)

    def counters(self, direction: Direction) -> Mapping[str, tuple[int, int]]:
        """Packets and bytes by purpose; empty without rules."""
        if not self._tables([direction]):
            return {}
        return {
            counter["name"]: (counter["packets"], counter["bytes"])
            for counter in self._objects(direction, "counter")
        }

    def _send(self, text: str, lock: int) -> None:
        answer = programs.run(["nft", "-f", "-"], text, lock=lock)
        if answer.returncode != 0:
            raise RulesError(f"nft refuses: {_first_error(answer.stderr)}")

    def _tables(self, directions: Sequence[Direction]) -> list[str]:
        answer = programs.run(["nft", "-j", "list", "tables", "inet"])
        if answer.returncode != 0:
            raise RulesError(f"cannot read the tables of nft: {_first_error(answer.stderr)}")
        there = {table["name"] for table in _of_kind(answer.stdout, "table")}
        return [direction.table for direction in directions if direction.table in there]

    def _objects(self, direction: Direction, kind: str) -> list[Mapping[str, Any]]:
        # -n: numbers are not looked up as names, which could ask a name service.
        answer = programs.run(["nft", "-j", "-n", "list", "table", "inet", direction.table])
        return list(_of_kind(answer.stdout, kind)) if answer.returncode == 0 else []


def _of_kind(text: str, kind: str) -> Iterator[Mapping[str, Any]]:
    for item in json.loads(text)["nftables"] if text.strip() else ():
        if kind in item:
            yield item[kind]


def _first_error(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if "Error" in line]
    return (lines or stderr.splitlines() or ["no reason given"])[0].strip()


def _comments(chain: _Chain, version: str | None) -> list[str]:
    comments = [f"pysidecar: {rule.purpose}" for rule in chain.rules]
    if version is not None:
        comments[0] = comments[0].replace("pysidecar:", f"pysidecar {version}:", 1)
    return comments


def _render(direction: Direction, chains: Sequence[_Chain], version: str | None = None) -> str:
    table = f"table inet {direction.table}"
    lines = [f"add {table}", f"delete {table}", f"{table} {{"]
    counters = [rule.counter for chain in chains for rule in chain.rules if rule.counter]
    lines += [f"    counter {name} {{ }}" for name in dict.fromkeys(counters)]
    for chain in chains:
        lines += ["", f"    chain {chain.name} {{"]
        lines.append(f"        type {chain.hook}; policy accept;")
        comments = _comments(chain, version if chain is chains[0] else None)
        for rule, comment in zip(chain.rules, comments, strict=True):
            text = rule.text.replace("{counter}", f'counter name "{rule.counter}"')
            lines.append(f'        {text} comment "{comment}"')
        lines.append("    }")
    return "\n".join([*lines, "}", ""])


def _chains(ruleset: Ruleset) -> Iterator[_Chain]:
    settings = ruleset.settings
    if isinstance(settings, OutboundRedirectSettings):
        yield _outbound_redirect(ruleset, settings)
    elif settings.mode is InboundMode.REDIRECT:
        yield _inbound_redirect(ruleset, settings)
    else:
        yield _tproxy_in(ruleset, settings)
        yield _REFUSE
        yield _tproxy_out(ruleset, settings)


def _tproxy_in(ruleset: Ruleset, settings: InboundSettings) -> _Chain:
    """One chain before conntrack: what the sidecar takes never gets to know it.

    The tproxy statement looks for the connection's socket first, then for the listener, and the
    rest of its rule is only for what has found a transparent one. So connections that the
    application had before stay the application's, its own outbound ones too; and a first packet
    that gets past the rule has found nobody.
    """
    rules = [
        _Rule('iif "lo" return', "not what comes from this host"),
        _Rule("meta l4proto != tcp return", "not other protocols"),
        *_only_captured(settings.captured),
        _Rule("fib daddr type != local return", "not what is forwarded"),
    ]
    for family, address in ruleset.listen.items():
        proto = f"meta nfproto {_NFPROTO[family]}"
        take = f"{proto} meta l4proto tcp tproxy {_IP[family]} to {address} notrack {{counter}}"
        rules += [
            _Rule(f"{_FIRST} {take} accept", "a new connection to the sidecar", "connections"),
            _Rule(
                f"{_FIRST} {proto} meta mark set {REFUSE_MARK} accept",
                "the sidecar does not listen",
            ),
            _Rule(f"{take} accept", "a connection of the sidecar", "received"),
        ]
    return _Chain("prerouting", "filter hook prerouting priority raw", tuple(rules))


# Not in the chain before conntrack: to that, and so to a stateful firewall, the answer would be one
# that nobody asked for. A refused connection leaves no entry.
_REFUSE = _Chain(
    "input",
    "filter hook input priority filter - 10",
    (
        _Rule(
            f"meta mark {REFUSE_MARK} meta l4proto tcp {{counter}} reject with tcp reset",
            "refused because the sidecar does not listen",
            "refused",
        ),
    ),
)


def _tproxy_out(ruleset: Ruleset, settings: InboundSettings) -> _Chain:
    """The other direction, and the connections to the application, past conntrack too."""
    rules = [
        _Rule("meta l4proto != tcp return", "not other protocols"),
        _Rule(
            f"meta mark {settings.mark} notrack {{counter}} accept", "sent by the sidecar", "sent"
        ),
    ]
    purpose = "the application's answers to the sidecar"
    for family in ruleset.listen:
        ip = _IP[family]
        notrack = "meta l4proto tcp notrack {counter}"
        if not settings.preserve_source:
            match = f"{ip} daddr {APPLICATION_SOURCES[family]} {notrack}"
        else:
            loopback = LOOPBACKS[family]
            match = f"{ip} saddr {_plain(loopback)} {ip} daddr != {_plain(loopback)} {notrack}"
        rules.append(_Rule(f"{match} accept", purpose, "answers"))
    return _Chain("output", "filter hook output priority raw", tuple(rules))


def _inbound_redirect(ruleset: Ruleset, settings: InboundSettings) -> _Chain:
    """After everyone else's destination NAT, which has priority -100: what they send elsewhere is
    not for the application here."""
    rules = [
        _Rule('iif "lo" return', "not what comes from this host"),
        _Rule("meta l4proto != tcp return", "not other protocols"),
        *_only_captured(settings.captured),
        _Rule("fib daddr type != local return", "not what is forwarded"),
        *_redirect(ruleset),
    ]
    return _Chain("prerouting", "nat hook prerouting priority -90", tuple(rules))


def _outbound_redirect(ruleset: Ruleset, settings: OutboundRedirectSettings) -> _Chain:
    """Before everyone else's destination NAT, which has priority -100: the sidecar learns what the
    application asked for, and the sidecar's own connections go through theirs."""
    own = settings.own
    signs = []
    if own.marks:
        signs.append(f"meta mark {_set(own.marks)}")
    if own.uids:
        signs.append(f"meta skuid {_set(own.uids)}")
    if own.gids:
        signs.append(f"meta skgid {_set(own.gids)}")
    if path := own.cgroup_path:
        signs.append(f'socket cgroupv2 level {path.count("/") + 1} "{path}"')
    rules = [
        _Rule("meta l4proto != tcp return", "not other protocols"),
        *(_Rule(f"{sign} {{counter}} return", "sent by the sidecar", "own") for sign in signs),
    ]
    if not settings.include_local:
        rules.append(_Rule("fib daddr type local return", "not what stays on this host"))
    rules += _only_captured(settings.captured)
    for family in ruleset.listen:
        if networks := settings.excluded(family):
            match = f"{_IP[family]} daddr {_set(map(_plain, networks))}"
            rules.append(_Rule(f"{match} {{counter}} return", "excluded networks", "excluded"))
    rules += _redirect(ruleset)
    # The kernel asks NAT chains for the first packet of a connection only: these count connections.
    return _Chain("output", "nat hook output priority -110", tuple(rules))


def _redirect(ruleset: Ruleset) -> Iterator[_Rule]:
    for family, address in ruleset.listen.items():
        yield _Rule(
            f"meta nfproto {_NFPROTO[family]} meta l4proto tcp {{counter}} "
            f"redirect to :{address.port}",
            "a new connection to the sidecar",
            "connections",
        )


def _only_captured(captured: Sequence[PortRange]) -> Iterator[_Rule]:
    if captured != (PortRange(1, 0xFFFF),):
        yield _Rule(f"tcp dport != {_ports(captured)} return", "not other ports")


def _plain(network: object) -> str:
    return str(network).removesuffix("/128").removesuffix("/32")


def _ports(ranges: Iterable[PortRange]) -> str:
    return _set(f"{r.first}-{r.last}" if r.first != r.last else r.first for r in ranges)


def _set(elements: Iterable[object]) -> str:
    return f"{{ {', '.join(map(str, elements))} }}"


_Feature = tuple[str, str, str, str]


def _features(ruleset: Ruleset) -> Iterator[_Feature]:
    """What the rules need of the kernel: name, module, a rule that needs it, its chain's hook."""
    settings = ruleset.settings
    yield "nftables", "nf_tables, nf_tables_inet", "accept", "filter hook prerouting priority raw"
    hook = "filter hook prerouting priority raw"
    if isinstance(settings, InboundSettings) and settings.mode is InboundMode.TPROXY:
        families = ruleset.listen
        yield "address type lookup", "nft_fib_inet", "fib daddr type local", hook
        yield "notrack", "nft_ct", "notrack", hook
        for family, address in families.items():
            ip = _IP[family]
            rule = f"meta nfproto {_NFPROTO[family]} meta l4proto tcp tproxy {ip} to {address}"
            version = "4" if ip == "ip" else "6"
            yield f"TPROXY for IPv{version}", f"nft_tproxy, nf_tproxy_ipv{version}", rule, hook
        yield (
            "REJECT",
            "nft_reject_inet",
            "meta l4proto tcp reject with tcp reset",
            "filter hook input priority filter",
        )
        return
    hook = "nat hook output priority -110"
    yield (
        "connection tracking and NAT (Linux 5.2 for inet)",
        "nf_nat, nft_chain_nat",
        "accept",
        hook,
    )
    yield "REDIRECT", "nft_redir", "meta l4proto tcp redirect to :15001", hook
    yield "address type lookup", "nft_fib_inet", "fib daddr type local", hook
    if isinstance(settings, OutboundRedirectSettings) and (path := settings.own.cgroup_path):
        rule = f'socket cgroupv2 level {path.count("/") + 1} "{path}" return'
        yield "matching of cgroups (Linux 5.13)", "nft_socket", rule, hook


def _probe(rule: str, hook: str) -> str:
    return (
        "add table inet pysidecar_probe\n"
        f"add chain inet pysidecar_probe probe {{ type {hook}; }}\n"
        f"add rule inet pysidecar_probe probe {rule}\n"
    )
