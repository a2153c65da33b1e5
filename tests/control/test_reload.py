"""Reloads: one after the other, beside everything else, whatever their number and size."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.background import in_background, release, without_collector
from pysidecar.config import load
from pysidecar.destinations import PortRange, without
from pysidecar.interception.hook import ConnectHook
from pysidecar.routing.services import ServiceNumbers
from pysidecar.sidecar import make_tables
from tests.control.conftest import RunningSidecar, exchange
from tests.launching import Launched
from tests.waiting import PATIENCE, eventually


class Gate:
    """A configuration file that can be read when the test says so: a FIFO."""

    def __init__(self, sidecar: RunningSidecar) -> None:
        self._path = sidecar.config_file
        self._text = self._path.read_text()
        self._path.unlink()
        os.mkfifo(self._path)

    def _writer(self) -> int | None:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None

    def is_awaited(self) -> bool:
        """Whether a reload has begun."""
        writer = self._writer()
        if writer is not None:
            os.close(writer)
        return writer is not None

    def let_read(self, timeout: str) -> None:
        """One reload goes on, with this ``connect_timeout``."""
        writer = eventually(self._writer)
        os.write(writer, f"{self._text}  connect_timeout: {timeout}\n".encode())
        os.close(writer)


class LateSidecar(RunningSidecar):
    """Is there before it has read its configuration."""

    def start(self) -> None:
        self.gate = Gate(self)
        Launched.start(self)

    def wait(self) -> None:
        """Until it serves."""
        super()._find_addresses()


def connect_timeout(sidecar: RunningSidecar) -> str:
    return str(sidecar.get_json("/config")["outbound"]["connect_timeout"])


def test_signals_during_a_reload_make_one_more(sidecar: RunningSidecar, echo: Address) -> None:
    gate = Gate(sidecar)
    sidecar.process.send_signal(signal.SIGHUP)
    for _ in range(50):
        assert sidecar.get("/ready")[0] == 200
        sidecar.process.send_signal(signal.SIGHUP)
    with sidecar.connect(echo) as client:
        assert exchange(client, b"meanwhile") == b"meanwhile"
    gate.let_read("7s")
    eventually(lambda: connect_timeout(sidecar) == "7s")
    gate.let_read("8s")
    eventually(lambda: connect_timeout(sidecar) == "8s")
    assert 'pysidecar_reloads_total{result="applied"} 2.0' in sidecar.get("/metrics")[1]
    assert sidecar.log.count("reloaded") == 2


def test_a_signal_while_it_starts_is_not_lost(tmp_path: Path) -> None:
    with LateSidecar(tmp_path) as sidecar:
        eventually(sidecar.gate.is_awaited)
        sidecar.process.send_signal(signal.SIGHUP)
        sidecar.gate.let_read("7s")
        sidecar.wait()
        sidecar.gate.let_read("8s")
        eventually(lambda: connect_timeout(sidecar) == "8s")
        assert sidecar.log.count("reloaded") == 1


@pytest.mark.parametrize("signals", [1, 2])
def test_a_reload_that_does_not_end_does_not_keep_the_sidecar(
    sidecar: RunningSidecar, signals: int
) -> None:
    Gate(sidecar)
    sidecar.process.send_signal(signal.SIGHUP)
    for _ in range(signals):
        assert sidecar.get("/ready")[0] == 200
        sidecar.process.send_signal(signal.SIGHUP)
    assert sidecar.stop() == 0
    assert list(sidecar.control_socket.parent.iterdir()) == []


def _many_routes(tmp_path: Path, count: int) -> Path:
    path = tmp_path / "many.yaml"
    routes = "".join(
        f"    - match: {{destination: 10.0.{number >> 8}.{number & 255}, ports: {1 + number}}}\n"
        f"      endpoints: [127.0.0.2:{1 + number}]\n"
        for number in range(count)
    )
    path.write_text(f"outbound:\n  routes:\n{routes}")
    return path


def test_reading_very_many_routes_leaves_others_their_turns(tmp_path: Path) -> None:
    """Measured in the reading thread's own processor time, between two turns of this one: so it
    says the same on a busy machine."""
    path = _many_routes(tmp_path, 10_000)

    def read() -> None:
        with without_collector():
            config = load(path)
            ConnectHook(config).check(config)
            make_tables(config, ServiceNumbers())
        routes: list[object] = [*config.outbound.routes]
        del config
        release(routes)

    stretches = []
    thread = threading.Thread(target=read)
    thread.start()
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    before = 0.0
    while thread.is_alive():
        time.sleep(0.0005)
        try:
            now = time.clock_gettime(clock)
        except OSError:  # it has ended
            break
        stretches.append(now - before)
        before = now
    thread.join()
    assert before > 0
    assert max(stretches) < before / 5, sorted(stretches)[-5:]


def test_ranges_of_ports_cost_what_they_are() -> None:
    def cost(count: int) -> float:
        holes = [PortRange.single(port) for port in range(1, 10 * count, 10)]
        start = time.thread_time()
        kept = without([PortRange(1, 0xFFFF)], holes)
        assert len(kept) == count
        return time.thread_time() - start

    few, many = (min(cost(count) for _ in range(5)) for count in (400, 6400))
    assert many < 100 * few, "16 times as many, and not 256 times the cost"


def test_what_is_done_in_the_background_can_fail_and_be_given_up() -> None:
    async def run() -> None:
        with pytest.raises(ZeroDivisionError):
            await in_background(lambda: 1 // 0)
        held = threading.Event()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await in_background(lambda: held.wait(PATIENCE))
        held.set()
        assert await in_background(lambda: 7) == 7

    asyncio.run(run())
