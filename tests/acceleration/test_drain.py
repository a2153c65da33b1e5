"""The sidecar is told to stop: connections finish in time, or are reset at the limit."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.acceleration.support import (
    CLIENT_FIRST,
    EACH_TRANSPORT_AND_PATH,
    V4,
    V6,
    Mesh,
    Server,
    check,
    kernel_objects,
    mesh,
    some_slots,
)
from tests.waiting import eventually

_TARGETS = [f"{ip},{CLIENT_FIRST}" for ip in (V4, V6)]
_WAYS = ["edge", "level", "blocking"]
_EACH = 4  # connections of a client
_DRAIN_S = 4
_STOP_MS = 1000  # those that finish are in the middle of a stop when the drain begins
_MIB = 1 << 20


def _are_accelerated(running: Mesh, path: str, count: int) -> bool:
    found = [one for one in running.sidecar.connections() if not one.closed and one.path == path]
    return len(found) == count


@pytest.mark.exclusive  # many processes that all want to run
@EACH_TRANSPORT_AND_PATH
def test_drained_connections_arrive_whole_or_are_reset_at_the_limit(
    traffic: Path, tmp_path: Path, transport: str, path: str
) -> None:
    slots = some_slots()
    count = _EACH * len(_WAYS)
    many = {"count": _EACH, "window": _EACH, "exactly": 1}
    stop = {"stop_at": _MIB, "up_stop_ms": _STOP_MS, "down_stop_ms": _STOP_MS}
    slow = {"up_slow_ms": 20, "down_slow_ms": 20, "young": 0}
    with (
        Server(traffic, tmp_path / "server", ("young=0",)) as server,
        mesh(
            server,
            tmp_path,
            transport=transport,
            path=path,
            drain_timeout=f"{_DRAIN_S}s",
            connections=slots,
        ) as running,
    ):
        # In time: with a full queue at that moment. And not in time: with data always under way.
        late = [
            running.start(*_TARGETS, way=way, up=1024 * _MIB, down=1024 * _MIB, **many, **slow)
            for way in _WAYS
        ]
        eventually(lambda: _are_accelerated(running, path, count), "the late ones are accelerated")
        early = [
            running.start(*_TARGETS, way=way, up=8 * _MIB, down=8 * _MIB, **many, **stop)
            for way in _WAYS
        ]
        eventually(lambda: sum(one.stopped for one in early) == count, "the early ones stop")
        assert _are_accelerated(running, path, 2 * count)
        assert kernel_objects(slots)
        began = time.monotonic()
        running.sidecar.stop()
        assert _DRAIN_S - 0.5 < time.monotonic() - began < _DRAIN_S + 3
        for client in early:
            assert check(client.wait()) == {"complete": _EACH}
        for client in late:
            assert check(client.wait()) == {"broken": _EACH}
        eventually(lambda: len(server.running.lines) == 2 * count, "the server sees every end")
        assert check(server.running.lines) == {"complete": count, "broken": count}
        log = running.log(2 * count)
        assert Counter((one["path"], one["error"]) for one in log) == {
            (path, None): count,
            (path, "closed at the drain limit"): count,
        }
        eventually(lambda: not kernel_objects(slots), "nothing is left in the kernel")
