"""Sends curl to an nginx through a sidecar with its embedded defaults, then calls a service that
two sidecars take over, and shows what happened."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

import pysidecar
from scripts.showing import TIMEOUT, console, ended_after, requests_in, show_hops, wait_for

ADMIN = "127.0.0.1:15000"  # the embedded default
PYSIDECAR: str | Path = Path(sys.executable).with_name("pysidecar")
LARGE = 50_000_000  # bytes
EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "takeover"


def main() -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pysidecar-demo-")))
        # The control socket and the policy page are in the runtime directory, so that the demo is
        # apart from a sidecar that may be running; curl finds them by the same variable.
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}
        host = host_address()
        options: list[str] = []
        if host is None:
            host = "127.0.0.1"
            config = directory / "sidecar.yaml"
            config.write_text("outbound: {exclude: []}\n")
            options = ["-c", str(config)]
            console.print(
                "This machine has only loopback, which the embedded defaults exclude: "
                "running with [b]exclude: \\[][/b]."
            )
        stack.enter_context(running_sidecar(directory, environment, options))
        server = stack.enter_context(running_nginx(directory, host))
        environment["LD_PRELOAD"] = str(pysidecar.hook_path())
        for path in ("/", "/large"):
            curl(f"http://{server}{path}", environment)
        curl(f"http://{host}:{free_port(host)}/nobody-listens-here", environment)
        show(wait_for(lambda: closed_connections(directory, count=3), "the access log's entries"))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pysidecar-demo-")))
        show_takeover(directory, stack)


def show_takeover(directory: Path, stack: ExitStack) -> None:
    """A service in Python, called by its name through its sidecar and the caller's."""
    console.print("Takeover: a service that its sidecar registers, called through the caller's.\n")
    registry = f"127.0.0.1:{free_port('127.0.0.1')}"
    command: list[str | Path]
    command = [PYSIDECAR, "registry", "--listen", registry, "--state", directory / "registry"]
    stack.enter_context(running(directory, f"pysidecar registry --listen {registry}", command))
    provider, consumer = (
        TakeoverSidecar(directory, role, registry) for role in ("provider", "consumer")
    )
    for sidecar in (provider, consumer):
        title = f"pysidecar run -c {sidecar.config.name}"
        command = [PYSIDECAR, "run", "-c", sidecar.config]
        stack.enter_context(running(directory, title, command))
        wait_for(partial(answers, sidecar.admin), title)
    service = "greetings.example"
    port = str(free_port("127.0.0.1"))
    program: list[str | Path]
    program = [sys.executable, EXAMPLES / "http_service.py", port, service]
    title = f"python http_service.py {port} {service}"
    said = stack.enter_context(running(directory, title, program, SIDECAR=provider.api))
    wait_for(lambda: "is published" in said.read_text(), title)
    console.print(f"[dim]$[/] python http_client.py {service} /you")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "http_client.py", service, "/you"],
        env={**os.environ, "SIDECAR": consumer.api, "SIDECAR_CALLS": f"http://{consumer.calls}"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
    )
    if done.returncode != 0:
        sys.exit("demo: the call failed")
    console.print(f"  {escape(done.stdout.strip())}")
    sent, received = (
        requests_in(sidecar.access_log, service, 1)[-1] for sidecar in (consumer, provider)
    )
    console.print("\nEach hop of the call, as both sidecars saw it:")
    show_hops(sent, received, consumer.calls)


class TakeoverSidecar:
    """Its configuration: ports of its own, since both are on this host."""

    def __init__(self, directory: Path, role: str, registry: str) -> None:
        self.config = directory / f"{role}.yaml"
        self.access_log = directory / f"{role}.jsonl"
        self.admin, api, self.calls, provider = (
            f"127.0.0.1:{free_port('127.0.0.1')}" for _ in range(4)
        )
        self.api = f"http://{api}"
        self.config.write_text(
            f"""
            admin: {{listen: "{self.admin}"}}
            takeover: {{api: "{api}", consumer: "{self.calls}", provider: "{provider}"}}
            registry: {{type: embedded, address: "{registry}"}}
            outbound: {{control_socket: {directory}/{role}/hook.sock}}
            access_log: {{path: {self.access_log}}}
            """
        )


