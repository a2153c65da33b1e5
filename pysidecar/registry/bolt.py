"""Frames of Bolt v1 (SOFABolt), as a client of SOFARegistry needs them, without any I/O.

In front a header of 22 bytes (request) or 20 (response), then class name, header section, content;
all numbers are big-endian. A request has a timeout where a response has a status.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

__all__ = ["HESSIAN", "BoltError", "Command", "Frame", "FrameReader", "Kind"]

MAX_CONTENT: Final = 16 << 20
"""Bytes: 50,000 instances with long addresses."""
_MAX_CLASS: Final = 1024
_MAX_HEADER: Final = 16 << 10

HESSIAN: Final = 1  # the codec
_PROTOCOL: Final = 1
_VERSION: Final = 1

_REQUEST: Final = struct.Struct(">BBHBIBiHHI")
_RESPONSE: Final = struct.Struct(">BBHBIBHHHI")


class Kind:
    """What a frame is."""

    RESPONSE: Final = 0
    REQUEST: Final = 1
    ONE_WAY: Final = 2


class Command:
    """What it is about."""

    HEARTBEAT: Final = 0
    REQUEST: Final = 1
    RESPONSE: Final = 2


class BoltError(ValueError):
    """What is wrong with bytes that should be frames."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One request or response."""

    kind: int
    command: int
    id: int
    class_name: str = ""
    content: bytes = b""
    timeout: int = 0
    """Of a request: milliseconds."""
    status: int = 0
    """Of a response; 0 is success."""
    codec: int = HESSIAN
    header: bytes = b""

    def encode(self) -> bytes:
        """Its bytes."""
        response = self.kind == Kind.RESPONSE
        class_name = self.class_name.encode()
        head = (_RESPONSE if response else _REQUEST).pack(
            *(_PROTOCOL, self.kind, self.command, _VERSION, self.id, self.codec),
            self.status if response else self.timeout,
            *(len(class_name), len(self.header), len(self.content)),
        )
        return b"".join((head, class_name, self.header, self.content))


class FrameReader:
    """Bytes in, frames out. Of no use any more after an error."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete now. Raises BoltError."""
        self._data += data
        start = 0
        while (found := self._read(start)) is not None:
            frame, start = found
            yield frame
        del self._data[:start]

    def _read(self, start: int) -> tuple[Frame, int] | None:
        """The frame that begins there, and its end."""
        data = self._data
        if len(data) - start < 2:
            return None
        if data[start] != _PROTOCOL or data[start + 1] > Kind.ONE_WAY:
            raise BoltError(f"no Bolt v1: begins with {bytes(data[start : start + 2]).hex()}")
        form = _RESPONSE if data[start + 1] == Kind.RESPONSE else _REQUEST
        if len(data) - start < form.size:
            return None
        _, kind, command, _, number, codec, word, *lengths = form.unpack_from(data, start)
        _check(*lengths)
        ends = [start + form.size]
        for length in lengths:
            ends.append(ends[-1] + length)
        if len(data) < ends[-1]:
            return None
        parts = [bytes(data[begin:end]) for begin, end in pairwise(ends)]
        frame = Frame(
            *(kind, command, number, parts[0].decode(errors="replace"), parts[2]),
            timeout=0 if kind == Kind.RESPONSE else word,
            status=word if kind == Kind.RESPONSE else 0,
            codec=codec,
            header=parts[1],
        )
        return frame, ends[-1]


def _check(class_name: int, header: int, content: int) -> None:
    for what, length, most in (
        ("class name", class_name, _MAX_CLASS),
        ("header", header, _MAX_HEADER),
        ("content", content, MAX_CONTENT),
    ):
        if length > most:
            raise BoltError(f"a frame whose {what} has {length} bytes, more than {most}")
