"""Servers of the standard library, in a thread."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator

from pysidecar.address import Address


class Server(socketserver.ThreadingTCPServer):
    """One that many may connect to at a time."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a client that aborts
            while data := self.request.recv(65536):
                self.request.sendall(data)


@contextlib.contextmanager
def serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[Address]:
    """Where the server is, on loopback."""
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Address("127.0.0.1", server.server_address[1])
        finally:
            server.shutdown()
            thread.join()
