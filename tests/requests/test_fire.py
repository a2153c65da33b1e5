"""Five servers of which at random one is killed, stopped, slow, resetting or busy, under load: each
answer is its own request's, nothing is lost or served twice, memory stays flat, and the mechanisms
keep failures from the clients.

``pytest -m soak -s tests/requests/test_fire.py`` prints the figures of docs/requests.md: two
minutes for each line, or ``FIRE_SECONDS``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pysidecar.config import parse
from pysidecar.dataplane import Timeouts
from pysidecar.health.checks import HealthChecks
from pysidecar.routing.services import checked_services
from tests.ports import free_port
from tests.requests.configured import Configured
from tests.requests.fire_clients import Load, ask_all

SECONDS = float(os.environ.get("FIRE_SECONDS", "120"))
SHORT = 2.5
SERVERS = 5
PROTOCOLS = ("http", "http2", "grpc", "bolt", "dubbo")
TROUBLES = ("killed", "stopped", "slow", "reset", "busy")
MOST_GROWN = 32 << 20


@dataclass(frozen=True)
class Mechanism:
    """What it adds to the service, and to the rule of idempotent requests; ``most`` is the share of
    these that may fail."""

    name: str
    service: tuple[str, ...] = ()
    rule: str = ""
    most: float = 1.0

    def __add__(self, other: Mechanism) -> Mechanism:
        return Mechanism("all", self.service + other.service, self.rule + other.rule, self.most)


NONE = Mechanism("none")
RETRIES = Mechanism(
    "retries",
    (
        "retries: {attempts: 3, on: [gateway_error, refused_stream, UNAVAILABLE],"
        " per_try_timeout: 250ms, backoff: {base: 5ms}}",
    ),
    most=0.01,
)
HEDGING = Mechanism("hedging", rule=", hedge: {after: 100ms}")
OUTLIERS = Mechanism(
    "outlier detection",
    ("outlier_detection: {consecutive_errors: 3, ejection_time: 300ms, max_ejected: 50%}",),
)
CHECKS = Mechanism(
    "health checks",
    (
        "health_check: {interval: 100ms, timeout: 200ms, unhealthy_after: 1, healthy_after: 1,"
        " PATH}",
    ),
)
ALL = RETRIES + HEDGING + OUTLIERS + CHECKS
MECHANISMS = (NONE, RETRIES, HEDGING, OUTLIERS, CHECKS, ALL)

# What differs from protocol to protocol: which requests are idempotent, which status of its own
# says "unavailable", and what a check asks for.
READS = {"grpc": "path_prefix: /fire.Fire/r", "bolt": "method: rcall", "dubbo": "method: rcall"}
UNAVAILABLE = {"grpc": '"14"'}
CHECK_PATHS = {"http": "path: /health", "http2": "path: /health"}


def configuration(protocol: str, mechanism: Mechanism, addresses: list[str]) -> str:
    keys = ", ".join(("circuit_breaker: {retries: 16}", *mechanism.service))
    keys = keys.replace("UNAVAILABLE", UNAVAILABLE.get(protocol, "503"))
    keys = keys.replace(", PATH", f", {CHECK_PATHS[protocol]}" if protocol in CHECK_PATHS else "")
    match = READS.get(protocol, "path_prefix: /r")
    return (
        f"services:\n  web: {{protocol: {protocol}, endpoints: [{', '.join(addresses)}],"
        f" timeout: 2s, {keys}}}\n"
        "requests:\n"
        f"- {{match: {{{match}}}, services: web, idempotent: true{mechanism.rule}}}\n"
        "- {services: web}\n"
        "listeners: [{listen: '127.0.0.1:0'}]\n"
    )


class Server:
    """One of the five."""

    def __init__(self, protocol: str, journal: Path) -> None:
        self.port = free_port()
        self._arguments = (protocol, str(self.port), str(journal))
        self.start()

    def start(self) -> None:
        """And waits until it listens."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.requests.fire_server", *self._arguments],
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
def fire(protocol: str, journal: Path) -> Iterator[list[Server]]:
    """One of them is always in trouble."""
    servers: list[Server] = []
    over = threading.Event()

    def burn() -> None:
        ways = itertools.cycle(TROUBLES)
        while not over.is_set():
            misbehave(random.choice(servers), next(ways), random.uniform(0.2, 0.6))

    burning = threading.Thread(target=burn)
    try:
        servers += [Server(protocol, journal) for _ in range(SERVERS)]
        burning.start()
        yield servers
    finally:
        over.set()
        if burning.is_alive():
            burning.join()
        for server in servers:
            server.end()


