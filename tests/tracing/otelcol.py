"""OpenTelemetry's own collector, a process that writes what it gets to a file (see
``otelcol/main.go``; ``make setup-tests`` builds it)."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.interop.servers import free_port
from tests.waiting import eventually

__all__ = ["OTELCOL", "RealCollector", "Seen", "collecting_really"]

OTELCOL = Path(__file__).parents[2] / "build" / "go" / "otelcol"
KINDS = {2: "SERVER", 3: "CLIENT"}


class Seen(NamedTuple):
    """A span, as the collector understood it."""

    service: str
    kind: str
    trace: str
    id: str
    parent: str


class RealCollector:
    """By ``url`` of each protocol."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.url = {name: f"http://127.0.0.1:{free_port()}" for name in ("http", "grpc")}

    def spans(self) -> Iterator[Seen]:
        for line in self._file.read_text().splitlines() if self._file.exists() else ():
            for part in json.loads(line)["resourceSpans"]:
                service = _attributes(part["resource"])["service.name"]
                for scope in part["scopeSpans"]:
                    for span in scope["spans"]:
                        yield Seen(
                            service=service,
                            kind=KINDS[span["kind"]],
                            trace=span["traceId"],
                            id=span["spanId"],
                            parent=span.get("parentSpanId", ""),
                        )

    def wait_for(self, count: int) -> list[Seen]:
        """So many spans."""

        def found() -> list[Seen] | None:
            with contextlib.suppress(json.JSONDecodeError):  # a line that is being written
                spans = list(self.spans())
                return spans if len(spans) >= count else None
            return None

        return eventually(found, f"{count} spans")


def _attributes(resource: dict[str, Any]) -> dict[str, str]:
    return {each["key"]: each["value"].get("stringValue", "") for each in resource["attributes"]}


def _listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


@contextlib.contextmanager
def collecting_really(folder: Path) -> Iterator[RealCollector]:
    collector = RealCollector(folder / "spans.json")
    protocols = {
        name: {"endpoint": url.removeprefix("http://")} for name, url in collector.url.items()
    }
    config = folder / "otelcol.yaml"
    config.write_text(
        json.dumps(
            {
                "receivers": {"otlp": {"protocols": protocols}},
                "exporters": {
                    "file": {"path": str(folder / "spans.json"), "flush_interval": "100ms"}
                },
                "service": {
                    "telemetry": {"metrics": {"level": "none"}},
                    "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
                },
            }
        )
    )
    with subprocess.Popen([OTELCOL, "--config", config]) as process:
        try:
            eventually(lambda: all(map(_listens, collector.url.values())), "the collector")
            yield collector
        finally:
            process.kill()
