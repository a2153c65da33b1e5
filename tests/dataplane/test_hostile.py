"""What a hostile client of the control socket cannot do."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import lib
from tests.dataplane.support import Parked, Plane, Server, eventually, hook_request

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
