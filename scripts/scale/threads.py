"""What the threads of a sidecar use, and what it says of itself."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pysidecar.testing import Sidecar


class Seconds(NamedTuple):
    """Processor time, of those threads that run Python and of those that never do."""

    python: float
    workers: float


def cpu_seconds(pid: int) -> Seconds:
    """Up to now. The workers are known by their names."""
    seconds = {True: 0.0, False: 0.0}
    for name, used in _threads(pid):
        seconds[name.startswith("worker-")] += used
    return Seconds(seconds[False], seconds[True])


def worker_seconds(pid: int) -> list[float]:
    """Processor time of each worker up to now."""
    return [used for name, used in sorted(_threads(pid)) if name.startswith("worker-")]


def _threads(pid: int) -> Iterator[tuple[str, float]]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        nanoseconds = int((task / "schedstat").read_text().split()[0])
        yield (task / "comm").read_text().strip(), nanoseconds / 1e9


def get(sidecar: Sidecar, path: str) -> str:
    """What the admin interface answers."""
    connection = http.client.HTTPConnection(sidecar.admin.host, sidecar.admin.port)
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    return text
