"""The rules as iptables: chains of our own, and a jump to each from a built-in one.

For hosts without nft. ``iptables-save`` and ``iptables-restore`` are the two forms that iptables
offers to programs; each table changes in one commit.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pysidecar.destinations import ALL_PORTS, PortRange
from pysidecar.direction import Direction
from pysidecar.interception.rules import programs
from pysidecar.interception.rules.model import (
    IptablesRule,
    RulesError,
    Ruleset,
    fingerprint,
)

__all__ = ["NOT_OURS", "IpTables", "chain_prefix", "for_ports"]

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_PROGRAM = {socket.AF_INET: "iptables", socket.AF_INET6: "ip6tables"}
_VARIANTS = ("", "-nft", "-legacy")
_WAIT = ("-w", "20")  # seconds for the lock that all iptables programs share
_PORTS_PER_RULE = 15  # of the multiport match; a range counts as two
# The only chain where ours comes after what others have: what they send elsewhere is not for the
# application here. In the others the sidecar is to learn what was asked for.
_LAST = ("nat", "PREROUTING")
_BUILT_IN = ("PREROUTING", "INPUT", "OUTPUT")
_COMMENT = re.compile(r'--comment "?pysidecar(?: [0-9a-f]+)?: ([a-z]+)\b')
_COUNTED = re.compile(r"^\[(\d+):(\d+)\] (-A .*)$")


def chain_prefix(direction: Direction) -> str:
    """What the names of our chains begin with."""
    return {Direction.INBOUND: "PYSIDECAR_IN_", Direction.OUTBOUND: "PYSIDECAR_OUT_"}[direction]


@dataclass(frozen=True, slots=True)
class _Program:
    """One of the programs that may be installed, such as ``ip6tables-legacy``."""

    family: socket.AddressFamily
    variant: str

    @property
    def save(self) -> str:
        return f"{_PROGRAM[self.family]}{self.variant}-save"

    @property
    def restore(self) -> str:
        return f"{_PROGRAM[self.family]}{self.variant}-restore"


_Saved = dict[str, list[str]]
"""Our lines of ``iptables-save``, by table."""


class IpTables:
    """Works in the network namespace of the calling thread.

    ``variant`` chooses one of the two kinds of iptables, ``-nft`` or ``-legacy``; without it,
    whatever the host calls ``iptables``.
    """

    def __init__(self, variant: str = "") -> None:
        if variant not in _VARIANTS:
            raise ValueError(f"expected one of {_VARIANTS}, not {variant!r}")
        self._variant = variant

    def render(self, ruleset: Ruleset) -> str:
        """What ``apply`` sends to ``iptables-restore --noflush`` and ``ip6tables-restore``, where
        nothing of ours is yet."""
        parts = []
        for family in ruleset.by_family:
            program = _Program(family, self._variant)
            parts += [f"# {program.restore} --noflush\n", _render(ruleset, family)]
        return "".join(parts)

    def problems(self, ruleset: Ruleset) -> list[str]:
        """What is missing on this host; tried with input that is not committed."""
        found = []
        for family in ruleset.by_family:
            program = _Program(family, self._variant)
            missing = [p for p in (program.save, program.restore) if programs.find(p) is None]
            if missing:
                found.append(
                    f"the program {' and '.join(missing)} is not installed, or not in PATH: "
                    "install iptables, or use the backend nft"
                )
                continue
            for table, lines in _tables(ruleset, family).items():
                text = _commit(table, lines)
                answer = programs.run([program.restore, *_WAIT, "--noflush", "--test"], text)
                if answer.returncode != 0:
                    found.append(
                        f"{program.restore} does not accept the rules of table {table}: "
                        f"{_reason(answer.stderr)}; the kernel may lack a module of netfilter"
                    )
        return found

    def is_applied(self, ruleset: Ruleset) -> bool:
        """Whether exactly these rules are there."""
        for family in _FAMILIES:
            saved = _save(_Program(family, self._variant), [ruleset.direction])
            if family not in ruleset.by_family:
                if saved:
                    return False
                continue
            wanted = _tables(ruleset, family)
            if wanted.keys() != saved.keys():
                return False
            for table, lines in wanted.items():
                if _names(lines) != _names(saved[table]):
                    return False
        return True

    def apply(self, ruleset: Ruleset, lock: int) -> None:
        """Makes the rules what they shall be. Raises RulesError, having put back what was there."""
        before: list[tuple[_Program, _Saved]] = []
        try:
            for family in _FAMILIES:
                program = _Program(family, self._variant)
                saved = _save(program, [ruleset.direction])
                before.append((program, saved))
                wanted = _tables(ruleset, family) if family in ruleset.by_family else {}
                _replace(program, saved, wanted, lock)
        except RulesError:
            for program, saved in before:
                _replace(program, _save(program, [ruleset.direction]), _restorable(saved), lock)
            raise

    def delete(
        self, directions: Sequence[Direction], lock: int, *, others_only: bool = False
    ) -> bool:
        """Removes our chains and the jumps to them, from all kinds of iptables on this host, or
        only from the kinds that are not this one. Returns whether there were any."""
        this = {_identity(_Program(family, self._variant)) for family in _FAMILIES}
        removed = False
        for program in _installed():
            if others_only and _identity(program) in this:
                continue
            saved = _save(program, directions)
            if saved:
                _replace(program, saved, {}, lock)
                removed = True
        return removed

    def counters(self, direction: Direction) -> Mapping[str, tuple[int, int]]:
        """Packets and bytes by purpose; empty without rules."""
        sums: dict[str, tuple[int, int]] = {}
        for family in _FAMILIES:
            program = _Program(family, self._variant)
            for lines in _save(program, [direction], "-c").values():
                for line in lines:
                    counted = _COUNTED.match(line)
                    purpose = _COMMENT.search(line)
                    if counted and purpose and purpose[1] in _COUNTERS:
                        packets, size = sums.get(purpose[1], (0, 0))
                        sums[purpose[1]] = (packets + int(counted[1]), size + int(counted[2]))
        return sums


_COUNTERS = ("connections", "refused", "sent", "answers", "own", "excluded")


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"


def _identity(program: _Program) -> tuple[socket.AddressFamily, str] | None:
    """The same for two names of one program: ``iptables`` is a link to one of the variants."""
    path = programs.find(program.restore)
    return None if path is None else (program.family, os.path.realpath(path))


def _installed() -> list[_Program]:
    found: dict[tuple[socket.AddressFamily, str], _Program] = {}
    for family in _FAMILIES:
        for variant in _VARIANTS:
            program = _Program(family, variant)
            identity = _identity(program)
            if identity is not None and programs.find(program.save) is not None:
                found.setdefault(identity, program)
    return list(found.values())


def _save(program: _Program, directions: Sequence[Direction], *options: str) -> _Saved:
    """Our lines, exactly as they are printed."""
    if programs.find(program.save) is None:
        return {}
    answer = programs.run([program.save, *options])
    if answer.returncode != 0:
        raise RulesError(f"{program.save} fails: {_reason(answer.stderr)}")
    prefixes = [chain_prefix(direction) for direction in directions]
    saved: _Saved = {}
    table = ""
    for line in answer.stdout.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif any(f" {prefix}" in line or line.startswith(f":{prefix}") for prefix in prefixes):
            saved.setdefault(table, []).append(line)
    return saved


def _names(lines: Iterable[str]) -> list[str]:
    """What must agree between rules as we write them and as they are printed: the chains, and each
    rule's chain and comment; one of the comments has the fingerprint of it all."""
    chains = sorted(line.split()[0] for line in lines if line.startswith(":"))
    rules = [
        " ".join([line.split()[1], *re.findall(r'--comment ("[^"]*"|\S+)', line)])
        for line in lines
        if line.startswith(("-A ", "-I "))
    ]
    # Jumps are printed before or after: the order of the chains is iptables' own.
    return [*chains, *sorted(rules, key=lambda rule: rule.split()[0])]


