"""What connections reserve of the descriptors that there are, and for how long."""

from __future__ import annotations

import os
import socket

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import Action, Route, lib
from tests.dataplane.support import (
    Parked,
    Plane,
    Server,
    hook_request,
    open_pair,
    run_alone,
    send_with_fds,
    silent_server,
    table,
)
from tests.waiting import eventually


def wait_until_used(plane: Plane, count: int) -> None:
    eventually(lambda: plane.data.counters().fds_used == count, f"{count} descriptors to be used")


def wait_until_connecting(plane: Plane, destination: Address) -> None:
    eventually(
        lambda: [r.original_destination for r in plane.data.snapshot()] == [destination],
        "the connect to begin",
    )


@pytest.mark.parametrize(("waits", "count"), [(True, 4), (False, 3)])
def test_a_connection_that_is_being_made_reserves_what_it_may_need(
    plane: Plane, waits: bool, count: int
) -> None:
    """Its two sockets, the application's, and the caller's connection if that is not gone."""
    with silent_server() as silent, Parked(plane) as application:
        application.ask(silent, waits=waits)
        wait_until_connecting(plane, silent)
        wait_until_used(plane, count)


def test_a_connection_that_has_not_said_what_it_wants_reserves_what_it_may_need(
    plane: Plane,
) -> None:
    with plane.control():
        wait_until_used(plane, 4)
        with plane.connect():
            wait_until_used(plane, 6)
    wait_until_used(plane, 0)


@pytest.mark.parametrize("transport", ["header", "unix"])
def test_a_connection_that_is_relayed_reserves_its_two_sockets(
    plane: Plane, server: Server, transport: str
) -> None:
    client, upstream = open_pair(plane, server, transport)
    wait_until_used(plane, 2)
    with client, upstream:
        client.sendall(b"x")
        assert upstream.recv(1) == b"x"
        wait_until_used(plane, 2)
    wait_until_used(plane, 0)


def test_a_connection_that_the_application_makes_itself_reserves_nothing(
    plane: Plane, server: Server
) -> None:
    direct = Route(Action.DIRECT, endpoints=(server.address,))
    plane.data.set_routes(table(("0.0.0.0/0", None, direct)))
    with socket.socket() as application, plane.control() as control:
        request = hook_request(Address("10.1.2.3", 80), lib.MOSNHOOK_ASKS)
        send_with_fds(control, request, [application.fileno()])
        assert control.recv(200)
        application.connect((server.address.host, server.address.port))
        eventually(lambda: plane.data.passing == 0 and plane.data.live == 1, "a direct connection")
        wait_until_used(plane, 0)


# Passes sockets whose last close waits for a minute, or until their peers are gone. All of it is
# there before somebody takes it, so that the last close is the data plane's.
CLOSES_WAIT = """
    import contextlib, os, resource, socket, struct, time
    from pysidecar.dataplane import End, Listener, Transport
    from tests.dataplane.support import Plane, Server, linger_reset, send_with_fds
    from tests.waiting import eventually

    WAITING = 40  # more than the threads that close for a user
    peers = []

    def lingering():
        sock = socket.create_connection(receivers.getsockname())
        peers.append(receivers.accept()[0])
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 16))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        return sock

    def pass_on(data):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"\\0closes-{os.getpid()}")
        listener.listen(WAITING)
        for _ in range(WAITING):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
                control.connect(listener.getsockname())
                with lingering() as sock:
                    send_with_fds(control, b"nonsense", [sock.fileno()])
        data.add_listener(listener, Listener(Transport.UNIX))

    resource.setrlimit(resource.RLIMIT_NOFILE, (460, 4000))
    receivers = socket.create_server(("127.0.0.1", 0))
    receivers.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with Server() as server, Plane(workers=1, before_start=pass_on) as plane:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4000, 4000))
        eventually(lambda: len(plane.closed()) == WAITING, "all to be taken")
        # Not at once: a worker that looks for a client reserves what that may need.
        eventually(lambda: plane.data.counters().fds_used == WAITING, "all to be counted")
        plane.closed().clear()

        clients = []
        while not any(record.end is End.NO_RESOURCES for record in plane.closed()):
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                clients.append(plane.through(server.address))
            assert len(clients) < 1000
            time.sleep(0.005)
        eventually(
            lambda: WAITING < plane.data.counters().fds_used <= plane.data.counters().fds_budget,
            "no more to be used than there are",
        )

        for peer in peers:
            linger_reset(peer)
        eventually(
            lambda: plane.data.counters().fds_used == 2 * plane.data.live, "the closes to be over"
        )
        for client in clients:
            linger_reset(client)
        eventually(lambda: plane.data.counters().fds_used == 0, "nothing to be used")
    print("ok")
"""


