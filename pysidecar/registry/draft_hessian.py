"""The draft of Hessian 2, which SOFA's libraries (com.alipay.sofa:hessian 3.x) write. Bytes to
values and back, without any I/O.

It is not the Hessian 2 of Dubbo, which is the final one: here an object's definition is ``O`` and
its instance ``o``, a list ``V``, a map ``M``, both up to ``z``, and a reference ``J``, ``K`` or
``R``. Lengths of strings count UTF-16 units, and each half of a surrogate pair is three bytes.

Whoever sent the bytes may be hostile: nesting and the number of values are bounded, a length
reserves no memory, and a reference yields the very object that it names, so that what is read is
never larger than its bytes allow. It may contain itself, though: a reader of it looks only as deep
as it expects.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

__all__ = ["HessianError", "JavaObject", "Long", "TypedList", "TypedMap", "dumps", "loads"]

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 250_000
"""Of one message. A SOFARegistry push has two for each instance."""
_MAX_DEFINITIONS: Final = 256
_MAX_FIELDS: Final = 256

_CHUNK: Final = 0x8000  # UTF-16 units, or bytes
_END: Final = ord("z")

_T = TypeVar("_T")


class HessianError(ValueError):
    """What is wrong with bytes that were to be read, or a value that was to be written."""


class Long(int):
    """A Java long, where an ``int`` is a Java int."""


class TypedMap(dict[object, object]):
    """A map that names its Java class; others are plain dictionaries."""

    def __init__(self, type_name: str) -> None:
        super().__init__()
        self.type_name = type_name


class TypedList(list[object]):
    """A list that names its Java class; others are plain lists."""

    def __init__(self, type_name: str) -> None:
        super().__init__()
        self.type_name = type_name


@dataclass(slots=True, eq=False)
class JavaObject:
    """An instance of a class, by its fields."""

    class_name: str
    fields: dict[str, object] = field(default_factory=dict)


def loads(data: bytes) -> object:
    """The one value that ``data`` consists of: None, a bool, an int or Long, a float, a string,
    bytes, a list, a dictionary or a JavaObject. A date is the Long of its milliseconds.

    Raises HessianError.
    """
    reader = _Reader(data)
    try:
        value = reader.value()
    except (IndexError, struct.error):
        raise HessianError("the message ends in the middle of a value") from None
    if reader.position != len(data):
        raise HessianError(f"{len(data) - reader.position} bytes after the value")
    return value


def dumps(value: object) -> bytes:
    """The bytes of a value as ``loads`` returns it; floats are none of those. Values that occur
    twice are written twice. Raises HessianError."""
    writer = _Writer()
    writer.value(value)
    return bytes(writer.data)


# ---- reading ----


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.position = 0
        self._data = data
        self._room = MAX_VALUES
        self._depth = 0
        self._definitions: list[tuple[str, list[str]]] = []
        self._types: list[str] = []
        self._references: list[object] = []

    def value(self) -> object:
        self._room -= 1
        if self._room < 0:
            raise HessianError(f"more than {MAX_VALUES} values")
        tag = self.byte()
        while tag == ord("O"):
            self._definition()
            tag = self.byte()
        return _READERS[tag](self, tag)

    # ---- parts of values ----

    def byte(self) -> int:
        byte = self._data[self.position]
        self.position += 1
        return byte

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise IndexError
        found = self._data[self.position : end]
        self.position = end
        return found

    def number(self, form: struct.Struct) -> int:
        (value,) = form.unpack_from(self._data, self.position)
        self.position += form.size
        return int(value)

    def integer(self) -> int:
        """One that the grammar asks for."""
        tag = self.byte()
        if not (0x80 <= tag <= 0xD7 or tag == ord("I")):
            raise HessianError(f"expected an int, found 0x{tag:02x}")
        value = _READERS[tag](self, tag)
        assert isinstance(value, int)
        return value

    def text(self, units: int) -> str:
        """So many UTF-16 units."""
        data, start = self._data, self.position
        end = start + units
        plain = data[start:end]
        if len(plain) == units and plain.isascii():
            self.position = end
            return plain.decode("ascii")
        halves = _decode(data[start : start + 3 * units])[:units]
        if len(halves) < units or max(halves) > "\uffff":
            raise HessianError("a string that is no Unicode, or ends too early")
        self.position = start + len(_encode(halves))
        try:
            return halves.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            raise HessianError("a string with half of a surrogate pair") from None

    def string(self, tag: int) -> str:
        """One whose tag has been read, in chunks or not."""
        parts = []
        while tag == ord("s"):
            self._take_room()
            parts.append(self.text(self.number(_U16)))
            tag = self.byte()
        if tag < 0x20:
            parts.append(self.text(tag))
        elif tag == ord("S"):
            parts.append(self.text(self.number(_U16)))
        else:
            raise HessianError(f"expected a string, found 0x{tag:02x}")
        return "".join(parts)

    def binary(self, tag: int) -> bytes:
        parts = []
        while tag == ord("b"):
            self._take_room()
            parts.append(self.take(self.number(_U16)))
            tag = self.byte()
        if 0x20 <= tag < 0x30:
            parts.append(self.take(tag - 0x20))
        elif tag == ord("B"):
            parts.append(self.take(self.number(_U16)))
        else:
            raise HessianError(f"expected bytes, found 0x{tag:02x}")
        return b"".join(parts)

    def _take_room(self) -> None:
        """For what is not a value and takes place all the same."""
        self._room -= 1
        if self._room < 0:
            raise HessianError(f"more than {MAX_VALUES} values")

    def _definition(self) -> None:
        name = self.text(self._count(self.integer(), 1 << 16))
        count = self._count(self.integer(), _MAX_FIELDS)
        names = [self.string(self.byte()) for _ in range(count)]
        if len(self._definitions) == _MAX_DEFINITIONS:
            raise HessianError(f"more than {_MAX_DEFINITIONS} classes")
        self._definitions.append((name, names))

    @staticmethod
    def _count(value: int, most: int) -> int:
        if not 0 <= value <= most:
            raise HessianError(f"expected a length up to {most}, found {value}")
        return value

    def _type(self) -> str:
        """Empty where there is none."""
        tag = self._data[self.position]
        if tag == ord("t"):
            self.position += 1
            self._take_room()
            name = self.text(self.number(_U16))
            self._types.append(name)
            return name
        if tag in (ord("u"), ord("T")):
            self.position += 1
            return self._pick(self._types, self.integer(), "type")
        return ""

    def _length(self) -> int | None:
        tag = self._data[self.position]
        if tag == ord("n"):
            self.position += 1
            return self.byte()
        if tag == ord("l"):
            self.position += 1
            return self.number(_I32)
        return None

    @staticmethod
    def _pick(known: list[_T], index: int, what: str) -> _T:
        if not 0 <= index < len(known):
            raise HessianError(f"{what} {index} of {len(known)}")
        return known[index]

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise HessianError(f"nested more than {MAX_DEPTH} times")

    # ---- what contains others ----

    def sequence(self, _tag: int) -> object:
        name = self._type()
        length = self._length()
        values = self._begin_list(name)
        while self._data[self.position] != _END:
            values.append(self.value())
        self.position += 1
        self._depth -= 1
        if length is not None and len(values) != length:
            raise HessianError(f"a list of {len(values)} that says it has {length}")
        return values

    def sequence_of_known_type(self, _tag: int) -> object:
        """It has no end, since it has a length."""
        values = self._begin_list(self._pick(self._types, self.integer(), "type"))
        for _ in range(self._count(self.integer(), MAX_VALUES)):
            values.append(self.value())
        self._depth -= 1
        return values

    def _begin_list(self, name: str) -> list[object]:
        values: list[object] = TypedList(name) if name else []
        self._references.append(values)
        self._enter()
        return values

    def mapping(self, _tag: int) -> object:
        name = self._type()
        values: dict[object, object] = TypedMap(name) if name else {}
        self._references.append(values)
        self._enter()
        while self._data[self.position] != _END:
            key = self.value()
            if not isinstance(key, str | int | float | None):
                raise HessianError("a map whose keys are not simple")
            values[key] = self.value()
        self.position += 1
        self._depth -= 1
        return values

    def instance(self, _tag: int) -> object:
        name, names = self._pick(self._definitions, self.integer(), "class")
        found = JavaObject(name)
        self._references.append(found)
        self._enter()
        for each in names:
            found.fields[each] = self.value()
        self._depth -= 1
        return found

    def reference(self, form: struct.Struct) -> object:
        return self._pick(self._references, self.number(form), "reference")


_U8 = struct.Struct(">B")
_U16 = struct.Struct(">H")
_I32 = struct.Struct(">i")
_I64 = struct.Struct(">q")

_ReadValue = Callable[[_Reader, int], object]


def _decode(data: bytes) -> str:
    """As much of it as is UTF-8, in which the halves of a surrogate pair are characters."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        return data[: error.start].decode("utf-8", "surrogatepass")


