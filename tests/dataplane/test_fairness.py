"""Nobody keeps a worker to himself."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import End, Route
from tests.dataplane.support import (
    MakePlane,
    Server,
    closed_address,
    linger_reset,
    preloadable,
    run_alone,
    table,
)
from tests.waiting import eventually

# One worker, and a connection of which one direction never stops.
ENDLESS = """
    import ctypes, os, socket
    from tests.dataplane.support import Parked, Plane, Server
    from tests.waiting import eventually

    make_endless = ctypes.CDLL(None).make_endless

    def fd_of(end):
        "The data plane's socket that is connected to this one: it lives in this process."
        for name in os.listdir("/proc/self/fd"):
            if not os.path.realpath(f"/proc/self/fd/{name}").count("socket:"):
                continue
            sock = socket.socket(fileno=int(name))
            try:
                if sock.getpeername() == end.getsockname() and sock.family != socket.AF_UNIX:
                    return int(name)
            except OSError:
                continue  # not connected
            finally:
                sock.detach()
        raise AssertionError("no such socket")

    with Server() as server, Plane(workers=1) as plane:
        client, other_client = [plane.through(server.address) for _ in range(2)]
        upstream, other_upstream = [server.accept() for _ in range(2)]
        for sender, receiver in ((client, upstream), (other_client, other_upstream)):
            sender.sendall(b"x")
            assert receiver.recv(1) == b"x"
        make_endless(fd_of(client), fd_of(upstream))
        try:
            client.sendall(b"x")
            eventually(lambda: plane.data.counters().bytes_sent > 1 << 30, "much to be sent")
            other_client.sendall(b"ping")
            assert other_upstream.recv(4) == b"ping"
            upstream.sendall(b"pong")
            assert client.recv(4) == b"pong"
            with Parked(plane) as application:
                application.ask(server.address)
                assert application.is_writable()
        finally:
            make_endless(-1, -1)
    print("ok")
"""


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="ASan comes first")
def test_a_direction_that_never_stops_keeps_no_other_from_its_turn(tmp_path: Path) -> None:
    run_alone(ENDLESS, LD_PRELOAD=str(preloadable("endless", tmp_path)))


DEAD_ENDPOINTS = 5000


def dead_route() -> Route:
    """All endpoints refuse at once."""
    port = closed_address().port
    hosts = (f"127.9.{n >> 8}.{n & 255}" for n in range(DEAD_ENDPOINTS))
    return Route(endpoints=tuple(Address(host, port) for host in hosts))


def test_endpoints_that_all_refuse_at_once_keep_nobody_from_their_turn(
    make_plane: MakePlane, server: Server
) -> None:
    """Whoever writes when the first has refused is answered before the last has."""
    plane = make_plane(workers=1)
    plane.data.set_routes(table(("10.0.0.0/8", None, dead_route())))
    other = plane.through(server.address)
    upstream = server.accept()

    def others_are_served_meanwhile() -> bool:
        before = plane.data.counters().connect_failures
        refused = plane.through(Address("10.1.2.3", 80))
        eventually(lambda: plane.data.counters().connect_failures > before, "a failure")
        other.sendall(b"ping")
        assert upstream.recv(4) == b"ping"
        meanwhile = plane.data.counters().connect_failures < before + DEAD_ENDPOINTS
        with pytest.raises(ConnectionResetError):
            refused.recv(1)
        assert plane.next_closed().end is End.UPSTREAM_CONNECT
        assert plane.data.counters().connect_failures == before + DEAD_ENDPOINTS
        return meanwhile

    # Again where this process was not given the processor in time to see it.
    eventually(others_are_served_meanwhile, "to be served before all have refused")


def test_a_connection_that_is_still_trying_endpoints_can_be_closed(make_plane: MakePlane) -> None:
    """By its client, or by the end of the data plane."""
    plane = make_plane(workers=1)
    plane.data.set_routes(table(("10.0.0.0/8", None, dead_route())))

    def begin() -> socket.socket:
        before = plane.data.counters().connect_failures
        client = plane.through(Address("10.1.2.3", 80))
        eventually(lambda: plane.data.counters().connect_failures > before, "a failure")
        return client

    def can_be_reset() -> bool:
        linger_reset(begin())
        return plane.next_closed().end is End.DOWNSTREAM_RESET

    eventually(can_be_reset, "a reset to be seen before all have refused")
    begin()
    plane.stop()
    eventually(lambda: len(plane.closed()) == 1, "the end")
