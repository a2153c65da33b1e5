"""Servers that do what no real one does on purpose, or not when a test wants it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["Scripted", "reset", "scripted"]

Serve = Callable[[socket.socket], None]


@dataclass
class Scripted:
    """A server of threads, and how many connections it got."""

    port: int
    connections: int = 0
    errors: list[BaseException] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def reset(connection: socket.socket) -> None:
    """Ends a connection by RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextlib.contextmanager
def scripted(serve: Serve) -> Iterator[Scripted]:
    """Serves each connection by ``serve`` in a thread of its own, and closes it afterwards.

    What ``serve`` raises fails the test, but for connections that the other side ended.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        here = Scripted(listener.getsockname()[1])
        open_ones: set[socket.socket] = set()
        threads: list[threading.Thread] = []

        def run(connection: socket.socket) -> None:
            try:
                with connection:
                    serve(connection)
            except OSError:
                pass
            except BaseException as error:
                here.errors.append(error)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    here.connections += 1
                    open_ones.add(connection)
                    thread = threading.Thread(target=run, args=(connection,), daemon=True)
                    threads.append(thread)
                    thread.start()

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield here
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for connection in open_ones:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
    assert not here.errors, here.errors
