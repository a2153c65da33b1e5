"""Trace events: what happened to connections, station by station.

The stations, their names, and the names and kinds of their numbers are those of the table in
``base/trace.h``.
"""

from __future__ import annotations

import errno
import struct
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pysidecar.address import Address
from pysidecar.dataplane._native import ffi, lib
from pysidecar.dataplane.layout import layout

__all__ = ["STATIONS", "Station", "TraceEvent", "Value", "decode_events"]

_codes, _names = layout(ffi.typeof("struct dp_trace_event"))
_EVENT = struct.Struct(f"={_codes}")
_Raw = namedtuple("_Raw", _names)  # type: ignore[misc]
_NUMBERS = struct.Struct("=QQ")
_NO_ROUTE = 0xFFFFFFFF

Value = int | str | bool | Address | None
_Read = Callable[[int], Value]


class Station(NamedTuple):
    """Where something happens to a connection. ``text`` is for people; ``values`` are the names of
    what an event there says."""

    name: str
    text: str
    values: tuple[str, ...]


class TraceEvent(NamedTuple):
    """``time_ns`` is that of ``time.monotonic_ns``. ``session`` is the ``id`` of a
    ConnectionRecord; 0: it is about none of them."""

    time_ns: int
    session: int
    worker: int
    station: Station
    values: Mapping[str, Value]


def _constants(enumeration: str) -> dict[int, str]:
    return dict(ffi.typeof(f"enum {enumeration}").elements)


_KINDS = {number: name.removeprefix("DP_KIND_") for number, name in _constants("dp_kind").items()}


def _reader(kind: str) -> _Read:
    """For one of the two numbers."""
    match kind:
        case "NUMBER":
            return int
        case "FLAG":
            return bool
        case "ERRNO":
            return lambda number: errno.errorcode.get(number, number) if number else None
        case "ROUTE":
            return lambda number: None if number == _NO_ROUTE else number
        case "FAILURE":
            flags = _constants("dp_flag")
            return lambda number: flags[number].removeprefix("DP_FLAG_").lower() if number else None
    prefix = f"DP_{kind}_"
    names = {
        number: name.removeprefix(prefix if name.startswith(prefix) else "DP_").lower()
        for number, name in _constants(f"dp_{kind.lower()}").items()
    }
    return lambda number: names.get(number, number)


def _address(raw: Any) -> Address | None:
    return Address.from_packed(_NUMBERS.pack(raw.first, raw.second), raw.third, 0)


def _command(raw: Any) -> str | None:
    text = _NUMBERS.pack(raw.first, raw.second).partition(b"\0")[0]
    return text.decode("utf-8", "backslashreplace") or None


def _read_station(raw: Any) -> tuple[Station, Callable[[Any], dict[str, Value]]]:
    """The station, and what makes the values of its events."""
    first, second = (ffi.string(name).decode() for name in (raw.first, raw.second))
    kinds = _KINDS[raw.first_kind], _KINDS[raw.second_kind]
    names = tuple(name for name in (first, second) if name)
    station = Station(ffi.string(raw.name).decode(), ffi.string(raw.text).decode(), names)
    match kinds:
        case "ADDRESS", _:
            return station, lambda event: {first: _address(event)}
        case "COMMAND", _:
            return station, lambda event: {first: _command(event), second: event.third or None}
        case "NONE", _:
            return station, lambda _: {}
        case kind, "NONE":
            read = _reader(kind)
            return station, lambda event: {first: read(event.first)}
    read, read_second = (_reader(kind) for kind in kinds)
    return station, lambda event: {first: read(event.first), second: read_second(event.second)}


_STATIONS = [_read_station(lib.dp_trace_stations[i]) for i in range(lib.dp_trace_station_count)]
STATIONS = tuple(station for station, _ in _STATIONS)
"""All there are."""


def decode_events(events: Any, count: int) -> Iterator[TraceEvent]:
    """An array of ``struct dp_trace_event``, in the order of time."""
    data = ffi.buffer(events, count * _EVENT.size)
    raws: list[Any] = [_Raw._make(fields) for fields in _EVENT.iter_unpack(data)]
    raws.sort(key=lambda raw: raw.time_ns)
    for raw in raws:
        station, values = _STATIONS[raw.station]
        yield TraceEvent(raw.time_ns, raw.session, raw.worker, station, values(raw))
