"""A hundred services that change at random, and what dies meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pysidecar.registry.client import LONGEST_PAUSE, SETTLE_TIME
from tests.interop.servers import free_port
from tests.takeover.churn import HEARD, World, world
from tests.takeover.test_flow import Pod, _registry
from tests.waiting import PATIENCE

_SERVICES = 100
_BACK = 10.0  # seconds within which all is there again when the registry is back
# And what is gone is not any more: it stays for as long as its own sidecar may take to be back.
_GONE = LONGEST_PAUSE + SETTLE_TIME + HEARD


class Registry:
    """A process that is killed, stopped, and started with nothing."""

    def __init__(self, directory: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._state = directory / "registry.db"
        self._stack = ExitStack()
        self._start()

    def _start(self) -> None:
        self._process = self._stack.enter_context(_registry(self.address, self._state))

    def kill(self) -> None:
        self._stack.close()

    def start(self, *, empty: bool) -> None:
        for suffix in ("", "-wal", "-shm") if empty else ():
            with suppress(FileNotFoundError):
                Path(f"{self._state}{suffix}").unlink()
        self._start()

    def pause(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def pods(registry: Registry) -> Iterator[list[Pod]]:
    pair = [Pod(registry.address) for _ in range(2)]
    with pair[0].sidecar, pair[1].sidecar:
        yield pair


def _change(made: World, seconds: float, pause: float = 0.01) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        made.step()
        time.sleep(pause)


@pytest.mark.parametrize(
    ("seconds", "patience"),
    [
        pytest.param(4, PATIENCE, id="short"),
        pytest.param(60, HEARD, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
    ],
)
def test_services_that_change_are_known_as_they_are(
    pods: list[Pod], seconds: float, patience: float
) -> None:
    with world(pods, _SERVICES, seed=1) as made:
        made.start_calls()
        _change(made, seconds)
        made.settle()
        if patience == HEARD:
            time.sleep(HEARD)  # of quiet: the promise itself
            patience = 0
        made.check(patience)
        assert made.calls.answered > 10 * seconds


def _kill_sidecars(made: World, registry: Registry) -> None:
    for pod in made.random.sample(list(made.pods), 2):
        _wait_until_written(made)
        pod.sidecar.kill()
        pod.sidecar.start()


def _wait_until_written(made: World) -> None:
    made.settle()
    time.sleep(1.5)


def _kill_registry(made: World, registry: Registry) -> None:
    registry.kill()
    _change(made, 1)
    registry.start(empty=False)


def _empty_registry(made: World, registry: Registry) -> None:
    registry.kill()
    _change(made, 1)
    registry.start(empty=True)


def _pause_registry(made: World, registry: Registry) -> None:
    registry.pause()
    _change(made, 1)
    registry.resume()


_FAULTS: list[Callable[[World, Registry], None]] = [
    _kill_sidecars,
    _kill_registry,
    _empty_registry,
    _pause_registry,
]


@pytest.mark.parametrize(
    ("rounds", "patience"),
    [
        pytest.param(1, PATIENCE, id="short"),
        pytest.param(6, _GONE, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_whatever_dies_meanwhile_all_is_known_again(
    pods: list[Pod], registry: Registry, rounds: int, patience: float
) -> None:
    with world(pods, _SERVICES, seed=2) as made:
        made.start_calls(2)
        faults = _FAULTS if rounds > 1 else [_kill_sidecars, _empty_registry, _pause_registry]
        for _ in range(rounds):
            for fault in made.random.sample(faults, len(faults)):
                _change(made, 0.7)
                made.disturbed = float("inf")
                fault(made, registry)
                made.disturbed = time.monotonic()
                if rounds > 1:
                    made.check_back(_BACK)
                    made.check(patience)
        made.check(patience)
