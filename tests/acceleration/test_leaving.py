"""Connections that go back to the relay, while TCP's memory is short."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.acceleration.support import HookedApplication, Trace, some_slots, windows
from tests.waiting import eventually

_IDLE_S = 6


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
    eventually(lambda: windows(slots) == [0], "it begins to leave")
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
        eventually(lambda: windows(slots) == [0], "it begins to leave")
        say_whether_memory_is_short(False)
        assert trace.find("left_kernel")["session"]
    application.exchange()
