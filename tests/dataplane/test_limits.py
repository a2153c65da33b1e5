"""Running out of things, and many of them."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysidecar.dataplane import Action, Direction, End, Transport
from tests.dataplane.support import MakePlane, Parked, Plane, Server, eventually, linger_reset


@pytest.fixture
def many_fds() -> Iterator[None]:
    """As many fds as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_out_of_fds_accepting_pauses_without_spinning_and_recovers() -> None:
    """In a process of its own, whose limit and processor time are its own."""
    script = """
        import resource, socket, time
        from tests.dataplane.support import Plane, Server, eventually

        clients = []
        with Server() as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (220, 1000))
            with Plane(workers=2) as plane:
                resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
                budget = 200
                clients = [plane.through(server.address) for _ in range(budget)]
                eventually(lambda: plane.data.counters().accept_pauses, "a pause")
                # The other worker may accept for a moment yet: until nothing changes.
                before = after = plane.data.counters()
                while after.accepted != before.accepted or after == before:
                    before = after
                    eventually(
                        lambda: plane.data.counters().accept_pauses > before.accept_pauses + 4,
                        "more pauses",
                    )
                    after = plane.data.counters()
                accepted = after.accepted
                assert accepted < budget, accepted

                used, start = time.process_time(), time.monotonic()
                time.sleep(1)
                share = (time.process_time() - used) / (time.monotonic() - start)
                assert share < 0.2, f"{share:.0%} of a processor while paused"
                assert plane.data.counters().accepted == accepted

                for client in clients:
                    client.close()
                for _ in range(accepted):
                    server.accept().close()
                for _ in range(budget - accepted):
                    server.accept().close()
                eventually(lambda: plane.data.counters().closed == budget, "all to be served")
                client = plane.through(server.address)
                server.accept().sendall(b"recovered")
                assert client.recv(100) == b"recovered"
        print("ok")
    """
    result = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.stdout == "ok\n", result.stderr


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="malloc is ASan's")
def test_nothing_follows_bytes_that_no_memory_could_keep(tmp_path: Path) -> None:
    """Bytes that were read and not sent need memory. Without it the stream has a gap, and must not
    go on behind it. In a process of its own, in which one allocation fails; while it fails the
    receiver makes room, so that what comes behind the gap could be sent."""
    library = tmp_path / "allocation.so"
    source = Path(__file__).parent / "programs" / "allocation.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source], check=True)
    script = """
        import contextlib, ctypes, os, select
        from pysidecar.dataplane import End
        from tests.dataplane.support import Plane, Server

        failing, failed = os.pipe()
        awaited, go_on = os.pipe()
        content = bytes(range(256)) * 4096
        with Server() as server, Plane(workers=1) as plane:
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
                data = upstream.recv(record.bytes_sent - received)
                at = received % len(content)
                assert (content + content)[at : at + len(data)] == data
                received += len(data)
            assert received < sent, "there is nothing that could be lost"
            os.write(go_on, b"x")
            try:
                more = upstream.recv(1 << 20)
            except ConnectionResetError:
                print("reset")
            else:
                print("the stream goes on:", len(more), "bytes")
            closed = plane.next_closed()
            assert (closed.end, closed.errno) == (End.NO_RESOURCES, 12), closed
    """
    result = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(script)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.stdout == "reset\n", (result.stdout, result.stderr)


def test_reports_are_never_lost(plane: Plane, server: Server) -> None:
    """Not even when nobody takes them for a while, and each comes once and in order."""
    count = 1000  # what the server's queue holds
    for _ in range(count):
        linger_reset(plane.through(server.address))
    eventually(lambda: plane.data.counters().closed == count, "all to close")
    records = plane.closed()
    assert len(records) == len({record.id for record in records}) == count
    assert plane.data.take_closed() == []
    assert plane.data.live == 0
    assert {record.end for record in records} <= {End.DOWNSTREAM_RESET, End.EOF}


def test_reports_that_nobody_takes_are_bounded_and_counted(make_plane: MakePlane) -> None:
    """While the control thread is stuck, the workers go on, and no count is wrong afterwards."""
    kept, more = 1 << 16, 3000
    plane = make_plane(workers=2)
    for _ in range(kept + more):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(plane.control_path)
    eventually(lambda: plane.data.counters().closed == kept + more, "all to close")
    dropped = plane.data.take_dropped()
    records = plane.data.take_closed()
    number = sum(dropped.connections.values())
    # What a worker closed in its last turn may still be too many.
    assert more - 1000 <= number <= more + 2
    assert len(records) + number == kept + more
    assert len({record.id for record in records}) == len(records)
    assert dropped.connections.keys() == {(Direction.OUTBOUND, Transport.UNIX, Action.RELAY)}
    assert dropped.ends == {End.HEADER_TRUNCATED: number}
    assert plane.data.take_dropped() == ({}, {})
    assert plane.data.live == 0
    plane.control().close()
    assert plane.next_closed().end is End.HEADER_TRUNCATED


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
