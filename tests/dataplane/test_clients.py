"""Users, as clients: who may use a listener for PROXY v2 headers, and what one may cost others."""

from __future__ import annotations

import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Collection
from contextlib import AbstractContextManager

import pytest

from pysidecar.dataplane import Action, DataPlane, End, Listener, Route, Timeouts, Transport, lib
from tests.dataplane.support import MakePlane, Parked, Plane, Server, proxy_header, table
from tests.talking import started
from tests.waiting import PATIENCE, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

STRANGER, NEIGHBOUR = 65534, 65533

# Becomes the user, connects as often as is wanted, sends the header (or nothing), and keeps the
# connections until its input ends.
CLIENT = """
import contextlib, os, resource, socket, sys

uid, where, count, header = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
clients = []
for _ in range(count):
    if where.startswith("/"):
        clients.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        clients[-1].connect(where)
    else:
        clients.append(socket.socket())
        with contextlib.suppress(ConnectionError):  # refused
            clients[-1].connect(("127.0.0.1", int(where)))
            clients[-1].sendall(bytes.fromhex(header))
print("sent", flush=True)
sys.stdin.read()
"""


def _client(
    where: object, uid: int, count: int, header: bytes = b""
) -> AbstractContextManager[None]:
    """``where``: a port, or the path of a control socket."""
    return started([sys.executable, "-I", "-c", CLIENT, uid, where, count, header.hex()], "sent")


@pytest.mark.parametrize(
    ("uids", "everybody_else", "uid", "admitted"),
    [
        ([], False, 0, True),
        ([], False, STRANGER, False),
        ([STRANGER], False, STRANGER, True),
        ([STRANGER], False, NEIGHBOUR, False),
        ([7, STRANGER, 9], False, STRANGER, True),
        ([], True, STRANGER, True),
        ([STRANGER], True, STRANGER, False),
        ([STRANGER], True, NEIGHBOUR, True),
        ([0], True, 0, True),
    ],
)
def test_only_those_are_served_who_may_use_the_control_socket(
    make_plane: MakePlane,
    server: Server,
    uids: Collection[int],
    everybody_else: bool,
    uid: int,
    admitted: bool,
) -> None:
    def set_clients(data: DataPlane) -> None:
        data.set_clients(uids, everybody_else)

    plane = make_plane(before_start=set_clients)
    claims = b"\xe1\x00\x04" + bytes(4)  # to be root
    port = plane.header_address.port
    with _client(port, uid, 1, proxy_header(server.address, tlvs=claims)):
        if admitted:
            server.accept().close()
        record = plane.next_closed() if not admitted else None
    record = record or plane.next_closed()
    assert (record.end is End.DENIED) != admitted
    assert record.uid == uid
    assert record.pid is None
    assert server.accepts_nothing()


@pytest.mark.parametrize(
    ("ticket", "served"),
    [(b"T" * 16, True), (b"T" * 15 + b"t", False), (b"T" * 15, False), (b"", False)],
)
def test_a_client_that_has_closed_already_is_known_by_its_ticket(
    make_plane: MakePlane, server: Server, ticket: bytes, served: bool
) -> None:
    """The kernel knows the user of a socket that somebody holds. Nobody accepts before this one is
    closed: the data plane is not started yet."""
    tlvs = struct.pack("!BH", lib.MOSNHOOK_TLV_TICKET, len(ticket)) + ticket if ticket else b""

    def come_and_go(data: DataPlane) -> None:
        data._page.ticket = b"T" * 16
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(proxy_header(server.address, tlvs=tlvs) + b"the last words")
        data.add_listener(listener, Listener(Transport.HEADER))

    plane = make_plane(before_start=come_and_go)
    if served:
        with server.accept() as upstream:
            assert upstream.recv(100) == b"the last words"
            assert upstream.recv(100) == b""
    record = plane.next_closed()
    assert record.end is (End.EOF if served else End.DENIED)
    assert record.uid is None
    assert server.accepts_nothing()


def small_plane(make_plane: MakePlane) -> Plane:
    """One that has few descriptors, and waits for a minute."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        return make_plane(
            timeouts=Timeouts(connect=2, header=60),
            before_start=lambda data: data.set_clients([], True),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_user_may_let_so_many_connections_wait_and_no_more(make_plane: MakePlane) -> None:
    most, more = 64, 10  # the least that there always are
    plane = small_plane(make_plane)
    plane.let_everybody_in()
    assert plane.data.counters().fds_budget < 16 * most
    with _client(plane.control_path, STRANGER, most + more):
        eventually(lambda: len(plane.closed()) >= more, "those that are too many to be closed")
        assert {record.end for record in plane.closed()} == {End.TOO_MANY_WAIT}
        eventually(lambda: plane.data.counters().accepted == most + more, "all to be accepted")
        assert (len(plane.closed()), plane.data.live) == (more, most)


@pytest.mark.parametrize("waits", ["at the listener", "at the control socket"])
def test_silent_connections_of_one_user_do_not_delay_another(
    make_plane: MakePlane, server: Server, waits: str
) -> None:
    """Nor use up the descriptors, of which there are few."""
    plane = small_plane(make_plane)
    plane.let_everybody_in()
    port = plane.header_address.port
    where = port if waits == "at the listener" else plane.control_path
    with _client(where, STRANGER, 1500):
        start = time.monotonic()
        with _client(port, NEIGHBOUR, 20, proxy_header(server.address)):
            for _ in range(20):
                server.accept()
            for _ in range(20):
                with Parked(plane) as application:
                    application.ask(server.address, waits=True)
                    answer = application.answer()
                    assert answer is not None
                    assert answer.action == lib.MOSNHOOK_RELAY
        assert time.monotonic() - start < PATIENCE  # a sixth of what the silent ones may take
        ends = [record.end for record in plane.closed()]
        assert ends.count(End.TOO_MANY_WAIT) > 1000


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("asks", ["with a header", "at the control socket"])
def test_what_is_excluded_on_loopback_is_not_reached_as_the_sidecar(
    plane: Plane, host: str, asks: str
) -> None:
    """The hook leaves it alone: who asks for it wants to come from somebody else."""
    with Server(host) as server, Server(host) as other:
        ports = (server.address.port, server.address.port)
        plane.data.set_excluded(table((host, ports, Route(action=Action.REFUSE))))
        for destination in (server.address, other.address):
            if asks == "with a header":
                plane.through(destination)
            else:
                application = Parked(plane)
                application.ask(destination)
        other.accept().close()
        record = plane.next_closed()
        assert record.end is End.EXCLUDED
        assert record.original_destination == server.address
        assert server.accepts_nothing()
