"""The rules as nftables: one table for each direction, replaced in one transaction."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pysidecar.destinations import ALL_PORTS, PortRange
from pysidecar.direction import Direction
from pysidecar.interception.rules import programs
from pysidecar.interception.rules.model import (
    NftChain,
    NftFeature,
    NftRule,
    RulesError,
    Ruleset,
    fingerprint,
)

__all__ = ["FIRST", "IP", "NFPROTO", "Nft", "as_set", "only_captured", "plain", "redirects"]

FIRST = "tcp flags & (fin | syn | rst | ack) == syn"
"""A connection's first packet. Not just "syn": a reset connection's may carry more flags."""
NFPROTO = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
IP = {socket.AF_INET: "ip", socket.AF_INET6: "ip6"}


def _table(direction: Direction) -> str:
    """The table, of family inet."""
    return f"pysidecar_{direction.word}"


class Nft:
    """Works in the network namespace of the calling thread."""

    def render(self, ruleset: Ruleset) -> str:
        """What ``apply`` sends to ``nft -f -``: it replaces our table, in one transaction."""
        chains = tuple(ruleset.nft_chains())
        return _render(ruleset.direction, chains, fingerprint(_render(ruleset.direction, chains)))

    def problems(self, ruleset: Ruleset) -> list[str]:
        """What is missing on this host; tried with a transaction that is not committed."""
        if programs.find("nft") is None:
            return [
                "the program nft is not installed, or not in PATH: install nftables, or use the "
                "backend iptables"
            ]
        if obstacle := ruleset.nft_obstacle():
            return [obstacle]
        answer = programs.run(["nft", "-c", "-f", "-"], self.render(ruleset))
        if answer.returncode == 0:
            return []
        reason = _first_error(answer.stderr)
        features = [
            f"the kernel lacks {feature.name}: load the module {feature.module} or use a kernel "
            f"that has it (nft says: {reason})"
            for feature in (_TABLES, *ruleset.nft_features())
            if programs.run(["nft", "-c", "-f", "-"], _probe(feature)).returncode != 0
        ]
        return features or [f"nft does not accept the rules: {reason}"]

    def is_applied(self, ruleset: Ruleset) -> bool:
        """Whether exactly these rules are there: all of them, in order, and no other."""
        chains = tuple(ruleset.nft_chains())
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
        return [_table(direction) for direction in directions if _table(direction) in there]

    def _objects(self, direction: Direction, kind: str) -> list[Mapping[str, Any]]:
        # -n: numbers are not looked up as names, which could ask a name service.
        answer = programs.run(["nft", "-j", "-n", "list", "table", "inet", _table(direction)])
        return list(_of_kind(answer.stdout, kind)) if answer.returncode == 0 else []


def _of_kind(text: str, kind: str) -> Iterator[Mapping[str, Any]]:
    for item in json.loads(text)["nftables"] if text.strip() else ():
        if kind in item:
            yield item[kind]


def _first_error(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if "Error" in line]
    return (lines or stderr.splitlines() or ["no reason given"])[0].strip()


def _comments(chain: NftChain, version: str | None) -> list[str]:
    comments = [f"pysidecar: {rule.purpose}" for rule in chain.rules]
    if version is not None:
        comments[0] = comments[0].replace("pysidecar:", f"pysidecar {version}:", 1)
    return comments


def _render(direction: Direction, chains: Sequence[NftChain], version: str | None = None) -> str:
    table = f"table inet {_table(direction)}"
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


def redirects(ruleset: Ruleset) -> Iterator[NftRule]:
    """For chains of NAT: to the listeners."""
    for family, address in ruleset.by_family.items():
        yield NftRule(
            f"meta nfproto {NFPROTO[family]} meta l4proto tcp {{counter}} "
            f"redirect to :{address.port}",
            "a new connection to the sidecar",
            "connections",
        )


def only_captured(captured: Sequence[PortRange]) -> Iterator[NftRule]:
    """Leaves other ports alone."""
    if captured != ALL_PORTS:
        yield NftRule(f"tcp dport != {_ports(captured)} return", "not other ports")


def plain(network: object) -> str:
    """An address where it is a single one."""
    return str(network).removesuffix("/128").removesuffix("/32")


def _ports(ranges: Iterable[PortRange]) -> str:
    return as_set(f"{r.first}-{r.last}" if r.first != r.last else r.first for r in ranges)


def as_set(elements: Iterable[object]) -> str:
    """As nft writes one."""
    return f"{{ {', '.join(map(str, elements))} }}"


_TABLES = NftFeature(
    "nftables", "nf_tables, nf_tables_inet", "accept", "filter hook prerouting priority raw"
)


def _probe(feature: NftFeature) -> str:
    return (
        "add table inet pysidecar_probe\n"
        f"add chain inet pysidecar_probe probe {{ type {feature.hook}; }}\n"
        f"add rule inet pysidecar_probe probe {feature.rule}\n"
    )
