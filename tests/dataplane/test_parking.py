"""Connections that the connect hook asks for on the control socket."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import Action, End, Route, Timeouts, Transport, ffi, lib, parking_works
from tests.dataplane.support import (
    REFUSED,
    Answer,
    MakePlane,
    Parked,
    Plane,
    Server,
    closed_address,
    events,
    hook_request,
    linger_reset,
    preloadable,
    run_alone,
    silent_server,
    table,
)
from tests.waiting import PATIENCE, eventually

# TCP cannot be broadcast: the kernel says ENETUNREACH and sends nothing.
UNREACHABLE = Address("255.255.255.255", 80)
HOSTS = ["127.0.0.1", "::1"]


@pytest.mark.parametrize("host", HOSTS)
def test_this_kernel_completes_parked_sockets(host: str) -> None:
    assert parking_works(host)


def test_parking_needs_no_privilege() -> None:
    """Without CAP_NET_ADMIN a socket filter is not to be had on every kernel."""
    script = """
from pysidecar.address import Address
from tests.dataplane.support import Parked, Plane, Server
with Plane() as plane:
    for host in ("127.0.0.1", "::1"):
        with Server(host) as server, Parked(plane, host=host) as application:
            assert not application.is_writable(0.1)
            application.ask(server.address)
            assert application.is_writable()
            assert application.error() == 0
print(open("/proc/self/status").read())
"""
    command = [sys.executable, "-c", script]
    if os.geteuid() == 0:
        none = "--bounding-set=-all --inh-caps=-all --ambient-caps=-all --securebits=+noroot"
        command = ["setpriv", *none.split(), *command]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE * 2, check=False
    )
    assert re.search(r"CapEff:\s0+\n", result.stdout), result.stderr


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="ASan comes first")
def test_parking_works_without_socket_filters(tmp_path: Path) -> None:
    script = """
        import errno
        from tests.dataplane.support import REFUSED, Parked, Plane, Server, closed_address, events

        with Plane() as plane:
            for host in ("127.0.0.1", "::1"):
                with Server(host) as server, Parked(plane, host=host) as application:
                    assert not application.is_writable(0.1)
                    application.ask(server.address)
                    assert application.is_writable()
                    assert application.error() == 0
                with Parked(plane, host=host) as application:
                    application.ask(closed_address())
                    assert application.is_writable()
                    assert plane.next_closed() and events(application.socket) == REFUSED
                    assert application.error() == errno.ECONNRESET
        print("ok")
    """
    run_alone(script, LD_PRELOAD=str(preloadable("unfiltered", tmp_path)))


@pytest.mark.parametrize("host", HOSTS)
def test_a_parked_socket_is_connected_when_the_upstream_is(plane: Plane, host: str) -> None:
    with Server(host) as server, Parked(plane, host=host) as application:
        assert not application.is_writable(0)
        application.ask(server.address, command=b"curl")
        assert application.is_writable()
        assert application.error() == 0
        client = application.blocking()
        client.sendall(b"question")
        upstream = server.accept()
        assert upstream.recv(100) == b"question"
        upstream.sendall(b"answer")
        assert client.recv(100) == b"answer"
        upstream.close()
        assert client.recv(100) == b""
        source = Address(*client.getsockname()[:2])
        client.close()
    record = plane.next_closed()
    assert record.end is End.EOF
    assert record.transport is Transport.UNIX
    assert record.source == source
    assert record.original_destination == server.address
    assert (record.pid, record.uid, record.process) == (os.getpid(), os.getuid(), "curl")


def test_a_server_may_speak_first(plane: Plane, server: Server) -> None:
    with Parked(plane) as application:
        application.ask(server.address)
        upstream = server.accept()
        upstream.sendall(b"220 ready")
        assert application.blocking().recv(100) == b"220 ready"
        upstream.close()


def test_a_waiting_caller_is_answered_when_its_socket_is_connected(
    plane: Plane, server: Server
) -> None:
    with Parked(plane) as application:
        application.ask(server.address, waits=True)
        assert application.answer() == Answer(lib.MOSNHOOK_RELAY, 0)
        application.socket.send(b"at once")  # would be EAGAIN in SYN_SENT
        assert server.accept().recv(100) == b"at once"
        assert application.answer() is None


@pytest.mark.parametrize("host", HOSTS)
def test_a_socket_that_failed_is_as_after_a_refusal(plane: Plane, host: str) -> None:
    """But for the errno, of which the hook makes the true one."""
    with Parked(plane, host=host) as application:
        application.ask(closed_address())
        assert application.is_writable()
        assert plane.next_closed().error == "upstream connect failed: ECONNREFUSED"
        assert events(application.socket) == REFUSED
        assert application.error() == errno.ECONNRESET
        assert application.socket.recv(1) == b""
        park = (plane.parks[host].host, plane.parks[host].port)
        assert application.socket.connect_ex(park) == errno.ECONNABORTED
        assert application.socket.connect_ex(park) == errno.EINPROGRESS


@pytest.mark.parametrize("host", HOSTS)
def test_an_application_is_never_woken_up_to_a_failed_socket_without_an_error(
    plane: Plane, host: str
) -> None:
    """It would take it for connected. A program that looks all the time sees that, too."""
    closed = closed_address()
    for _ in range(2000):
        with Parked(plane, host=host) as application:
            application.ask(closed)
            while not (seen := events(application.socket)):
                pass
            assert seen & select.POLLERR
            assert application.error() == errno.ECONNRESET


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="ASan comes first")
def test_neither_is_one_whose_failure_takes_long(tmp_path: Path) -> None:
    """A busy processor may keep the worker from its next step for as long as it likes."""
    script = """
        import errno, select
        from tests.dataplane.support import Parked, Plane, closed_address, events

        with Plane(workers=1) as plane:
            for host in ("127.0.0.1", "::1"):
                with Parked(plane, host=host) as application:
                    application.ask(closed_address())
                    while not (seen := events(application.socket)):
                        pass
                    assert seen & select.POLLERR, seen
                    assert application.error() == errno.ECONNRESET
        print("ok")
    """
    run_alone(script, LD_PRELOAD=str(preloadable("late", tmp_path)))


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
def test_a_socket_fails_so_where_packets_take_their_time() -> None:
    """What is done to the parked socket takes several packets. On loopback they are through before
    a call returns, but for a busy processor: here they are not."""
    script = """
