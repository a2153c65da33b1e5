"""What grows with use, measured: one module a measurement, each with a function ``measure`` that
prints a line for each size. A new one is a module here, and a line in ``MEASUREMENTS``."""

from __future__ import annotations

from collections.abc import Callable

from scripts.scale import (
    connections,
    endpoints,
    found,
    heads,
    health,
    metrics,
    reports,
    rules,
    said,
    sharing,
    takeover,
    waiting,
)

MEASUREMENTS: dict[str, Callable[[], None]] = {
    "connections": connections.measure,
    "endpoints": endpoints.measure,
    "found": found.measure,
    "heads": heads.measure,
    "health": health.measure,
    "metrics": metrics.measure,
    "reports": reports.measure,
    "rules": rules.measure,
    "said": said.measure,
    "sharing": sharing.measure,
    "takeover": takeover.measure,
    "waiting": waiting.measure,
}
