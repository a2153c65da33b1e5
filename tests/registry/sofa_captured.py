"""What real programs and a real server of SOFARegistry said to each other: `captured/` has the
bytes of each packet as hex, below a line that says who sent them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = Path(__file__).parent / "captured"
_PACKET = re.compile(r"^#(\d+) .* (client|server) -> (?:client|server)  (\d+) bytes$")
_LINE = re.compile(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ){1,16})")


@dataclass(frozen=True)
class Packet:
    """One payload of Bolt."""

    name: str
    from_server: bool
    data: bytes


def packets() -> list[Packet]:
    """All of them."""
    return [
        packet
        for file in sorted(_DIRECTORY.glob("*.txt"))
        for packet in _read(file.name.split("_")[0], file.read_text())
    ]


def _read(name: str, text: str) -> list[Packet]:
    found: list[Packet] = []
    for line in text.splitlines():
        if head := _PACKET.match(line):
            number, sender, length = head.groups()
            data = bytearray()
        elif part := _LINE.match(line):
            data += bytes.fromhex(part[1])
            if len(data) == int(length):
                found.append(Packet(f"{name}-{number}", sender == "server", bytes(data)))
    return found
