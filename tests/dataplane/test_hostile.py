"""What a hostile client of the control socket cannot do."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import End, lib
from pysidecar.interception.rules.namespace import inside
from tests.dataplane import fuse
from tests.dataplane.support import MakePlane, Parked, Plane, Server, hook_request
from tests.namespaces import namespace
from tests.talking import started
from tests.users import needs_root
from tests.waiting import PATIENCE, eventually

DESTINATION = Address("127.0.0.1", 9)
VALID = hook_request(DESTINATION, lib.MOSNHOOK_PARKED)
MOST_FDS = 253  # SCM_MAX_FD

Ancillary = list[tuple[int, int, bytes]]


@contextlib.contextmanager
def _passable() -> Iterator[list[int]]:
    """Descriptors of several kinds."""
    with contextlib.ExitStack() as stack:
        pair = [stack.enter_context(each) for each in socket.socketpair()]
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        tcp = stack.enter_context(socket.socket())
        pipe = os.pipe()
        for end in pipe:
            stack.callback(os.close, end)
        yield [tcp.fileno(), udp.fileno(), pair[0].fileno(), *pipe]


def _rights(*fds: int) -> tuple[int, int, bytes]:
    return (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())


def _credentials() -> tuple[int, int, bytes]:
    packed = struct.pack("3i", os.getpid(), os.getuid(), os.getgid())
    return (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, packed)


def _shapes(fds: list[int]) -> Iterator[Ancillary]:
    """What may come beside a message."""
    yield []
    for fd in fds:
        yield [_rights(fd)]
    yield [_rights(*fds[:2])]
    yield [_rights(*fds[:4])]
    yield [_rights(*fds)]
    yield [_rights(fds[0]), _rights(fds[0])]
    yield [_rights(fd) for fd in fds]
    yield [_rights(fds[0]), _credentials()]
    yield [_credentials(), _rights(*fds)]
    yield [_rights(*(fds[:1] * MOST_FDS))]


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"x", id="a byte"),
        pytest.param(VALID[:-1], id="a byte too short"),
        pytest.param(VALID + b"\0", id="a byte too long"),
        pytest.param(bytes(4096), id="much too long"),
        pytest.param(bytes(len(VALID)), id="no magic"),
        pytest.param(VALID, id="valid"),
        pytest.param(hook_request(DESTINATION, 0), id="without flags"),
        pytest.param(hook_request(DESTINATION, 0xFFFF), id="all flags"),
        pytest.param(hook_request(Address("0.0.0.0", 0), lib.MOSNHOOK_PARKED), id="nowhere"),
    ],
)
def test_no_descriptor_stays_whatever_it_came_with(plane: Plane, message: bytes) -> None:
    rounds = 40
    with _passable() as fds:
        before = len(os.listdir("/proc/self/fd"))
        sent = 0
        for _ in range(rounds):
            for ancillary in _shapes(fds):
                with plane.control() as control:
                    control.sendmsg([message], ancillary)
                    with contextlib.suppress(BrokenPipeError):
                        control.sendmsg([message], ancillary)  # one that is never read
                sent += 1
        eventually(lambda: len(plane.closed()) >= sent, "every request to be closed")
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "all to be closed again")
        assert plane.data.live == 0


def test_a_thousand_empty_requests_leave_the_others_served(plane: Plane, server: Server) -> None:
    with _passable() as fds:
        for _ in range(1000):
            with plane.control() as control:
                control.sendmsg([b""], [_rights(*fds)])
        with Parked(plane) as application:
            application.ask(server.address, waits=True)
            answer = application.answer()
            assert answer is not None
            assert answer.action == lib.MOSNHOOK_RELAY


# ---- What makes a close wait ----

STRANGER = 65534

# Passes sockets whose last close waits for bytes that nobody reads, a minute long: here and below
# much longer than anybody's patience. The last close is the sidecar's, as a rule.
LINGERING = """
import array, contextlib, os, signal, socket, struct, sys, time

uid, path, message = int(sys.argv[1]), sys.argv[2], bytes.fromhex(sys.argv[3])
os.setresuid(uid, uid, uid)
listener = socket.create_server(("127.0.0.1", 0))

def lingering():
    lingers = socket.socket()
    lingers.connect(listener.getsockname())
    lingers.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            lingers.send(bytes(1 << 16))
    lingers.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    return lingers.detach()

def send(control, message, *fds):
    control.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])

def pass_on(fd, control):
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        WAY
    os.close(fd)

children = []
for _ in range(10):
    children.append(os.fork())
    if children[-1] == 0:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fd = lingering()
        control.connect(path)
        pass_on(fd, control)
        os._exit(0)
time.sleep(0.5)  # one whose own close was the last waits: that is no failure of the sidecar's
assert all(os.waitpid(child, os.WNOHANG)[1] == 0 for child in children)
print("sent", flush=True)
sys.stdin.read()
for child in children:
    os.kill(child, signal.SIGKILL)
