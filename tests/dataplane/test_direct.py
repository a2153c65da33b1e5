"""Connections that the application makes itself: asked for, and accounted for by the kernel."""

from __future__ import annotations

import ctypes
import errno
import random
import socket
import struct
import time
from collections.abc import Callable

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import (
    Action,
    ConnectionPath,
    End,
    Route,
    Timeouts,
    direct_works,
    ffi,
    lib,
)
from tests.dataplane.support import (
    MakePlane,
    Plane,
    Server,
    closed_address,
    hook_request,
    linger_reset,
    send_with_fds,
    silent_server,
    table,
    tcp_address,
)
from tests.sandbox import without_sock_diag
from tests.waiting import PATIENCE, eventually

SERVICE = Address("10.1.2.3", 80)


def direct_to(plane: Plane, *endpoints: Address) -> None:
    route = Route(Action.DIRECT, endpoints=endpoints)
    plane.data.set_routes(table(("0.0.0.0/0", None, route)))


def connected(plane: Plane, server: Server) -> tuple[socket.socket, socket.socket]:
    """The application's end and the server's."""
    return Asking(plane).connect(), server.accept()


class Asking:
    """An application's socket, and the question about it."""

    def __init__(self, plane: Plane, sock: socket.socket | None = None) -> None:
        self.plane = plane
        self.socket = plane.owned(sock or socket.socket())
        self.socket.settimeout(PATIENCE)
        self.control = plane.control()
        self.request(lib.MOSNHOOK_ASKS)
        data = self.control.recv(200)
        answer = ffi.from_buffer("struct mosnhook_answer *", data)
        self.action, self.error = answer.action, answer.error
        self.endpoint = Address.from_native(answer.endpoint)

    def request(self, flags: int) -> None:
        send_with_fds(self.control, hook_request(SERVICE, flags), [self.socket.fileno()])

    def connect_ex(self) -> int:
        """The errno."""
        assert self.action == lib.MOSNHOOK_DIRECT
        assert self.endpoint
        return self.socket.connect_ex((self.endpoint.host, self.endpoint.port))

    def connect(self) -> socket.socket:
        assert self.connect_ex() == 0
        return self.socket

    def relay(self) -> None:
        """The ordinary request, on the same connection of the control socket."""
        assert self.action == lib.MOSNHOOK_RELAY
        park = self.plane.parks["127.0.0.1"]
        self.socket.setblocking(False)
        assert self.socket.connect_ex((park.host, park.port)) == errno.EINPROGRESS
        self.request(lib.MOSNHOOK_PARKED)


def test_what_was_asked_for_is_accounted_for(plane: Plane, server: Server) -> None:
    direct_to(plane, server.address)
    client, peer = connected(plane, server)
    client.sendall(b"hello")
    assert peer.recv(5, socket.MSG_WAITALL) == b"hello"
    peer.sendall(b"hi")
    assert client.recv(2, socket.MSG_WAITALL) == b"hi"
    # It becomes a direct one when the answer has been sent, which the application may be ahead of.
    eventually(
        lambda: plane.data.snapshot()[0].path is ConnectionPath.DIRECT, "a direct connection"
    )
    (live,) = plane.data.snapshot()
    assert (live.path, live.bytes_sent, live.bytes_received) == (ConnectionPath.DIRECT, 5, 2)
    assert live.source == tcp_address(client)
    assert (plane.data.live, plane.data.passing) == (1, 0)
    client.close()
    assert peer.recv(1) == b""
    done = plane.next_closed()
    assert (done.end, done.bytes_sent, done.bytes_received) == (End.EOF, 5, 2)
    assert done.upstream == server.address
    assert plane.data.counters().bytes_sent == 5


def test_a_relay_is_asked_for_on_the_same_connection(plane: Plane, server: Server) -> None:
    plane.data.set_routes(table(("0.0.0.0/0", None, Route(endpoints=(server.address,)))))
    is_relayed(plane, server)


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("asker_is_quick", [False, True])
def test_who_does_not_wait_for_the_answer_is_relayed(
    plane: Plane, server: Server, action: Action, asker_is_quick: bool
) -> None:
    """By the request that follows, whether it came before the question was looked at or not; and as
    one connection."""
    plane.data.set_routes(table(("0.0.0.0/0", None, Route(action, endpoints=(server.address,)))))
    with plane.control() as control, socket.socket() as application:
        control.shutdown(socket.SHUT_RD)
        park = plane.parks["127.0.0.1"]
        application.setblocking(False)

        def request(flags: int) -> None:
            send_with_fds(control, hook_request(SERVICE, flags), [application.fileno()])

        def ask() -> None:
            request(lib.MOSNHOOK_ASKS)

        if not asker_is_quick:
            ask()
        assert application.connect_ex((park.host, park.port)) == errno.EINPROGRESS
        if asker_is_quick:
            ask()
        request(lib.MOSNHOOK_PARKED)
        control.close()
        if action is Action.REFUSE:
            assert eventually(
                lambda: application.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "an error"
            )
        else:
            peer = server.accept()
            peer.sendall(b"hi")
            assert eventually(lambda: _received(application), "the upstream's bytes") == b"hi"
            application.close()
            peer.close()
    done = plane.next_closed()
    if action is Action.REFUSE:
        assert done.end is End.REFUSED_BY_ROUTE
    else:
        assert (done.end, done.path) == (End.EOF, ConnectionPath.RELAY)
        assert (done.bytes_sent, done.bytes_received) == (0, 2)
    plane.stop()
    assert plane.closed() == []
    assert plane.data.counters().accepted == 1