def _restorable(saved: _Saved) -> dict[str, list[str]]:
    """Saved lines as input. A jump goes back to the end of its chain that it was made for."""

    def restored(table: str, line: str) -> str:
        chain = line.split()[1]
        if line.startswith(":") or chain not in _BUILT_IN or (table, chain) == _LAST:
            return line
        return f"-I{line.removeprefix('-A')}"

    return {table: [restored(table, line) for line in lines] for table, lines in saved.items()}


def _replace(
    program: _Program, present: _Saved, wanted: Mapping[str, Sequence[str]], lock: int
) -> None:
    """Removes what is present and makes what is wanted, in one commit for each table."""
    text = ""
    for table in dict.fromkeys([*wanted, *present]):
        there = present.get(table, [])
        jumps = [line for line in there if line.startswith(tuple(f"-A {b} " for b in _BUILT_IN))]
        chains = [line[1:].split()[0] for line in there if line.startswith(":")]
        lines = [f"-D {jump.removeprefix('-A ')}" for jump in jumps]
        lines += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains]
        text += _commit(table, [*lines, *wanted.get(table, [])])
    if not text:
        return
    answer = programs.run([program.restore, *_WAIT, "--noflush"], text, lock=lock)
    if answer.returncode != 0:
        raise RulesError(f"{program.restore} refuses: {_reason(answer.stderr)}")