import time
from pysidecar.dataplane import Timeouts
from tests.dataplane.support import REFUSED, Parked, Plane, closed_address, events
with Plane(timeouts=Timeouts(connect=30, header=30)) as plane:
    for host in ("127.0.0.1", "::1"):
        with Parked(plane, host=host) as application:
            application.ask(closed_address())
            while not events(application.socket):
                time.sleep(0.0001)
            assert events(application.socket) == REFUSED
            assert plane.next_closed().error == "upstream connect failed: ECONNREFUSED"
"""
    shape = "tbf rate 64kbit burst 150 limit 9000"  # a packet each 10 ms
    start = f'ip link set lo up && tc qdisc add dev lo root {shape} && exec "$0" -c "$1"'
    command = ["unshare", "--net", "sh", "-c", start, sys.executable, script]
    subprocess.run(command, timeout=PATIENCE * 2, check=True)


def test_a_waiting_caller_learns_the_true_errno(plane: Plane) -> None:
    with Parked(plane) as application:
        application.ask(closed_address(), waits=True)
        assert application.answer() == Answer(lib.MOSNHOOK_REFUSE, errno.ECONNREFUSED)
        # Its socket is its own to disconnect.
        assert application.socket.connect_ex(("127.0.0.1", 9)) == errno.EALREADY


def test_an_unreachable_upstream_is_told_as_such(plane: Plane) -> None:
    with Parked(plane) as application:
        application.ask(UNREACHABLE, waits=True)
        answer = application.answer()
    assert answer == Answer(lib.MOSNHOOK_REFUSE, errno.ENETUNREACH)


@pytest.mark.parametrize("host", HOSTS)
def test_a_socket_that_failed_remembers_the_true_errno(plane: Plane, host: str) -> None:
    """By then: the application may ask as soon as it sees the failure."""
    with Parked(plane, host=host) as application:
        application.ask(UNREACHABLE)
        assert application.is_writable()
        memo = ffi.from_buffer(
            "struct mosnhook_memo *", application.socket.getsockopt(socket.IPPROTO_TCP, 33, 32)
        )
        assert memo.magic == lib.MOSNHOOK_MEMO_MAGIC
        assert (memo.kind, memo.error) == (lib.MOSNHOOK_MEMO_RELAYED, errno.ENETUNREACH)
        assert Address.from_native(memo.destination) == UNREACHABLE
        assert plane.next_closed().errno == errno.ENETUNREACH


def test_a_silent_upstream_times_out(make_plane: MakePlane) -> None:
    plane = make_plane(timeouts=Timeouts(connect=0.2))
    with silent_server() as silent, Parked(plane) as application:
        application.ask(silent, waits=True)
        assert application.answer() == Answer(lib.MOSNHOOK_REFUSE, errno.ETIMEDOUT)
    assert plane.next_closed().end is End.UPSTREAM_TIMEOUT


def test_a_caller_that_no_longer_waits_finds_its_socket_connected(
    plane: Plane, server: Server
) -> None:
    with Parked(plane) as application:
        application.ask(server.address, waits=True)
        assert application.control
        application.control.close()
        assert application.is_writable()
        assert application.error() == 0


def test_a_caller_that_no_longer_waits_finds_the_error_on_its_socket(
    make_plane: MakePlane,
) -> None:
    plane = make_plane(timeouts=Timeouts(connect=0.3))
    with silent_server() as silent, Parked(plane) as application:
        application.ask(silent, waits=True)
        assert application.control
        application.control.close()
        assert eventually(application.error, "an error") == errno.ECONNRESET


def test_an_application_that_disconnected_is_left_alone(
    make_plane: MakePlane, server: Server
) -> None:
    """It may have connected elsewhere meanwhile: neither success nor failure may touch it."""
    plane = make_plane(timeouts=Timeouts(connect=0.3))
    with silent_server() as silent, Parked(plane) as application:
        application.ask(silent)
        eventually(
            lambda: [r.original_destination for r in plane.data.snapshot()] == [silent],
            "the connect to begin",
        )
        # connect(AF_UNSPEC), which Python's sockets do not offer, then to the server directly.
        ctypes.CDLL(None).connect(application.socket.fileno(), bytes(16), 16)
        application.socket.connect_ex((server.address.host, server.address.port))
        upstream = server.accept()
        assert plane.next_closed().end is End.UPSTREAM_TIMEOUT
        application.blocking().sendall(b"direct")
        assert upstream.recv(100) == b"direct"


def test_an_application_that_parked_its_socket_again_is_left_alone(make_plane: MakePlane) -> None:
    """The failure of its first request is none of the second's."""
    plane = make_plane(timeouts=Timeouts(connect=0.3))
    park = plane.parks["127.0.0.1"]
    with silent_server() as silent, Parked(plane) as application:
        application.ask(silent)
        eventually(
            lambda: [r.original_destination for r in plane.data.snapshot()] == [silent],
            "the connect to begin",
        )
        ctypes.CDLL(None).connect(application.socket.fileno(), bytes(16), 16)  # AF_UNSPEC
        assert application.socket.connect_ex((park.host, park.port)) == errno.EINPROGRESS
        memo = application.socket.getsockopt(socket.IPPROTO_TCP, 33, 32)
        assert plane.next_closed().end is End.UPSTREAM_TIMEOUT
        assert application.socket.getsockopt(socket.IPPROTO_TCP, 33, 32) == memo
        assert not application.is_writable(0)