@contextmanager
def running(
    directory: Path, title: str, command: Sequence[str | Path], **variables: str
) -> Iterator[Path]:
    """A program for a while; the file with what it prints."""
    console.print(f"[dim]$[/] {escape(title)}")
    log = directory / f"{len(list(directory.iterdir()))}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **variables}
        )
    with ended_after(process):
        yield log


def answers(admin: str) -> bool:
    """Whether a sidecar is ready."""
    with closing(http.client.HTTPConnection(admin, timeout=5)) as client:
        try:
            client.request("GET", "/ready")
            return client.getresponse().status == 200
        except OSError:
            return False


def host_address() -> str | None:
    """An IPv4 address of this machine that is not loopback, if it has one."""
    up = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if (
                address.family == socket.AF_INET
                and up[name].isup
                and not address.address.startswith("127.")
            ):
                return address.address
    return None


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_sidecar(
    directory: Path, environment: Mapping[str, str], options: Sequence[str]
) -> Iterator[None]:
    command = [str(PYSIDECAR), "run", *options]
    console.print(f"[dim]$[/] pysidecar {escape(' '.join(command[1:]))}")
    with (
        (directory / "access.jsonl").open("w") as access_log,
        (directory / "sidecar.log").open("w") as log,
    ):
        process = subprocess.Popen(command, env=environment, stdout=access_log, stderr=log)
    with ended_after(process):

        def ready() -> bool:
            # Another sidecar may answer at that address, so ours has to say it by itself.
            said = (directory / "sidecar.log").read_text()
            if process.poll() is not None:
                sys.exit(f"demo: the sidecar ended:\n{said}")
            return f"admin: http://{ADMIN}" in said

        wait_for(ready, "the sidecar")
        yield


@contextmanager
def running_nginx(directory: Path, host: str) -> Iterator[str]:
    server = f"{host}:{free_port(host)}"
    site = directory / "site"
    site.mkdir()
    (site / "index.html").write_text("Hello from nginx.\n")
    with (site / "large").open("wb") as large:
        large.truncate(LARGE)
    config = directory / "nginx.conf"
    config.write_text(
        f"""
        daemon off;
        pid {directory}/nginx.pid;
        error_log stderr;
        {"user root;" if os.geteuid() == 0 else ""}
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {directory}; proxy_temp_path {directory};
            fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};
            server {{ listen {server}; root {site}; }}
        }}
        """
    )
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        sys.exit("demo: nginx is missing: run `make demo`")
    console.print(f"[dim]$[/] nginx  [dim]# on {server}[/]")
    process = subprocess.Popen(
        [nginx, "-p", directory, "-c", config, "-e", "stderr"], stdin=subprocess.DEVNULL
    )
    with ended_after(process):

        def accepts() -> bool:
            if process.poll() is not None:
                sys.exit("demo: nginx ended")
            name, port = server.split(":")
            with socket.socket() as probe:
                return probe.connect_ex((name, int(port))) == 0

        wait_for(accepts, "nginx")
        yield server


def curl(url: str, environment: Mapping[str, str]) -> None:
    console.print(f"[dim]$[/] LD_PRELOAD=libmosnhook.so curl {escape(url)}")
    command = ["curl", "--noproxy", "*", "-sS", "-o", "/dev/null", "-w", "HTTP %{http_code}", url]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    console.print(f"  {escape((done.stderr if done.returncode else done.stdout).strip())}")


def closed_connections(directory: Path, count: int) -> list[dict[str, Any]]:
    """The access log's entries as soon as there are so many, else nothing."""
    lines = (directory / "access.jsonl").read_text().splitlines(keepends=True)
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return entries if len(entries) >= count else []


def show(connections: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=box.MINIMAL, padding=(0, 1, 0, 0))
    for heading in ("who", "original destination"):
        table.add_column(heading, no_wrap=True)
    table.add_column("upstream", overflow="fold")
    for heading in ("bytes up / down", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in connections:
        error = entry["error"]
        table.add_row(
            f"{entry['process']} {entry['pid']}",
            entry["original_destination"],
            f"[red]{escape(error)}[/]" if error else entry["upstream"],
            f"{amount(entry['bytes_sent'])} / {amount(entry['bytes_received'])}",
            f"{entry['duration_ms']:.1f} ms",
        )
    console.print("\nWhat the sidecar saw:")
    console.print(table)


def amount(count: int) -> str:
    return f"{count} B" if count < 1000 else decimal(count)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
