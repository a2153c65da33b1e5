"""``/debug/trace`` and ``pysidecar debug trace``: who sees what, and what readers can do."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pysidecar import admin
from pysidecar.address import Address
from pysidecar.admin import AdminServer, trace
from pysidecar.dataplane import STATIONS, ConnectionRecord, TraceEvent
from tests.control.conftest import RunningSidecar, exchange
from tests.waiting import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {station.name: station for station in STATIONS}


# ---- the page, of a sidecar that is not there ----


class Source:
    """Events as a test makes them."""

    state = "serving"

    def __init__(self) -> None:
        self.on = False
        self.begun = 0
        self.taken = 0
        self.pending: deque[TraceEvent] = deque()
        self.missed = 0
        self.open: list[ConnectionRecord] = []

    def descriptors(self) -> dict[str, str]:
        return {"state": "enough"}

    def trace(self, on: bool) -> None:
        self.on = on
        self.begun += on

    def take_trace(self) -> tuple[Sequence[TraceEvent], int]:
        assert self.on
        self.taken += 1
        taken = [self.pending.popleft() for _ in range(min(128, len(self.pending)))]
        missed, self.missed = self.missed, 0
        return taken, missed

    def walk_connections(self) -> Iterator[Sequence[ConnectionRecord]]:
        yield self.open

    def happens(self, session: int, name: str, **values: Any) -> None:
        self.pending.append(TraceEvent(time.monotonic_ns(), session, 0, BY_NAME[name], values))

    def begin(self, session: int, process: str, destination: str) -> None:
        self.happens(session, "accepted", transport="unix", direction="outbound")
        self.happens(session, "process", process=process, pid=session)
        self.happens(session, "requested", destination=Address.parse(destination))


Open = Callable[[str], Any]


def served(converse: Callable[[Source, Open], Any]) -> Source:
    """The admin interface over a source, while a client converses with it."""

    async def run() -> Source:
        source = Source()
        observed: Any = source
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        server = AdminServer(observed, listener)
        await server.start()
        writers = []

        async def ask(query: str) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection(*address)
            writers.append(writer)
            writer.write(
                b"GET /debug/trace?%s HTTP/1.0\r\nHost: localhost\r\n\r\n" % query.encode()
            )
            return reader

        try:
            async with asyncio.timeout(PATIENCE):
                await converse(source, ask)
        finally:
            for writer in writers:
                writer.close()
            await server.stop()
        return source

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the sidecar
        return runner.run(run())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def head(reader: asyncio.StreamReader) -> int:
    """The status."""
    text = await reader.readuntil(b"\r\n\r\n")
    return int(text.split()[1])


async def entry(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next line that is not a heartbeat."""
    while True:
        line = await reader.readline()
        assert line, "no more lines"
        if line.strip():
            found: dict[str, Any] = json.loads(line)
            return found


def test_it_is_on_while_somebody_reads() -> None:
    async def converse(source: Source, ask: Open) -> None:
        first = await ask("seconds=1000")
        await until(lambda: source.on)
        second = await ask("seconds=0.1")
        assert await head(second) == 200
        assert await second.read() is not None
        assert source.on
        first._transport.abort()
        await until(lambda: not source.on)
        await ask("")
        await until(lambda: source.on)

    source = served(converse)
    assert source.begun == 2
    assert not source.on


def test_events_are_lines_with_their_values() -> None:
    async def converse(source: Source, ask: Open) -> None:
        reader = await ask("")
        assert await head(reader) == 200
        source.begin(7, "psql", "10.0.0.9:5432")
        source.happens(0, "table_adopted", table="outbound", routes=3)
        assert (await entry(reader))["station"] == "accepted"
        assert (await entry(reader))["process"] == "psql"
        asked = await entry(reader)
        assert asked["session"] == 7
        assert asked["destination"] == "10.0.0.9:5432"
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", asked["time"])
        adopted = await entry(reader)
        assert adopted["session"] is None
        assert adopted["routes"] == 3
        source.missed = 5
        assert await entry(reader) == {"missed": 5}

    served(converse)


@pytest.mark.parametrize(
    "query", ["process=psql", "destination=10.0.0.0/8&destination=:9", "pid=7", "session=7"]
)
def test_filters_hold_for_all_of_a_connection(query: str) -> None:
    """Also for what came before it was known whose it is."""

    async def converse(source: Source, ask: Open) -> None:
        reader = await ask(query)
        assert await head(reader) == 200
        source.begin(6, "curl", "192.0.2.1:80")
        source.begin(7, "psql", "10.0.0.9:5432")
        source.happens(0, "table_adopted", table="outbound", routes=3)
        for session in (6, 7, 5):
            source.happens(session, "completed")
            source.happens(session, "closed", end="eof", errno=None)
        source.begin(8, "psql" if "session" not in query else "other", "10.0.0.9:5432")
        expected = ["accepted", "process", "requested", "completed", "closed"]
        found = [await entry(reader) for _ in expected]
        assert [each["station"] for each in found] == expected
        assert {each["session"] for each in found} == {7}

    served(converse)