def test_an_application_that_listens_instead_is_not_connected_to(
    make_plane: MakePlane, server: Server
) -> None:
    """Its socket is looked at again when the upstream is connected: what it is by then may accept
    strangers."""
    plane = make_plane(timeouts=Timeouts(connect=0.3))
    destination = Address("192.0.2.7", 80)
    with silent_server() as silent, Parked(plane, source="127.0.0.1") as application:
        silent_first = Route(endpoints=(silent, server.address))
        plane.data.set_routes(table(("192.0.2.0/24", None, silent_first)))
        application.ask(destination)
        eventually(
            lambda: [r.original_destination for r in plane.data.snapshot()] == [destination],
            "the connect to begin",
        )
        name = application.socket.getsockname()
        ctypes.CDLL(None).connect(application.socket.fileno(), bytes(16), 16)  # AF_UNSPEC
        application.socket.bind(name)
        application.socket.listen()
        server.accept()  # it was connected, in vain
        assert plane.next_closed().end is End.DOWNSTREAM_GONE
        assert not select.select([application.socket], [], [], 0)[0]


def test_a_socket_that_is_not_parked_here_is_refused_unharmed(plane: Plane, server: Server) -> None:
    with Parked(plane) as application:
        application.socket.close()
        application.socket = plane.owned(
            socket.create_connection((server.address.host, server.address.port))
        )
        upstream = server.accept()
        application.ask(closed_address())
        assert plane.next_closed().end is End.DOWNSTREAM_GONE
        application.socket.sendall(b"alive")
        assert upstream.recv(100) == b"alive"


