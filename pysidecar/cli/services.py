"""``pysidecar services``: what the admin interface says, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pysidecar.cli.formats import format_count, format_ms
from pysidecar.cli.views import Entries, Row, View

__all__ = ["SERVICES"]


def _title(entries: Entries) -> str:
    return f"{sum(entry['service'] is not None for entry in entries)} services"


def _rows(entries: Entries) -> Iterator[Row]:
    for entry in entries:
        yield _service(entry), "bold"
        for endpoint in entry["endpoints"]:
            yield _endpoint(entry, endpoint), "" if endpoint["health"] == "healthy" else "red"


def _service(entry: dict[str, Any]) -> list[str]:
    if entry["service"] is None:
        name, state = "(no service)", "-"
    else:
        name = entry["service"]
        state = _takeover_state(entry) or _state(entry)
    return [
        name,
        entry["protocol"] or "-",
        entry["role"] or "-",
        "-",
        "-",
        state,
        *_numbers(entry),
        format_count(entry.get("pending", 0)),
        format_count(entry.get("retrying", 0)),
    ]


def _state(entry: dict[str, Any]) -> str:
    """What hinders requests."""
    at_limit = entry.get("at_limit")
    states = [_health(entry), f"at limit: {' '.join(at_limit)}" if at_limit else ""]
    return ", ".join(filter(None, states)) or "-"


def _health(entry: dict[str, Any]) -> str:
    """Of all endpoints together; empty: they are well."""
    endpoints = entry["endpoints"]
    if not endpoints:
        return "no endpoint"
    if entry["panic"]:
        return f"panic: {entry['available']} of {len(endpoints)} available"
    well = sum(endpoint["health"] == "healthy" for endpoint in endpoints)
    return "" if well == len(endpoints) else f"{well} of {len(endpoints)} healthy"


def _state_of(endpoint: dict[str, Any]) -> str:
    if endpoint["health"] == "healthy":
        return "other zone" if endpoint["other_zone"] else "-"
    return f"{endpoint['health']}: {endpoint['reason']}" if endpoint["reason"] else "unhealthy"


def _takeover_state(entry: dict[str, Any]) -> str | None:
    """What hinders calls of it that no endpoint shows."""
    if entry.get("known") is False:
        return "registry has not told"
    publications = entry.get("publications")
    if publications is None:
        return None
    if not any(each["listens"] for each in publications):
        return "application does not listen"
    return "registered" if entry["registered"] else "not registered"


def _endpoint(entry: dict[str, Any], endpoint: dict[str, Any]) -> list[str]:
    return [
        entry["service"],
        entry["protocol"],
        entry["role"],
        endpoint["address"],
        str(endpoint["weight"]),
        _state_of(endpoint),
        *_numbers(endpoint),
        *("-", "-"),
    ]


def _numbers(entry: dict[str, Any]) -> list[str]:
    return [
        format_count(entry["requests"]),
        format_count(entry["failures"]),
        format_count(entry["rate"]) if "rate" in entry else "-",
        format_ms(entry.get("p50_ms")),
        format_ms(entry.get("p99_ms")),
        format_count(entry["connections"]),
        format_count(entry.get("active", 0)),
    ]


SERVICES = View(
    path="/services",
    columns=(
        *("service", "protocol", "role", "endpoint", "weight", "state", "requests", "failures"),
        *("rate", "p50", "p99", "connections", "active", "pending", "retrying"),
    ),
    numbers=(
        *("weight", "requests", "failures", "rate", "p50", "p99", "connections", "active"),
        *("pending", "retrying"),
    ),
    title=_title,
    rows=_rows,
)
"""A row for each service, and one for each of its endpoints."""
