"""A server of HTTP/1.1 for ``requests_client.py``, in this process."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    may_answer: ClassVar[threading.Event]

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, data: bytes, *, chunked: bool, summed: bytes | None = None) -> None:
        summed = data if summed is None else summed
        self.send_response(200)
        self.send_header("x-sha256", hashlib.sha256(summed).hexdigest())
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not chunked:
            self.wfile.write(data)
            return
        for at in range(0, len(data), 60_000):
            piece = data[at : at + 60_000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _read_chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def do_POST(self) -> None:
        """Sends the body back; ``/slow`` begins late to read it, and sends its sum only."""
        if self.path == "/slow":
            time.sleep(0.2)
            data = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(b"", chunked=False, summed=data)
        elif self.headers["Transfer-Encoding"]:
            self._answer(self._read_chunks(), chunked=True)
        else:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])), chunked=False)

    def do_GET(self) -> None:
        """``/bytes?N`` and, when it may, ``/late?N``: N random bytes. ``/endless``; ``/echo``
        becomes another protocol."""
        path, _, size = self.path.partition("?")
        if path == "/endless":
            self._never_end()
        elif path == "/echo":
            self._echo()
        else:
            if path == "/late":
                self.may_answer.wait(30)
            self._answer(random.randbytes(int(size)), chunked=False)

    def _never_end(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        data = random.randbytes(200_000)
        try:
            while True:
                self.wfile.write(data)
        except OSError:
            pass

    def _echo(self) -> None:
        self.close_connection = True
        self.send_response(101)
        self.send_header("Connection", "upgrade")
        self.send_header("Upgrade", "x")
        self.end_headers()
        while data := self.rfile.read1(100_000):
            self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


@contextmanager
def http_server() -> Iterator[tuple[int, threading.Event]]:
    """Its port, and the event that lets late answers go."""
    event = threading.Event()
    handler = type("_OneHandler", (_Handler,), {"may_answer": event})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, event
        finally:
            event.set()
            server.shutdown()
            thread.join()
