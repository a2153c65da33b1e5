"""What the admin interface gives as a list, as a table for people, or as lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pysidecar.address import Address
from pysidecar.cli.admin import Parameters, ask
from pysidecar.text import printable

__all__ = ["View", "print_entries", "show"]

_FRAME = 5  # lines of a table that are not rows: title, head and rules

Entries = Sequence[dict[str, Any]]
Row = tuple[list[str], str]
"""Its cells, and its style."""


@dataclass(frozen=True)
class View:
    """``path`` of the admin interface; ``numbers`` are columns that stand to the right; ``title``
    and ``rows`` are what there is to see of the entries."""

    path: str
    columns: Sequence[str]
    numbers: Sequence[str]
    title: Callable[[Entries], str]
    rows: Callable[[Entries], Iterator[Row]]


def fetch(address: Address, view: View, parameters: Parameters) -> Entries:
    """The entries, as the admin interface gives them. Raises AdminError."""
    with ask(address, view.path, parameters) as answer:
        try:
            entries = json.loads(answer.read()) if answer.ok else None
        except ValueError:
            entries = None
        if not isinstance(entries, list):
            raise answer.unexpected()
        return entries


def show(
    address: Address,
    view: View,
    parameters: Parameters,
    *,
    as_json: bool,
    interval: float | None,
) -> None:
    """Prints once, or again after every ``interval`` seconds. Raises AdminError."""
    if interval is not None and sys.stdout.isatty() and not as_json:
        _watch(address, view, parameters, interval)
    while True:
        print_entries(view, fetch(address, view, parameters), as_json=as_json)
        if interval is None:
            return
        time.sleep(interval)


def print_entries(view: View, entries: Entries, *, as_json: bool) -> None:
    """A table on a terminal, lines in a pipe."""
    if as_json:
        print(json.dumps(entries), flush=True)
    elif sys.stdout.isatty():
        Console().print(_table(view, entries))
    else:
        _print_plain(view, entries)


def _watch(address: Address, view: View, parameters: Parameters, interval: float) -> None:
    console = Console()

    def table() -> Table:
        return _table(view, fetch(address, view, parameters), max(1, console.height - _FRAME))

    with Live(table(), console=console, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval)
            live.update(table(), refresh=True)


def _table(view: View, entries: Entries, most: int | None = None) -> Table:
    table = Table(title=view.title(entries), title_justify="left")
    for column in view.columns:
        right = column in view.numbers
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for cells, style in list(view.rows(entries))[:most]:
        table.add_row(*(Text(printable(cell)) for cell in cells), style=style)
    return table


def _print_plain(view: View, entries: Entries) -> None:
    """Columns apart by a tab, with a headline: for cut, awk and sort."""
    print("\t".join(view.columns))
    for cells, _ in view.rows(entries):
        print("\t".join(printable(cell) for cell in cells))
    print(end="", flush=True)