@pytest.mark.parametrize(
    ("message", "sends_fd"),
    [
        (b"", False),
        (b"nonsense", True),
        (bytes(48), True),
        (bytes(4096), True),
        (bytes(48), False),
    ],
)
def test_a_malformed_request_closes_that_connection_and_no_other(
    plane: Plane, server: Server, message: bytes, sends_fd: bool
) -> None:
    with Parked(plane) as application, Parked(plane) as other:
        application.control = plane.control()
        if message:
            application.send(message, [application.socket.fileno()] if sends_fd else [])
        application.control.shutdown(socket.SHUT_WR)
        assert application.answer() is None
        assert plane.next_closed().end in {End.HEADER_MALFORMED, End.HEADER_TRUNCATED}
        other.ask(server.address, waits=True)
        assert other.answer() == Answer(lib.MOSNHOOK_RELAY, 0)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"nonsense", id="nonsense"),
        pytest.param(bytes(4096), id="too long"),
        pytest.param(hook_request(UNREACHABLE, lib.MOSNHOOK_PARKED)[:-1], id="too short"),
        pytest.param(hook_request(UNREACHABLE, 0), id="without flags"),
        pytest.param(hook_request(Address("0.0.0.0", 80), lib.MOSNHOOK_PARKED), id="nowhere"),
    ],
)
@pytest.mark.parametrize("host", HOSTS)
def test_a_request_that_is_dropped_fails_its_socket(
    plane: Plane, host: str, message: bytes
) -> None:
    """Nobody else could: a caller that does not wait is gone."""
    with Parked(plane, host=host) as application:
        application.control = plane.control()
        application.send(message, [application.socket.fileno()])
        application.control.close()
        assert eventually(application.error, "an error") == errno.ECONNRESET
        assert plane.next_closed().end in {End.HEADER_MALFORMED, End.HEADER_TRUNCATED}


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="calloc is ASan's")
def test_a_request_that_no_memory_is_left_for_fails_its_socket(tmp_path: Path) -> None:
    """In a process of its own, in which one allocation fails: the connection itself."""
    script = """
        import ctypes, errno
        from tests.dataplane.support import Parked, Plane, Server
        from tests.waiting import eventually

        with Server() as server, Plane(workers=1) as plane:
            with Parked(plane) as application:
                while True:
                    ctypes.CDLL(None).fail_next_zeroed()
                    try:
                        application.ask(server.address)
                        break
                    except BrokenPipeError:  # the connection came, and was closed, before it
                        continue
                assert eventually(application.error, "an error") == errno.ECONNRESET
            with Parked(plane) as application:
                application.ask(server.address)
                assert application.is_writable()
                assert application.error() == 0
            assert plane.data.counters().accepted == 1
        print("ok")
    """
    run_alone(script, LD_PRELOAD=str(preloadable("allocation", tmp_path)))


