"""A data plane that serves requests at a listener, and raw peers on both its ends."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pysidecar.address import Address
from pysidecar.dataplane import DataPlane, Timeouts, ffi, lib
from tests.dataplane.support import Plane, tcp_address
from tests.waiting import PATIENCE

PROTOCOLS = {
    "http": lib.DP_HTTP1,
    "bolt": lib.DP_BOLT,
    "dubbo": lib.DP_DUBBO,
    "http2": lib.DP_HTTP2,
    "grpc": lib.DP_GRPC,
    "auto": lib.DP_AUTO,
}


def services(
    protocol: int,
    upstreams: Sequence[Address],
    entrance: int,
    *,
    timeout_ms: int = 20000,
    connections: int = 1024,
    pending: int = 1024,
    undetected: int = lib.DP_RELAY,
    detect_ms: int = 1000,
) -> tuple[object, list[object]]:
    """A table with one service, and what it points to."""
    keep: list[object] = []

    def array(kind: str, items: object) -> object:
        made = ffi.new(f"{kind}[]", items)
        keep.append(made)
        return made

    endpoints = ffi.new("struct dp_endpoint[]", max(1, len(upstreams)))
    for i, upstream in enumerate(upstreams):
        endpoints[i].address = ffi.new("struct mosnhook_address *", upstream.to_native())[0]
        endpoints[i].weight = 1
    keep.append(endpoints)
    table = ffi.new(
        "struct dp_services *",
        {
            "services": array(
                "struct dp_service",
                [
                    {
                        "number": 1,
                        "name": 1,
                        "protocol": protocol,
                        "balance": lib.DP_ROUND_ROBIN,
                        "timeout_ms": timeout_ms,
                        "idle_ms": 60000,
                        "connections": connections,
                        "pending": pending,
                        "endpoint_count": len(upstreams),
                    }
                ],
            ),
            "endpoints": endpoints,
            "entrances": array(
                "struct dp_entrance",
                [
                    {
                        "protocol": entrance,
                        "detect_ms": detect_ms,
                        "undetected": undetected,
                        "service": 0,
                    }
                ],
            ),
            "texts": array("struct dp_text", [(0, 0), (0, 4)]),
            "characters": array("char", b"echo"),
            "service_count": 1,
            "endpoint_count": len(upstreams),
            "entrance_count": 1,
            "text_count": 2,
            "character_count": 4,
        },
    )
    return table, keep


class RequestPlane(Plane):
    """A running data plane with a listener of one service."""

    def __init__(
        self,
        protocol: str,
        upstreams: Sequence[Address],
        *,
        workers: int = 1,
        timeouts: Timeouts | None = None,
        speaks: str | None = None,
        **settings: int,
    ) -> None:
        def before_start(data: DataPlane) -> None:
            listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
            listener.setblocking(False)
            self.address = tcp_address(listener)
            raw = ffi.new("struct dp_listener *", {"transport": lib.DP_TRANSPORT_LISTENER})
            assert lib.dp_add_listener(data._dp, listener.detach(), raw) == 0
            self._set(data, upstreams)

        self._protocol = PROTOCOLS[speaks or ("http" if protocol == "auto" else protocol)]
        self._entrance = PROTOCOLS[protocol]
        self._settings = settings
        super().__init__(workers=workers, timeouts=timeouts, before_start=before_start)

    def _set(self, data: DataPlane, upstreams: Sequence[Address]) -> None:
        table, _keep = services(self._protocol, upstreams, self._entrance, **self._settings)
        assert lib.dp_set_services(data._dp, table) == 0

    def set_upstreams(self, upstreams: Sequence[Address]) -> None:
        """Another table with other endpoints."""
        self._set(self.data, upstreams)

    def client(self) -> socket.socket:
        """A connection to the listener."""
        client = self.owned(socket.create_connection((self.address.host, self.address.port)))
        client.settimeout(PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client


def read_all(sock: socket.socket) -> bytes:
    """Until its end."""
    data = b""
    while block := sock.recv(65536):
        data += block
    return data


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes; fewer at the end."""
    data = b""
    while len(data) < size and (block := sock.recv(size - len(data))):
        data += block
    return data


def read_until(sock: socket.socket, mark: bytes, data: bytes = b"") -> bytes:
    """Until the mark was read; perhaps more."""
    while mark not in data:
        block = sock.recv(65536)
        assert block, data
        data += block
    return data


def read_message(sock: socket.socket, data: bytes = b"") -> tuple[bytes, bytes, bytes]:
    """Head, body by its Content-Length, and what follows."""
    data = read_until(sock, b"\r\n\r\n", data)
    head, _, rest = data.partition(b"\r\n\r\n")
    size = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            size = int(value)
    while len(rest) < size:
        block = sock.recv(65536)
        assert block, (head, rest)
        rest += block
    return head, rest[:size], rest[size:]


class Upstream:
    """A server that gives each connection to a function, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], object]) -> None:
        self._serve = serve
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = tcp_address(self.listener)
        self.accepted = 0
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._connections.append(connection)
            thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, AssertionError), connection:
            connection.settimeout(PATIENCE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._serve(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def echo(connection: socket.socket) -> None:
    """Answers each request with its path and body."""
    rest = b""
    while True:
        head, body, rest = read_message(connection, rest)
        answer = head.split(b" ")[1] + b"|" + body
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)


@contextlib.contextmanager
def through(
    serve: Callable[[socket.socket], object], protocol: str = "http", **settings: Any
) -> Iterator[tuple[RequestPlane, Upstream]]:
    """A plane before one upstream."""
    with (
        Upstream(serve) as upstream,
        RequestPlane(protocol, [upstream.address], **settings) as plane,
    ):
        yield plane, upstream
