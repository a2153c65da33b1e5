"""Urgent data arrives as it would without the sidecar: the same bytes, the same marks."""

from __future__ import annotations

import errno
import fcntl
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dataplane.support import MakePlane, Plane, Server, open_pair
from tests.waiting import eventually

SIOCATMARK = 0x8905
BYTES_RECEIVED = 128  # the offset in struct tcp_info

Step = tuple[str, int]


def received(sock: socket.socket) -> int:
    """Bytes that arrived so far, read or not."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED + 8)
    return int(struct.unpack_from("=Q", info, BYTES_RECEIVED)[0])


def is_at_mark(sock: socket.socket) -> bool:
    return bool(struct.unpack("i", fcntl.ioctl(sock, SIOCATMARK, bytes(4)))[0])


class Conversation:
    """One direction, step by step; what the receiver sees after each."""

    def __init__(self, sender: socket.socket, receiver: socket.socket, *, inline: bool) -> None:
        self._sender, self._receiver = sender, receiver
        self._sent = 0
        receiver.setblocking(False)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        self._poll = select.poll()
        self._poll.register(receiver, select.POLLIN | select.POLLPRI | select.POLLRDHUP)

    def take(self, step: Step) -> object:
        kind, size = step
        if kind in ("send", "urgent"):
            content = bytes((self._sent + i) % 251 for i in range(size))
            self._sender.send(content, socket.MSG_OOB if kind == "urgent" else 0)
            self._sent += size
            eventually(lambda: received(self._receiver) >= self._sent, "the bytes")
            return None
        if kind == "end":
            self._sender.shutdown(socket.SHUT_WR)
            eventually(lambda: self._events() & select.POLLRDHUP, "the end")
            return None
        try:
            return self._receiver.recv(size, socket.MSG_OOB if kind == "oob" else 0)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def state(self) -> object:
        return is_at_mark(self._receiver), self._events()

    def _events(self) -> int:
        found = self._poll.poll(0)
        return found[0][1] if found else 0


def steps() -> st.SearchStrategy[list[Step]]:
    sizes = st.one_of(st.integers(1, 5), st.integers(1, 3000))
    return st.lists(
        st.one_of(
            st.tuples(st.just("send"), sizes),
            st.tuples(st.just("urgent"), st.integers(1, 3)),
            st.tuples(st.just("recv"), sizes),
            st.tuples(st.just("oob"), st.integers(1, 2)),
        ),
        min_size=1,
        max_size=25,
    )


def direct_pair(server: Server) -> tuple[socket.socket, socket.socket]:
    """Without a sidecar."""
    client = socket.create_connection((server.address.host, server.address.port), 10)
    return client, server.accept()


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    transport=st.sampled_from(["header", "unix"]),
    to_upstream=st.booleans(),
    inline=st.booleans(),
    steps=steps(),
)
def test_every_step_looks_as_it_does_without_the_sidecar(
    plane: Plane,
    server: Server,
    transport: str,
    to_upstream: bool,
    inline: bool,
    steps: list[Step],
) -> None:
    pairs = [direct_pair(server), open_pair(plane, server, transport)]
    direct, through = (
        Conversation(*(pair if to_upstream else reversed(pair)), inline=inline) for pair in pairs
    )
    try:
        for step in chain(steps, [("end", 0)], [("recv", 1000)] * 8):
            assert through.take(step) == direct.take(step), step
            assert through.state() == direct.state(), step
    finally:
        for sock in chain.from_iterable(pairs):
            sock.close()
    eventually(lambda: plane.data.live == 0, "the connection to end")
    plane.closed().clear()


def read_with_marks(sock: socket.socket) -> tuple[bytes, set[int]]:
    """Everything to the end, and where the marks were that were seen."""
    content, marks = bytearray(), set()
    while select.select([sock], [], [], 20)[0]:
        if is_at_mark(sock):
            marks.add(len(content))
        data = sock.recv(1 << 20)
        if not data:
            return bytes(content), marks
        content += data
    raise AssertionError(f"no end after {len(content)} bytes")


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    transport=st.sampled_from(["header", "unix"]),
    to_upstream=st.booleans(),
    sizes=st.lists(
        st.tuples(st.sampled_from([1, 100, 65536, 300_000, 2_000_000]), st.booleans()), max_size=20
    ),
)
def test_bursts_keep_their_bytes_and_the_last_mark(
    plane: Plane,
    server: Server,
    transport: str,
    to_upstream: bool,
    sizes: list[tuple[int, bool]],
) -> None:
    """While bulk is spliced, and where the receiver is behind."""
    pair = open_pair(plane, server, transport)
    sender, receiver = pair if to_upstream else pair[::-1]
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    content, urgent = bytearray(), []
    for size, is_urgent in sizes:
        content += bytes([size % 251]) * size
        if is_urgent:
            content += b"!"
            urgent.append(len(content) - 1)

    def send() -> None:
        at = 0
        for size, is_urgent in sizes:
            sender.sendall(content[at : at + size])
            at += size
            if is_urgent:
                sender.send(b"!", socket.MSG_OOB)
                at += 1
        sender.shutdown(socket.SHUT_WR)

    with sender, receiver:
        thread = threading.Thread(target=send)
        thread.start()
        got, marks = read_with_marks(receiver)
        thread.join()
    assert got == content
    assert marks <= set(urgent)
    assert not urgent or urgent[-1] in marks
    plane.next_closed()
    assert plane.data.counters().buffers == 0


@pytest.fixture
def sigurg() -> Iterator[threading.Event]:
    told = threading.Event()
    before = signal.signal(signal.SIGURG, lambda *_: told.set())
    yield told
    signal.signal(signal.SIGURG, before)


@pytest.mark.parametrize("transport", ["header", "unix"])
def test_an_urgent_byte_is_told_by_a_signal_and_what_follows_does_not_stay_behind(
    plane: Plane, server: Server, transport: str, sigurg: threading.Event
) -> None:
    """As telnet and FTP use it to abort: IAC IP, IAC DM with the DM urgent, then the command."""
    client, upstream = open_pair(plane, server, transport)
    fcntl.fcntl(upstream, fcntl.F_SETOWN, threading.get_native_id())
    client.sendall(b"\xff\xf4\xff")
    client.send(b"\xf2", socket.MSG_OOB)
    client.sendall(b"ABOR\r\n")
    eventually(sigurg.is_set, "SIGURG")
    eventually(lambda: received(upstream) == 10, "all of it")
    assert upstream.recv(100) == b"\xff\xf4\xff"
    assert is_at_mark(upstream)
    assert upstream.recv(1, socket.MSG_OOB) == b"\xf2"
    assert upstream.recv(100) == b"ABOR\r\n"


def test_an_urgent_byte_behind_a_receiver_that_is_behind_waits_for_its_turn(
    make_plane: MakePlane, server: Server
) -> None:
    """It is kept with what waits, and is urgent when it goes."""
    plane = make_plane(workers=1)
    client, upstream = open_pair(plane, server, "header")
    upstream.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    client.setblocking(False)
    sent = 0
    while select.select([], [client], [], 0.3)[1]:
        sent += client.send(bytes(1 << 20))
    client.setblocking(True)
    sending = threading.Thread(target=client.send, args=(b"!", socket.MSG_OOB))
    sending.start()
    content, marks = bytearray(), set()
    while len(content) < sent + 1:
        select.select([upstream], [], [], 10)
        if is_at_mark(upstream):
            marks.add(len(content))
        content += upstream.recv(1000 if sent - len(content) < 100_000 else 1 << 20)
    sending.join()
    assert content[-1:] == b"!"
    assert marks == {sent}
