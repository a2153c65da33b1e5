"""Pods as network namespaces, and real programs in them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from pysidecar.address import Address
from pysidecar.interception.rules import conntrack
from pysidecar.interception.rules.namespace import inside
from pysidecar.testing.processes import end_process
from tests.launching import Launched
from tests.namespaces import add_addresses, ip, namespace
from tests.waiting import PATIENCE, eventually

PROGRAMS = Path(__file__).parent / "programs"
WITHOUT_CAPABILITIES = (
    "setpriv", "--bounding-set", "-net_admin,-net_raw", "--inh-caps", "-net_admin,-net_raw",
)  # fmt: skip
ADMIN = Address("127.0.0.1", 15000)  # in each pod's own namespace


@dataclass(frozen=True)
class Pod:
    """A namespace with its addresses."""

    name: str
    ipv4: str
    ipv6: str

    def host(self, version: int) -> str:
        return self.ipv4 if version == 4 else self.ipv6

    def address(self, version: int, port: int) -> Address:
        return Address(self.host(version), port)

    def command(self, *arguments: str | Path) -> list[str]:
        return ["ip", "netns", "exec", self.name, *map(str, arguments)]

    def output(self, *arguments: str | Path, timeout: float = PATIENCE) -> str:
        """Of a command that succeeds here."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    @property
    def tracked(self) -> int:
        """Entries of its connection tracking table, as ``conntrack -C`` says."""
        count = int(self.output("conntrack", "-C"))
        known = conntrack(self.name)
        assert known is not None
        assert known.entries == count
        return count

    def snapshot(self) -> str:
        """All rules, policy rules and routes as the kernel has them."""
        commands = (
            "nft -s list ruleset",
            "ip -d -4 rule show",
            "ip -d -6 rule show",
            "ip -d -4 route show table all",
            "ip -d -6 route show table all",
        )
        return "\n".join(self.output(*command.split()) for command in commands)

    @contextlib.contextmanager
    def running(
        self, *arguments: str | Path, log: Path, environment: dict[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A program that is killed at the end."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
            )
        try:
            yield process
        finally:
            end_process(process, PATIENCE)

    def forget(self) -> None:
        """Empties its connection tracking table: what a test looked at is in there too."""
        self.output("conntrack", "-F")

    def listens(self, port: int) -> bool:
        """Whether someone listens here, on both families."""
        return self.output("ss", "-Hltn", f"sport = :{port}").count("\n") >= 2

    def connect(self, destination: Address) -> str:
        """``connected``, or the name of the errno; a hang is an error of the test."""

        def attempt() -> str:
            try:
                socket.create_connection((destination.host, destination.port), PATIENCE).close()
            except TimeoutError:
                raise
            except OSError as error:
                return type(error).__name__
            return "connected"

        return inside(self.name, attempt)


@contextlib.contextmanager
def pods(*roles: str) -> Iterator[list[Pod]]:
    """One for each role, on one wire that nobody else is on."""
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(namespace("wire"))
        ip("-n", wire, "link", "add", "wire", "type", "bridge")
        ip("-n", wire, "link", "set", "wire", "up")
        made = [
            Pod(stack.enter_context(namespace(role)), f"10.79.0.{n}", f"fd79::{n}")
            for n, role in enumerate(roles, 1)
        ]
        for number, pod in enumerate(made):
            port = f"port{number}"
            ip("link", "add", "eth0", "netns", pod.name,
                "type", "veth", "peer", port, "netns", wire)  # fmt: skip
            ip("-n", wire, "link", "set", port, "master", "wire", "up")
            add_addresses(pod.name, f"{pod.ipv4}/24", f"{pod.ipv6}/64")
        yield made


class PodSidecar(Launched):
    """``pysidecar run`` in a pod."""

    def __init__(
        self,
        pod: Pod,
        directory: Path,
        config: str,
        name: str = "sidecar",
        prefix: Sequence[str] = (),
    ) -> None:
        super().__init__(
            directory, f"{name}-{pod.name}", prefix=pod.command(*prefix), namespace=pod.name
        )
        self.admin = ADMIN
        self._control_socket = directory / f"{pod.name}" / "hook.sock"
        self.write_config(config)

    def write_config(self, config: str) -> None:
        """``outbound`` of the text goes on with keys of its own paths."""
        outbound = f"outbound:\n  control_socket: {self._control_socket}\n"
        text = f"access_log: {{path: {self.access_log_file}}}\n{config}\n"
        if "outbound:\n" not in text:
            text += "outbound:\n"
        self.config_file.write_text(text.replace("outbound:\n", outbound))

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        super().start()
        eventually(self._ready, "the sidecar")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log
        with contextlib.suppress(OSError):
            return self.get("/ready")[0] == 200
        return False

    def metric(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def settled(self) -> None:
        """Waits for the open connections to end, and their records to be written."""
        eventually(lambda: self.get_json("/connections") == [])
        closed = int(self.metric("pysidecar_connections_opened_total"))
        eventually(lambda: len(self.access_log_file.read_bytes().splitlines()) >= closed)

    @property
    def resources(self) -> tuple[int, int]:
        """File descriptors and bytes of memory."""
        process = psutil.Process(self.process.pid)
        return process.num_fds(), process.memory_info().rss


@contextlib.contextmanager
def nginx(
    pod: Pod, directory: Path, ports: Sequence[int] = (8080,), answer: str = "$remote_addr"
) -> Iterator[Path]:
    """Answers with the address that it sees the client at; gives its access log (addresses)."""
    directory = directory / f"nginx-{pod.name}"
    directory.mkdir(exist_ok=True)
    access_log = directory / "access.log"
    listen = "".join(f"listen {port}; listen [::]:{port}; " for port in ports)
    (directory / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;\n"
        "events { worker_connections 4096; }\n"
        "http {\n"
        "  log_format client '$remote_addr';\n"
        f"  access_log {access_log} client;\n"
        f"  server {{ {listen} location / {{ return 200 '{answer}'; }} }}\n"
        "}\n"
    )
    command = ("nginx", "-e", directory / "error.log", "-c", directory / "nginx.conf")
    with pod.running(*command, log=directory / "log"):
        eventually(lambda: pod.listens(ports[0]))
        yield access_log


def curl(pod: Pod, destination: Address, *options: str) -> str:
    return pod.output(
        "curl", "-sS", "--max-time", "10", "--noproxy", "*", *options, f"http://{destination}/"
    )


def wrk(
    pod: Pod, destination: Address, connections: int, *, hooked: Sequence[str | Path] = ()
) -> None:
    """Opens at least so many connections, a request each; fails where one of them fails."""
    output = pod.output(
        *hooked, sys.executable, PROGRAMS / "wrk_connections.py", str(connections),
        f"http://{destination}/", timeout=50,
    )  # fmt: skip
    assert "errors" not in output, output
