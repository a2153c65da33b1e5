"""A small sidecar, application and client whose sockets are in namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import selectors
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pysidecar.address import Address
from pysidecar.config import Config
from pysidecar.dataplane import Transport
from pysidecar.interception.kernel import InboundInterception, KernelInterception
from pysidecar.interception.redirect import OutboundRedirect, OutboundRedirectRules
from pysidecar.interception.rules import conntrack
from pysidecar.interception.rules.namespace import inside as inside
from pysidecar.interception.tproxy import TransparentProxy
from pysidecar.socket_options import SocketOption, mark_option, transparent_option

OUTBOUND_LISTEN = (Address("127.0.0.1", 15002), Address("::1", 15002))
SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>; IP6T_SO_ORIGINAL_DST has the same number
LATE_PORT = SocketOption(socket.IPPROTO_IP, 24, 1, "IP_BIND_ADDRESS_NO_PORT")  # <linux/in.h>
CLIENT = {4: "10.77.0.1", 6: "fd77::1"}
POD = {4: "10.77.0.2", 6: "fd77::2"}
FAR = {4: "10.78.0.1", 6: "fd78::1"}  # beyond the client
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ANY = {4: "0.0.0.0", 6: "::"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
LIMIT = 10.0  # seconds; what takes longer hangs


@dataclass(frozen=True)
class Pair:
    """Names of two namespaces."""

    client: str
    pod: str


def _run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def output(namespace: str, *command: str, stdin: str = "") -> str:
    """Of a command that succeeds in a namespace."""
    return inside(namespace, lambda: _run(*command, stdin=stdin))


def snapshot(namespace: str) -> str:
    """All rules, policy rules and routes, with their handles, as the kernel has them."""
    return "\n".join(
        output(namespace, *command.split())
        for command in (
            "nft -j -s -a list ruleset",
            "ip -j -d -4 rule show",
            "ip -j -d -6 rule show",
            "ip -j -d -4 route show table all",
            "ip -j -d -6 route show table all",
        )
    )


def iptables_rules(namespace: str) -> str:
    """Of both kinds, without the tables that have no rule: iptables does not remove a table."""
    lines = []
    for program in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"):
        saved = output(namespace, f"{program}-save").splitlines()
        lines += [f"{program} {line}" for line in saved if line.startswith("-A")]
    return "\n".join(lines)


def entries(namespace: str) -> int:
    use = conntrack(namespace)
    assert use is not None
    return use.entries


def listen(
    namespace: str, address: Address, options: tuple[SocketOption, ...] = ()
) -> socket.socket:
    def opened() -> socket.socket:
        listener = socket.socket(address.family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for option in options:
            option.set(listener)
        listener.bind((address.host, address.port))
        listener.listen(1024)
        return listener

    return inside(namespace, opened)


def connect(
    namespace: str,
    destination: Address,
    options: tuple[SocketOption, ...] = (),
    source: str | None = None,
    source_port: int = 0,
    owner: tuple[int, int] | None = None,
) -> socket.socket:
    """``owner`` is the (uid, gid) that the socket belongs to."""

    def opened() -> socket.socket:
        if owner is not None:  # of this thread alone, which ends with this function
            libc = ctypes.CDLL(None)
            libc.setfsgid(owner[1])
            libc.setfsuid(owner[0])
        client = socket.socket(destination.family)
        try:
            for option in options:
                option.set(client)
            client.settimeout(LIMIT)
            if source_port:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if source is not None or source_port:
                client.bind((source or "", source_port))
            client.connect((destination.host, destination.port))
        except BaseException:
            client.close()
            raise
        return client

    return inside(namespace, opened)


def receive_line(client: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        byte = client.recv(1)
        if not byte:
            raise EOFError(f"closed after {line!r}")
        line += byte
    return line.decode().rstrip("\n")


def peer_of(connection: socket.socket) -> Address:
    return Address(*connection.getpeername()[:2])


def original_destination(connection: socket.socket, how: Transport) -> Address:
    if how is Transport.TPROXY:
        return Address(*connection.getsockname()[:2])
    assert how is Transport.REDIRECT
    if connection.family == socket.AF_INET:
        raw = connection.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
        port, host = struct.unpack_from("!2xH4s", raw)
        return Address(socket.inet_ntop(socket.AF_INET, host), port)
    raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
    port, host = struct.unpack_from("!2xH4x16s", raw)
    return Address(socket.inet_ntop(socket.AF_INET6, host), port)


class Server:
    """Accepts on listeners and serves each connection in a thread of its own, until closed."""

    def __init__(self, serve: Callable[[socket.socket, Any], None]) -> None:
        self._serve = serve
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._listeners: list[socket.socket] = []
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)

    def add(self, listener: socket.socket, data: Any = None) -> None:
        listener.setblocking(False)
        self._listeners.append(listener)
        self._selector.register(listener, selectors.EVENT_READ, data)

    def __enter__(self) -> Server:
        self._accepting.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._waker.close()
        self._accepting.join()
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._selector.close()
        self._wake.close()

    def _accept(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake:
                    return
                assert isinstance(key.fileobj, socket.socket)
                try:
                    connection, _ = key.fileobj.accept()
                except BlockingIOError:
                    continue
                connection.settimeout(LIMIT)
                self._connections.add(connection)
                thread = threading.Thread(target=self._run, args=(connection, key.data))
                self._threads.append(thread)
                thread.start()

    def _run(self, connection: socket.socket, data: Any) -> None:
        try:
            with contextlib.suppress(OSError):
                self._serve(connection, data)
        finally:
            self._connections.discard(connection)
            connection.close()


@contextlib.contextmanager
def application(
    namespace: str, *addresses: Address, name: str = "application", talkative: bool = True
) -> Iterator[None]:
    """Speaks first, as SMTP does: its name and the client's address; then echoes if talkative."""

    def serve(connection: socket.socket, _: Any) -> None:
        connection.sendall(f"{name} {peer_of(connection).host}\n".encode())
        while talkative and (data := connection.recv(65536)):
            connection.sendall(data)

    server = Server(serve)
    for address in addresses:
        server.add(listen(namespace, address))
    with server:
        yield


