"""What traces cost: the rate of HTTP requests with and without them, one run after the other, and
how the runs of each pair compare; and the same of the sidecar's CPU time for each request, which
says more where the machine is busy. ``python -m scripts.measure_tracing [SAMPLE [PAIRS]]``, such as
``1% 15``. An nginx answers, a sidecar with one worker is in between, wrk asks on 32 connections,
and a collector takes the spans.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from pysidecar.address import Address
from pysidecar.testing import Sidecar
from pysidecar.testing.sidecar import wait_until
from scripts.bench.collector import collector
from scripts.bench.processes import accepts, cpu_seconds, find_program, free_port

_SECONDS = 2
_CONNECTIONS = 32


@contextlib.contextmanager
def _nginx(directory: Path) -> Iterator[int]:
    port = free_port()
    file = directory / "nginx.conf"
    file.write_text(f"""
daemon off; worker_processes 1; error_log {directory}/error.log; pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_requests 1000000000;
    client_body_temp_path {directory}; proxy_temp_path {directory};
    fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello"; }} }}
}}
""")
    process = subprocess.Popen([find_program("nginx"), "-c", str(file), "-p", str(directory)])
    try:
        assert wait_until(lambda: accepts(Address("127.0.0.1", port)), 20)
        yield port
    finally:
        process.terminate()
        process.wait()


def _rate(port: int, sidecar: Sidecar) -> tuple[float, float]:
    """Requests a second, and requests in a second of the sidecar's CPU time."""
    process = psutil.Process(sidecar.pid)
    before = cpu_seconds([process])
    wrk = shutil.which("wrk") or "wrk"
    command = [wrk, "-t1", f"-c{_CONNECTIONS}", f"-d{_SECONDS}s", f"http://127.0.0.1:{port}/"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert found is not None, text
    assert "Non-2xx" not in text, text
    rate = float(found[1])
    used = cpu_seconds([process]) - before
    return rate, rate * _SECONDS / used


def _sidecar(upstream: int, port: int, tracing: dict[str, object] | None) -> Sidecar:
    settings: dict[str, object] = {
        "access_log": "off",
        "services": {"orders": {"protocol": "http", "endpoints": [f"127.0.0.1:{upstream}"]}},
        "listeners": [{"listen": f"127.0.0.1:{port}", "service": "orders"}],
    }
    return Sidecar(settings if tracing is None else {**settings, "tracing": tracing})


def main(arguments: list[str]) -> None:
    sample = arguments[0] if arguments else "1%"
    pairs = int(arguments[1]) if len(arguments) > 1 else 10
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        upstream = stack.enter_context(_nginx(Path(directory)))
        ports = free_port(), free_port()
        tracing: dict[str, object] = {"otlp": f"http://{collector()}", "sample": sample}
        sidecars = (
            stack.enter_context(_sidecar(upstream, ports[0], None)),
            stack.enter_context(_sidecar(upstream, ports[1], tracing)),
        )
        ratios, costs = [], []
        for number in range(pairs):
            order = (0, 1) if number % 2 == 0 else (1, 0)
            found = {which: _rate(ports[which], sidecars[which]) for which in order}
            ratios.append(found[1][0] / found[0][0])
            costs.append(found[0][1] / found[1][1])
            print(
                f"{found[0][0]:9,.0f} {found[1][0]:9,.0f}  {ratios[-1]:.3f}  {costs[-1]:.3f}",
                flush=True,
            )
    for what, values in (("the rate", ratios), ("the CPU time of a request", costs)):
        print(
            f"traces at {sample}: {statistics.median(values):.3f} of {what} without, the median of "
            f"{pairs} pairs ({min(values):.3f} to {max(values):.3f})"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
