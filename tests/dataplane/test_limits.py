"""Running out of things, and many of them."""

from __future__ import annotations

import json
import os
import resource
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysidecar.dataplane import Action, Direction, End, Transport, ffi, lib
from tests.dataplane.support import (
    MakePlane,
    Parked,
    Plane,
    Server,
    linger_reset,
    preloadable,
    run_alone,
    take_lines,
)
from tests.waiting import eventually


@pytest.fixture
def many_fds() -> Iterator[None]:
    """As many fds as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


FULL_PLANE = """
    import contextlib, errno, os, resource, socket, threading, time
    from pysidecar.dataplane import End, ffi, lib
    from tests.dataplane.support import Answer, Parked, Plane, Server, linger_reset
    from tests.waiting import eventually

    def fds():
        return len(os.listdir("/proc/self/fd"))

    def page_says_full(plane):
        return ffi.from_buffer("struct mosnhook_page *", plane.page).full

    @contextlib.contextmanager
    def small_plane(server, workers=1):
        resource.setrlimit(resource.RLIMIT_NOFILE, (360, 4000))
        with Plane(workers=workers) as plane:
            resource.setrlimit(resource.RLIMIT_NOFILE, (4000, 4000))
            yield plane

    def fill(plane, server, others=0):
        "Connections, beside others, until no descriptor is left; the clients that are served."
        clients = []
        while not any(record.end is End.NO_RESOURCES for record in plane.closed()):
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                clients.append(plane.through(server.address))
            time.sleep(0.005)
        budget = plane.data.counters().fds_budget
        assert budget < 360
        # Those that waited together are refused one after the other.
        room = budget // 2 - others
        return eventually(lambda: fits(list(filter(is_open, clients)), room), "the last refusal")

    def fits(served, room):
        return served if len(served) <= room else None

    AWAY = Answer(lib.MOSNHOOK_AWAY, errno.ECONNREFUSED)

    def ask(parked, server):
        "The answer to one who waits. To be hung up on is, to the hook, what the answer says."
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            parked.ask(server.address, waits=True)
            return parked.answer()
        return AWAY

    def is_open(client):
        client.setblocking(False)
        try:
            client.recv(1)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
