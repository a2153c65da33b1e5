"""The sidecar dies or stands still under load: what the clients see is what `when_away` says."""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import psutil
import pytest

from pysidecar.dataplane import lib
from pysidecar.testing import Sidecar
from tests.interop import servers
from tests.interop.clients import Compiled
from tests.interop.servers import plain_environment
from tests.waiting import eventually

pytestmark = [pytest.mark.exclusive, pytest.mark.timeout(240)]

_SERVERS = ["127.0.0.1", *(f"127.0.1.{i}" for i in range(1, 4))]
_THREADS = 4
# Seconds without a sign of life after which the sidecar counts as away.
_STALE_AFTER = lib.MOSNHOOK_STALE_AFTER_MS / 1000
# For a machine that does other things as well.
_MARGIN = 1.5
_ENOUGH = 50


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One connect; times in seconds of `time.monotonic`."""

    started: float
    took: float
    error: int
    exchanged: bool

    @property
    def ended(self) -> float:
        return self.started + self.took

    @property
    def good(self) -> bool:
        return self.error == 0 and self.exchanged


class _Probe:
    """A hooked program that connects all the time, in several threads."""

    def __init__(self, sidecar: Sidecar, load: Path, way: str, port: int, output: Path) -> None:
        self.way = way
        self._output = output
        command: list[str | Path] = [load, "probe", way, str(_THREADS), str(port), *_SERVERS]
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env=plain_environment(**sidecar.environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
            )

    def attempts(self, since: float = 0.0) -> list[_Attempt]:
        """Those that ended so far, of those that started at `since` or later."""
        attempts = []
        for line in self._output.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # else it is just being written
                started, took, error, exchanged = map(int, line.split())
                attempts.append(_Attempt(started / 1000, took / 1000, error, exchanged == 1))
        return [attempt for attempt in attempts if attempt.started >= since]

    def wait_for(
        self, count: int, since: float, fits: Callable[[_Attempt], bool] = lambda _: True
    ) -> None:
        """Until `count` attempts that started at `since` or later fit."""

        def enough() -> bool:
            assert self._process.poll() is None
            return sum(map(fits, self.attempts(since))) >= count

        eventually(
            enough,
            lambda: f"{count} such attempts, {self.way}, since {since}: {self.attempts(since)}",
        )

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def _now() -> float:
    """A moment as the probes see it, who count in whole milliseconds."""
    return int(time.monotonic() * 1000 + 1) / 1000


@pytest.fixture(scope="module")
def echo_port(tmp_path_factory: pytest.TempPathFactory, compiled: Compiled) -> Iterator[int]:
    log = tmp_path_factory.mktemp("echo") / "log"
    with servers.echo(compiled("load"), _SERVERS, log) as port:
        yield port


class _Scene:
    """A sidecar with load on it: `_THREADS` clients that block and as many that poll."""

    def __init__(self, sidecar: Sidecar, load: Path, port: int, directory: Path) -> None:
        self.sidecar = sidecar
        self._load, self._port, self._directory = load, port, directory
        self._fresh = psutil.Process(sidecar.pid).num_fds()
        self.probes: list[_Probe] = []
        self.start_probes()

    def start_probes(self) -> list[_Probe]:
        """One of each way; what they do later is also checked with the others."""
        new = [
            _Probe(self.sidecar, self._load, way, self._port, self._directory / f"{way}-{number}")
            for number, way in enumerate(("blocking", "polling"), len(self.probes))
        ]
        self.probes += new
        return new

    def wait_for_traffic(self, since: float) -> None:
        """Until every probe gets through, and through the sidecar that runs now."""
        for probe in self.probes:
            probe.wait_for(_ENOUGH, since, lambda attempt: attempt.good)
        clocks = time.time() - time.monotonic()
        self.sidecar.wait_for_connection(
            matching=lambda connection: connection.time.timestamp() - clocks >= since
        )

    def end(self) -> None:
        for probe in self.probes:
            probe.end()

    def check_nothing_left(self) -> None:
        """When the clients are gone the sidecar has no connection, and only its own descriptors."""
        self.end()

        def idle() -> bool:
            return all(connection.closed for connection in self.sidecar.connections())

        eventually(idle, "the connections of ended clients are closed")
        held = psutil.Process(self.sidecar.pid).num_fds()
        assert held <= self._fresh + 2, "descriptors are left over"  # the access log may be one


@pytest.fixture
def scene(
    sidecar_factory: Callable[..., Sidecar],
    transport: str,
    compiled: Compiled,
    echo_port: int,
    tmp_path: Path,
) -> Iterator[Callable[[str], _Scene]]:
    with ExitStack() as stack:

        def start(when_away: str) -> _Scene:
            settings = {"outbound": {"transport": transport, "when_away": when_away}}
            scene = _Scene(sidecar_factory(settings), compiled("load"), echo_port, tmp_path)
            stack.callback(scene.end)
            scene.wait_for_traffic(since=0.0)
            assert all(attempt.good for probe in scene.probes for attempt in probe.attempts())
            return scene

        yield start


def _is_refused(attempt: _Attempt) -> bool:
    return attempt.error == errno.ECONNREFUSED


def _is_good(attempt: _Attempt) -> bool:
    return attempt.good


def _each_pair(way: int) -> pytest.MarkDecorator:
    """Each two of transport, `when_away` and way to be away; the combinations that are left are
    for `make soak`."""
    found = product(
        enumerate(["unix", "header"]),
        enumerate([("refuse", _is_refused), ("direct", _is_good)]),
    )
    return pytest.mark.parametrize(
        ("transport", "when_away", "expected"),
        [
            pytest.param(transport, *wanted, marks=[pytest.mark.soak] if (i + j + way) % 2 else [])
            for (i, transport), (j, wanted) in found
        ],
        scope="session",
    )


# ---- kill -9 ----


@_each_pair(0)
def test_a_killed_sidecar(
    scene: Callable[[str], _Scene], when_away: str, expected: Callable[[_Attempt], bool]
) -> None:
    load = scene(when_away)
    load.sidecar.kill()
    dead = _now()
    for probe in load.probes:
        probe.wait_for(_ENOUGH, dead)
        assert all(map(expected, probe.attempts(dead)))

    load.sidecar.start()
    load.wait_for_traffic(_now())
    for probe in load.probes:
        # Nobody waits long, not even who asked in the moment of death.
        assert all(attempt.took < _STALE_AFTER + _MARGIN for attempt in probe.attempts())
        assert all(attempt.took < _MARGIN for attempt in probe.attempts(dead))
        if when_away == "direct":  # which nothing interrupts, the restart included
            assert all(map(_is_good, probe.attempts(dead)))
    load.check_nothing_left()


def test_a_killed_sidecar_is_waited_for(scene: Callable[[str], _Scene]) -> None:
    load = scene("wait:15s")
    load.sidecar.kill()
    dead = _now()
    load.sidecar.start()
    back = _now()
    load.wait_for_traffic(back)
    for probe in load.probes:
        waited = probe.attempts(dead)
        assert all(map(_is_good, waited)), "a client that may wait must not see the restart"
        assert all(attempt.ended < back + _MARGIN for attempt in waited if attempt.started < back)
    load.check_nothing_left()


def test_waiting_ends_when_the_time_is_over(scene: Callable[[str], _Scene]) -> None:
    wait = 1.0
    load = scene(f"wait:{wait:g}s")
    load.sidecar.kill()
    dead = _now()
    for probe in load.probes:
        probe.wait_for(2 * _THREADS, dead)
        for attempt in probe.attempts(dead):
            assert _is_refused(attempt)
            assert wait - 0.1 <= attempt.took < wait + _MARGIN
    load.sidecar.start()
    load.wait_for_traffic(_now())
    load.check_nothing_left()


# ---- SIGSTOP ----


@_each_pair(1)
def test_a_stopped_sidecar(
    scene: Callable[[str], _Scene], when_away: str, expected: Callable[[_Attempt], bool]
) -> None:
    load = scene(when_away)
    stopped = _now()
    load.sidecar.pause()
    # By now it is known to be away; who came before may still wait for a sign of life.
    known = stopped + _STALE_AFTER + 0.2
    eventually(lambda: _now() > known, "the sign of life is old")
    for probe in load.start_probes():
        probe.wait_for(_ENOUGH, known)
        assert all(map(expected, probe.attempts(known)))

    load.sidecar.resume()
    back = _now()
    load.wait_for_traffic(back)
    for probe in load.probes:
        for attempt in probe.attempts():
            if attempt.started >= known or probe.way == "blocking":
                assert attempt.took < _STALE_AFTER + _MARGIN
            else:
                # A polling client that asked a sidecar which seemed alive waits, as it would for a
                # distant server; its patience is its own. But not longer than the standstill.
                assert attempt.ended < back + _MARGIN or attempt.took < _MARGIN
    load.check_nothing_left()


def test_a_stopped_sidecar_is_waited_for(scene: Callable[[str], _Scene]) -> None:
    load = scene("wait:15s")
    stopped = _now()
    load.sidecar.pause()
    known = stopped + _STALE_AFTER + 0.2
    eventually(lambda: _now() > known, "the sign of life is old")
    load.start_probes()

    load.sidecar.resume()
    back = _now()
    load.wait_for_traffic(back)
    for probe in load.probes:
        assert all(map(_is_good, probe.attempts())), "a client must not see the standstill"
        for attempt in probe.attempts():
            assert attempt.ended < back + _MARGIN or attempt.took < _MARGIN
    load.check_nothing_left()
