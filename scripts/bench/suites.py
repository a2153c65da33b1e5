"""The parts of the benchmark, each of which is a run of its own: connections, requests, HTTP/2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.bench import goals
from scripts.bench.results import Results
from scripts.bench.scenarios import CONNECTIONS, HTTP2, REQUESTS, Scenario
from scripts.bench.side import Side
from scripts.bench.sides import SIDES

__all__ = ["DOCUMENT", "SUITES", "Suite"]

_DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENT = _DOCS / "performance.md"


@dataclass(frozen=True, slots=True)
class Suite:
    """What is measured in one run, and what of it the documentation shows."""

    name: str
    scenarios: tuple[Scenario, ...]
    goals: Callable[[Results], Iterator[goals.Outcome]]
    panels: tuple[tuple[str, str], ...]
    """Of the picture: scenarios and metrics."""
    folder: str
    """Of its results, in the directory of all results."""

    @property
    def sides(self) -> list[Side]:
        """Those that it measures."""
        return [side for side in SIDES if any(each.takes(side) for each in self.scenarios)]

    @property
    def documented(self) -> Path:
        """Where the results are that the documentation is about."""
        return _DOCS / "performance" / self.folder


SUITES: tuple[Suite, ...] = (
    Suite(
        "connections",
        CONNECTIONS,
        goals.of_connections,
        (
            ("bulk-upload", "rate"),
            ("bulk-download", "rate"),
            ("bulk-download", "CPU all"),
            ("requests-64-32", "rate"),
            ("requests-64-512", "rate"),
            ("requests-64-32", "p99"),
            ("connect-1", "rate"),
            ("connect-64", "rate"),
            ("idle", "user"),
        ),
        folder=".",
    ),
    Suite(
        "requests",
        REQUESTS,
        goals.of_requests,
        (
            ("http-100-32", "rate"),
            ("http-100-256", "rate"),
            ("http-100-32", "p99"),
            ("bolt-100-32-1", "rate"),
            ("bolt-100-32-8", "rate"),
            ("http-100-32", "CPU proxy"),
            ("dubbo-100-32-1", "rate"),
            ("dubbo-100-32-8", "rate"),
            ("http-download", "rate"),
        ),
        folder="requests",
    ),
    Suite(
        "http2",
        HTTP2,
        goals.of_http2,
        (
            ("http2-1-32", "rate"),
            ("http2-32-8", "rate"),
            ("http2-32-8", "CPU proxy"),
            ("grpc-1-32", "rate"),
            ("grpc-32-8", "rate"),
            ("grpc-32-8", "CPU proxy"),
            ("http2-http-1-32", "rate"),
            ("http2-http-32-8", "rate"),
            ("http2-http-32-8", "CPU proxy"),
        ),
        folder="http2",
    ),
)
