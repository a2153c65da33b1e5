"""What the scripts that show something share: programs for a while, and waiting."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from pysidecar.testing.processes import end_process

TIMEOUT = 20.0  # seconds

T = TypeVar("T")

console = Console()


@contextmanager
def ended_after(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        end_process(process, TIMEOUT)


def wait_for(condition: Callable[[], T], what: str, timeout: float = TIMEOUT) -> T:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"waited {timeout:g} s for {what}")
        time.sleep(0.02)
    return value


def requests_in(access_log: Path, service: str, count: int) -> list[dict[str, Any]]:
    """The records of requests for a service, when there are at least so many."""

    def complete() -> list[dict[str, Any]]:
        lines = access_log.read_text().splitlines(keepends=True) if access_log.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        found = [
            record
            for record in records
            if record["type"] == "request" and service in (record["service"], record["path"])
        ]
        return found if len(found) >= count else []

    return wait_for(complete, f"requests for {service} in {access_log}")


def show_hops(sent: Mapping[str, Any], received: Mapping[str, Any], consumer_port: str) -> None:
    """The way of a call, by the records of both sidecars."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)  # 80 columns are enough
    for heading in ("hop", "from", "to", "service", "status"):
        table.add_column(heading, no_wrap=heading != "service", overflow="fold")
    for hop, source, destination, record in (
        ("consumer → sidecar", sent["source"], consumer_port, sent),
        ("sidecar → sidecar", received["source"], sent["upstream"], sent),
        ("sidecar → provider", "the sidecar", received["upstream"], received),
    ):
        service = record["path"] if record["service"] == "*" else record["service"]
        table.add_row(hop, source, destination, service, str(record["status"]))
    console.print(table)
