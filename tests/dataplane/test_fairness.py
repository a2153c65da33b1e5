"""Nobody keeps a worker to himself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.dataplane.support import preloadable, run_alone

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
