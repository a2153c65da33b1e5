"""Nothing of an accelerated connection is left when it is over."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.acceleration.support import CLIENT_FIRST, SLOTS, V4, V6, Mesh, check

MakeMesh = Callable[..., AbstractContextManager[Mesh]]
_TARGETS = [f"{ip},{CLIENT_FIRST}" for ip in (V4, V6)]
_RESTS_S = 1.0  # a slot, before it is used again


def _churn(mesh: Mesh, count: int) -> Counter[str]:
    options = {"way": "edge", "exactly": 1, "up": 20_000, "down": 20_000, "lockstep": 100}
    lines = mesh.start(*_TARGETS, count=count, window=16, **options).wait(count / 20)
    assert check(lines) == {"complete": count}
    mesh.log(count)
    return Counter(json.loads(line)["path"] for line in mesh.sidecar.access_log.splitlines())


def test_thousands_of_connections_are_accelerated_one_after_the_other(make_mesh: MakeMesh) -> None:
    with make_mesh() as mesh:
        assert _churn(mesh, 2000) == {"full": 2000}


@pytest.mark.parametrize("way", ["edge", "blocking"])
@pytest.mark.parametrize("path", ["full", "local"])
def test_connections_without_a_slot_are_relayed(make_mesh: MakeMesh, path: str, way: str) -> None:
    slots, count = 8, 24
    sizes = {"up": 1 << 20, "down": 2 << 20, "exactly": 1, "ends_last": 1}
    stop = {"stop_at": 1, "up_stop_ms": 700, "down_stop_ms": 700}  # all are open at a time
    with make_mesh(path=path, connections=slots) as mesh:
        for round_ in (1, 2):
            client = mesh.start(*_TARGETS, way=way, count=count, window=count, **sizes, **stop)
            assert check(client.wait()) == {"complete": count}
            log = mesh.log(round_ * count)[-count:]
            assert Counter(line["path"] for line in log) == {path: slots, "relay": count - slots}
            time.sleep(_RESTS_S + 0.1)
        lines = mesh.run(*_TARGETS, way=way, count=slots, window=slots, **sizes)
        assert check(lines) == {"complete": slots}
        assert {line["path"] for line in mesh.log(2 * count + slots)[-slots:]} == {path}


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_more_connections_are_accelerated_than_there_are_slots(make_mesh: MakeMesh) -> None:
    with make_mesh() as mesh:
        assert _churn(mesh, 2 * SLOTS + 1000) == {"full": 2 * SLOTS + 1000}
