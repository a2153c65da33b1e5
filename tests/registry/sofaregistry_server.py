"""The server of SOFARegistry, in a network namespace of its own: it listens on fixed ports, and
wants an address that is not on loopback."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pysidecar.address import Address
from pysidecar.interception.rules.namespace import inside
from tests.interop.servers import plain_environment, program
from tests.namespaces import ip, namespace
from tests.waiting import eventually

_LIB = Path(__file__).parents[2] / "build" / "java" / "sofaregistry" / "lib"
_HTTP_PORT = 9603
_BOLT_PORT = 9600
_START_PATIENCE = 120.0  # seconds: 15 of two processors
_OPTIONS = (
    *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx512m"),
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    # It waits for more changes before it pushes: half as long as by default, and less.
    "-Dsession.server.dataChangeDebouncingMillis=50",
    "-Dsession.server.dataChangeMaxDebouncingMillis=200",
    "-Dsession.server.pushDataTaskDebouncingMillis=50",
)
# Milliseconds, in place of 45 s: after which a connection without a sign of life is closed.
_SILENCE = ("-Dbolt.tcp.server.idle.interval=6000", "-Dbolt.tcp.heartbeat.interval=1000")


class SofaRegistryServer:
    """Runs until it is left. It keeps everything in memory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log_file = directory / "server.log"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.namespace = stack.enter_context(namespace("sofareg"))
            self.host, there = stack.enter_context(_wire(self.namespace))
            """Our own address on the wire to it."""
            self.address = Address(there, _HTTP_PORT)
            """Of its HTTP interface, as clients are told."""
            self.bolt = Address(there, _BOLT_PORT)
            self._stack = stack.pop_all()
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self.kill()

    def start(self) -> None:
        """Returns when it serves."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(program("setpriv"), "--pdeathsig", "KILL", "--"),
                    *(program("ip"), "netns", "exec", self.namespace),
                    *(program("java"), *_OPTIONS, *_SILENCE, f"-Duser.home={self.directory}"),
                    *("-cp", f"{_LIB}/*"),
                    "com.alipay.sofa.registry.server.integration.RegistryApplication",
                ],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=plain_environment(),
            )
        eventually(self._serves, lambda: f"SOFARegistry:\n{self._log}", _START_PATIENCE)

    def kill(self) -> None:
        """With -9."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def cut(self) -> None:
        """From here on all packets are lost, between it and everybody else."""
        self._nft("add table inet cut")
        for hook, device in (("input", "iif"), ("output", "oif")):
            chain = f"{{ type filter hook {hook} priority 0; {device} eth0 drop; }}"
            self._nft(f"add chain inet cut {hook} {chain}")

    def heal(self) -> None:
        self._nft("delete table inet cut")

    def _nft(self, rule: str) -> None:
        inside(self.namespace, lambda: subprocess.run([program("nft"), rule], check=True))

    @property
    def _log(self) -> str:
        return self.log_file.read_text(errors="replace")[-4000:]

    def _serves(self) -> bool:
        assert self.process.poll() is None, self._log
        client = http.client.HTTPConnection(self.address.host, self.address.port, timeout=2)
        with contextlib.closing(client), contextlib.suppress(OSError, http.client.HTTPException):
            client.request("GET", "/health/check")
            return b'"success":true' in client.getresponse().read()
        return False


@contextlib.contextmanager
def _wire(name: str) -> Iterator[tuple[str, str]]:
    """Between this namespace and that one: the addresses here and there."""
    used = ip("-o", "-4", "addr")
    for number in itertools.count(os.getpid() % 16384):
        third, fourth = divmod(number % 16384, 64)
        network = f"10.197.{third}."
        if f" {network}{4 * fourth + 1}/" not in used:
            break
    ours, theirs = (f"{network}{4 * fourth + each}" for each in (1, 2))
    device = f"sofareg{os.getpid()}"
    ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)
    try:
        ip("addr", "add", f"{ours}/30", "dev", device)
        ip("link", "set", device, "up")
        ip("-n", name, "addr", "add", f"{theirs}/30", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        yield ours, theirs
    finally:
        ip("link", "delete", device)
