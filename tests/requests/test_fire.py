"""Five servers of which at random one is killed, stopped, slow, resetting or busy, under load: each
answer is its own request's, nothing is lost, and the mechanisms keep failures from the clients.

``FIRE_SECONDS=120 pytest -m soak tests/requests/test_fire.py -s`` prints the figures of
docs/requests.md."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from pysidecar.dataplane import Timeouts
from tests.requests.configured import Configured
from tests.requests.frames import BOLT, DUBBO, Answer, Request, Wire

SECONDS = float(os.environ.get("FIRE_SECONDS", "120"))
SHORT = 2.5
SERVERS = 5
CLIENTS = 16
WIRES = {"bolt": BOLT, "dubbo": DUBBO}
MECHANISMS = {
    "none": ("", ""),
    "retries": (
        "retries: {attempts: 3, on: [gateway_error, refused_stream], per_try_timeout: 250ms,"
        " backoff: {base: 5ms}}, circuit_breaker: {retries: 16}",
        "idempotent: true",
    ),
    "retries, hedging": (
        "retries: {attempts: 3, on: [gateway_error, refused_stream], per_try_timeout: 250ms,"
        " backoff: {base: 5ms}}, circuit_breaker: {retries: 16}",
        "idempotent: true, hedge: {after: 100ms}",
    ),
}


class Server:
    """One of the five."""

    def __init__(self, protocol: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._protocol = protocol
        self.start()

    def start(self) -> None:
        """And waits until it listens."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.requests.fire_server", self._protocol, str(self.port)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "listens\n"

    def tell(self, way: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{way}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def misbehave(server: Server, way: str, seconds: float) -> None:
    """For so long."""
    if way == "killed":
        server.end()
        time.sleep(seconds)  # it is away for a time
        server.start()
    elif way == "stopped":
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)  # likewise
        server.process.send_signal(signal.SIGCONT)
    else:
        server.tell(way)
        time.sleep(seconds)  # likewise
        server.tell("answer")


@contextlib.contextmanager
def fire(protocol: str) -> Iterator[list[Server]]:
    """One of them is always in trouble."""
    servers = [Server(protocol) for _ in range(SERVERS)]
    over = threading.Event()

    def burn() -> None:
        ways = itertools.cycle(("killed", "stopped", "slow", "reset", "busy"))
        while not over.is_set():
            misbehave(random.choice(servers), next(ways), random.uniform(0.2, 0.6))

    burning = threading.Thread(target=burn)
    burning.start()
    try:
        yield servers
    finally:
        over.set()
        burning.join()
        for server in servers:
            server.end()


# ---- clients ----


@dataclass
class Load:
    """What clients saw."""

    deadline: float
    good: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Of failures."""
        return self.failures.total() / max(1, self.good + self.failures.total())

    def note(self, began: float, failure: str | None) -> None:
        self.latencies.append(time.monotonic() - began)
        if failure is None:
            self.good += 1
        else:
            self.failures[failure] += 1


async def ask_http(load: Load, port: int, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i in itertools.count():
        if time.monotonic() > load.deadline:
            break
        nonce = b"/%d-%d" % (number, i)
        body = nonce * (i % 40) if i % 3 == 0 else b""
        began = time.monotonic()
        writer.write(
            b"PUT %b HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n%b"
            % (nonce, len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        said = await reader.readexactly(length)
        status = int(head.split()[1])
        if status == 200:
            assert said == nonce + body, (nonce, said)
        load.note(began, None if status == 200 else str(status))
        if b"connection: close" in head.lower():
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


async def ask_frames(load: Load, wire: Wire, port: int, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i in itertools.count():
        if time.monotonic() > load.deadline:
            break
        content = b"%d-%d" % (number, i) * (1 + i % 40)
        began = time.monotonic()
        writer.write(wire.request(Request(i & 0xFFFF, "method", content)))
        found = await wire.read_from(reader)
        assert isinstance(found, Answer)
        assert found.id == i & 0xFFFF
        if found.status == wire.good:
            assert found.content == content
        load.note(began, None if found.status == wire.good else str(found.status))
    writer.close()


def burn(protocol: str, mechanisms: str, seconds: float) -> tuple[Load, dict[str, int]]:
    """Sends requests for so long. What came of them, and their flags."""
    keys, rule = MECHANISMS[mechanisms]
    with fire(protocol) as servers:
        addresses = ", ".join(f"'127.0.0.1:{server.port}'" for server in servers)
        config = (
            f"services: {{web: {{protocol: {protocol}, endpoints: [{addresses}], timeout: 2s,"
            f" {keys}}}}}\nrequests: [{{services: web, {rule}}}]\n"
            "listeners: [{listen: '127.0.0.1:0'}]\n"
        )
        with Configured(config, timeouts=Timeouts(connect=1, ejection=1)) as plane:
            load = Load(time.monotonic() + seconds)
            memory = psutil.Process().memory_info().rss

            async def all_of_them() -> None:
                port = plane.address.port
                if protocol == "http":
                    asks = [ask_http(load, port, number) for number in range(CLIENTS)]
                else:
                    wire = WIRES[protocol]
                    asks = [ask_frames(load, wire, port, number) for number in range(CLIENTS)]
                await asyncio.gather(*asks)

            asyncio.run(all_of_them())
            tally = plane.service("web").tally
            flags = plane.flags("web")
            assert tally.requests == load.good + load.failures.total()
            grown = psutil.Process().memory_info().rss - memory - 64 * len(load.latencies)
    assert grown < 32 << 20, f"{grown >> 20} MiB more"
    print_row(protocol, mechanisms, load, tally.attempts)
    return load, flags


def print_row(protocol: str, mechanisms: str, load: Load, attempts: int) -> None:
    count = len(load.latencies)
    p99 = sorted(load.latencies)[count * 99 // 100] * 1000
    print(
        f"| {protocol} | {mechanisms} | {count:,} | {load.rate:.2%} | {attempts / count:.3f} |"
        f" {p99:.0f} ms |"
    )


@pytest.mark.parametrize("protocol", ["http", "bolt", "dubbo"])
def test_clients_see_little_of_it(protocol: str) -> None:
    load, flags = burn(protocol, "retries, hedging", SHORT)
    assert load.good > 100
    assert load.rate < 0.05, load.failures
    assert flags["retried"] + flags["hedged"] > 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("protocol", ["http", "bolt", "dubbo"])
def test_each_mechanism_makes_a_difference(protocol: str) -> None:
    rates = [burn(protocol, mechanisms, SECONDS)[0].rate for mechanisms in MECHANISMS]
    assert rates[0] > 0.005
    assert rates[1] < rates[0] / 5
    assert rates[2] < rates[0] / 5