def test_a_request_that_a_stop_cuts_off_fails_its_socket(plane: Plane) -> None:
    with silent_server() as silent, Parked(plane) as application:
        application.ask(silent)
        eventually(plane.data.snapshot, "the request")
        plane.stop()
        assert eventually(application.error, "an error") == errno.ECONNRESET
    assert plane.next_closed().end is End.DRAIN_LIMIT


@pytest.mark.parametrize("host", HOSTS)
def test_port_0_is_refused_as_by_the_kernel(plane: Plane, host: str) -> None:
    for waits in (False, True):
        with Parked(plane, host=host) as application:
            application.ask(Address(host, 0), waits=waits)
            if waits:
                assert application.answer() == Answer(lib.MOSNHOOK_REFUSE, errno.ECONNREFUSED)
            else:
                assert eventually(application.error, "an error") == errno.ECONNRESET
        record = plane.next_closed()
        assert record.original_destination == Address(host, 0)
        assert record.error == "upstream connect failed: ECONNREFUSED"


def other_magic(request: bytes) -> bytes:
    return bytes([request[0] ^ 1]) + request[1:]


def other_version(request: bytes) -> bytes:
    at = ffi.offsetof("struct mosnhook_request", "version")
    return request[:at] + bytes([request[at] + 1]) + request[at + 1 :]


def nowhere(request: bytes) -> bytes:
    unspecified = Address("0.0.0.0", 80)
    return hook_request(unspecified, lib.MOSNHOOK_PARKED)[: len(request)]


def longer(request: bytes) -> bytes:
    return request + b"\0"


def shorter(request: bytes) -> bytes:
    return request[:-1]


@pytest.mark.parametrize("spoil", [other_magic, other_version, nowhere, longer, shorter])
def test_a_request_is_right_in_everything_or_malformed(
    plane: Plane, server: Server, spoil: Callable[[bytes], bytes]
) -> None:
    with Parked(plane) as application:
        application.control = plane.control()
        request = hook_request(server.address, lib.MOSNHOOK_PARKED)
        application.send(spoil(request), [application.socket.fileno()])
        assert plane.next_closed().end is End.HEADER_MALFORMED
    assert server.accepts_nothing()


def test_fds_that_do_not_belong_are_closed(plane: Plane) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for count in (2, 4, 7, 40):
        with Parked(plane) as application:
            application.control = plane.control()
            application.send(bytes(48), [0] * count)
            assert application.answer() is None
            plane.next_closed()
    # What is no TCP socket is not closed by the worker, whom that could stop.
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "all to be closed")


def test_a_silent_caller_is_given_up_in_time(make_plane: MakePlane) -> None:
    plane = make_plane(timeouts=Timeouts(header=0.2))
    with plane.control() as control:
        assert control.recv(1) == b""
    assert plane.next_closed().end is End.HEADER_TIMEOUT


def test_the_sign_of_life_goes_on(plane: Plane) -> None:
    page = ffi.from_buffer("struct mosnhook_page *", plane.page)
    first = eventually(lambda: page.alive_ns, "a sign of life")
    eventually(lambda: page.alive_ns > first, "another sign of life")


def test_a_refusing_route_fails_the_connect(plane: Plane, server: Server) -> None:
    plane.data.set_routes(table(("0.0.0.0/0", None, Route(action=Action.REFUSE))))
    with Parked(plane) as application:
        application.ask(server.address, waits=True)
        assert application.answer() == Answer(lib.MOSNHOOK_REFUSE, errno.ECONNREFUSED)
    assert plane.next_closed().error == "refused by a route: ECONNREFUSED"
    assert server.accepts_nothing()


@pytest.mark.parametrize("host", HOSTS)
def test_a_reset_that_got_lost_is_sent_again(plane: Plane, host: str) -> None:
    """As natively: whoever goes on with a connection that is no more learns of it. Not only
    networks lose what a reset needs to be believed: so does a full receive buffer."""
    drop = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop))
    with Server(host) as server, Parked(plane, host=host) as application:
        application.ask(server.address)
        assert application.is_writable()
        client = application.blocking()
        upstream = server.accept()
        client.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
        linger_reset(upstream)
        assert plane.next_closed().end is End.UPSTREAM_RESET
        client.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