def test_filters_know_connections_that_were_there_before() -> None:
    from tests.control.test_connections import RECORD

    async def converse(source: Source, ask: Open) -> None:
        source.open = [RECORD, RECORD._replace(id=9, process="other")]
        reader = await ask(f"process={RECORD.process}")
        assert await head(reader) == 200
        await until(lambda: source.taken > 1)
        source.happens(9, "completed")
        source.happens(RECORD.id, "completed")
        assert (await entry(reader))["session"] == RECORD.id

    served(converse)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("x=1", b"x: unknown key: expected one of session, "),
        ("session=0", b"session: expected the id of a connection"),
        ("session=" + "9" * 30, b"session: expected the id of a connection"),
        ("pid=-1", b"pid: expected a whole number"),
        ("destination=nowhere", b"destination: expected an address"),
        ("seconds=0", b"seconds: expected a number of seconds"),
        ("seconds=nan", b"seconds: expected a number of seconds"),
        ("seconds=1e9", b"seconds: expected a number of seconds"),
    ],
)
def test_bad_parameters_are_told_and_turn_nothing_on(query: str, expected: bytes) -> None:
    async def converse(source: Source, ask: Open) -> None:
        reader = await ask(query)
        assert await head(reader) == 400
        assert (await reader.read()).startswith(expected)

    assert served(converse).begun == 0


def test_readers_are_bounded() -> None:
    async def converse(source: Source, ask: Open) -> None:
        readers = [await ask("") for _ in range(31)]  # the gate's own bound is 32
        statuses = await asyncio.gather(*(head(reader) for reader in readers))
        assert statuses.count(200) == trace.MOST_OF_A_PEER
        assert statuses.count(503) == 31 - trace.MOST_OF_A_PEER

    assert not served(converse).on


def test_who_never_reads_holds_bounded_memory_and_is_told_what_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then it reads after all: what is left, and how much is not."""
    monkeypatch.setattr(trace, "MOST_LINES", 1000)
    longest = [0]
    put = trace.Reader.put

    def watched(reader: trace.Reader, line: str) -> None:
        put(reader, line)
        longest[0] = max(longest[0], reader.waiting)

    monkeypatch.setattr(trace.Reader, "put", watched)

    async def converse(source: Source, ask: Open) -> None:
        reader = await ask("")
        assert await head(reader) == 200
        sent = 100_000  # far more than the sockets' buffers take
        for _ in range(sent):
            source.happens(1, "completed")
        await until(lambda: not source.pending)
        assert longest[0] == 1000
        seen = missed = 0
        while seen + missed < sent:
            found = await entry(reader)
            missed += found.get("missed", 0)
            seen += "missed" not in found
        assert missed > 0
        assert seen + missed == sent

    served(converse)


def test_who_never_reads_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "LIMITS", replace(admin.LIMITS, answer_timeout=0.3))

    async def converse(source: Source, ask: Open) -> None:
        await ask("")
        await until(lambda: source.on)
        while source.on:
            for _ in range(1000):
                source.happens(1, "completed")
            await until(lambda: not source.pending or not source.on)

    served(converse)


def test_who_reads_may_stay_longer_than_an_answer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "LIMITS", replace(admin.LIMITS, answer_timeout=0.4))
    monkeypatch.setattr(trace, "HEARTBEAT", 0.05)

    async def converse(source: Source, ask: Open) -> None:
        reader = await ask("seconds=1.5")
        assert await head(reader) == 200
        assert (await reader.read()).strip() == b""

    begin = time.monotonic()
    served(converse)
    assert time.monotonic() - begin >= 1.5


# ---- a running sidecar ----


def converse(sidecar: RunningSidecar, echo: Address) -> None:
    with sidecar.connect(echo) as client:
        assert exchange(client, b"hello") == b"hello"


def lines_until_closed(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout
    lines: list[str] = []
    while not lines or " closed" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1]
    return lines


def test_the_command_tells_in_words(sidecar: RunningSidecar, echo: Address) -> None:
    with sidecar.tracing("--destination", str(echo)) as process:
        converse(sidecar, echo)
        lines = lines_until_closed(process)
    assert re.fullmatch(r"[\d:.]+ +#1 +\+0\.000ms  accepted: transport header, .*\n", lines[0])
    assert any(f"wants to go: destination {echo}" in line for line in lines)
    assert any("first bytes: from downstream, bytes 5" in line for line in lines)
    assert re.fullmatch(r"[\d:.]+ +#1 +\+\d+\.\d{3}ms  closed: end eof\n", lines[-1])
    assert not any("hello" in line for line in lines)


def test_the_command_gives_json_for_so_many_seconds(sidecar: RunningSidecar, echo: Address) -> None:
    with sidecar.tracing("--json", "--seconds", "3", "--session", "2") as process:
        for _ in range(3):
            converse(sidecar, echo)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    entries = [json.loads(line) for line in output.splitlines()]
    assert {each["session"] for each in entries} == {2}
    assert entries[0]["station"] == "accepted"
    assert entries[-1]["station"] == "closed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_ends_is_forgotten(
    sidecar: RunningSidecar, echo: Address, number: signal.Signals
) -> None:
    with sidecar.tracing() as process:
        process.send_signal(number)
        process.wait()
        if number == signal.SIGINT:
            assert process.returncode == 0
    eventually(lambda: sidecar.trace_readers == 0, "nobody reads")
    converse(sidecar, echo)
    assert "Traceback" not in sidecar.log


def test_a_sidecar_that_ends_ends_the_trace(sidecar: RunningSidecar) -> None:
    with sidecar.tracing() as process:
        sidecar.process.terminate()
        assert sidecar.process.wait(PATIENCE) == 0
        process.wait(PATIENCE)
    assert "Traceback" not in sidecar.log


# ---- documentation ----


def test_every_station_is_documented() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| ((?:`\w+`(?:, )?)*) ?\|$",
        (ROOT / "docs" / "debugging.md").read_text(),
        re.MULTILINE,
    )
    documented = {name: tuple(re.findall(r"`(\w+)`", values)) for name, values in rows}
    assert documented == {station.name: station.values for station in STATIONS}
