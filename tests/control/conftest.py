"""A sidecar as users run it, and a server to connect to."""

from __future__ import annotations

import re
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysidecar.address import Address
from tests.launching import Launched
from tests.serving import Echo, serving
from tests.waiting import PATIENCE, eventually

PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"


class RunningSidecar(Launched):
    """One with a listener for PROXY v2 headers, running."""

    prefix: tuple[str, ...] = ()
    """A command that runs it."""

    def __init__(self, directory: Path, *, config: str = "", name: str = "sidecar") -> None:
        super().__init__(directory, name, prefix=self.prefix)
        self.directory = directory
        self.control_socket = directory / "run" / "hook.sock"
        self.write_config(config)
        self.start()

    def write_config(self, outbound: str = "", top: str = "") -> None:
        """Own ports and paths, and what a test adds."""
        lines = [
            "admin: {listen: 127.0.0.1:0}",
            f"access_log: {{path: {self.access_log_file}}}",
            top,
            "outbound:",
            "  listen: [127.0.0.1:0]",
            f"  control_socket: {self.control_socket}",
            "  exclude: []",
            *(f"  {line}" for line in outbound.splitlines()),
        ]
        self.config_file.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        self.log_file.unlink(missing_ok=True)  # of a start before, whose ports are others
        super().start()
        self._find_addresses()

    def _find_addresses(self) -> None:
        try:
            self.admin = self._logged_address(r"admin: http://(\S+)/")
            self.listener = self._logged_address(r"PROXY v2 connections: (\S+)")
        except BaseException:
            self.kill()
            raise

    def _logged_address(self, pattern: str) -> Address:
        def find() -> re.Match[str] | None:
            assert self.process.poll() is None, self.log
            return re.search(pattern, self.log)

        return Address.parse(eventually(find, lambda: f"{pattern!r} in: {self.log}")[1])

    def connect(self, destination: Address) -> socket.socket:
        """As a hooked process does it with transport header."""
        client = socket.create_connection((self.listener.host, self.listener.port), PATIENCE)
        source = client.getsockname()
        addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination.host)
        ports = struct.pack(">HH", source[1], destination.port)
        client.sendall(PROXY_V2 + bytes([0x21, 0x11]) + struct.pack(">H", 12) + addresses + ports)
        return client

    def reload(self) -> str:
        """SIGHUP; what it logs because of it."""
        before = len(self.log)
        self.process.send_signal(signal.SIGHUP)
        # Lines of the start may come as late as this.
        eventually(lambda: re.search("reloaded|configuration stays", self.log[before:]))
        return self.log[before:]


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[RunningSidecar]:
    with RunningSidecar(tmp_path) as running:
        yield running


@pytest.fixture
def echo() -> Iterator[Address]:
    """A server that sends back what it gets."""
    with serving(Echo) as address:
        yield address


def exchange(client: socket.socket, data: bytes) -> bytes:
    """Sends, and receives as much."""
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        part = client.recv(len(data) - len(received))
        assert part, "closed early"
        received += part
    return received
