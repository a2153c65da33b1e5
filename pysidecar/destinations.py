"""What destinations are described by: networks and ports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

__all__ = ["ALL_PORTS", "Network", "PortRange", "without"]

Network = IPv4Network | IPv6Network


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

    def to_plain(self) -> int | str:
        """As it is written in the configuration."""
        return self.first if self.first == self.last else f"{self.first}-{self.last}"


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
