"""A sidecar as users run it, and a server to connect to."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pysidecar.address import Address

PATIENCE = 15.0  # seconds that anything may take on a busy machine
PYSIDECAR = (sys.executable, "-m", "pysidecar")
PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"


def eventually(condition: Callable[[], Any]) -> Any:
    """The first true value of the condition; fails when there is none in time."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.01)
    return value


class RunningSidecar:
    """``pysidecar run`` in a process of its own; what it logs is in ``log``."""

    command: tuple[str, ...] = PYSIDECAR

    def __init__(self, directory: Path, *, config: str = "", name: str = "sidecar") -> None:
        self.directory = directory
        self.config_file = directory / f"{name}.yaml"
        self.log_file = directory / f"{name}.log"
        self.access_log_file = directory / f"{name}.jsonl"
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
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.command, "run", "-c", str(self.config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.admin = self._logged_address(r"admin: http://(\S+)/")
        self.listener = self._logged_address(r"PROXY v2 connections: (\S+)")

    def _logged_address(self, pattern: str) -> Address:
        def find() -> re.Match[str] | None:
            assert self.process.poll() is None, self.log
            return re.search(pattern, self.log)

        return Address.parse(eventually(find)[1])

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def get(self, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.admin.host, self.admin.port, timeout=PATIENCE)
        try:
            connection.request(method, path, headers={"Host": host} if host else {})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def get_json(self, path: str) -> Any:
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    def connect(self, destination: Address) -> socket.socket:
        """As a hooked process does it with transport header."""
        client = socket.create_connection((self.listener.host, self.listener.port), PATIENCE)
        source = client.getsockname()
        addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination.host)
        ports = struct.pack(">HH", source[1], destination.port)
        client.sendall(PROXY_V2 + bytes([0x21, 0x11]) + struct.pack(">H", 12) + addresses + ports)
        return client

    def access_log(self, count: int) -> list[dict[str, Any]]:
        """The records, when there are at least so many."""

        def lines() -> list[str]:
            text = self.access_log_file.read_text() if self.access_log_file.exists() else ""
            found = text.splitlines()
            return found if len(found) >= count else []

        return [json.loads(line) for line in eventually(lines)]

    def reload(self) -> str:
        """SIGHUP; what it logs because of it."""
        before = len(self.log)
        self.process.send_signal(signal.SIGHUP)
        # Lines of the start may come as late as this.
        eventually(lambda: re.search("reloaded|configuration stays", self.log[before:]))
        return self.log[before:]

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[RunningSidecar]:
    running = RunningSidecar(tmp_path)
    try:
        yield running
    finally:
        running.kill()


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class _EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@pytest.fixture
def echo() -> Iterator[Address]:
    """A server that sends back what it gets."""
    with _EchoServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Address("127.0.0.1", server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def exchange(client: socket.socket, data: bytes) -> bytes:
    """Sends, and receives as much."""
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        part = client.recv(len(data) - len(received))
        assert part, "closed early"
        received += part
    return received
