"""Compiles an ordered list of rules to the blob that ``hook/contract.h`` describes: the first rule
that matches (address, port) is found by two binary searches and a walk over at most 128 prefixes,
however many rules there are."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pysidecar.dataplane import ffi, pack_array
from pysidecar.destinations import Network, PortRange

__all__ = ["Rule", "compile_rules"]

_EVERY_PORT = (PortRange(0, 0xFFFF),)
_MAPPED_START = 0xFFFF << 32  # ::ffff:0.0.0.0
_MAPPED_END = _MAPPED_START + 0xFFFFFFFF
_NO_PREFIX = -1


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches an address in any of ``networks`` with a port in any of ``ports`` (None: every port).

    ``number`` is what a lookup answers; the smallest one that matches wins, so it must grow in the
    order of the rules.
    """

    networks: Sequence[Network]
    ports: Sequence[PortRange] | None
    number: int


def compile_rules(rules: Iterable[Rule]) -> bytes:
    """The blob, in the machine's byte order."""
    claims: dict[_Key, list[tuple[PortRange, int]]] = {}
    for rule in rules:
        for network in rule.networks:
            key: _Key = (network.version, int(network.network_address), network.prefixlen)
            claims.setdefault(key, []).extend(
                [(ports, rule.number) for ports in rule.ports or _EVERY_PORT]
            )
    keys = sorted(claims)
    spans = [_span(*key) for key in keys]
    parents = _parents(spans)
    prefixes: list[tuple[int, int, int]] = []
    segments: list[tuple[int, int, int]] = []
    for key, parent in zip(keys, parents, strict=True):
        first = len(segments)
        segments.extend(_segments(claims[key]))
        prefixes.append((parent, first, len(segments) - first))
    boundaries = _boundaries(spans, parents)
    body = (
        pack_array("struct mosnhook_boundary", boundaries)
        + pack_array("struct mosnhook_prefix", prefixes)
        + pack_array("struct mosnhook_segment", segments)
    )
    size = ffi.sizeof("struct mosnhook_rules") + len(body)
    header = ffi.new(
        "struct mosnhook_rules *", (size, len(boundaries), len(prefixes), len(segments))
    )
    return bytes(ffi.buffer(header)) + body


_Key = tuple[int, int, int]
"""A network's version, address and prefix length: sorted by family, then so that a prefix stands
directly before what it contains. Very many are compared, which networks do slowly."""
_Span = tuple[int, int, int]
"""Version, first and last address as integers of 128 bits; IPv4 as v4-mapped."""


def _span(version: int, address: int, length: int) -> _Span:
    if version == 4:
        start = _MAPPED_START + address
        return 4, start, start | (1 << (32 - length)) - 1
    return 6, address, address | (1 << (128 - length)) - 1


def _parents(spans: Sequence[_Span]) -> list[int]:
    """For each network of the sorted list the index of the smallest that contains it."""
    parents: list[int] = []
    open_: list[tuple[int, int, int]] = []  # (version, last address, index) of those around
    for index, (version, start, end) in enumerate(spans):
        while open_ and (open_[-1][0] != version or open_[-1][1] < start):
            open_.pop()
        parents.append(open_[-1][2] if open_ else _NO_PREFIX)
        open_.append((version, end, index))
    return parents


def _segments(claims: Sequence[tuple[PortRange, int]]) -> Iterator[tuple[int, int, int]]:
    """Sorted, disjoint (first port, last port, rule), where overlapping claims go to the smallest
    rule number. A sweep over the ports with a heap of the claims that are open there."""
    if len(claims) == 1:
        ports, rule = claims[0]
        yield ports.first, ports.last, rule
        return
    by_start = sorted(claims, key=lambda claim: claim[0].first)
    cuts = sorted({ports.first for ports, _ in claims} | {ports.last + 1 for ports, _ in claims})
    open_: list[tuple[int, int]] = []  # (rule, last port)
    pending = iter(by_start)
    upcoming = next(pending, None)
    first = last = rule = -1
    for start, after in pairwise(cuts):
        while upcoming is not None and upcoming[0].first == start:
            heapq.heappush(open_, (upcoming[1], upcoming[0].last))
            upcoming = next(pending, None)
        while open_ and open_[0][1] < start:
            heapq.heappop(open_)
        if not open_:
            continue
        if rule == open_[0][0] and last + 1 == start:
            last = after - 1
            continue
        if rule >= 0:
            yield first, last, rule
        first, last, rule = start, after - 1, open_[0][0]
    if rule >= 0:
        yield first, last, rule


def _boundaries(spans: Sequence[_Span], parents: Sequence[int]) -> list[tuple[bytes, int]]:
    """Where the innermost prefix changes. The v4-mapped addresses form an island in the IPv6
    space, to which no IPv6 prefix around it applies."""
    v6 = _changes(spans, parents, 6)
    v4 = _changes(spans, parents, 4)
    starts = sorted(v6)
    at = bisect_right(starts, _MAPPED_END)
    around = v6[starts[at - 1]] if at else _NO_PREFIX  # no IPv6 prefix begins or ends on the island
    merged = {start: prefix for start, prefix in v6.items() if start < _MAPPED_START}
    merged[_MAPPED_START] = _NO_PREFIX
    merged.update((start, prefix) for start, prefix in v4.items() if start <= _MAPPED_END)
    merged[_MAPPED_END + 1] = around
    merged.update((start, prefix) for start, prefix in v6.items() if start > _MAPPED_END)
    boundaries: list[tuple[bytes, int]] = []
    before = _NO_PREFIX
    for start, prefix in sorted(merged.items()):
        if prefix != before:
            boundaries.append((start.to_bytes(16), prefix))
            before = prefix
    return boundaries


def _changes(spans: Sequence[_Span], parents: Sequence[int], family: int) -> dict[int, int]:
    """Start of each interval of one family and its innermost prefix."""
    changes: dict[int, int] = {}
    open_: list[tuple[int, int]] = []  # (last address, index)

    def close() -> None:
        end, index = open_.pop()
        if end + 1 < 1 << 128:
            changes[end + 1] = parents[index]

    for index, (version, start, end) in enumerate(spans):
        if version != family:
            continue
        while open_ and open_[-1][0] < start:
            close()
        changes[start] = index
        open_.append((end, index))
    while open_:
        close()
    return changes