def _fixed(value: object) -> _ReadValue:
    return lambda _reader, _tag: value


def _short(zero: int, kind: type[int]) -> _ReadValue:
    """The number is in the tag."""
    return lambda _reader, tag: kind(tag - zero)


def _medium(zero: int, kind: type[int]) -> _ReadValue:
    return lambda reader, tag: kind((tag - zero) * 0x100 + reader.number(_U8))


def _long(zero: int, kind: type[int]) -> _ReadValue:
    return lambda reader, tag: kind((tag - zero) * 0x10000 + reader.number(_U16))


def _number(form: struct.Struct, kind: type[int]) -> _ReadValue:
    return lambda reader, _tag: kind(reader.number(form))


def _real(form: struct.Struct) -> _ReadValue:
    return lambda reader, _tag: float(form.unpack(reader.take(form.size))[0])


def _reference(form: struct.Struct) -> _ReadValue:
    return lambda reader, _tag: reader.reference(form)


def _unknown(_reader: _Reader, tag: int) -> object:
    raise HessianError(f"0x{tag:02x} begins no value")


def _by_tag() -> list[_ReadValue]:
    ranges: list[tuple[int, int, _ReadValue]] = [
        (0x00, 0x1F, _Reader.string),
        (0x20, 0x2F, _Reader.binary),
        (0x38, 0x3F, _long(0x3C, Long)),
        (0x80, 0xBF, _short(0x90, int)),
        (0xC0, 0xCF, _medium(0xC8, int)),
        (0xD0, 0xD7, _long(0xD4, int)),
        (0xD8, 0xEF, _short(0xE0, Long)),
        (0xF0, 0xFF, _medium(0xF8, Long)),
    ]
    letters: dict[str, _ReadValue] = {
        "N": _fixed(None),
        "T": _fixed(True),
        "F": _fixed(False),
        "I": _number(_I32, int),
        "w": _number(_I32, Long),
        "L": _number(_I64, Long),
        "d": _number(_I64, Long),
        "g": _fixed(0.0),
        "h": _fixed(1.0),
        "i": _real(struct.Struct(">b")),
        "j": _real(struct.Struct(">h")),
        "k": _real(struct.Struct(">f")),
        "D": _real(struct.Struct(">d")),
        "s": _Reader.string,
        "S": _Reader.string,
        "b": _Reader.binary,
        "B": _Reader.binary,
        "V": _Reader.sequence,
        "v": _Reader.sequence_of_known_type,
        "M": _Reader.mapping,
        "o": _Reader.instance,
        "J": _reference(_U8),
        "K": _reference(_U16),
        "R": _reference(_I32),
    }
    table: list[_ReadValue] = [_unknown] * 256
    for first, last, read in ranges:
        table[first : last + 1] = [read] * (last + 1 - first)
    for letter, read in letters.items():
        table[ord(letter)] = read
    return table


