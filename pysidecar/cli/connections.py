"""``pysidecar connections``: what the admin interface says, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pysidecar.cli.formats import format_age, format_bytes
from pysidecar.cli.views import Entries, Row, View

__all__ = ["CONNECTIONS"]


def _title(entries: Entries) -> str:
    return f"{sum(entry['state'] == 'open' for entry in entries)} open connections"


def _rows(entries: Entries) -> Iterator[Row]:
    for entry in entries:
        style = "red" if entry["error"] else "dim" if entry["state"] == "closed" else ""
        yield _cells(entry), style


def _cells(entry: dict[str, Any]) -> list[str]:
    state = f"{entry['state']}: {entry['error']}" if entry["error"] else entry["state"]
    process = f"{entry['process'] or '?'}[{entry['pid']}]" if entry["pid"] else "-"
    return [
        str(entry["id"]),
        state,
        process,
        entry["source"] or "-",
        entry["original_destination"] or "-",
        entry["upstream"] or "-",
        entry["path"],
        format_bytes(entry["bytes_sent"]),
        format_bytes(entry["bytes_received"]),
        format_age(entry["duration_ms"] / 1000),
    ]


CONNECTIONS = View(
    path="/connections",
    columns=(
        *("id", "state", "process", "source", "destination", "upstream", "path", "sent"),
        *("received", "age"),
    ),
    numbers=("id", "sent", "received", "age"),
    title=_title,
    rows=_rows,
)
"""A row each."""
