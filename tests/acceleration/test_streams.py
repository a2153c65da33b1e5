"""Whatever the path, an application reads what was written, all of it, once and in order."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.acceleration.support import (
    CLIENT_FIRST,
    MAPPED,
    NEVER,
    SERVER_FIRST,
    V4,
    V6,
    Line,
    Mesh,
    check,
)

MakeMesh = Callable[..., AbstractContextManager[Mesh]]
_TARGETS = [f"{ip},{port}" for ip in (V4, V6, MAPPED) for port in (CLIENT_FIRST, SERVER_FIRST)]
_WAYS = ["edge", "level", "short", "blocking"]
_WHEN = ["at once", "after bytes", "after round trips"]


def _when(when: str) -> dict[str, int]:
    match when:
        case "after bytes":
            return {"after_bytes": int(2 ** random.uniform(0, 17)), "after_round_trips": NEVER}
        case "after round trips":
            return {"after_bytes": 2**63 - 1, "after_round_trips": random.randint(1, 4)}
        case _:
            return {"after_bytes": 0, "after_round_trips": 0}


def _check_log(mesh: Mesh, path: str, lines: list[Line], at_once: bool) -> None:
    """The access log tells the truth about every connection."""
    log = mesh.log(len(lines))
    assert len(log) == len(lines)
    complete = Counter(
        (line.port, line.sent, line.received) for line in lines if line.result == "complete"
    )
    logged = Counter(
        (int(one["source"].rpartition(":")[2]), one["bytes_sent"], one["bytes_received"])
        for one in log
        if one["error"] is None
    )
    assert logged == complete
    paths = Counter(one["path"] for one in log)
    assert set(paths) <= {path, "relay"}, paths
    # Some are over before they come so far.
    assert paths[path] > (len(log) * 0.25 if at_once else 0), paths


def _run(mesh: Mesh, each: int, path: str, when: str) -> None:
    seed = random.getrandbits(48)
    print(f"seed {seed}, {when}")  # for the report of a failure
    options = {"window": 8, "abort": 8, "pause": 2, "lockstep": 50, "up": 400_000, "down": 400_000}
    earlier = check(mesh.server.running.lines)["complete"]
    clients = [
        mesh.start(*_TARGETS, way=way, count=each, seed=seed + number, **options)
        for number, way in enumerate(_WAYS)
    ]
    lines = [line for client in clients for line in client.wait(max(60, each / 5))]
    ends = check(lines)
    assert ends["complete"] > len(lines) / 2, ends
    assert ends["aborted"] > 0, ends
    assert ends["reset"] > 0, ends
    far_ends = check(mesh.server.wait(earlier + ends["complete"]))
    assert far_ends["complete"] == earlier + ends["complete"]
    _check_log(mesh, path, lines, when == "at once")


@contextmanager
def _busy_machine() -> Iterator[None]:
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(3)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.mark.parametrize("when", _WHEN)
@pytest.mark.parametrize("path", ["full", "local"])
@pytest.mark.parametrize("transport", ["unix", "header"])
def test_streams_arrive_whole_and_in_order(
    make_mesh: MakeMesh, transport: str, path: str, when: str
) -> None:
    with make_mesh(transport=transport, path=path, **_when(when)) as mesh:
        _run(mesh, 32, path, when)


def test_streams_arrive_whole_and_in_order_on_a_busy_machine(make_mesh: MakeMesh) -> None:
    with make_mesh(**_when("after bytes")) as mesh, _busy_machine():
        _run(mesh, 12, "full", "after bytes")


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("path", ["full", "local"])
def test_streams_of_which_one_has_ended_are_relayed(
    make_mesh: MakeMesh, path: str, direction: str
) -> None:
    """The kernel would not take their sockets. Here the other stream ends long before it pays."""
    sizes = {"up": 100, "down": 100} | {direction: 80 << 20}
    with make_mesh(path=path, after_bytes=20 << 20, after_round_trips=NEVER) as mesh:
        for ends_last, expected in ((0, "relay"), (1, path)):
            lines = mesh.run(f"{V4},{CLIENT_FIRST}", exactly=1, ends_last=ends_last, **sizes)
            assert check(lines) == {"complete": 1}
            assert mesh.log(1 + ends_last)[-1]["path"] == expected


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("path", ["full", "local"])
@pytest.mark.parametrize("transport", ["unix", "header"])
def test_tens_of_thousands_of_streams(
    make_mesh: MakeMesh, transport: str, path: str, busy: bool
) -> None:
    for when in _WHEN:
        with make_mesh(transport=transport, path=path, **_when(when)) as mesh:
            if busy:
                with _busy_machine():
                    _run(mesh, 300, path, when)
            else:
                _run(mesh, 1200, path, when)
