"""``pysidecar requests``: what the admin interface says, for people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pysidecar.cli.formats import format_bytes, format_ms
from pysidecar.cli.views import Entries, Row, View

__all__ = ["REQUESTS"]

_SERVER_ERROR = 500
_WARNINGS = frozenset(("retried", "retry_limited", "retry_unkept", "hedged", "fault_delay"))
_NO_MATTER = frozenset(("upgraded", "mirrored"))


def _title(entries: Entries) -> str:
    return f"{len(entries)} requests"


def _rows(entries: Entries) -> Iterator[Row]:
    for entry in entries:
        yield _cells(entry), _style(entry)


def _style(entry: dict[str, Any]) -> str:
    if entry["protocol"] in ("http", "http2") and (entry["status"] or 0) >= _SERVER_ERROR:
        return "red"
    flags = set(entry["flags"]) - _NO_MATTER
    return "" if not flags else "yellow" if flags <= _WARNINGS else "red"


def _cells(entry: dict[str, Any]) -> list[str]:
    return [
        f"{datetime.fromisoformat(entry['time']).astimezone():%H:%M:%S.%f}"[:-3],
        entry["protocol"],
        entry["service"] or "-",
        entry["method"] or "-",
        entry["path"] or "-",
        "-" if entry["status"] is None else str(entry["status"]),
        entry["upstream"] or "-",
        str(entry["attempts"]),
        format_bytes(entry["bytes_sent"]),
        format_bytes(entry["bytes_received"]),
        format_ms(entry["first_byte_ms"]),
        format_ms(entry["duration_ms"]),
        " ".join(entry["flags"]) or "-",
    ]


REQUESTS = View(
    path="/requests",
    columns=(
        *("time", "protocol", "service", "method", "path", "status", "upstream", "attempts"),
        *("sent", "received", "first byte", "took", "flags"),
    ),
    numbers=("status", "attempts", "sent", "received", "first byte", "took"),
    title=_title,
    rows=_rows,
)
"""A row each."""
