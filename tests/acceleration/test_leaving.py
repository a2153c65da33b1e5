"""Connections that go back to the relay, while TCP's memory is short."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceleration.support import HookedApplication, Trace, records, some_slots
from tests.waiting import eventually

_TCP_LIMITS = Path("/proc/sys/net/ipv4/tcp_mem")  # in pages: normal, short, all
_IDLE_S = 6


def _tcp_memory_is_short() -> bool:
    lines = Path("/proc/net/protocols").read_text().splitlines()
    (line,) = [line.split() for line in lines if line.startswith("TCP ")]
    return line[4] == "yes"


@pytest.fixture
def say_whether_memory_is_short() -> Iterator[Callable[[bool], None]]:
    """Makes the kernel call TCP's memory short, or no longer; nobody is refused any."""
    before = _TCP_LIMITS.read_text()
    short = "1 2 " + before.split()[2]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def exchange() -> None:
            """The kernel looks when a socket needs more."""
            with (
                socket.create_connection(listener.getsockname()) as one,
                listener.accept()[0] as other,
            ):
                one.setblocking(False)
                one.send(bytes(1 << 20))
                other.recv(1 << 20)

        def say(wanted: bool) -> None:
            _TCP_LIMITS.write_text(short if wanted else before)

            def said() -> bool:
                exchange()
                return _tcp_memory_is_short() == wanted

            eventually(said, lambda: f"TCP's memory is {'' if wanted else 'not '}short")

        try:
            yield say
        finally:
            say(False)


def _windows(slots: int) -> list[int]:
    """How much may be redirected for each connection."""
    return [record["window"] for record in records(slots) if record["id"]]


@pytest.mark.exclusive  # TCP's memory is the machine's
@pytest.mark.parametrize("path", ["full", "local"])
def test_connection_whose_idle_time_ends_when_it_has_left(
    start: Callable[..., HookedApplication],
    path: str,
    say_whether_memory_is_short: Callable[[bool], None],
) -> None:
    """Both in one turn of the worker: it is neither run nor looked at after that."""
    slots = some_slots()
    application = start(path, idle_timeout=f"{_IDLE_S}s", connections=slots)
    application.exchange()
    application.wait_for_path(path)
    say_whether_memory_is_short(True)
    eventually(lambda: _windows(slots) == [0], "it begins to leave")
    application.sidecar.pause()
    try:
        say_whether_memory_is_short(False)
        time.sleep(_IDLE_S)
    finally:
        application.sidecar.resume()
    eventually(lambda: application.sidecar.access_log != "", "it is closed")
    (logged,) = application.sidecar.access_log.splitlines()
    assert json.loads(logged)["error"] == "idle timeout"
    application.sidecar.stop()  # whose data plane checks that nothing is left


@pytest.mark.exclusive  # TCP's memory is the machine's
@pytest.mark.parametrize("path", ["full", "local"])
def test_a_trace_tells_that_it_has_left(
    start: Callable[..., HookedApplication],
    path: str,
    say_whether_memory_is_short: Callable[[bool], None],
) -> None:
    slots = some_slots()
    application = start(path, connections=slots)
    application.exchange()
    application.wait_for_path(path)
    with Trace(application.sidecar) as trace:
        say_whether_memory_is_short(True)
        eventually(lambda: _windows(slots) == [0], "it begins to leave")
        say_whether_memory_is_short(False)
        assert trace.find("left_kernel")["session"]
    application.exchange()
