"""Sockets that cannot be parked (MPTCP has no simultaneous open): they connect themselves."""

from __future__ import annotations

import contextlib
import errno
import select
import socket

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import End, Timeouts, ffi, lib
from tests.dataplane.support import (
    MakePlane,
    Plane,
    Server,
    closed_address,
    hook_request,
    send_with_fds,
    silent_server,
    tcp_address,
)
from tests.waiting import PATIENCE, eventually

try:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
except OSError:
    pytest.skip("no MPTCP", allow_module_level=True)


class Unparked:
    """An application's MPTCP socket, and what the connect hook does with it."""

    def __init__(self, plane: Plane, *, host: str = "127.0.0.1", protocol: int = 262) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = plane.owned(socket.socket(family, socket.SOCK_STREAM, protocol))
        self.socket.settimeout(PATIENCE)
        self.control = plane.control()

    def ask(self, destination: Address, *, waits: bool) -> None:
        request = hook_request(destination, lib.MOSNHOOK_WAITS if waits else 0)
        send_with_fds(self.control, request, [self.socket.fileno()])

    def answer(self) -> tuple[int, int, Address | None] | None:
        """Action, error and endpoint; None where the other side just closed."""
        data = self.control.recv(100)
        if not data:
            return None
        answer = ffi.from_buffer("struct mosnhook_answer *", data)
        return (answer.action, answer.error, Address.from_native(answer.endpoint))

    def endpoint(self) -> Address:
        """Where it is to be connected."""
        answer = self.answer()
        assert answer is not None
        action, error, endpoint = answer
        assert (action, error) == (lib.MOSNHOOK_CONNECT, 0)
        assert endpoint is not None
        return endpoint

    def connect(self) -> None:
        """As the hook does."""
        endpoint = self.endpoint()
        self.socket.connect((endpoint.host, endpoint.port))


def _is_reset(sock: socket.socket, endpoint: Address) -> bool:
    """Once it is connected there, be it before connect() has returned."""
    sock.settimeout(PATIENCE)
    try:
        sock.connect((endpoint.host, endpoint.port))
        sock.recv(1)
    except ConnectionResetError:
        return True
    return False


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("waits", [True, False])
def test_a_socket_is_relayed_that_connects_to_where_it_is_told(
    plane: Plane, host: str, waits: bool
) -> None:
    with Server(host) as server:
        application = Unparked(plane, host=host)
        application.ask(server.address, waits=waits)
        application.connect()
        application.socket.sendall(b"question")
        upstream = server.accept()
        assert upstream.recv(100) == b"question"
        upstream.sendall(b"answer")
        assert application.socket.recv(100) == b"answer"
        source = tcp_address(application.socket)
        application.socket.close()
        upstream.close()
    record = plane.next_closed()
    assert record.end is End.EOF
    assert record.source == source
    assert (record.bytes_sent, record.bytes_received) == (8, 6)


def test_a_caller_that_waits_learns_the_true_errno(plane: Plane) -> None:
    application = Unparked(plane)
    application.ask(closed_address(), waits=True)
    assert application.answer() == (lib.MOSNHOOK_REFUSE, errno.ECONNREFUSED, None)


def test_a_caller_that_waits_is_answered_when_the_upstream_is_connected(
    make_plane: MakePlane,
) -> None:
    plane = make_plane(timeouts=Timeouts(connect=0.3))
    with silent_server() as silent:
        application = Unparked(plane)
        application.ask(silent, waits=True)
        assert application.answer() == (lib.MOSNHOOK_REFUSE, errno.ETIMEDOUT, None)


def test_a_caller_that_does_not_wait_is_reset_when_the_upstream_fails(plane: Plane) -> None:
    application = Unparked(plane)
    application.ask(closed_address(), waits=False)
    assert _is_reset(application.socket, application.endpoint())
    assert plane.next_closed().error == "upstream connect failed: ECONNREFUSED"


def test_a_stranger_at_its_listener_is_turned_away(plane: Plane, server: Server) -> None:
    application = Unparked(plane)
    application.ask(server.address, waits=True)
    endpoint = application.endpoint()
    with socket.socket() as stranger:
        assert _is_reset(stranger, endpoint)
    application.socket.connect((endpoint.host, endpoint.port))
    application.socket.sendall(b"mine")
    assert server.accept().recv(100) == b"mine"


@pytest.mark.parametrize("waits", [True, False])
def test_a_caller_that_never_connects_is_given_up(
    make_plane: MakePlane, server: Server, waits: bool
) -> None:
    plane = make_plane(timeouts=Timeouts(header=0.2))
    application = Unparked(plane)
    application.ask(server.address, waits=waits)
    endpoint = application.endpoint()
    assert plane.next_closed().end is End.DOWNSTREAM_GONE
    assert application.socket.connect_ex((endpoint.host, endpoint.port)) == errno.ECONNREFUSED
    assert plane.data.live == 0


def test_a_socket_that_could_be_parked_is_not_taken_unparked(plane: Plane, server: Server) -> None:
    """The sidecar connected it once: a blocking one to wherever it took two minutes."""
    application = Unparked(plane, protocol=0)
    application.ask(server.address, waits=True)
    assert application.answer() is None
    assert plane.next_closed().end is End.HEADER_MALFORMED
    assert server.accepts_nothing()


def test_a_socket_that_is_connected_already_stops_no_worker(
    make_plane: MakePlane, server: Server
) -> None:
    """Whatever the socket is: it is never the worker that connects it."""
    plane = make_plane(workers=1)
    with silent_server() as silent, contextlib.ExitStack() as stack:
        for waits in (True, False):
            hostile = Unparked(plane)
            hostile.socket.setblocking(False)
            hostile.socket.connect_ex((silent.host, silent.port))  # as good as connecting
            hostile.socket.setblocking(True)
            hostile.ask(server.address, waits=waits)
            stack.callback(hostile.socket.close)
        honest = Unparked(plane)
        honest.ask(server.address, waits=False)
        honest.connect()
        honest.socket.sendall(b"through")
        upstreams = [server.accept(), server.accept()]  # of the hostile one that waits, and this
        ready = eventually(lambda: select.select(upstreams, [], [], 0)[0], "bytes")
        assert ready[0].recv(100) == b"through"


def test_one_that_claims_to_be_parked_is_malformed(plane: Plane, server: Server) -> None:
    unparked = Unparked(plane)
    request = hook_request(server.address, lib.MOSNHOOK_PARKED)
    send_with_fds(unparked.control, request, [unparked.socket.fileno()])
    assert plane.next_closed().end is End.HEADER_MALFORMED
    assert server.accepts_nothing()