_READERS: Final = _by_tag()


# ---- writing ----


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()
        self._depth = 0
        self._definitions: dict[tuple[str, tuple[str, ...]], int] = {}
        self._types: dict[str, int] = {}

    def value(self, value: object) -> None:
        if value is None:
            self.data += b"N"
        elif isinstance(value, bool):
            self.data += b"T" if value else b"F"
        elif isinstance(value, Long):
            self._long(value)
        elif isinstance(value, int):
            self._integer(value)
        elif isinstance(value, str):
            self._string(value)
        elif isinstance(value, bytes):
            self._binary(value)
        elif isinstance(value, dict | list | JavaObject):
            self._container(value)
        else:
            raise HessianError(f"cannot write a {type(value).__name__}")

    def _container(self, value: dict[object, object] | list[object] | JavaObject) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise HessianError(f"nested more than {MAX_DEPTH} times")
        if isinstance(value, dict):
            self._mapping(value)
        elif isinstance(value, list):
            self._sequence(value)
        else:
            self._instance(value)
        self._depth -= 1

    def _integer(self, value: int) -> None:
        if -0x10 <= value <= 0x2F:
            self.data.append(0x90 + value)
        elif -0x800 <= value <= 0x7FF:
            self.data += (0xC800 + value).to_bytes(2, "big")
        elif -0x40000 <= value <= 0x3FFFF:
            self.data += (0xD40000 + value).to_bytes(3, "big")
        else:
            self._whole(b"I", value, 4)

    def _long(self, value: int) -> None:
        if -0x08 <= value <= 0x0F:
            self.data.append(0xE0 + value)
        elif -0x800 <= value <= 0x7FF:
            self.data += (0xF800 + value).to_bytes(2, "big")
        elif -0x40000 <= value <= 0x3FFFF:
            self.data += (0x3C0000 + value).to_bytes(3, "big")
        elif -0x80000000 <= value <= 0x7FFFFFFF:
            self._whole(b"w", value, 4)
        else:
            self._whole(b"L", value, 8)

    def _whole(self, tag: bytes, value: int, size: int) -> None:
        try:
            self.data += tag + value.to_bytes(size, "big", signed=True)
        except OverflowError:
            raise HessianError(f"{value} does not fit into {8 * size} bits") from None

    def _string(self, text: str) -> None:
        units = _units(text)
        while len(units) > _CHUNK:
            count = _CHUNK - (0xD800 <= ord(units[_CHUNK - 1]) < 0xDC00)
            self.data += b"s" + _U16.pack(count) + _encode(units[:count])
            units = units[count:]
        if len(units) < 0x20:
            self.data.append(len(units))
        else:
            self.data += b"S" + _U16.pack(len(units))
        self.data += _encode(units)

    def _binary(self, data: bytes) -> None:
        while len(data) > _CHUNK:
            self.data += b"b" + _U16.pack(_CHUNK) + data[:_CHUNK]
            data = data[_CHUNK:]
        if len(data) < 0x10:
            self.data.append(0x20 + len(data))
        else:
            self.data += b"B" + _U16.pack(len(data))
        self.data += data

    def _type(self, name: str) -> None:
        known = self._types.get(name)
        if known is not None:
            self.data += b"u"
            self._integer(known)
            return
        self._types[name] = len(self._types)
        units = _units(name)
        if len(units) > 0xFFFF:
            raise HessianError("a type's name that is too long")
        self.data += b"t" + _U16.pack(len(units)) + _encode(units)

    def _mapping(self, values: dict[object, object]) -> None:
        self.data += b"M"
        if isinstance(values, TypedMap):
            self._type(values.type_name)
        for key, value in values.items():
            self.value(key)
            self.value(value)
        self.data += b"z"

    def _sequence(self, values: list[object]) -> None:
        name = values.type_name if isinstance(values, TypedList) else ""
        again = name in self._types
        if again:
            self.data += b"v"
            self._integer(self._types[name])
            self._integer(len(values))
        else:
            self.data += b"V"
            if name:
                self._type(name)
            short = len(values) < 0x100
            self.data += b"n" + _U8.pack(len(values)) if short else b"l" + _I32.pack(len(values))
        for value in values:
            self.value(value)
        if not again:
            self.data += b"z"

    def _instance(self, value: JavaObject) -> None:
        definition = (value.class_name, tuple(value.fields))
        number = self._definitions.get(definition)
        if number is None:
            number = self._definitions[definition] = len(self._definitions)
            units = _units(value.class_name)
            self.data += b"O"
            self._integer(len(units))
            self.data += _encode(units)
            self._integer(len(value.fields))
            for name in value.fields:
                self._string(name)
        self.data += b"o"
        self._integer(number)
        for each in value.fields.values():
            self.value(each)


def _units(text: str) -> str:
    """With the halves of surrogate pairs in place of characters beyond the first 65536."""
    if text.isascii():
        return text
    encoded = text.encode("utf-16-be", "surrogatepass")
    return "".join(chr(unit) for (unit,) in _U16.iter_unpack(encoded))


def _encode(units: str) -> bytes:
    return units.encode("utf-8", "surrogatepass")
