"""A reader that stops holds its sender back: without a spin, without memory, and not for ever."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import product
from pathlib import Path

import psutil
import pytest

from tests.acceleration.support import CLIENT_FIRST, V4, Mesh, Running, Server, check, mesh
from tests.waiting import eventually

MakeMesh = Callable[..., AbstractContextManager[Mesh]]
_TARGET = f"{V4},{CLIENT_FIRST}"
_STOP_MS = 3000
_LONG_STOP_MS = 15000
_MIB = 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TCP_LIMITS = Path("/proc/sys/net/ipv4/tcp_mem")  # in pages: normal, short, all
# Both sockets' buffers on both sides of the sidecar, a window, and as much again.
_MAX_IN_KERNEL = 48 * _MIB
_LONG_MS = 60000
_LOOK_S = 0.5  # for so long they are looked at
_MAX_CPU = 0.3  # of the time, of a process that has nothing to do


def _tcp_memory() -> int:
    with open("/proc/net/sockstat") as file:
        line = next(line.split() for line in file if line.startswith("TCP:"))
    return int(line[line.index("mem") + 1]) * _PAGE


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _use_of_cpu(processes: list[psutil.Process], seconds: float) -> list[float]:
    """As parts of the time."""
    before = [_cpu_seconds(process) for process in processes]
    time.sleep(seconds)
    return [(_cpu_seconds(one) - cpu) / seconds for one, cpu in zip(processes, before, strict=True)]


def _watch_cpu(mesh: Mesh, sender_pid: int, stop_ms: int = _STOP_MS) -> None:
    """During a stop neither sender nor sidecar spins: they have nothing to do as soon as everything
    is full, which takes the longer the more else the machine does."""
    processes = [psutil.Process(pid) for pid in (sender_pid, mesh.sidecar.pid)]
    left_s = stop_ms / 1000 - 1.5 * _LOOK_S
    eventually(lambda: max(_use_of_cpu(processes, _LOOK_S)) < _MAX_CPU, "them to rest", left_s)


def _watch_memory(max_memory: int) -> None:
    """During a stop the queues do not grow."""
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert _tcp_memory() < max_memory
        time.sleep(0.05)


@contextmanager
def _stopped(
    make_mesh: MakeMesh, path: str, direction: str, way: str
) -> Iterator[tuple[Mesh, int]]:
    """While the reader stops: the mesh, and who sends. And then everything arrives."""
    sizes = {"up": 100, "down": 100} | {direction: 160 * _MIB}
    with make_mesh(path=path) as mesh:
        stop = {f"{direction}_stop_ms": _STOP_MS, "stop_at": 20 * _MIB}
        client = mesh.start(_TARGET, way=way, exactly=1, ends_last=1, **sizes, **stop)
        sender, reader = client, mesh.server.running
        if direction == "down":
            sender, reader = reader, sender
        eventually(lambda: reader.stopped == 1, "the reader stops")
        yield mesh, sender.process.pid
        assert check(client.wait()) == {"complete": 1}
        assert check(mesh.server.wait(1)) == {"complete": 1}
        (logged,) = mesh.log(1)
        assert logged["path"] == path
        assert logged["duration_ms"] < _STOP_MS + 8000  # at 20 MiB/s


def _each_pair(*ways: str) -> pytest.MarkDecorator:
    """Each two of path, direction and way; the combinations that are left are for `make soak`."""
    found = product(enumerate(["full", "local"]), enumerate(["up", "down"]), enumerate(ways))
    return pytest.mark.parametrize(
        ("path", "direction", "way"),
        [
            pytest.param(path, direction, way, marks=[pytest.mark.soak] if (i + j + k) % 2 else [])
            for (i, path), (j, direction), (k, way) in found
        ],
    )


@_each_pair("edge", "level", "short", "blocking")
def test_reader_that_stops(make_mesh: MakeMesh, path: str, direction: str, way: str) -> None:
    with _stopped(make_mesh, path, direction, way) as (mesh, sender_pid):
        _watch_cpu(mesh, sender_pid)


@pytest.mark.exclusive  # TCP's memory is the machine's
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("path", ["full", "local"])
def test_reader_that_stops_takes_bounded_memory(
    make_mesh: MakeMesh, path: str, direction: str
) -> None:
    before = _tcp_memory()
    with _stopped(make_mesh, path, direction, "edge"):
        _watch_memory(before + _MAX_IN_KERNEL)


@_each_pair("edge", "blocking")
def test_slow_reader_gets_everything(
    make_mesh: MakeMesh, path: str, direction: str, way: str
) -> None:
    sizes = {"up": 100, "down": 100} | {direction: 12 * _MIB}
    with make_mesh(path=path) as mesh:
        slow = {f"{direction}_slow_ms": 1, "chunk": 64 * 1024}
        lines = mesh.run(_TARGET, way=way, exactly=1, ends_last=1, **sizes, **slow)
        assert check(lines) == {"complete": 1}
        assert check(mesh.server.wait(1)) == {"complete": 1}
        (logged,) = mesh.log(1)
        assert logged["path"] == path


@pytest.fixture
def little_tcp_memory() -> Iterator[int]:
    """In bytes, where what TCP may use is some MiB more than what the machine uses now."""
    before = _TCP_LIMITS.read_text()
    pages = (_tcp_memory() + 12 * _MIB) // _PAGE
    _TCP_LIMITS.write_text(f"{pages // 2} {pages * 2 // 3} {pages}")
    try:
        yield pages * _PAGE
    finally:
        _TCP_LIMITS.write_text(before)


@contextmanager
def _patient_mesh(traffic: Path, directory: Path, path: str) -> Iterator[Mesh]:
    """What TCP has no memory for it drops, and tries again at doubled distances: in a stop of 15 s
    the last try comes some 13 s after its begin, and the next one 13 s later."""
    with (
        Server(traffic, directory / "server", (f"patience_ms={_LONG_MS}",)) as server,
        mesh(server, directory, path=path) as made,
    ):
        yield made


def _start_many(mesh: Mesh, direction: str, count: int, size: int, stop_ms: int) -> Running:
    sizes = {"up": 100, "down": 100} | {direction: size}
    stop = {f"{direction}_stop_ms": stop_ms, "stop_at": 1}
    options = {"count": count, "window": count, "way": "edge", "patience_ms": _LONG_MS}
    return mesh.start(_TARGET, exactly=1, ends_last=1, **sizes, **stop, **options)


@pytest.mark.exclusive  # TCP's memory is the machine's
@pytest.mark.parametrize(
    ("path", "direction"),
    [
        ("full", "up"),
        ("local", "down"),
        pytest.param("full", "down", marks=pytest.mark.soak),
        pytest.param("local", "up", marks=pytest.mark.soak),
    ],
)
def test_readers_that_stop_when_tcp_memory_is_used_up(
    little_tcp_memory: int, traffic: Path, tmp_path: Path, path: str, direction: str
) -> None:
    """The kernel drops then, and refuses what nothing would announce to be possible again."""
    count = 100
    with _patient_mesh(traffic, tmp_path, path) as made:
        client = _start_many(made, direction, count, 2 * _MIB, 1000)
        eventually(lambda: _tcp_memory() >= little_tcp_memory, "TCP's memory is used up")
        assert check(client.wait()) == {"complete": count}
        assert check(made.server.wait(count)) == {"complete": count}
        assert Counter(line["path"] for line in made.log(count)) == {path: count}


@pytest.mark.soak
@pytest.mark.exclusive
@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [1000, 2000])  # who together use up a tcp_mem of 2 GiB
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("path", ["full", "local"])
def test_a_thousand_readers_that_stop(
    traffic: Path, tmp_path: Path, path: str, direction: str, count: int
) -> None:
    with _patient_mesh(traffic, tmp_path, path) as made:
        before = _tcp_memory()
        client = _start_many(made, direction, count, 6 * _MIB, _LONG_STOP_MS)
        sender, reader = client, made.server.running
        if direction == "down":
            sender, reader = reader, sender
        # The last ones may get nothing to stop at before the first ones read again.
        eventually(lambda: reader.stopped >= count // 2, "half of the readers stop")
        _watch_cpu(made, sender.process.pid, _LONG_STOP_MS)
        _watch_memory(before + count * 4 * _MIB)
        assert check(client.wait(200)) == {"complete": count}
        assert Counter(line["path"] for line in made.log(count)) == {path: count}
