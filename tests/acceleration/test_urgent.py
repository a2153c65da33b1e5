"""Urgent data of accelerated connections: at its place, and urgent where it can be."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
from collections.abc import Callable

import pytest

from tests.acceleration.support import HookedApplication, receive

_SIOCATMARK = 0x8905


@pytest.fixture(params=["full", "local", "relay"])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def application(start: Callable[..., HookedApplication], path: str) -> HookedApplication:
    """One whose data is redirected by now, or relayed."""
    running = start(path)
    running.exchange()
    running.wait_for_path(path)
    return running


def _is_at_mark(sock: socket.socket) -> bool:
    return bool(struct.unpack("i", fcntl.ioctl(sock, _SIOCATMARK, bytes(4)))[0])


def test_urgent_data_of_the_application_arrives_as_that(
    application: HookedApplication, path: str
) -> None:
    application.far.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    for number in range(3):
        text = b"before%d" % number
        application(f"s.sendall({text!r})")
        application("s.send(b'!', socket.MSG_OOB)")
        application("s.sendall(b'after')")
        assert receive(application.far, len(text)) == text
        if path != "local":  # its messages go into our queue, which has no marks
            assert select.select([], [], [application.far], 10)[2]
            assert _is_at_mark(application.far)
        assert receive(application.far, 6) == b"!after"


def test_urgent_data_for_the_application_arrives_as_that(application: HookedApplication) -> None:
    application("s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)")
    for number in range(3):
        text = b"before%d" % number
        application.far.sendall(text)
        assert application(f"s.recv({len(text)}, socket.MSG_WAITALL)") == text
        application.far.send(b"!", socket.MSG_OOB)
        assert application("select.select([], [], [s], 10)[2] == [s]") is True
        mark = "struct.unpack('i', fcntl.ioctl(s, 0x8905, bytes(4)))[0]"
        assert application(mark) == 1
        application.far.sendall(b"after")
        assert application("s.recv(6, socket.MSG_WAITALL)") == b"!after"