def test_descriptors_whose_close_waits_count_as_used() -> None:
    run_alone(CLOSES_WAIT)


def test_pipes_leave_the_last_descriptors_to_connections() -> None:
    """Bulk goes on without a pipe; a client without descriptors does not."""
    script = """
        import resource, select, socket
        from tests.dataplane.support import Plane, Server
        from tests.waiting import eventually

        CONNECTIONS = 40
        resource.setrlimit(resource.RLIMIT_NOFILE, (360, 4000))
        with Server() as server, Plane(workers=1) as plane:
            resource.setrlimit(resource.RLIMIT_NOFILE, (4000, 4000))
            pairs = [(plane.through(server.address), server.accept()) for _ in range(CONNECTIONS)]
            assert 2 * CONNECTIONS < plane.data.counters().fds_budget < 4 * CONNECTIONS
            for client, upstream in pairs:
                client.setblocking(False)
                upstream.setblocking(False)

            def fill():
                clients = [client for client, _ in pairs]
                while ready := select.select([], clients, [], 0.3)[1]:
                    for client in ready:
                        client.send(bytes(1 << 20))

            fill()
            for _ in range(4):  # what is behind is read in bulk
                for _, upstream in pairs:
                    upstream.recv(1 << 20)
                fill()
            eventually(lambda: plane.data.counters().buffers == CONNECTIONS, "all to be behind")
            counters = plane.data.counters()
            assert counters.bytes_spliced > 0
            assert 2 * CONNECTIONS < counters.fds_used <= counters.fds_budget // 8 * 7, counters
            with plane.through(server.address) as client:
                client.sendall(b"one more")
                assert server.accept().recv(100) == b"one more"
        print("ok")
    """
    run_alone(script)


def test_that_it_is_full_is_said_until_there_is_some_room_again() -> None:
    """Who would say so at each descriptor that comes and goes would say it all the time."""
    script = """
        import resource
        from tests.dataplane.support import Plane, Server, linger_reset
        from tests.waiting import eventually

        resource.setrlimit(resource.RLIMIT_NOFILE, (360, 4000))
        with Server() as server, Plane(workers=1) as plane:
            resource.setrlimit(resource.RLIMIT_NOFILE, (4000, 4000))

            def free():
                counters = plane.data.counters()
                return counters.fds_budget - counters.fds_used

            def is_full():
                "After what has happened so far, which the worker has looked at by its next turn."
                for _ in range(2):
                    clients[0].sendall(b"x")
                    assert upstreams[0].recv(1) == b"x"
                return plane.data.counters().full

            clients, upstreams = [], []
            while not (clients and is_full()):
                clients.append(plane.through(server.address))
                upstreams.append(server.accept())
            room = free()
            assert 0 <= room < 8
            live = plane.data.live
            for _ in range(2):
                linger_reset(clients.pop())
            eventually(lambda: plane.data.live == live - 2, "two to be closed")
            assert 8 <= free() < 16
            assert is_full()
            for _ in range(4):
                linger_reset(clients.pop())
            eventually(lambda: free() >= 16, "some room")
            assert not is_full()
        print("ok")
    """
    run_alone(script)


def test_a_child_that_was_just_forked_may_hold_what_was_closed() -> None:
    """The kernel goes on telling of a socket as long as somebody has it; nobody here does."""
    script = """
        import os
        import socket
        from tests.dataplane.support import Plane, Server, open_pair
        from tests.waiting import eventually

        with Plane() as plane, Server() as server:
            pairs = [open_pair(plane, server, "header") for _ in range(10)]
            wait_end, held = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(held)
                os.read(wait_end, 1)
                os._exit(0)
            for pair in pairs:
                for end in pair:
                    end.shutdown(socket.SHUT_WR)
            eventually(lambda: plane.data.live == 0, "all to end")
            client, upstream = open_pair(plane, server, "header")
            with client, upstream:
                client.sendall(b"x")
                assert upstream.recv(1) == b"x"
            os.close(held)
            os.waitpid(child, 0)
        print("ok")
    """
    run_alone(script, MALLOC_PERTURB_="165")


def test_what_is_kept_for_the_control_plane_is_for_no_connections() -> None:
    def budget(kept: int) -> int:
        before = len(os.listdir("/proc/self/fd"))
        with Plane(workers=1, before_start=lambda data: data.keep_descriptors(kept)) as plane:
            counted = plane.data.counters().fds_budget
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "all are closed")
        return counted

    assert budget(0) - budget(50) == 50