def test_a_second_question_on_one_connection_is_malformed(plane: Plane, server: Server) -> None:
    plane.data.set_routes(table(("0.0.0.0/0", None, Route(endpoints=(server.address,)))))
    asking = Asking(plane)
    asking.request(lib.MOSNHOOK_ASKS)
    assert asking.control.recv(100) == b""
    assert plane.next_closed().end is End.HEADER_MALFORMED


def test_without_sock_diag_it_is_a_relay(make_plane: MakePlane, server: Server) -> None:
    plane = without_sock_diag(make_plane)
    direct_to(plane, server.address)
    for _ in range(3):
        is_relayed(plane, server)
    with pytest.raises(OSError, match="not supported"):
        without_sock_diag(direct_works)


def is_relayed(plane: Plane, server: Server) -> None:
    asking = Asking(plane)
    asking.relay()
    peer = server.accept()
    peer.sendall(b"hi")
    assert eventually(lambda: _received(asking.socket), "the upstream's bytes") == b"hi"
    asking.socket.close()
    peer.close()
    done = plane.next_closed()
    assert (done.action, done.path, done.end) == (Action.RELAY, ConnectionPath.RELAY, End.EOF)
    assert (done.original_destination, done.upstream) == (SERVICE, server.address)
    assert (done.bytes_sent, done.bytes_received) == (0, 2)
    assert not plane.closed()


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(2)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EAGAIN):
            return b""
        raise


def test_nothing_after_a_question_is_a_truncated_request(make_plane: MakePlane) -> None:
    plane = make_plane(timeouts=Timeouts(header=0.2))
    asking = Asking(plane)
    assert asking.action == lib.MOSNHOOK_RELAY
    assert plane.next_closed().end == End.HEADER_TIMEOUT
    gone = Asking(plane)
    gone.control.close()
    assert plane.next_closed().end in (End.HEADER_TRUNCATED, End.HEADER_TIMEOUT)


def test_a_question_may_be_refused(plane: Plane) -> None:
    plane.data.set_routes(table(("0.0.0.0/0", None, Route(Action.REFUSE))))
    asking = Asking(plane)
    assert (asking.action, asking.error) == (lib.MOSNHOOK_REFUSE, errno.ECONNREFUSED)
    assert plane.next_closed().end == End.REFUSED_BY_ROUTE


def test_a_socket_that_never_connects_is_a_failed_connect(plane: Plane) -> None:
    direct_to(plane, closed_address())
    for connect in (False, True):
        asking = Asking(plane)
        if connect:
            assert asking.connect_ex() == errno.ECONNREFUSED
        asking.socket.close()
        done = plane.next_closed()
        assert (done.end, done.bytes_sent) == (End.UPSTREAM_CONNECT, 0)


def test_a_socket_that_is_asked_for_again_has_one_record(
    make_plane: MakePlane, server: Server
) -> None:
    plane = make_plane(workers=4)
    direct_to(plane, closed_address())
    asking = Asking(plane)
    for _ in range(8):
        # With a timeout Python's would be non-blocking, whose failure is read twice.
        asking.socket.settimeout(None)
        assert asking.connect_ex() == errno.ECONNREFUSED
        asking = Asking(plane, asking.socket)
    direct_to(plane, server.address)
    Asking(plane, asking.socket).connect()
    eventually(lambda: plane.data.live == 1, "the earlier records to end")
    assert {record.end for record in plane.closed()} == {End.UPSTREAM_CONNECT}
    assert len(plane.closed()) == 9
    asking.socket.close()
    server.accept().close()
    eventually(lambda: plane.data.live == 0, "the last record to end")
    assert plane.closed()[-1].end == End.EOF


def ejected(plane: Plane) -> list[Address]:
    return [each.endpoint for each in plane.data.ejected()]


@pytest.mark.parametrize("blocking", [True, False])
def test_an_endpoint_that_refused_has_no_turn(plane: Plane, server: Server, blocking: bool) -> None:
    dead = closed_address()
    direct_to(plane, dead, server.address)
    failed = Asking(plane)
    assert failed.endpoint == dead
    failed.socket.settimeout(None if blocking else PATIENCE)
    assert failed.connect_ex() == errno.ECONNREFUSED
    failed.socket.close()
    assert plane.next_closed().end == End.UPSTREAM_CONNECT
    assert ejected(plane) == [dead]
    for _ in range(6):
        Asking(plane).connect()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_socket_that_is_asked_for_again_tells_of_its_failure(
    make_plane: MakePlane, server: Server, blocking: bool
) -> None:
    plane = make_plane(workers=4)
    dead = closed_address()
    direct_to(plane, dead, server.address)
    asking = Asking(plane)
    asking.socket.settimeout(None if blocking else PATIENCE)
    assert asking.connect_ex() == errno.ECONNREFUSED
    again = Asking(plane, asking.socket)
    assert again.endpoint == server.address
    assert plane.next_closed().end == End.UPSTREAM_CONNECT
    assert ejected(plane) == [dead]
    assert plane.data.counters().connect_failures == 1


