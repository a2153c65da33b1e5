"""Many connections: at one time, and one after the other."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pysidecar.testing import Sidecar
from tests.interop import servers
from tests.interop.clients import Compiled
from tests.interop.servers import plain_environment
from tests.waiting import eventually

pytestmark = [pytest.mark.exclusive, pytest.mark.timeout(240)]

# Several, so that no pair of addresses runs out of ports, TIME_WAIT included.
_SERVERS = ["127.0.0.1", *(f"127.0.1.{i}" for i in range(1, 8))]
_PATIENCE = 120.0

_CONCURRENT = 10_000
_FDS_PER_CONNECTION = 2  # the application's side and the upstream's
_SPARE_FDS = 900  # the control plane's, and so many left as make the sidecar full
_MAX_BYTES_PER_CONNECTION = 1024  # of the sidecar's own memory, Python's part included

_WINDOW = 64
_ROUNDS = 4
_MOST_ROUNDS = 16  # the more workers there are, the longer their pools and arenas take to fill
_MAX_LEAK = 4  # bytes for each connection: even the smallest forgotten allocation is more
_MAX_GROWTH = 8 << 20  # bytes in all


@pytest.fixture(scope="module")
def echo_port(tmp_path_factory: pytest.TempPathFactory, compiled: Compiled) -> Iterator[int]:
    log = tmp_path_factory.mktemp("echo") / "log"
    with servers.echo(compiled("load"), _SERVERS, log) as port:
        yield port


@pytest.fixture
def sidecar(sidecar_factory: Callable[..., Sidecar], transport: str) -> Sidecar:
    return sidecar_factory({"outbound": {"transport": transport}})


class _Load:
    """A `load` under the hook, and what it printed."""

    def __init__(self, sidecar: Sidecar, output: Path, command: list[str | Path]) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                env=plain_environment(**sidecar.environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, line: str) -> None:
        def printed_or_gone() -> bool:
            gone = self.process.poll() is not None
            printed = line in self._output.read_text().splitlines()
            assert printed or not gone, self._output.read_text()
            return printed

        eventually(printed_or_gone, f"{line!r} is printed", _PATIENCE)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def load(sidecar: Sidecar, compiled: Compiled, tmp_path: Path) -> Iterator[Callable[..., _Load]]:
    started: list[_Load] = []

    def start(*words: str) -> _Load:
        output = tmp_path / f"load-{len(started)}"
        started.append(_Load(sidecar, output, [compiled("load"), *words]))
        return started[-1]

    yield start
    for one in started:
        one.end()


def _used_bytes(process: psutil.Process) -> int:
    """Memory that belongs to this process alone, so no file or library counts."""
    return int(process.memory_full_info().uss)


def _recorded(sidecar: Sidecar) -> int:
    return sidecar.access_log.count("\n")


def _open(sidecar: Sidecar) -> int:
    return sum(not connection.closed for connection in sidecar.connections())


def _attainable() -> int:
    """As many connections as one process here may have descriptors for; a warning if fewer."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    attainable = min(_CONCURRENT, (limit - _SPARE_FDS) // _FDS_PER_CONNECTION)
    if attainable < _CONCURRENT:
        needed = _CONCURRENT * _FDS_PER_CONNECTION + _SPARE_FDS
        warnings.warn(
            f"testing with {attainable} concurrent connections instead of {_CONCURRENT}: the hard "
            f"limit of open files is {limit}; {needed} are needed (ulimit -Hn)",
            stacklevel=2,
        )
    return attainable


@pytest.mark.filterwarnings("default:testing with")
def test_ten_thousand_connections_at_one_time(
    sidecar: Sidecar, echo_port: int, load: Callable[..., _Load]
) -> None:
    count = _attainable()
    process = psutil.Process(sidecar.pid)
    warm_up = load("churn", "2000", "256", str(echo_port), *_SERVERS)
    warm_up.wait_for("churned 2000 failed 0")
    eventually(lambda: _recorded(sidecar) == 2000, "the warm-up is recorded")
    fds_before, bytes_before = process.num_fds(), _used_bytes(process)

    holder = load("hold", str(count), str(echo_port), *_SERVERS)
    holder.wait_for(f"holding {count}")
    per_connection = (_used_bytes(process) - bytes_before) / count
    assert per_connection < _MAX_BYTES_PER_CONNECTION
    assert _open(sidecar) == count
    # They are alive, all of them, and take no more memory for having been used.
    holder.process.send_signal(signal.SIGUSR1)
    holder.wait_for(f"exchanged {count}")

    holder.end()
    eventually(lambda: _recorded(sidecar) == 2000 + count, "all are closed", _PATIENCE)
    eventually(lambda: process.num_fds() <= fds_before, "no descriptor is left over")
    assert _open(sidecar) == 0


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_connections_one_after_the_other_leave_nothing_behind(
    sidecar: Sidecar, echo_port: int, load: Callable[..., _Load], count: int
) -> None:
    process = psutil.Process(sidecar.pid)

    def churn(count: int) -> tuple[int, int]:
        """Descriptors and bytes that the sidecar has when all is over."""
        before = _recorded(sidecar)
        load("churn", str(count), str(_WINDOW), str(echo_port), *_SERVERS).wait_for(
            f"churned {count} failed 0"
        )
        eventually(lambda: _recorded(sidecar) == before + count, "all are recorded", _PATIENCE)
        return process.num_fds(), _used_bytes(process)

    # Enough for queues and allocators to have grown to what this load needs.
    fds_before, bytes_before = churn(count // 2)
    started = time.monotonic()
    growth: list[int] = []

    def quiet() -> bool:
        """A burst may raise what the allocator keeps; a leak shows in every round."""
        return min(growth) < _MAX_LEAK * count // _ROUNDS

    while len(growth) < _ROUNDS or (not quiet() and len(growth) < _MOST_ROUNDS):
        fds_after, bytes_after = churn(count // _ROUNDS)
        assert fds_after <= fds_before
        growth.append(bytes_after - bytes_before)
        bytes_before = bytes_after
    assert quiet(), growth
    assert sum(growth) < _MAX_GROWTH, growth
    assert time.monotonic() - started < _PATIENCE
