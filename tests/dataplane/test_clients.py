"""Users, as clients: who may use a listener for PROXY v2 headers, and what one may cost others."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

import pytest

from pysidecar.dataplane import Action, DataPlane, End, Listener, Route, Timeouts, Transport, lib
from tests.dataplane.support import (
    MakePlane,
    Parked,
    Plane,
    Server,
    hook_request,
    proxy_header,
    table,
)
from tests.talking import started
from tests.waiting import PATIENCE, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

STRANGER, NEIGHBOUR = 65534, 65533

# Becomes the user, connects as often as is wanted, sends the header (or nothing), and keeps the
# connections until its input ends.
CLIENT = """
import array, contextlib, os, resource, socket, sys

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
        if header:  # with a parked socket
            application = socket.socket()
            application.setblocking(False)
            application.connect_ex(("127.0.0.1", int(sys.argv[5])))
            fds = array.array("i", [application.fileno()])
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)
            with contextlib.suppress(ConnectionError):
                clients[-1].sendmsg([bytes.fromhex(header)], [rights])
            clients[-1] = application
    else:
        clients.append(socket.socket())
        with contextlib.suppress(ConnectionError):  # refused
            clients[-1].connect(("127.0.0.1", int(where)))
            clients[-1].sendall(bytes.fromhex(header))
print("sent", flush=True)
sys.stdin.read()
"""


def _client(
    where: object, uid: int, count: int, header: bytes = b"", park: int = 0
) -> AbstractContextManager[None]:
    """``where``: a port, or the path of a control socket, for requests with a socket that is parked
    at that port."""
    command = [sys.executable, "-I", "-c", CLIENT, uid, where, count, header.hex(), park]
    return started(command, "sent")


def _asking(
    plane: Plane, asks: str, uid: int, count: int, server: Server
) -> AbstractContextManager[None]:
    """A user with so many connections to the server."""
    if asks == "with a header":
        return _client(plane.header_address.port, uid, count, proxy_header(server.address))
    request = hook_request(server.address, lib.MOSNHOOK_PARKED)
    return _client(plane.control_path, uid, count, request, plane.parks["127.0.0.1"].port)


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


def everybody(data: DataPlane) -> None:
    data.set_clients([], True)


def small_plane(
    make_plane: MakePlane, set_clients: Callable[[DataPlane], None] = everybody
) -> Plane:
    """One that has few descriptors, and waits for a minute."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        return make_plane(
            timeouts=Timeouts(connect=2, header=60),
            before_start=set_clients,
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


@pytest.mark.parametrize("asks", ["with a header", "at the control socket"])
def test_one_user_leaves_descriptors_to_another(
    make_plane: MakePlane, server: Server, asks: str
) -> None:
    """Connections that are served, and never end: their server is the user's own."""
    plane = small_plane(make_plane)
    plane.let_everybody_in()
    most = plane.data.counters().fds_budget
    many, few = most // 2 + 50, 10

    def are_settled(came: int) -> bool:
        """While one is connected or refused, it has more descriptors than two."""
        counters = plane.data.counters()
        live = counters.accepted - counters.closed
        return counters.accepted == came and counters.fds_used == 2 * live and not counters.full

    with contextlib.ExitStack() as users:
        endless = users.enter_context(Server())
        users.enter_context(_asking(plane, asks, STRANGER, many, endless))
        eventually(lambda: are_settled(many), "all to be served or refused, and some room")
        assert {record.end for record in plane.closed()} == {End.TOO_MANY_FDS}
        assert (
            most // 2 < plane.data.counters().fds_used < most * 15 // 16
        )  # 7/8, but for what is counted meanwhile
        refused = plane.data.counters().closed
        users.enter_context(_asking(plane, asks, NEIGHBOUR, few, endless))
        eventually(lambda: are_settled(many + few), "the other user's connections")
        assert plane.data.counters().closed == refused
    eventually(lambda: plane.data.counters().fds_used == 0, "all to be given back")
    with _asking(plane, asks, STRANGER, few, server):
        eventually(lambda: plane.data.live == few, "the same user again")


def test_root_is_not_held_up_by_shares(make_plane: MakePlane, server: Server) -> None:
    plane = small_plane(make_plane)
    clients = []
    while not plane.data.counters().full:
        clients.append(plane.through(server.address))
        server.accept()
    counters = plane.data.counters()
    assert counters.fds_used > counters.fds_budget * 15 // 16
    assert plane.closed() == []


def test_the_only_user_there_can_be_is_not_held_up_by_shares(
    make_plane: MakePlane, server: Server
) -> None:
    plane = small_plane(make_plane, lambda data: data.set_clients([STRANGER], False))
    most = plane.data.counters().fds_budget
    port = plane.header_address.port
    with _client(port, STRANGER, most // 2, proxy_header(server.address)):
        eventually(lambda: plane.data.counters().full, "all to be used")
