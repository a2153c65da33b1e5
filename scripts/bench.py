"""What the sidecar costs: requests, connections and bulk, direct and through it, in one run.

wrk and curl talk to an nginx: directly, hooked through a sidecar by both transports, and, for
comparison, through an HAProxy that relays TCP (which they are pointed at: it knows nothing of
original destinations). Rounds take turns and the median counts; what to read is the ratio to
direct, since the absolute numbers are the machine's. Everything stays on loopback.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from pysidecar.testing import Sidecar

ROUNDS = 3
SECONDS = 3
CONNECTIONS = 32
BULK_BYTES = 1 << 30

NGINX = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000000; sendfile on;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "hello\\n"; }}
        location /bulk {{ alias {directory}/bulk; }}
    }}
}}
"""
HAPROXY = """
global
    nbthread {threads}
    maxconn 2000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
    option splice-auto
listen relay
    bind 127.0.0.1:{port}
    server nginx 127.0.0.1:{upstream}
"""

Run = Callable[[list[str]], str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def running(port: int, *command: str) -> Iterator[None]:
    """A server, from when it accepts."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    with subprocess.Popen(command, env={**os.environ, "PATH": path}) as process:
        try:
            while not accepts(port):
                if process.poll() is not None:
                    raise SystemExit(f"bench: {command[0]} ended with status {process.returncode}")
            yield
        finally:
            process.terminate()


def plain(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def hooked(sidecar: Sidecar) -> Run:
    environment = {**os.environ, **sidecar.environment}
    return lambda command: (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    )


def wrk(run: Run, port: int, *options: str) -> float:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}", *options]
    output = run([*command, f"http://127.0.0.1:{port}/"])
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert found, output
    return float(found[1])


def bulk(run: Run, port: int) -> float:
    """Gbit/s downloaded."""
    command = ["curl", "--silent", "--fail", "--output", "/dev/null"]
    speed = run([*command, "--write-out", "%{speed_download}", f"http://127.0.0.1:{port}/bulk"])
    return float(speed) * 8 / 1e9


MEASURES: dict[str, Callable[[Run, int], float]] = {
    f"requests/s, {CONNECTIONS} connections": wrk,
    "requests/s, one a connection": lambda run, port: wrk(run, port, "-H", "Connection: close"),
    "download, Gbit/s": bulk,
}


def main() -> None:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        with (directory / "bulk").open("wb") as file:
            file.truncate(BULK_BYTES)
        directory.chmod(0o755)  # nginx's worker is another user
        nginx, haproxy = free_port(), free_port()
        configurations = {
            "nginx.conf": NGINX.format(directory=directory, port=nginx),
            "haproxy.cfg": HAPROXY.format(port=haproxy, upstream=nginx, threads=os.cpu_count()),
        }
        for name, text in configurations.items():
            (directory / name).write_text(text)
        stack.enter_context(running(nginx, "nginx", "-c", str(directory / "nginx.conf")))
        stack.enter_context(running(haproxy, "haproxy", "-f", str(directory / "haproxy.cfg")))
        ways: dict[str, tuple[Run, int]] = {"direct": (plain, nginx)}
        for transport in ("unix", "header"):
            sidecar = stack.enter_context(Sidecar({"outbound": {"transport": transport}}))
            ways[f"hook, {transport}"] = (hooked(sidecar), nginx)
        ways["HAProxy (not hooked)"] = (plain, haproxy)

        results: dict[tuple[str, str], list[float]] = {}
        steps = [(m, w) for _ in range(ROUNDS) for m in MEASURES for w in ways]
        for measure, way in track(steps, "measuring", console=Console(stderr=True)):
            results.setdefault((measure, way), []).append(MEASURES[measure](*ways[way]))
        show(list(ways), results)


def show(ways: list[str], results: dict[tuple[str, str], list[float]]) -> None:
    table = Table(title=f"median of {ROUNDS} rounds, and its ratio to direct")
    table.add_column("")
    for way in ways:
        table.add_column(way, justify="right")
    for measure in MEASURES:
        medians = {way: statistics.median(results[measure, way]) for way in ways}
        direct = medians[ways[0]]
        table.add_row(measure, *(f"{m:,.1f} ({m / direct:.0%})" for m in medians.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