os._exit(0)
"""

# How it reaches the sidecar.
WAYS = {
    "as the socket of a request": "send(control, message, fd)",
    "with nonsense": "send(control, b'x', fd)",
    "with an empty message": "send(control, b'', fd)",
    "second of two": "send(control, message, 1, fd)",
    "last of many": "send(control, message, *[1] * 100, fd)",
    "behind a request": "send(control, b'x', 1); send(control, message, fd)",
    "in the queue of another socket": (
        "a, b = socket.socketpair(); send(a, b'x', fd); send(control, message, b.fileno())"
    ),
}


def _client(plane: Plane, command: list[str], uid: int) -> AbstractContextManager[None]:
    """A program that has sent what it has to when this is entered."""
    return started([*command, uid, plane.control_path, VALID.hex()], "sent")


def _assert_serving(plane: Plane, server: Server) -> None:
    """Within a time in which no worker can have waited for a close."""
    start = time.monotonic()
    for _ in range(20):
        with Parked(plane) as application:
            application.ask(server.address, waits=True)
            answer = application.answer()
            assert answer is not None
            assert answer.action == lib.MOSNHOOK_RELAY
            server.accept().close()
    assert time.monotonic() - start < PATIENCE


@needs_root
@pytest.mark.parametrize("way", WAYS)
def test_a_lingering_socket_stops_no_worker(
    make_plane: MakePlane, server: Server, way: str
) -> None:
    plane = make_plane(workers=1)
    plane.let_everybody_in()
    program = LINGERING.replace("WAY", WAYS[way])
    command = [sys.executable, "-I", "-c", program]
    with _client(plane, command, STRANGER):
        _assert_serving(plane, server)


def test_a_lingering_socket_of_ones_own_stops_no_worker(
    make_plane: MakePlane, server: Server
) -> None:
    """Programs that are not hostile have such sockets, too."""
    plane = make_plane(workers=1)
    program = LINGERING.replace("WAY", WAYS["as the socket of a request"])
    with _client(plane, [sys.executable, "-I", "-c", program], os.geteuid()):
        _assert_serving(plane, server)


@needs_root
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="the kernel has no FUSE")
def test_a_file_whose_close_never_ends_stops_no_worker(
    make_plane: MakePlane, server: Server
) -> None:
    plane = make_plane(workers=1)
    plane.let_everybody_in()
    command = ["unshare", "--mount", sys.executable, "-I", fuse.__file__]
    with _client(plane, command, STRANGER):
        _assert_serving(plane, server)


@needs_root
def test_what_waits_at_the_control_socket_does_not_keep_it_from_closing(
    make_plane: MakePlane,
) -> None:
    plane = make_plane(workers=1)
    plane.let_everybody_in()
    program = LINGERING.replace("WAY", WAYS["as the socket of a request"])
    with _client(plane, [sys.executable, "-I", "-c", program], STRANGER):
        start = time.monotonic()
        plane.stop()
        assert time.monotonic() - start < PATIENCE


# ---- Sockets of another network namespace ----


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The name of a network namespace."""
    with namespace("elsewhere") as name:
        yield name


def _parked_elsewhere(where: str, park: Address) -> tuple[socket.socket, socket.socket]:
    """A socket in SYN_SENT to an address that is a park of ours, but of another loopback; and what
    drops its SYN there."""
    dropping, parked = inside(where, lambda: (socket.socket(), socket.socket()))
    drop_all = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    dropping.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
    dropping.bind((park.host, park.port))
    dropping.listen()
    parked.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        parked.connect((park.host, park.port))
    return parked, dropping


@needs_root
@pytest.mark.parametrize("waits", [True, False])
def test_a_socket_that_is_parked_in_another_namespace_reaches_nothing_here(
    plane: Plane, server: Server, elsewhere: str, waits: bool
) -> None:
    """It would reach what listens on our loopback."""
    parked, dropping = _parked_elsewhere(elsewhere, plane.parks["127.0.0.1"])
    with dropping, Parked(plane) as application:
        application.socket.close()
        application.socket = plane.owned(parked)
        application.ask(server.address, waits=waits)
        record = plane.next_closed()
        assert record.end is End.OTHER_NAMESPACE
        assert application.error() == errno.ECONNRESET
    assert server.accepts_nothing()


@needs_root
def test_an_unparked_socket_of_another_namespace_reaches_nothing_here(
    plane: Plane, server: Server, elsewhere: str
) -> None:
    multipath = inside(elsewhere, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
    with plane.control() as control, multipath:
        request = hook_request(server.address, lib.MOSNHOOK_WAITS)
        control.sendmsg([request], [_rights(multipath.fileno())])
        assert control.recv(100) == b""
    assert plane.next_closed().end is End.OTHER_NAMESPACE
    assert server.accepts_nothing()
