"""Moving bytes: every byte arrives once and in order, ends are passed on as what they are."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pysidecar.dataplane import End, Timeouts
from tests.dataplane.support import MakePlane, Parked, Plane, Server, linger_reset, open_pair
from tests.waiting import eventually

MIB = 1 << 20


@dataclass(frozen=True)
class Stream:
    """What one end sends and how; ``seed`` makes the bytes."""

    seed: int
    size: int
    write: int
    read: int

    def content(self) -> bytes:
        return random.Random(self.seed).randbytes(self.size)


def streams(largest: int) -> st.SearchStrategy[Stream]:
    return st.builds(
        Stream,
        seed=st.integers(0, 1000),
        size=st.one_of(st.integers(0, 2000), st.integers(0, largest)),
        write=st.sampled_from([1000, 4096, 70_000, 1_000_000]),
        read=st.sampled_from([1000, 4096, 70_000, 1_000_000]),
    )


def send_all(sock: socket.socket, stream: Stream) -> None:
    content = memoryview(stream.content())
    for start in range(0, len(content), stream.write):
        sock.sendall(content[start : start + stream.write])
    sock.shutdown(socket.SHUT_WR)


def receive_all(sock: socket.socket, stream: Stream) -> tuple[int, bytes]:
    digest = hashlib.sha256()
    size = 0
    while data := sock.recv(stream.read):
        digest.update(data)
        size += len(data)
    return size, digest.digest()


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(transport=st.sampled_from(["header", "unix"]), up=streams(3 * MIB), down=streams(3 * MIB))
def test_random_streams_arrive_whole_in_both_directions(
    plane: Plane, server: Server, transport: str, up: Stream, down: Stream
) -> None:
    client, upstream = open_pair(plane, server, transport)
    with client, upstream, ThreadPoolExecutor(4) as pool:
        pool.submit(send_all, client, up)
        pool.submit(send_all, upstream, down)
        got_up = pool.submit(receive_all, upstream, up)
        got_down = pool.submit(receive_all, client, down)
        assert got_up.result() == (up.size, hashlib.sha256(up.content()).digest())
        assert got_down.result() == (down.size, hashlib.sha256(down.content()).digest())
    record = plane.next_closed()
    assert record.end is End.EOF
    assert (record.bytes_sent, record.bytes_received) == (up.size, down.size)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    transport=st.sampled_from(["header", "unix"]),
    aborter=st.sampled_from(["client", "upstream"]),
    stream=streams(MIB),
    half_closed=st.booleans(),
)
def test_an_abort_reaches_the_other_side_as_an_abort(
    plane: Plane, server: Server, transport: str, aborter: str, stream: Stream, half_closed: bool
) -> None:
    """Never as an end in order: that would look as if everything had arrived."""
    client, upstream = open_pair(plane, server, transport)
    victim, other = (upstream, client) if aborter == "client" else (client, upstream)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive_all, victim, stream)
        if half_closed:
            victim.shutdown(socket.SHUT_WR)
            assert other.recv(1) == b""
        other.sendall(stream.content())
        linger_reset(other)
        with pytest.raises(ConnectionResetError):
            received.result()
    victim.close()
    expected = End.DOWNSTREAM_RESET if aborter == "client" else End.UPSTREAM_RESET
    assert plane.next_closed().end is expected


def fill(sender: socket.socket, byte: bytes) -> None:
    """Sends as much as is taken while nobody reads."""
    sender.setblocking(False)
    while select.select([], [sender], [], 0.2)[1]:
        with contextlib.suppress(BlockingIOError):
            sender.send(byte * MIB)


def test_what_an_aborted_connection_left_reaches_nobody_else(
    make_plane: MakePlane, server: Server
) -> None:
    """Buffers are used again, by other connections: they have to be empty."""
    plane = make_plane(workers=1)
    with plane.through(server.address) as client, server.accept() as upstream:
        fill(client, b"a")
        while plane.data.counters().bytes_spliced == 0:  # what is behind is read in bulk
            upstream.recv(MIB)
            fill(client, b"a")
        assert plane.data.counters().buffers == 1
        linger_reset(client)
        plane.next_closed()
    with plane.through(server.address) as client, server.accept() as upstream:
        content = b"b" * (8 * MIB)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(client.sendall, content)
            received = bytearray()
            while len(received) < len(content) and (data := upstream.recv(MIB)):
                received += data
            sending.result()
        assert received == content


@pytest.mark.parametrize("first", ["client", "upstream"])
def test_a_half_close_leaves_the_other_direction_open(
    plane: Plane, server: Server, first: str
) -> None:
    client, upstream = open_pair(plane, server, "header")
    closer, other = (client, upstream) if first == "client" else (upstream, client)
    closer.sendall(b"last words")
    closer.shutdown(socket.SHUT_WR)
    assert other.recv(100) == b"last words"
    assert other.recv(100) == b""
    for _ in range(3):
        other.sendall(b"still talking")
        assert closer.recv(100) == b"still talking"
    assert plane.data.live == 1
    other.close()
    assert closer.recv(100) == b""
    closer.close()
    assert plane.next_closed().end is End.EOF


def test_a_slow_reader_holds_the_writer_back(plane: Plane, server: Server) -> None:
    client, upstream = open_pair(plane, server, "header")
    client.setblocking(False)
    content = bytes(MIB)
    sent = 0
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        if select.select([], [client], [], 0.05)[1]:
            sent += client.send(content)
    # What is in flight is in the kernel's socket buffers; of ours there is one buffer at most.
    assert plane.data.counters().buffers == 1
    assert not select.select([], [client], [], 0.05)[1]
    assert sent < 64 * MIB

    def drain() -> int:
        received = 0
        while data := upstream.recv(MIB):
            received += len(data)
        return received

    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(drain)
        client.shutdown(socket.SHUT_WR)
        assert received.result() == sent
    upstream.close()
    client.close()
    assert plane.next_closed().bytes_sent == sent
    assert plane.data.counters().buffers == 0


def taken(sender: socket.socket) -> int:
    """Bytes that are taken of a sender whose receiver does not read."""
    sender.setblocking(False)
    sent = 0
    while select.select([], [sender], [], 0.3)[1]:
        sent += sender.send(bytes(1 << 16))
    return sent


@pytest.mark.parametrize("transport", ["header", "unix"])
@pytest.mark.parametrize("to_upstream", [True, False])
def test_a_receiver_that_never_reads_is_sent_no_more_than_twice_what_it_is_natively(
    plane: Plane, server: Server, transport: str, to_upstream: bool
) -> None:
    with (
        socket.create_connection((server.address.host, server.address.port)) as client,
        server.accept() as upstream,
    ):
        natively = taken(client if to_upstream else upstream)
    through = []
    for _ in range(3):  # now and then the kernel makes a receive buffer larger than usual
        pair = open_pair(plane, server, transport)
        with pair[0], pair[1]:
            through.append(taken(pair[0] if to_upstream else pair[1]) / natively)
    assert sorted(through)[1] <= 2, f"{through} times"


def test_a_reset_is_told_though_the_other_side_does_not_read(plane: Plane, server: Server) -> None:
    client, upstream = open_pair(plane, server, "header")
    upstream.settimeout(0.1)
    with pytest.raises(TimeoutError):
        upstream.sendall(bytes(64 * MIB))
    linger_reset(upstream)
    assert plane.next_closed().end is End.UPSTREAM_RESET
    with pytest.raises(ConnectionResetError):
        receive_all(client, Stream(0, 0, MIB, MIB))


def test_bulk_is_spliced_and_small_traffic_is_not(plane: Plane, server: Server) -> None:
    client, upstream = open_pair(plane, server, "header")
    for _ in range(200):
        client.sendall(b"x" * 64)
        assert upstream.recv(100) == b"x" * 64
    assert plane.data.counters().bytes_spliced == 0

    with ThreadPoolExecutor(1) as pool:
        total = 256 * MIB
        received = pool.submit(receive_all, upstream, Stream(0, total, MIB, MIB))
        chunk = bytes(MIB)
        for _ in range(total // MIB):
            client.sendall(chunk)
        client.shutdown(socket.SHUT_WR)
        assert received.result()[0] == total
    spliced = plane.data.counters().bytes_spliced
    assert spliced > total // 2
    upstream.close()
    client.close()
    plane.next_closed()


def test_small_traffic_after_bulk_is_copied_again(plane: Plane, server: Server) -> None:
    client, upstream = open_pair(plane, server, "header")
    received = 0
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(client.sendall, bytes(64 * MIB))
        while received < 64 * MIB:
            received += len(upstream.recv(MIB))
        sending.result()
    for _ in range(20):
        client.sendall(b"x" * 64)
        assert upstream.recv(100) == b"x" * 64
    spliced = plane.data.counters().bytes_spliced
    assert spliced > 0
    for _ in range(20):
        client.sendall(b"x" * 64)
        assert upstream.recv(100) == b"x" * 64
    assert plane.data.counters().bytes_spliced == spliced
    assert plane.data.counters().buffers == 0


@pytest.mark.timeout(300)  # a busy machine, with sanitizers
def test_nothing_is_lost_where_splicing_ends_before_a_receiver_that_is_behind(
    plane: Plane, server: Server, tmp_path: Path
) -> None:
    """What is read right after the last splice may have no room, and has to wait."""
    client, upstream = open_pair(plane, server, "header")
    client.setblocking(False)
    upstream.setblocking(False)
    pick = random.Random(1)
    content = pick.randbytes(MIB)
    (tmp_path / "content").write_bytes(content)
    on_the_way = bytearray()
    with (tmp_path / "content").open("rb") as file:
        for _ in range(1000):
            # Bulk begins to splice. Pieces of different pages fill a pipe soon, and end it.
            with contextlib.suppress(BlockingIOError):
                for _ in range(pick.randrange(9)):
                    on_the_way += content[: client.send(content)]
                for _ in range(1200):
                    at = pick.randrange(MIB - 50)
                    size = os.sendfile(client.fileno(), file.fileno(), at, 50)
                    on_the_way += content[at : at + size]
                while True:
                    on_the_way += content[: client.send(content)]
            with contextlib.suppress(BlockingIOError):
                for _ in range(pick.randrange(100)):
                    data = upstream.recv(100_000)
                    assert on_the_way.startswith(data), "something was lost"
                    del on_the_way[: len(data)]
    upstream.setblocking(True)
    while on_the_way:
        data = upstream.recv(MIB)
        assert on_the_way.startswith(data), "something was lost"
        del on_the_way[: len(data)]


def test_an_idle_connection_times_out_and_a_busy_one_does_not(
    make_plane: MakePlane, server: Server
) -> None:
    plane = make_plane(timeouts=Timeouts(idle=0.4))
    idle, _idle_upstream = open_pair(plane, server, "header")
    busy, busy_upstream = open_pair(plane, server, "header")
    deadline = time.monotonic() + 1.2
    while time.monotonic() < deadline:
        busy.sendall(b"x")
        assert busy_upstream.recv(1) == b"x"
        time.sleep(0.02)  # traffic with pauses is what this is about
    record = plane.next_closed()
    assert record.end is End.IDLE_TIMEOUT
    assert 350 < record.duration_ms < 1100
    with pytest.raises(ConnectionResetError):
        idle.recv(1)
    assert plane.data.live == 1
    busy.close()
    busy_upstream.close()


def test_an_idle_connection_holds_no_buffer_and_little_memory(plane: Plane, server: Server) -> None:
    pairs = [open_pair(plane, server, "header") for _ in range(50)]
    for client, upstream in pairs:
        client.sendall(b"x")
        assert upstream.recv(1) == b"x"
    counters = plane.data.counters()
    assert counters.buffers == 0
    assert counters.connection_bytes < 1024


@pytest.mark.parametrize("transport", ["header", "unix"])
def test_nagle_is_off_and_keepalive_on(plane: Plane, server: Server, transport: str) -> None:
    client, upstream = open_pair(plane, server, transport)
    ends = {client.getsockname(), upstream.getsockname()}
    found = 0
    for name in os.listdir("/proc/self/fd"):  # the data plane lives in this process
        try:
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with sock, contextlib.suppress(OSError):
            if sock.getpeername() in ends and sock.getsockname() not in ends:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                found += 1
    assert found == 2


def test_counters_of_a_live_connection_can_be_read(plane: Plane, server: Server) -> None:
    client, upstream = open_pair(plane, server, "header")
    client.sendall(b"12345")
    assert upstream.recv(5) == b"12345"
    eventually(lambda: plane.data.snapshot()[0].bytes_sent == 5, "the bytes to be counted")
    (record,) = plane.data.snapshot()
    assert record.end is End.NONE
    assert record.original_destination == record.upstream == server.address
    client.close()
    upstream.close()


def test_stop_aborts_what_is_open(plane: Plane, server: Server) -> None:
    client, _upstream = open_pair(plane, server, "header")
    plane.data.drain()
    plane.stop()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    (record,) = plane.closed()
    assert record.end is End.DRAIN_LIMIT


def test_drain_lets_live_connections_finish(plane: Plane, server: Server) -> None:
    client, upstream = open_pair(plane, server, "header")
    plane.data.drain()

    def is_refused() -> bool:
        with socket.socket() as sock:
            address = (plane.header_address.host, plane.header_address.port)
            return sock.connect_ex(address) == errno.ECONNREFUSED

    eventually(is_refused, "the listener to close")
    client.sendall(b"going on")
    assert upstream.recv(100) == b"going on"
    upstream.close()
    client.close()
    eventually(lambda: any(r.end is End.EOF for r in plane.closed()), "the connection to end")


def test_nothing_is_left_behind(plane: Plane, server: Server) -> None:
    def fds() -> int:
        return len(os.listdir("/proc/self/fd"))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                server.listener.accept()[0].close()

    before = fds()
    thread = threading.Thread(target=serve)
    thread.start()
    for number in range(200):
        if number % 2:
            client = plane.through(server.address)
        else:
            application = Parked(plane)
            application.ask(server.address)
            client = application.socket
        (linger_reset if number % 3 else socket.socket.close)(client)
    eventually(lambda: plane.data.live == 0, "all connections to close")
    eventually(lambda: fds() <= before, "all fds to be closed")
    assert plane.data.counters().buffers == 0
    server.listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("aborter", ["client", "upstream"])
def test_what_came_before_a_reset_is_delivered(plane: Plane, server: Server, aborter: str) -> None:
    """Also where both are there before they are looked at, which happens now and then."""
    for _ in range(100):
        pair = open_pair(plane, server, "header")
        victim, other = reversed(pair) if aborter == "client" else pair
        victim.sendall(b"x")
        assert other.recv(1) == b"x"
        other.sendall(b"last words")
        linger_reset(other)
        assert victim.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            victim.recv(1)
        victim.close()


def test_a_reset_after_an_end_is_a_reset(plane: Plane, server: Server) -> None:
    """The kernel says EPIPE then, which is no peer's doing."""
    client, upstream = open_pair(plane, server, "header")
    upstream.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    linger_reset(upstream)
    record = plane.next_closed()
    assert (record.end, record.errno) == (End.UPSTREAM_RESET, errno.ECONNRESET)
