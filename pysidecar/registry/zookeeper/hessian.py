"""Hessian 2, which Dubbo writes by default: bytes to values and back, without any I/O. Of what is
written there is no more than a request for metadata needs.

It is the final one, and not the draft of SOFA's libraries (``registry/draft_hessian.py``): see
http://hessian.caucho.com/doc/hessian-serialization.html. An object becomes the dictionary of its
fields. Lengths of strings count UTF-16 units, and each half of a surrogate pair is three bytes.

Whoever sent the bytes may be hostile: nesting and the number of values are bounded, a length
reserves no memory, and a reference yields the very object that it names.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["HessianError", "Reader", "dump_map", "dump_text"]

_MAX_DEPTH: Final = 32
_MAX_VALUES: Final = 250_000
_MAX_FIELDS: Final = 256
_CHUNK: Final = 0x8000  # UTF-16 units
_END: Final = ord("Z")


class HessianError(ValueError):
    """What is wrong with bytes that were to be read."""


class Reader:
    """Reads one value after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._room = _MAX_VALUES
        self._depth = 0
        self._classes: list[list[str]] = []
        self._types: list[str] = []
        self._references: list[object] = []

    def value(self) -> object:
        """None, a bool, an int, a float, a string, bytes, a list or a dictionary; a date is its
        milliseconds. Raises HessianError."""
        try:
            return self._value()
        except (IndexError, struct.error):
            raise HessianError("it ends in the middle of a value") from None

    def _value(self) -> object:
        self._room -= 1
        if self._room < 0:
            raise HessianError(f"more than {_MAX_VALUES} values")
        tag = self._byte()
        while tag == ord("C"):
            self._class()
            tag = self._byte()
        if tag in _PLAIN:
            return _PLAIN[tag]
        for known, read in ((_is_int, self._int), (_is_long, self._long)):
            if known(tag):
                return read(tag)
        if _is_text(tag):
            return self._text(tag)
        if _is_bytes(tag):
            return self._bytes(tag)
        if tag in _NUMBERS:
            form, factor = _NUMBERS[tag]
            return self._packed(form) * factor
        if tag == ord("Q"):
            return self._references[self._count()]
        return self._container(tag)

    def _container(self, tag: int) -> object:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise HessianError(f"nested deeper than {_MAX_DEPTH}")
        try:
            if tag == ord("O") or 0x60 <= tag <= 0x6F:
                return self._object(tag)
            if tag in (ord("H"), ord("M")):
                return self._map(tag)
            if tag in b"UVWX" or 0x70 <= tag <= 0x7F:
                return self._list(tag)
        finally:
            self._depth -= 1
        raise HessianError(f"{tag:#04x} begins no value")

    # ---- parts of values ----

    def _byte(self) -> int:
        byte = self._data[self._at]
        self._at += 1
        return byte

    def _packed(self, form: str) -> int | float:
        number: int | float
        (number,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return number

    def _count(self) -> int:
        """An int that may not be negative."""
        tag = self._byte()
        if not _is_int(tag):
            raise HessianError(f"{tag:#04x} begins no int")
        count = self._int(tag)
        if count < 0:
            raise HessianError("a count below 0")
        return count

    def _int(self, tag: int) -> int:
        if tag == ord("I"):
            return int(self._packed(">i"))
        if tag < 0xC0:
            return tag - 0x90
        if tag < 0xD0:
            return (tag - 0xC8 << 8) + self._byte()
        return (tag - 0xD4 << 16) + int(self._packed(">H"))

    def _long(self, tag: int) -> int:
        if tag in _LONGS:
            return int(self._packed(_LONGS[tag]))
        if tag >= 0xF0:
            return (tag - 0xF8 << 8) + self._byte()
        if tag >= 0xD8:
            return tag - 0xE0
        return (tag - 0x3C << 16) + int(self._packed(">H"))

    def _text(self, tag: int) -> str:
        parts = []
        while tag == ord("R"):
            parts.append(self._characters(int(self._packed(">H"))))
            tag = self._byte()
        if not _is_text(tag):
            raise HessianError(f"{tag:#04x} begins no string")
        if tag == ord("S"):
            size = int(self._packed(">H"))
        else:
            size = tag if tag < 0x20 else (tag - 0x30 << 8) + self._byte()
        parts.append(self._characters(size))
        # Halves of pairs are characters of their own.
        return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _characters(self, count: int) -> str:
        start = at = self._at
        for _ in range(count):
            first = self._data[at]
            at += 1 if first < 0x80 else 2 if first < 0xE0 else 3
        if at > len(self._data):
            raise HessianError("it ends in the middle of a string")
        self._at = at
        try:
            return self._data[start:at].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise HessianError("a string that is no UTF-8") from None

    def _bytes(self, tag: int) -> bytes:
        parts = []
        while tag == ord("A"):
            parts.append(self._taken(int(self._packed(">H"))))
            tag = self._byte()
        if not _is_bytes(tag):
            raise HessianError(f"{tag:#04x} begins no bytes")
        if tag == ord("B"):
            size = int(self._packed(">H"))
        else:
            size = tag - 0x20 if tag < 0x30 else (tag - 0x34 << 8) + self._byte()
        return b"".join([*parts, self._taken(size)])

    def _taken(self, size: int) -> bytes:
        self._at += size
        if self._at > len(self._data):
            raise HessianError("it ends in the middle of bytes")
        return self._data[self._at - size : self._at]

    # ---- values with values in them ----

    def _class(self) -> None:
        self._name()
        count = self._count()
        self._room -= count + 1
        if count > _MAX_FIELDS or self._room < 0:
            raise HessianError("too many fields")
        self._classes.append([self._name() for _ in range(count)])

    def _name(self) -> str:
        tag = self._byte()
        return self._text(tag) if _is_text(tag) else self._no_name(tag)

    def _no_name(self, tag: int) -> str:
        raise HessianError(f"{tag:#04x} begins no name")

    def _type(self) -> None:
        """Of a map or a list: its name, or which of those before."""
        tag = self._byte()
        if _is_text(tag):
            self._types.append(self._text(tag))
        elif not _is_int(tag) or not 0 <= self._int(tag) < len(self._types):
            raise HessianError("a type that was not named")

    def _object(self, tag: int) -> object:
        fields = self._classes[self._count() if tag == ord("O") else tag - 0x60]
        found: dict[object, object] = {}
        self._references.append(found)
        for name in fields:
            found[name] = self._value()
        return found

    def _map(self, tag: int) -> object:
        if tag == ord("M"):
            self._type()
        found: dict[object, object] = {}
        self._references.append(found)
        while self._data[self._at] != _END:
            key = self._value()
            if isinstance(key, dict | list):
                raise HessianError("a key that is an object")
            found[key] = self._value()
        self._at += 1
        return found

    def _list(self, tag: int) -> object:
        if tag in b"UV" or 0x70 <= tag <= 0x77:
            self._type()
        found: list[object] = []
        self._references.append(found)
        if tag in b"UW":
            while self._data[self._at] != _END:
                found.append(self._value())
            self._at += 1
            return found
        count = self._count() if tag in b"VX" else tag & 7
        for _ in range(count):
            found.append(self._value())
        return found


_PLAIN = {ord("N"): None, ord("T"): True, ord("F"): False, 0x5B: 0.0, 0x5C: 1.0}
_LONGS = {ord("L"): ">q", ord("Y"): ">i"}
_NUMBERS: dict[int, tuple[str, float]] = {
    ord("D"): (">d", 1),
    0x5D: (">b", 1),
    0x5E: (">h", 1),
    0x5F: (">i", 0.001),
    ord("J"): (">q", 1),  # dates
    ord("K"): (">i", 60_000),
}


def _is_int(tag: int) -> bool:
    return 0x80 <= tag <= 0xD7 or tag == ord("I")


def _is_long(tag: int) -> bool:
    return tag >= 0xD8 or 0x38 <= tag <= 0x3F or tag in _LONGS


def _is_text(tag: int) -> bool:
    return tag < 0x20 or 0x30 <= tag <= 0x33 or tag in b"RS"


def _is_bytes(tag: int) -> bool:
    return 0x20 <= tag <= 0x2F or 0x34 <= tag <= 0x37 or tag in b"AB"


# ---- writing ----


def dump_text(text: str) -> bytes:
    """A string of characters of one UTF-16 unit each."""
    whole = bytearray()
    while len(text) > _CHUNK:
        whole += b"R" + struct.pack(">H", _CHUNK) + text[:_CHUNK].encode()
        text = text[_CHUNK:]
    head = bytes([len(text)]) if len(text) < 0x20 else b"S" + struct.pack(">H", len(text))
    return bytes(whole) + head + text.encode()


def dump_map(values: dict[str, str]) -> bytes:
    """Without a type."""
    texts = (dump_text(each) for item in values.items() for each in item)
    return b"H" + b"".join(texts) + bytes([_END])
