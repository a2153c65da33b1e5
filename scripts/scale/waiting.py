"""Memory of the sidecar for each client that is connected and asks nothing, by protocol: before its
first request, and after an answer of our own."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from pysidecar.testing import Sidecar
from scripts.scale.idle import allow_descriptors

_COUNT = 2_000
_PATIENCE = 60.0  # seconds
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
# GET / of host "none", which no service has.
_BLOCK = bytes([0x82, 0x84, 0x86, 0x41, 4]) + b"none"
_REQUESTS = {
    "http": b"GET / HTTP/1.1\r\nHost: none\r\n\r\n",
    "http2": bytes([0, 0, len(_BLOCK), 1, 5, 0, 0, 0, 1]) + _BLOCK,
}


def measure() -> None:
    for protocol, request in _REQUESTS.items():
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = f"127.0.0.1:{free.getsockname()[1]}"
        settings = {"workers": 1, "listeners": [{"listen": listen, "protocol": protocol}]}
        with Sidecar(settings) as sidecar, contextlib.ExitStack() as stack:
            allow_descriptors(_COUNT + 64)
            pid = sidecar.pid
            _clients(stack, listen, protocol, request, 10)  # what all have in common
            before = _private_kib(pid)
            clients = _clients(stack, listen, protocol, b"", _COUNT)
            greeted = _private_kib(pid) - before
            for client in clients:
                client.sendall(request)
                _await(client)
            answered = _private_kib(pid) - before
            print(
                f"  {protocol}: {greeted / _COUNT:.1f} KiB, after a request "
                f"{answered / _COUNT:.1f} KiB",
                flush=True,
            )


def _clients(
    stack: contextlib.ExitStack, listen: str, protocol: str, request: bytes, count: int
) -> list[socket.socket]:
    host, port = listen.split(":")
    found = []
    for _ in range(count):
        client = stack.enter_context(socket.create_connection((host, int(port)), _PATIENCE))
        found.append(client)
        if protocol == "http2":
            client.sendall(_PREFACE)
            _await(client)  # its settings: it is served
        if request:
            client.sendall(request)
            _await(client)
    return found


def _await(client: socket.socket) -> None:
    if not client.recv(65536):
        raise SystemExit("the sidecar closed a connection")


def _private_kib(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = (line for line in rollup.splitlines() if line.startswith("Private_"))
    return sum(int(line.split()[1]) for line in private)
