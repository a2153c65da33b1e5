"""``pysidecar debug trace``: what happens to connections, for people."""

from __future__ import annotations

import json
from collections import OrderedDict
from datetime import datetime
from typing import Any

from pysidecar.address import Address
from pysidecar.cli.admin import AdminAnswer, Parameters, ask
from pysidecar.text import printable

__all__ = ["show_trace"]

_MOST_SESSIONS = 65536  # whose begin is remembered
_COMMON = ("time", "session", "worker", "station", "text")


def show_trace(address: Address, parameters: Parameters, *, as_json: bool) -> None:
    """Prints a line for each event until there are no more. Raises AdminError."""
    begins = _Begins()
    with ask(address, "/debug/trace", parameters) as answer:
        if not answer.ok:
            raise answer.unexpected()
        for line in answer.lines():
            if line.strip():  # else it says that there is nothing new
                entry = _entry(line, answer)
                print(json.dumps(entry) if as_json else _describe(entry, begins), flush=True)


def _entry(line: bytes, answer: AdminAnswer) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or not ("missed" in entry or entry.keys() >= set(_COMMON)):
        raise answer.unexpected()
    return entry


class _Begins:
    """When each session was first seen."""

    def __init__(self) -> None:
        self._times: OrderedDict[int, datetime] = OrderedDict()

    def age_ms(self, session: int, time: datetime, station: str) -> float:
        """Milliseconds since then."""
        begin = self._times.setdefault(session, time)
        if station == "closed":
            del self._times[session]
        if len(self._times) > _MOST_SESSIONS:
            self._times.popitem(last=False)
        return (time - begin).total_seconds() * 1000


def _describe(entry: dict[str, Any], begins: _Begins) -> str:
    """Such as ``12:00:01.123456  #17   +0.352ms  connecting: endpoint 10.0.0.9:5432``."""
    if "missed" in entry:
        return f"({entry['missed']} events are missing here: they came faster than they were read)"
    time, session = datetime.fromisoformat(entry["time"]), entry["session"]
    whose, age = "-", ""
    if session is not None:
        whose = f"#{session}"
        age = f"+{begins.age_ms(session, time, entry['station']):.3f}ms"
    values = [_value(key, value) for key, value in entry.items() if key not in _COMMON]
    said = ", ".join(value for value in values if value)
    text = f"{entry['text']}: {said}" if said else entry["text"]
    return f"{time.astimezone():%H:%M:%S.%f}  {whose:>7}  {age:>13}  {printable(text)}"


def _value(key: str, value: object) -> str:
    """The empty text where there is nothing to say."""
    words = key.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"not {words}"
    if value is None:
        return "no route" if key == "route" else ""
    return f"{words} {value}"