@dataclass
class Seen:
    """What the sidecar has seen: clients and where they wanted to go."""

    connections: list[tuple[Address, Address]] = field(default_factory=list)

    @property
    def clients(self) -> set[str]:
        return {client.host for client, _ in self.connections}

    @property
    def destinations(self) -> set[Address]:
        return {destination for _, destination in self.connections}


@contextlib.contextmanager
def sidecar(
    namespace: str,
    way: KernelInterception[Any],
    upstream: Callable[[Address, Address], socket.socket],
) -> Iterator[Seen]:
    """Relays each connection to ``upstream(client, original destination)``."""
    seen = Seen()

    def serve(connection: socket.socket, how: Transport) -> None:
        destination = original_destination(connection, how)
        seen.connections.append((peer_of(connection), destination))
        with upstream(peer_of(connection), destination) as other:
            relay(connection, other)

    server = Server(serve)
    for address in way.ruleset.listen:
        opened = listen(namespace, address, way.listener_options(address.family))
        server.add(opened, way.transport)
    with server:
        yield seen


def relay(one: socket.socket, other: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while selector.get_map():
            for key, _ in selector.select(LIMIT):
                assert isinstance(key.fileobj, socket.socket)
                if data := key.fileobj.recv(65536):
                    key.data.sendall(data)
                else:
                    selector.unregister(key.fileobj)
                    key.data.shutdown(socket.SHUT_WR)


def to_application(
    namespace: str, way: InboundInterception[Any], host: str | None = None
) -> Callable[[Address, Address], socket.socket]:
    """Connects to the application, as inbound sidecars do: on loopback, or on ``host``."""

    def upstream(client: Address, destination: Address) -> socket.socket:
        family = destination.family
        target = host or LOOPBACK[6 if family == socket.AF_INET6 else 4]
        if not isinstance(way, TransparentProxy):
            return connect(namespace, Address(target, destination.port))
        preserve = way.ruleset.preserve_source
        return connect(
            namespace,
            Address(target, destination.port),
            (transparent_option(family), mark_option(way.application_mark), LATE_PORT),
            client.host if preserve else way.application_source(family),
        )

    return upstream


def ask(namespace: str, destination: Address, owner: tuple[int, int] | None = None) -> str:
    """What the application answers first; the connection echoes then, and closes in order."""
    with connect(namespace, destination, owner=owner) as client:
        greeting = receive_line(client)
        client.sendall(b"ping\n")
        assert receive_line(client) == "ping"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        return greeting


def directly(namespace: str, way: OutboundRedirect) -> Callable[[Address, Address], socket.socket]:
    """Connects to the original destination, as outbound sidecars do."""
    options = tuple(mark_option(mark) for mark in way.ruleset.own.marks[:1])
    return lambda client, destination: connect(namespace, destination, options)


def outbound(**settings: Any) -> OutboundRedirect:
    """With the default's listeners."""
    return OutboundRedirect(
        Config(), OutboundRedirectRules(**{"listen": OUTBOUND_LISTEN, **settings})
    )


def refused(namespace: str, destination: Address) -> bool:
    """True for ECONNREFUSED; a connection that hangs or works is an error of the test."""
    try:
        connect(namespace, destination).close()
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            return True
        raise
    return False