"""


def test_out_of_fds_those_that_wait_fail_within_a_second_or_two_and_later_ones_are_served() -> None:
    run_alone(
        textwrap.dedent(FULL_PLANE)
        + textwrap.dedent(
            """
            with Server() as server, small_plane(server) as plane:
                clients = fill(plane, server)
                assert page_says_full(plane) == plane.data.counters().full == 1
                plane.closed().clear()
                for _ in range(2):
                    assert ask(Parked(plane), server) == AWAY
                    # Now all have been refused that came before: these have a second.
                    start = time.monotonic()
                    header = plane.through(server.address)
                    other = Parked(plane)
                    with contextlib.suppress(BrokenPipeError):  # it may be over already
                        other.ask(server.address)
                    unspoken = plane.control()
                    assert other.is_writable() and other.error() == errno.ECONNRESET
                    assert unspoken.recv(1) == b""
                    try:
                        header.recv(1)
                    except ConnectionResetError:
                        pass
                    else:
                        raise AssertionError("no reset")
                    assert time.monotonic() - start < 5
                ends = {(record.end, record.errno) for record in plane.closed()}
                assert ends == {(End.NO_RESOURCES, errno.EMFILE)}, ends

                used, start = time.process_time(), time.monotonic()
                late = [plane.connect() for _ in range(20)]
                time.sleep(0.9)
                share = (time.process_time() - used) / (time.monotonic() - start)
                assert share < 0.2, f"{share:.0%} of a processor while there are none"

                assert all(map(is_open, clients)), "those that were served go on"
                for client in clients + late:
                    linger_reset(client)
                eventually(lambda: not page_says_full(plane), "descriptors again")
                eventually(lambda: plane.data.live == 0, "all to end")
                while not server.accepts_nothing():
                    server.accept().close()
                with Parked(plane) as parked:
                    assert ask(parked, server) == Answer(lib.MOSNHOOK_RELAY, 0)
                    with server.accept() as upstream:
                        upstream.sendall(b"recovered")
                        assert parked.blocking().recv(100) == b"recovered"
                eventually(lambda: plane.data.counters().fds_used == 0, "nothing to be reserved")
            print("ok")
            """
        )
    )


def test_descriptors_that_become_free_in_time_serve_those_that_wait() -> None:
    run_alone(
        textwrap.dedent(FULL_PLANE)
        + textwrap.dedent(
            """
            with Server() as server, small_plane(server) as plane:
                clients = fill(plane, server)
                pauses = plane.data.counters().accept_pauses
                waiting = Parked(plane)
                waiting.ask(server.address, waits=True)
                eventually(
                    lambda: plane.data.counters().accept_pauses > pauses, "that it has to wait"
                )
                for client in clients[:10]:
                    linger_reset(client)
                assert waiting.answer() == Answer(lib.MOSNHOOK_RELAY, 0)
            print("ok")
            """
        )
    )


def test_pipes_that_nobody_uses_make_room_for_connections() -> None:
    run_alone(
        textwrap.dedent(FULL_PLANE)
        + textwrap.dedent(
            """
            with Server() as server, small_plane(server) as plane:
                pairs = []
                for _ in range(12):
                    pairs.append((plane.through(server.address), server.accept()))
                for client, upstream in pairs:
                    threading.Thread(target=client.sendall, args=(bytes(1 << 24),)).start()
                eventually(lambda: plane.data.counters().buffers >= 8, "most to have a pipe")
                for client, upstream in pairs:
                    left = 1 << 24
                    while left:
                        left -= len(upstream.recv(1 << 20))
                eventually(lambda: plane.data.counters().buffers == 0, "all to be sent")
                pipes = plane.data.counters().fds_used - 2 * len(pairs)
                assert pipes > 0, "the pool is empty"
                clients = fill(plane, server, len(pairs))
                counters = plane.data.counters()
                assert counters.fds_used == 2 * (len(clients) + len(pairs)), counters
            print("ok")
            """
        )
    )


@pytest.mark.exclusive
def test_churn_at_the_limit_leaks_no_descriptor() -> None:
    run_alone(
        textwrap.dedent(FULL_PLANE)
        + textwrap.dedent(
            """
            def churn(plane, server, until, seen):
                while time.monotonic() < until:
                    with Parked(plane) as parked:
                        seen.append(ask(parked, server).action)
                        if len(seen) % 3:
                            time.sleep(0.02)

            def serve(server):
                with contextlib.suppress(OSError):
                    while True:
                        server.listener.accept()[0].close()

            with Server() as server, small_plane(server, workers=2) as plane:
                # Sockets of the test's clients stay open as long as the plane does: not here.
                plane.owned = lambda sock: sock
                threading.Thread(target=serve, args=(server,), daemon=True).start()
                before, seen = fds(), []
                until = time.monotonic() + 5
                threads = [
                    threading.Thread(target=churn, args=(plane, server, until, seen))
                    for _ in range(100)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert {lib.MOSNHOOK_RELAY, lib.MOSNHOOK_AWAY} == set(seen), set(seen)
                eventually(lambda: plane.data.live == 0, "all to end")
                counters = plane.data.counters()
                assert counters.fds_used == 0 and counters.buffers == 0, counters
                assert fds() <= before, (before, fds())
                server.listener.shutdown(socket.SHUT_RDWR)
            print("ok")
            """
        )
    )


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="malloc is ASan's")
def test_nothing_follows_bytes_that_no_memory_could_keep(tmp_path: Path) -> None:
    """Bytes that were read and not sent need memory. Without it the stream has a gap, and must not
    go on behind it. In a process of its own, in which one allocation fails; while it fails the
    receiver makes room, so that what comes behind the gap could be sent."""
    script = """
        import contextlib, ctypes, os, select
        from pysidecar.dataplane import End
        from tests.dataplane.support import Plane, Server

        failing, failed = os.pipe()
        awaited, go_on = os.pipe()
        content = bytes(range(256)) * 4096
        # When this fails, the allocation goes on: it is closed first.
        going_on = open(go_on, "wb", buffering=0)
        with Server() as server, Plane(workers=1) as plane, going_on:
            client = plane.through(server.address)
            upstream = server.accept()
            client.sendall(content[:1000])
            assert upstream.recv(1000, 0x100) == content[:1000]  # MSG_WAITALL
            ctypes.CDLL(None).fail_next_allocation(failed, awaited)
            sent = 1000
            while not select.select([failing], [], [], 0)[0]:
                # One by one, and smaller than what would begin to splice.
                if plane.data.snapshot()[0].bytes_sent == sent:
                    at = sent % len(content)
                    sent += client.send(content[at : at + 60_000])
            os.read(failing, 1)
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(100):
                    at = sent % len(content)
                    sent += client.send(content[at : at + 60_000])
            # Nothing is on the way to the upstream but what was counted.
            (record,) = plane.data.snapshot()
            received = 1000
            while received < record.bytes_sent:
                data = upstream.recv(min(65536, record.bytes_sent - received))
                at = received % len(content)
                assert (content + content)[at : at + len(data)] == data
                received += len(data)
            assert received < sent, "there is nothing that could be lost"
            going_on.write(b"x")
            try:
                more = upstream.recv(1 << 20)
            except ConnectionResetError:
                print("ok")
            else:
                print("the stream goes on:", len(more), "bytes")
            closed = plane.next_closed()
            assert (closed.end, closed.errno) == (End.NO_RESOURCES, 12), closed
    """
    run_alone(script, LD_PRELOAD=str(preloadable("allocation", tmp_path)))


def test_reports_are_never_lost(many_fds: None, plane: Plane, server: Server) -> None:
    """Not even when nobody takes them for a while, and each comes once and in order."""
    count = 1000  # what the server's queue holds
    for _ in range(count):
        linger_reset(plane.through(server.address))
    eventually(lambda: plane.data.counters().closed == count, "all to close")
    records = plane.closed()
    assert len(records) == len({record.id for record in records}) == count
    assert plane.data.take_closed() == []
    assert plane.data.live == 0
    # Of one that was gone before it was asked about, nobody can say that it may be served.
    assert {record.end for record in records} <= {End.DOWNSTREAM_RESET, End.EOF, End.DENIED}


def test_reports_that_nobody_takes_are_bounded_and_counted(make_plane: MakePlane) -> None:
    """While the control thread is stuck, the workers go on, and no count is wrong afterwards."""
    kept, more = 1024, 3000
    plane = make_plane(workers=2, before_start=lambda data: data.keep_closed(kept))
    first = plane.control()
    eventually(lambda: plane.data.live == 1, "the connection that stays open")
    for _ in range(2 * kept + more):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(plane.control_path)
    count = 2 * kept + more
    eventually(lambda: plane.data.counters().closed == count, "all to close")
    records = plane.data.take_closed()
    assert kept <= len(records) <= 2 * kept
    ids = [record.id for record in records]
    assert len(set(ids)) == len(ids)
    assert max(ids) == count + 1, "the latest"
    assert plane.data.take_closed() == []
    tallies = plane.data.tallies()
    kind = (Direction.OUTBOUND, Transport.UNIX, Action.RELAY)
    assert (tallies.open, tallies.closed) == ({kind: 1}, {kind: count})
    assert tallies.ends == {End.HEADER_TRUNCATED: count}
    assert sum(tallies.durations) == count
    first.close()
    assert plane.next_closed().id == 1
    assert plane.data.live == 0


def test_lines_that_nobody_takes_are_bounded_and_counted(make_plane: MakePlane) -> None:
    """And as soon as somebody does, it goes on."""
    texts = ffi.new("struct dp_log_texts *")
    word = ffi.new("char[]", b"x" * (lib.DP_LOG_TEXT_BYTES - 1))
    for name in ("directions", "transports", "actions", "paths", "ends"):
        words = getattr(texts, name)
        for index in range(len(words)):
            words[index] = word
    plane = make_plane(workers=2)
    assert lib.dp_log(plane.data._dp, texts, lib.DP_LOG_CONNECTIONS) == 0

    def make_lines(count: int) -> None:
        before = plane.data.counters().closed
        for _ in range(count):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(plane.control_path)
        eventually(lambda: plane.data.counters().closed == before + count, "all to close")

    count = 0
    while plane.data.tallies().lines_dropped < 1000:
        make_lines(2000)
        count += 2000
        assert count < 100_000, "no bound"
    taken = take_lines(plane)
    assert sum(map(len, taken)) < 33 << 20
    assert len(taken) + plane.data.tallies().lines_dropped == count
    assert {json.loads(line)["error"] for line in taken} == {"x" * 95}
    make_lines(2000)
    assert len(take_lines(plane)) == 2000
    assert len(taken) + plane.data.tallies().lines_dropped == count
    lib.dp_log(plane.data._dp, texts, 0)


def _watched() -> list[int]:
    """How many fds each epoll instance of this process watches: those of the workers are ours."""
    fds = [fd for fd in Path("/proc/self/fd").iterdir() if "eventpoll" in os.path.realpath(fd)]
    return [Path(f"/proc/self/fdinfo/{fd.name}").read_text().count("tfd:") for fd in fds]


def test_connections_that_come_one_by_one_are_shared_by_the_workers(
    many_fds: None, make_plane: MakePlane, server: Server
) -> None:
    plane = make_plane(workers=2)
    for _ in range(400):
        client = Parked(plane)
        client.ask(server.address, waits=True)
        assert client.answer() is not None
        server.accept()
    fewer, more = sorted(_watched())[-2:]
    assert fewer + more > 800, "both sockets of each"
    assert more < 0.7 * (fewer + more), (fewer, more)


def test_a_snapshot_shows_every_live_connection_once(
    many_fds: None, plane: Plane, server: Server
) -> None:
    clients = []
    for _ in range(1000):
        clients.append(plane.through(server.address))
        server.accept()
    eventually(
        lambda: all(r.upstream == server.address for r in plane.data.snapshot()), "all to relay"
    )
    snapshot = plane.data.snapshot()
    assert len(snapshot) == plane.data.live == 1000
    assert len({record.id for record in snapshot}) == 1000
    for client in clients:
        client.shutdown(socket.SHUT_RDWR)


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="ASan comes first")
@pytest.mark.parametrize("filters", [True, False])
def test_whoever_is_refused_without_descriptors_is_reported_in_full(
    tmp_path: Path, filters: bool
) -> None:
    """Also where to fail a parked socket takes a moment, as it does without socket filters."""
    preload = {} if filters else {"LD_PRELOAD": str(preloadable("unfiltered", tmp_path))}
    run_alone(
        textwrap.dedent(FULL_PLANE)
        + textwrap.dedent(
            """
            from pysidecar.address import Address
            from tests.dataplane.support import tcp_address

            with Server() as server, small_plane(server) as plane:
                clients = fill(plane, server)
                with Parked(plane) as parked:
                    source = tcp_address(parked.socket)
                    parked.ask(Address("10.9.8.7", 6))
                    assert parked.is_writable() and parked.error() == errno.ECONNRESET
                    record = eventually(
                        lambda: [
                            record for record in plane.closed()
                            if record.original_destination == Address("10.9.8.7", 6)
                        ],
                        "the report",
                    )[0]
                assert (record.end, record.errno) == (End.NO_RESOURCES, errno.EMFILE), record
                assert record.source == source, record
            print("ok")
            """
        ),
        **preload,
    )