def test_a_connection_that_was_undone_is_no_failure(plane: Plane, server: Server) -> None:
    direct_to(plane, server.address)
    client, _ = connected(plane, server)
    disconnect = ctypes.CDLL(None).connect
    assert disconnect(client.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16) == 0
    Asking(plane, client)
    assert plane.next_closed().end == End.UNOBSERVED
    assert ejected(plane) == []


def test_an_endpoint_is_ejected_by_silence_after_the_connect_timeout(
    make_plane: MakePlane, server: Server
) -> None:
    with silent_server() as silent:
        plane = make_plane(timeouts=Timeouts(connect=0.2))
        direct_to(plane, silent, server.address)
        asked = time.monotonic()
        asking = Asking(plane)
        asking.socket.setblocking(False)
        assert asking.connect_ex() == errno.EINPROGRESS
        eventually(lambda: time.monotonic() - asked > 0.3, "the timeout to pass")
        asking.socket.close()
        plane.next_closed()
        assert ejected(plane) == [silent]


def never(asking: Asking) -> None:
    pass


def in_the_handshake(asking: Asking) -> None:
    asking.socket.setblocking(False)
    assert asking.connect_ex() == errno.EINPROGRESS


def without_a_route(asking: Asking) -> None:
    assert asking.connect_ex() == errno.ENETUNREACH


@pytest.mark.parametrize("connect", [never, in_the_handshake, without_a_route])
def test_what_the_application_does_ejects_nobody(
    plane: Plane, server: Server, connect: Callable[[Asking], None]
) -> None:
    with silent_server() as silent:
        # TCP does not go to a multicast address.
        endpoint = Address("224.0.0.1", 80) if connect is without_a_route else silent
        direct_to(plane, endpoint, server.address)
        asking = Asking(plane)
        assert asking.endpoint == endpoint
        connect(asking)
        asking.socket.close()
        assert plane.next_closed().end == End.UPSTREAM_CONNECT
        assert ejected(plane) == []


def test_only_a_connection_that_is_younger_than_the_failure_ends_an_ejection(
    plane: Plane,
) -> None:
    with Server() as server:
        direct_to(plane, server.address)
        old, _ = connected(plane, server)
    failing = Asking(plane)
    assert failing.connect_ex() == errno.ECONNREFUSED
    failing.socket.close()
    plane.next_closed()
    assert ejected(plane) == [server.address]
    linger_reset(old)
    plane.next_closed()
    assert ejected(plane) == [server.address]
    with Server(port=server.address.port) as back:

        def is_over() -> bool:  # the first one may be of the same millisecond
            for each in connected(plane, back):
                each.close()
            assert plane.next_closed().end == End.EOF
            return not ejected(plane)

        eventually(is_over, "the ejection to end")


def test_where_only_an_ejected_endpoint_is_within_reach_it_is_a_relay(
    plane: Plane,
) -> None:
    dead = closed_address()
    with Server("::1") as other:
        direct_to(plane, dead, other.address)
        asking = Asking(plane)
        assert asking.connect_ex() == errno.ECONNREFUSED
        asking.socket.close()
        plane.next_closed()
        assert Asking(plane).action == lib.MOSNHOOK_RELAY


def test_many_come_and_go_in_any_order(plane: Plane, server: Server) -> None:
    direct_to(plane, server.address)
    order = random.Random(7)
    open_: list[tuple[socket.socket, socket.socket]] = []
    for _ in range(600):
        open_.append(connected(plane, server))
        if len(open_) > 150:
            for each in open_.pop(order.randrange(len(open_))):
                each.close()
    assert len(plane.data.snapshot()) >= len(open_)
    eventually(lambda: plane.data.live == len(open_), "the others to close")
    for pair in open_:
        for each in pair:
            each.close()
    eventually(lambda: plane.data.live == 0, "all to close")
    assert len(plane.closed()) == 600
    assert {(record.end, record.bytes_received) for record in plane.closed()} == {(End.EOF, 0)}


def test_a_stop_leaves_them_open(plane: Plane, server: Server) -> None:
    direct_to(plane, server.address)
    client, peer = connected(plane, server)
    client.sendall(b"before")
    assert peer.recv(6, socket.MSG_WAITALL) == b"before"
    plane.stop()
    client.sendall(b"after")
    assert peer.recv(5, socket.MSG_WAITALL) == b"after"
    done = plane.next_closed()
    assert (done.end, done.bytes_sent) == (End.LEFT, 6)
