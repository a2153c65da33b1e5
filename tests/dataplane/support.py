"""A data plane with its listeners, and the clients and servers of its tests."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Self

from pysidecar.address import Address
from pysidecar.dataplane import (
    LINES_BYTES,
    ConnectionRecord,
    DataPlane,
    Listener,
    Route,
    RouteTable,
    Timeouts,
    Transport,
    ffi,
    lib,
)
from pysidecar.destinations import PortRange
from pysidecar.routing.rules import Rule, compile_rules
from tests.ports import free_port
from tests.waiting import PATIENCE, eventually

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

MakePlane = Callable[..., "Plane"]
"""The fixture ``make_plane``."""


def tcp_address(sock: socket.socket) -> Address:
    """Where a socket is bound."""
    host, port = sock.getsockname()[:2]
    return Address(host, port)


def linger_reset(sock: socket.socket) -> None:
    """Closes with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def proxy_header(
    destination: Address,
    *,
    source: Address | None = None,
    tlvs: bytes = b"",
    command: int = 0x21,
) -> bytes:
    """A PROXY v2 header, as any sender of the protocol makes it."""
    source = source or Address("::1" if ":" in destination.host else "127.0.0.1", 4321)
    packed = ip_address(source.host).packed + ip_address(destination.host).packed
    body = packed + struct.pack("!HH", source.port, destination.port) + tlvs
    family = 0x11 if len(packed) == 8 else 0x21
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


REFUSED = select.POLLIN | select.POLLOUT | select.POLLERR | select.POLLHUP | select.POLLRDHUP
"""The ``events`` of a socket whose connect was refused."""


def events(sock: socket.socket) -> int:
    """What poll() says now, if it is asked for all that matters here."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    return sum(seen for _, seen in poll.poll(0))


class Server:
    """A listener on loopback."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, port), family=family, backlog=1024)
        self.listener.settimeout(PATIENCE)
        self.address = tcp_address(self.listener)
        self._accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        """The next connection."""
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE)
        self._accepted.append(connection)
        return connection

    def accepts_nothing(self) -> bool:
        """Whether no connection is waiting."""
        return not select.select([self.listener], [], [], 0)[0]

    def close(self) -> None:
        for sock in (self.listener, *self._accepted):
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def closed_address(host: str = "127.0.0.1") -> Address:
    """An address that refuses connections."""
    return Address(host, free_port())


@contextlib.contextmanager
def silent_server() -> Iterator[Address]:
    """An address that does not answer: the listener's accept queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield tcp_address(listener)


def hook_request(destination: Address, flags: int, command: bytes = b"test") -> bytes:
    """What the connect hook sends on the control socket."""
    request = ffi.new(
        "struct mosnhook_request *",
        {
            "magic": lib.MOSNHOOK_MAGIC,
            "version": lib.MOSNHOOK_VERSION,
            "flags": flags,
            "destination": destination.to_native(),
            "command": command,
        },
    )
    return bytes(ffi.buffer(request))


def send_with_fds(control: socket.socket, message: bytes, fds: list[int]) -> None:
    """With SCM_RIGHTS, if there are any."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    control.sendmsg([message], rights)


@dataclass(frozen=True)
class Answer:
    """What the control socket answered."""

    action: int
    error: int


