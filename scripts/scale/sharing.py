"""How busy connections are shared out among the workers: what the busiest one does of all that they
do, by the number of connections."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator

from pysidecar.address import Address
from pysidecar.testing import Sidecar
from scripts.scale.idle import header
from scripts.scale.threads import worker_seconds

_WORKERS = 4
_COUNTS = (2, 4, 8, 32, 128)
_SECONDS = 2.0
_MESSAGE = b"x" * 64


def measure() -> None:
    for count in _COUNTS:
        with (
            Sidecar({"workers": _WORKERS}) as sidecar,
            _echo() as echo,
            _busy_connections(sidecar, echo, count),
        ):
            before = worker_seconds(sidecar.pid)
            time.sleep(_SECONDS)
            after = worker_seconds(sidecar.pid)
        used = [now - then for then, now in zip(before, after, strict=True)]
        print(
            f"  {count} busy connections, {_WORKERS} workers: the busiest does "
            f"{max(used) / sum(used):.0%}, the others "
            + ", ".join(f"{each / sum(used):.0%}" for each in sorted(used, reverse=True)[1:]),
            flush=True,
        )


@contextlib.contextmanager
def _answering(sockets: selectors.BaseSelector) -> Iterator[None]:
    """Sends back whatever comes, until the block is left."""
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            for key, _ in sockets.select(0.1):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if key.data:  # a listener
                    sockets.register(sock.accept()[0], selectors.EVENT_READ)
                elif not _send_back(sock):
                    sockets.unregister(sock)
                    sock.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _send_back(sock: socket.socket) -> bool:
    """False at its end."""
    try:
        data = sock.recv(4096)
        sock.sendall(data)
    except ConnectionError:
        return False
    return bool(data)


@contextlib.contextmanager
def _echo() -> Iterator[Address]:
    with selectors.DefaultSelector() as sockets, socket.create_server(("127.0.0.1", 0)) as server:
        sockets.register(server, selectors.EVENT_READ, data=True)
        with _answering(sockets):
            yield Address(*server.getsockname())


@contextlib.contextmanager
def _busy_connections(sidecar: Sidecar, echo: Address, count: int) -> Iterator[None]:
    """So many, one after the other as a pool opens them; in each a message goes to and fro."""
    with contextlib.ExitStack() as stack:
        sockets = stack.enter_context(selectors.DefaultSelector())
        for _ in range(count):
            address = (str(sidecar.address), 15001)
            client = stack.enter_context(socket.create_connection(address))
            client.sendall(header(echo) + _MESSAGE)
            sockets.register(client, selectors.EVENT_READ)
        with _answering(sockets):
            yield