def _commit(table: str, lines: Iterable[str]) -> str:
    return "\n".join([f"*{table}", *lines, "COMMIT", ""])


def _render(ruleset: Ruleset, family: socket.AddressFamily) -> str:
    return "".join(_commit(table, lines) for table, lines in _tables(ruleset, family).items())


def _tables(ruleset: Ruleset, family: socket.AddressFamily) -> dict[str, list[str]]:
    """Lines for ``iptables-restore --noflush``, by table."""
    chains = list(ruleset.iptables_chains(family))
    version = fingerprint(repr(chains))
    tables: dict[str, list[str]] = {}
    for chain in chains:
        tables.setdefault(chain.table, []).append(f":{chain.name} - [0:0]")
    for chain in chains:
        lines = tables[chain.table]
        for rule in chain.rules:
            lines.append(_line("-A", chain.name, rule.text, f"pysidecar: {rule.purpose}"))
    for chain in chains:
        if chain.built_in is not None:
            # The version is on each jump, which comes last: chains without one are not complete.
            comment = f"pysidecar {version}: {ruleset.direction.word}"
            command = "-A" if (chain.table, chain.built_in) == _LAST else "-I"
            tables[chain.table].append(_line(command, chain.built_in, f"-j {chain.name}", comment))
    return tables


def _line(command: str, chain: str, text: str, comment: str) -> str:
    match, _, target = text.rpartition("-j ")
    return f'{command} {chain} {match}-m comment --comment "{comment}" -j {target}'


NOT_OURS = (
    IptablesRule("-i lo -j RETURN", "not what comes from this host"),
    IptablesRule("! -p tcp -j RETURN", "not other protocols"),
    IptablesRule("-m addrtype ! --dst-type LOCAL -j RETURN", "not what is forwarded"),
)


def for_ports(ranges: Sequence[PortRange], text: str, purpose: str) -> Iterator[IptablesRule]:
    """Rules with the match of the ports at ``{}``, as many as the match's limit needs."""
    if ranges == ALL_PORTS:
        yield IptablesRule("-p tcp " + " ".join(text.format("").split()), purpose)
        return
    portions: list[list[str]] = [[]]
    used = 0
    for port_range in ranges:
        size = 1 if port_range.first == port_range.last else 2
        if used + size > _PORTS_PER_RULE:
            portions.append([])
            used = 0
        ends = dict.fromkeys((port_range.first, port_range.last))
        portions[-1].append(":".join(map(str, ends)))
        used += size
    for portion in portions:
        match = f"-m multiport --dports {','.join(portion)}"
        yield IptablesRule(f"-p tcp {text.format(match)}", purpose)