class Parked:
    """An application's socket, and what the connect hook does with it."""

    def __init__(self, plane: Plane, *, host: str = "127.0.0.1", source: str | None = None) -> None:
        self.plane = plane
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = plane.owned(socket.socket(family, socket.SOCK_STREAM))
        self.socket.setblocking(False)
        if source:
            self.socket.bind((source, 0))
        park = plane.parks[host]
        with contextlib.suppress(BlockingIOError):
            self.socket.connect((park.host, park.port))
        self.control: socket.socket | None = None

    def ask(self, destination: Address, *, waits: bool = False, command: bytes = b"test") -> None:
        """Sends the request."""
        flags = lib.MOSNHOOK_PARKED | (lib.MOSNHOOK_WAITS if waits else 0)
        self.control = self.plane.control()
        self.send(hook_request(destination, flags, command), [self.socket.fileno()])
        if not waits:
            self.control.close()

    def send(self, message: bytes, fds: list[int]) -> None:
        """Sends anything."""
        assert self.control
        send_with_fds(self.control, message, fds)

    def answer(self) -> Answer | None:
        """The answer, or None where the other side just closed."""
        assert self.control
        data = self.control.recv(100)
        if not data:
            return None
        answer = ffi.from_buffer("struct mosnhook_answer *", data)
        assert answer.magic == lib.MOSNHOOK_MAGIC
        assert answer.version == lib.MOSNHOOK_VERSION
        return Answer(answer.action, answer.error)

    def is_writable(self, seconds: float = PATIENCE) -> bool:
        """Whether it becomes writable, as a non-blocking application asks."""
        return bool(select.select([], [self.socket], [], seconds)[1])

    def error(self) -> int:
        """SO_ERROR, which clears it."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def blocking(self) -> socket.socket:
        """The socket, to be used by a simple client."""
        self.socket.settimeout(PATIENCE)
        return self.socket

    def close(self) -> None:
        self.socket.close()
        if self.control:
            self.control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Plane:
    """A running data plane with a header listener, a control socket and two parks."""

    def __init__(
        self,
        *,
        timeouts: Timeouts | None = None,
        workers: int = 2,
        before_start: Callable[[DataPlane], object] = lambda _: None,
    ) -> None:
        self._clients: list[socket.socket] = []
        self.data = DataPlane(workers=workers, timeouts=timeouts or Timeouts(connect=2, header=2))
        self.data.keep_closed(1 << 16)
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.header_address = tcp_address(listener)
        self.data.add_listener(listener, Listener(Transport.HEADER))
        self._directory = tempfile.TemporaryDirectory(prefix="plane-")
        self.control_path = f"{self._directory.name}/hook.sock"
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.bind(self.control_path)
        control.listen(4096)
        self.data.add_listener(control, Listener(Transport.UNIX))
        self.parks = {host: self.data.add_park(host) for host in ("127.0.0.1", "::1")}
        self.page = bytearray(ffi.sizeof("struct mosnhook_page"))
        self.data.set_page(self.page)
        self.data.set_own_addresses([self.header_address, *self.parks.values()])
        before_start(self.data)
        self.data.start()
        self._closed: list[ConnectionRecord] = []
        self._running = True

    def owned(self, sock: socket.socket) -> socket.socket:
        """A socket of a client, closed at the latest together with this."""
        self._clients.append(sock)
        return sock

    def connect(self) -> socket.socket:
        """A connection to the header listener, without a header yet."""
        client = self.owned(
            socket.create_connection((self.header_address.host, self.header_address.port))
        )
        client.settimeout(PATIENCE)
        return client

    def through(self, destination: Address, **header: Any) -> socket.socket:
        """A connection to the header listener that wants to go to ``destination``."""
        client = self.connect()
        client.sendall(proxy_header(destination, **header))
        return client

    def control(self) -> socket.socket:
        """A connection to the control socket."""
        control = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        control.settimeout(PATIENCE)
        control.connect(self.control_path)
        return control

    def let_everybody_in(self) -> None:
        """Opens the control socket to other users."""
        os.chmod(self._directory.name, 0o755)
        os.chmod(self.control_path, 0o666)

    def closed(self) -> list[ConnectionRecord]:
        """All connections that closed so far."""
        self.data.clear_event()
        self._closed.extend(self.data.take_closed())
        return self._closed

    def next_closed(self) -> ConnectionRecord:
        """Waits for one connection to close, and forgets it."""
        eventually(self.closed, "a closed connection")
        return self._closed.pop(0)

    def stop(self) -> None:
        """Stops the workers; reports can still be taken."""
        self.data.stop()
        self._running = False

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self._running:
            self.stop()
        self.data.close()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Entry = tuple[str, tuple[int, int] | None, Route]
"""Network, first and last port (None: all), route."""


def table(*entries: Entry) -> RouteTable:
    """Routes in order."""
    return RouteTable(
        rules=compile_rules(
            Rule([ip_network(network)], [PortRange(*ports)] if ports else None, index)
            for index, (network, ports, _) in enumerate(entries)
        ),
        routes=tuple(route for _, _, route in entries),
    )


def run_alone(script: str, **environment: str) -> str:
    """Runs Python in a process of its own, whose limits and processor time are its own; its output
    is to be "ok"."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(script)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert result.stdout == "ok\n", (result.stdout, result.stderr)
    return result.stderr


def preloadable(name: str, directory: Path) -> Path:
    """A library for LD_PRELOAD, from ``programs``."""
    library = directory / f"{name}.so"
    source = Path(__file__).parent / "programs" / f"{name}.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source], check=True)
    return library


def open_pair(plane: Plane, server: Server, transport: str) -> tuple[socket.socket, socket.socket]:
    """An application's socket and the upstream's, connected through the data plane."""
    if transport == "header":
        return plane.through(server.address), server.accept()
    application = Parked(plane)
    application.ask(server.address)
    assert application.is_writable()
    return application.blocking(), server.accept()


def take_lines(plane: Plane) -> list[bytes]:
    """All lines of the access log that were not taken yet."""
    text = b""
    buffer = bytearray(LINES_BYTES)
    while size := plane.data.take_lines(buffer):
        assert buffer[:size].endswith(b"\n")
        text += buffer[:size]
    return text.splitlines()
