"""Connections that close: what each costs the workers, and what all cost those threads of which
only one runs at a time, since they are Python's: with the access log and without."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

from pysidecar.testing import Sidecar
from scripts.scale.threads import cpu_seconds, get

_CONNECTIONS = 250_000
_CLIENTS = 2
_PATIENCE = 120.0  # seconds
_LOGS: dict[str, Any] = {
    "without a log": {"access_log": "off"},
    "with a log": {},
}


def measure() -> None:
    for name, settings in _LOGS.items():
        with Sidecar(settings) as sidecar:
            before = cpu_seconds(sidecar.pid)
            _connect_and_close(sidecar)
            _await_reports(sidecar)
            used = cpu_seconds(sidecar.pid)
            lines = sidecar.access_log.count("\n")
            python = (used.python - before.python) / _CONNECTIONS
            workers = (used.workers - before.workers) / _CONNECTIONS
            print(
                f"  {_CONNECTIONS:,} that closed, {name}: {python * 1e6:.2f} µs of Python's each, "
                f"which ends at {1 / python:,.0f} a second; {workers * 1e6:.1f} µs of a worker's; "
                f"{lines:,} lines",
                flush=True,
            )


def _connect_and_close(sidecar: Sidecar) -> None:
    """To the control socket, without a request: the shortest life that is reported."""

    def client() -> None:
        for _ in range(_CONNECTIONS // _CLIENTS):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
                control.connect(str(sidecar.control_socket))

    threads = [threading.Thread(target=client) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _await_reports(sidecar: Sidecar) -> None:
    """Until all are counted, and the log has grown no more for a while."""
    deadline = time.monotonic() + _PATIENCE
    size = -1
    while True:
        text = get(sidecar, "/metrics")
        counted = sum(
            float(value)
            for value in re.findall(r"^pysidecar_connections_closed_total\{.*\} (.*)$", text, re.M)
        )
        before, size = size, _log_size(sidecar)
        if counted == _CONNECTIONS and size == before:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"only {counted:,.0f} of {_CONNECTIONS:,} are counted")
        time.sleep(0.5)


def _log_size(sidecar: Sidecar) -> int:
    path = Path(sidecar.directory, "access.jsonl")
    return path.stat().st_size if path.exists() else 0
