"""Requests of hooked applications, whose connections are accelerated to the sidecar and back."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pysidecar.testing import Sidecar
from tests.acceleration.http_server import http_server
from tests.acceleration.support import AT_ONCE, NEVER, V4, kernel_objects, some_slots, windows
from tests.interop.servers import plain_environment
from tests.waiting import eventually

_PORT = 80
_TIMEOUTS = {"blocking": "none", "not blocking": "30"}


class Client:
    """A process of ``requests_client.py``."""

    def __init__(self, sidecar: Sidecar, work: str, timeout: str = "30") -> None:
        seed = random.getrandbits(32)
        print(f"{work}: seed {seed}")  # for the report of a failure
        program = Path(__file__).with_name("requests_client.py")
        self.process = subprocess.Popen(
            [sys.executable, program, V4, str(_PORT), work, str(seed), timeout],
            env=plain_environment(**sidecar.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def says(self, word: str) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == f"{word}\n", line + self.process.stdout.read()

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def succeeds(self) -> None:
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, output

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Requests:
    """A sidecar for requests to one server, and clients of it."""

    def __init__(self, sidecar: Sidecar, may_answer: threading.Event) -> None:
        self.sidecar = sidecar
        self.may_answer = may_answer
        self.clients: list[Client] = []

    def start(self, work: str, **options: str) -> Client:
        self.clients.append(Client(self.sidecar, work, **options))
        return self.clients[-1]

    def end(self) -> None:
        for client in self.clients:
            client.end()

    @property
    def paths(self) -> set[str]:
        """Of open connections."""
        return {one.path for one in self.sidecar.connections() if not one.closed}

    def logged_paths(self, count: int) -> set[str]:
        """Of connections that have ended."""

        def logged() -> list[dict[str, Any]]:
            lines = map(json.loads, self.sidecar.access_log.splitlines())
            return [line for line in lines if line.get("type") != "request"]

        eventually(lambda: len(logged()) == count, "they are logged")
        return {line["path"] for line in logged()}


@contextmanager
def _requests(path: str, transport: str = "unix", **acceleration: Any) -> Iterator[Requests]:
    with http_server() as (port, may_answer), ExitStack() as stack:
        route = {"match": {"destination": V4, "ports": _PORT}}
        settings = {
            "services": {"far": {"protocol": "http", "endpoints": [f"127.0.0.1:{port}"]}},
            "requests": [{"services": "far"}],
            "outbound": {
                "transport": transport,
                "routes": [{**route, "action": "requests", "protocol": "http"}],
            },
            "acceleration": {
                "mode": "require",
                "path": path,
                "receive": True,
                "blocking_sockets": True,
                **AT_ONCE,
                **acceleration,
            },
            "drain_timeout": "10s",
        }
        made = Requests(stack.enter_context(Sidecar(settings)), may_answer)
        stack.callback(made.end)
        yield made


@pytest.fixture(scope="module")
def requests() -> Iterator[Callable[[str], Requests]]:
    """By path; a start takes longer than most of what is tested."""
    with ExitStack() as stack:
        made: dict[str, Requests] = {}

        def find(path: str) -> Requests:
            if path not in made:
                made[path] = stack.enter_context(_requests(path))
            return made[path]

        yield find


@pytest.mark.parametrize("kind", _TIMEOUTS)
@pytest.mark.parametrize("work", ["keep_alive", "slow_reader", "slow_server", "pipelined"])
def test_every_answer_is_whole(requests: Callable[[str], Requests], work: str, kind: str) -> None:
    running = requests("local")
    earlier = len(running.clients)
    clients = [running.start(work, timeout=_TIMEOUTS[kind]) for _ in range(3)]
    for client in clients:
        client.succeeds()
    assert running.logged_paths(earlier + 3) == {"local"}


@pytest.mark.parametrize("kind", _TIMEOUTS)
def test_connection_that_becomes_another_protocol_stays_accelerated(
    requests: Callable[[str], Requests], kind: str
) -> None:
    running = requests("local")
    earlier = len(running.clients)
    client = running.start("upgrade", timeout=_TIMEOUTS[kind])
    client.says("upgraded")
    assert running.paths == {"local"}
    client.goes_on()
    client.succeeds()
    assert running.logged_paths(earlier + 1) == {"local"}


def test_requests_are_accelerated_locally_where_full_is_configured() -> None:
    """A request goes where the sidecar decides, so it has to be seen there."""
    slots = some_slots()
    with _requests("full", connections=slots) as running:
        running.start("keep_alive").succeeds()
        upgraded = running.start("upgrade")
        upgraded.says("upgraded")
        assert len(windows(slots)) == 1
        upgraded.goes_on()
        upgraded.succeeds()
        assert running.logged_paths(2) == {"local"}
        assert windows(slots) == []


def test_connection_that_pays_within_a_body_is_accelerated_after_it() -> None:
    pays = {"after_bytes": 1 << 20, "after_round_trips": NEVER}
    with _requests("local", transport="header", **pays) as running:
        running.start("slow_reader").succeeds()
        assert running.logged_paths(1) == {"local"}


def test_killed_sidecar_breaks_answers_and_ends_none() -> None:
    slots = some_slots()
    with _requests("local", connections=slots) as running:
        clients = [running.start("interrupted", timeout=_TIMEOUTS[kind]) for kind in _TIMEOUTS]
        for client in clients:
            client.says("receives")
        assert running.paths == {"local"}
        assert kernel_objects(slots)
        running.sidecar.kill()
        for client in clients:
            client.succeeds()
        eventually(lambda: not kernel_objects(slots), "nothing is left in the kernel")
        running.sidecar.start()


def test_drained_requests_are_answered_to_their_end() -> None:
    slots = some_slots()
    with _requests("local", connections=slots) as running:
        clients = [running.start("late", timeout=_TIMEOUTS[kind]) for kind in _TIMEOUTS]
        for client in clients:
            client.says("asked")
        assert running.paths == {"local"}
        stopping = threading.Thread(target=running.sidecar.stop)
        stopping.start()
        eventually(lambda: "draining" in running.sidecar.log, "the sidecar drains")
        running.may_answer.set()
        for client in clients:
            client.succeeds()
        stopping.join()
        eventually(lambda: not kernel_objects(slots), "nothing is left in the kernel")


@pytest.mark.exclusive  # TCP's memory is the machine's
def test_connections_leave_the_kernel_where_memory_is_short(
    say_whether_memory_is_short: Callable[[bool], None],
) -> None:
    slots = some_slots()
    with _requests("local", connections=slots) as running:
        idle, upgraded = running.start("idle"), running.start("upgrade")
        idle.says("idle")
        upgraded.says("upgraded")
        assert len(windows(slots)) == 2
        say_whether_memory_is_short(True)
        eventually(lambda: windows(slots) == [0, 0], "they begin to leave")
        say_whether_memory_is_short(False)
        eventually(lambda: windows(slots) == [], "they have left")
        idle.goes_on()
        idle.says("idle")
        idle.goes_on()
        upgraded.goes_on()
        idle.succeeds()
        upgraded.succeeds()