# ---- what comes of it ----


@dataclass
class Outcome:
    load: Load
    attempts: int
    flags: dict[str, int]
    grown: int
    """Bytes of memory, from a third of the time on."""

    def row(self, protocol: str, mechanism: str) -> str:
        """Of the table in docs/requests.md."""
        load = self.load
        p99 = sorted(load.latencies)[load.count * 99 // 100] * 1000
        return (
            f"| {protocol} | {mechanism} | {load.count:,} | {load.rate('r'):.2%} |"
            f" {load.rate('w'):.2%} | {self.attempts / load.count:.3f} | {p99:.0f} ms |"
        )


def own_memory(load: Load) -> int:
    """Without what the clients remember."""
    remembered = load.latencies.itemsize * load.count + 64 * len(load.written)
    return int(psutil.Process().memory_info().rss) - remembered


async def ask(plane: Configured, protocol: str, text: str, seconds: float) -> tuple[Load, int]:
    """By all clients, with the health checks that the configuration wants. How much memory has
    grown, too."""
    checks = HealthChecks(plane.data.set_health, most=64)
    checks.set(checked_services(parse(text), plane.numbers))
    load = Load(time.monotonic() + seconds)
    asking = asyncio.create_task(ask_all(protocol, load, plane.address.port))
    await asyncio.wait([asking], timeout=seconds / 3)
    before = own_memory(load)
    await asking
    checks.close()
    return load, own_memory(load) - before


def burn(protocol: str, mechanism: Mechanism, seconds: float, journal: Path) -> Outcome:
    """Sends requests for so long."""
    with fire(protocol, journal) as servers:
        addresses = [f"'127.0.0.1:{server.port}'" for server in servers]
        text = configuration(protocol, mechanism, addresses)
        with Configured(text, timeouts=Timeouts(connect=1, ejection=1)) as plane:
            load, grown = asyncio.run(ask(plane, protocol, text, seconds))
            tally = plane.service("web").tally
            flags = plane.flags("web")
    assert tally.requests == load.count, "each request is answered once"
    check_journal(load, journal)
    return Outcome(load, tally.attempts, flags, grown)


def check_journal(load: Load, journal: Path) -> None:
    """What must not be sent again was served once at most, and once where a client was told so."""
    served = Counter(journal.read_bytes().split(b"\n")[:-1])
    doubled = [nonce for nonce, times in served.items() if times > 1]
    lost = [nonce for nonce in load.written if nonce not in served]
    assert load.written
    assert not doubled
    assert not lost


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_clients_see_little_of_it(protocol: str, tmp_path: Path) -> None:
    outcome = burn(protocol, RETRIES + HEDGING, SHORT, tmp_path / "journal")
    load = outcome.load
    assert load.good["r"] > 100
    assert load.rate("r") < 0.05, load.failures
    assert outcome.flags.get("retried", 0) + outcome.flags.get("hedged", 0) > 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda mechanism: mechanism.name)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_each_mechanism_makes_of_it(
    protocol: str, mechanism: Mechanism, tmp_path: Path
) -> None:
    outcome = burn(protocol, mechanism, SECONDS, tmp_path / "journal")
    print(outcome.row(protocol, mechanism.name), flush=True)
    assert outcome.load.rate("r") <= mechanism.most, outcome.load.failures
    assert outcome.grown < MOST_GROWN, f"{outcome.grown >> 20} MiB more"
    if mechanism is NONE:
        assert outcome.load.rate("r") > 0.005, "this fire is too cold"
