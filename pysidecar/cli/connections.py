"""``pysidecar connections``: what the admin interface says, for people."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pysidecar.address import Address
from pysidecar.cli.admin import Parameters, ask
from pysidecar.text import printable

__all__ = ["show_connections"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

_COLUMNS = (
    "id",
    "state",
    "process",
    "source",
    "destination",
    "upstream",
    "path",
    "sent",
    "received",
    "age",
)


def fetch(address: Address, parameters: Parameters) -> list[dict[str, Any]]:
    """The connections, as ``/connections`` gives them. Raises AdminError."""
    with ask(address, "/connections", parameters) as answer:
        try:
            entries = json.loads(answer.read()) if answer.ok else None
        except ValueError:
            entries = None
        if not isinstance(entries, list):
            raise answer.unexpected()
        return entries


def show_connections(
    address: Address, parameters: Parameters, *, as_json: bool, interval: float | None
) -> None:
    """Prints once, or again after every ``interval`` seconds. Raises AdminError."""
    if interval is not None and sys.stdout.isatty() and not as_json:
        with Live(_table(fetch(address, parameters)), auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(interval)
                live.update(_table(fetch(address, parameters)), refresh=True)
    while True:
        entries = fetch(address, parameters)
        if as_json:
            print(json.dumps(entries), flush=True)
        elif sys.stdout.isatty():
            Console().print(_table(entries))
        else:
            _print_plain(entries)
        if interval is None:
            return
        time.sleep(interval)


def _table(entries: Sequence[dict[str, Any]]) -> Table:
    count = sum(entry["state"] == "open" for entry in entries)
    table = Table(title=f"{count} open connections", title_justify="left")
    for column in _COLUMNS:
        right = column in ("id", "sent", "received", "age")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for entry in entries:
        style = "red" if entry["error"] else "dim" if entry["state"] == "closed" else ""
        table.add_row(*(Text(cell) for cell in _cells(entry)), style=style)
    return table


def _print_plain(entries: Sequence[dict[str, Any]]) -> None:
    """Columns apart by a tab, with a headline: for cut, awk and sort."""
    print("\t".join(_COLUMNS))
    for entry in entries:
        print("\t".join(printable(cell) for cell in _cells(entry)))
    print(end="", flush=True)


def _cells(entry: dict[str, Any]) -> list[str]:
    state = f"{entry['state']}: {entry['error']}" if entry["error"] else entry["state"]
    process = f"{entry['process'] or '?'}[{entry['pid']}]" if entry["pid"] else "-"
    return [
        str(entry["id"]),
        state,
        printable(process),
        entry["source"] or "-",
        entry["original_destination"] or "-",
        entry["upstream"] or "-",
        entry["path"],
        format_bytes(entry["bytes_sent"]),
        format_bytes(entry["bytes_received"]),
        format_age(entry["duration_ms"] / 1000),
    ]


def format_bytes(count: float) -> str:
    """Such as ``17 B`` or ``1.5 MiB``."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def format_age(seconds: float) -> str:
    """Such as ``250ms``, ``12.3s``, ``5m03s`` or ``2h05m``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
