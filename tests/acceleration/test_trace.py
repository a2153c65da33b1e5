"""What a trace tells of accelerated connections."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceleration.support import NEVER, HookedApplication, Trace

each_path = pytest.mark.parametrize("path", ["full", "local"])


@each_path
def test_a_connection_that_the_kernel_moves(
    start: Callable[..., HookedApplication], path: str
) -> None:
    application = start(path, after_bytes=2**63 - 1, after_round_trips=2)
    with Trace(application.sidecar) as trace:
        application.exchange()
        assert trace.find("accelerated")["path"] == path


@each_path
def test_a_connection_that_cannot_be_accelerated(
    start: Callable[..., HookedApplication], path: str
) -> None:
    """One of its directions has ended."""
    application = start(path, after_bytes=1000, after_round_trips=NEVER)
    with Trace(application.sidecar) as trace:
        application("s.shutdown(socket.SHUT_WR)")
        assert application.far.recv(1) == b""
        application.deliver(bytes(1000))
        assert trace.find("not_accelerated")["tries_left"] == 0
