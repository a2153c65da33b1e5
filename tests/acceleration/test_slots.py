"""Nothing of an accelerated connection is left when it is over."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.acceleration.support import CLIENT_FIRST, V4, V6, Mesh, check

MakeMesh = Callable[..., AbstractContextManager[Mesh]]
_TARGETS = [f"{ip},{CLIENT_FIRST}" for ip in (V4, V6)]
_SLOTS = 16384  # ACCELERATED_MAX in bpf/record.h


def _churn(mesh: Mesh, count: int) -> Counter[str]:
    options = {"way": "edge", "exactly": 1, "up": 20_000, "down": 20_000, "lockstep": 100}
    lines = mesh.start(*_TARGETS, count=count, window=16, **options).wait(count / 20)
    assert check(lines) == {"complete": count}
    mesh.log(count)
    return Counter(json.loads(line)["path"] for line in mesh.sidecar.access_log.splitlines())


def test_thousands_of_connections_are_accelerated_one_after_the_other(make_mesh: MakeMesh) -> None:
    with make_mesh() as mesh:
        assert _churn(mesh, 2000) == {"full": 2000}


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_more_connections_are_accelerated_than_there_are_slots(make_mesh: MakeMesh) -> None:
    with make_mesh() as mesh:
        assert _churn(mesh, 2 * _SLOTS + 1000) == {"full": 2 * _SLOTS + 1000}
