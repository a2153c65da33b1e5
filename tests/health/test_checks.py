"""Which endpoints are asked, and when one is healthy."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.dataplane import HAS_HTTP2, Outage
from pysidecar.health.checks import CheckedService, Health, HealthChecks
from pysidecar.health.outages import OutageLog
from pysidecar.health.prober import Prober, Target
from tests.waiting import PATIENCE

FAST = {"interval": "100ms", "timeout": "10s"}
HTTP = HealthCheck.model_validate({"type": "http", "path": "/health", **FAST})
HASTY = HTTP.model_copy(update={"timeout": 0.3})
TCP = HealthCheck.model_validate({"type": "tcp", **FAST})


# ---- thresholds ----


def hear(health: Health, answers: str) -> list[bool]:
    """What it is after each: ``+`` is well."""
    settings = HealthCheck(unhealthy_after=3, healthy_after=2)
    healthy = []
    for each in answers:
        health.hear(None if each == "+" else "it is ill", settings)
        healthy.append(health.healthy)
    return healthy


def test_it_takes_some_in_a_row_to_become_another() -> None:
    health = Health()
    assert hear(health, "+--+--") == [True] * 6
    assert hear(health, "-") == [False]
    assert hear(health, "+-+-+") == [False] * 5
    assert hear(health, "+") == [True]
    assert health.describe()["problem"] is None


def test_one_that_never_passed_is_unhealthy_at_once() -> None:
    assert hear(Health(), "-") == [False]
    assert hear(Health(), "+-") == [True, True]


# ---- servers ----


class Server:
    """HTTP on loopback, with the answer that a test wants; None: none."""

    def __init__(self) -> None:
        self.status: int | None = 200
        self.connections = self.requests = 0
        self.closes = False
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> Address:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = Address(*self._server.sockets[0].getsockname()[:2])
        return self.address

    async def stop(self) -> None:
        self._server.close()
        self.hang_up()

    @property
    def is_left(self) -> bool:
        """Whether all that was sent to it is read."""
        return not self._writers

    async def asked(self, times: int) -> None:
        """Returns when it was asked more often than that."""
        await until(lambda: self.requests > times)

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                if self.status is not None:
                    writer.write(
                        f"HTTP/1.1 {self.status} X\r\nContent-Length: 2\r\n\r\nok".encode()
                    )
                if self.closes:
                    break
        self._writers.discard(writer)
        writer.close()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def until(ask: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not ask():
            await asyncio.sleep(0.005)


class Told(list[tuple[int, Address, bool]]):
    """What the data plane is told."""

    def __call__(self, changes: Any) -> None:
        self.extend(changes)

    def now(self) -> dict[Address, bool]:
        return {address: healthy for _, address, healthy in self}


@contextlib.contextmanager
def checking(
    told: Told,
    settings: HealthCheck,
    *addresses: Address,
    protocol: str = "http",
    **options: Any,
) -> Iterator[HealthChecks]:
    checks = HealthChecks(told, most=options.pop("most", 100), **options)
    checks.set([CheckedService(7, "orders", protocol, settings, addresses)])
    try:
        yield checks
    finally:
        checks.close()


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


# ---- with sockets ----


def test_an_endpoint_comes_and_goes_with_its_answers() -> None:
    async def test() -> None:
        told = Told()
        async with serving() as server:
            with checking(told, HTTP, server.address) as checks:
                assert told == [(7, server.address, True)]
                await until(lambda: server.requests > 3)
                assert len(told) == 1
                server.status = 503
                await until(lambda: told[-1] == (7, server.address, False))
                health = checks.of(7, server.address)
                assert health is not None
                assert health.problem == "its answer is 503"
                server.status = 200
                await until(lambda: told[-1][2])
                assert server.connections == 1  # that stays open

    run(test)


def test_silence_and_a_port_that_nobody_has_are_failures() -> None:
    async def test() -> None:
        told = Told()
        async with serving() as server, serving() as gone:
            await gone.stop()
            server.status = None
            with checking(told, HASTY, server.address, gone.address) as checks:
                await until(lambda: told.now() == {server.address: False, gone.address: False})
                silent, away = checks.of(7, server.address), checks.of(7, gone.address)
                assert silent is not None
                assert away is not None
                assert silent.problem == "no answer within 0.3 s"
                assert away.problem == "connection refused"
                [(name, protocol, passed, failed)] = checks.results()
                assert (name, protocol, passed) == ("orders", "http", 0)
                assert failed >= 2

    run(test)


def test_a_server_may_close_what_was_kept() -> None:
    """An idle connection that the server ended is no failure, nor is one that it ends as it is
    asked."""

    async def test() -> None:
        told = Told()
        async with serving() as server:
            with checking(told, HTTP, server.address) as checks:
                for asked in range(1, 6):
                    await server.asked(2 * asked)
                    server.hang_up()
                server.closes = True
                await until(lambda: server.requests > 16)
                assert told == [(7, server.address, True)]
                assert next(iter(checks.results()))[3] == 0

    run(test)


@pytest.mark.skipif(not HAS_HTTP2, reason="built without libnghttp2")
def test_what_http2_refuses_with_its_last_words_is_asked_again() -> None:
    """The server ends each connection as the second check comes, which it has not seen then."""
    settings_and_answer = b"\0\0\0\4\0\0\0\0\0" + b"\0\0\1\1\5\0\0\0\1\x88"
    goes_away = b"\0\0\x08\7\0\0\0\0\0" + b"\0\0\0\1" + bytes(4)
    second_request = b"\1\5\0\0\0\3"
    connections = ended = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, ended
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\1\5\0\0\0\1")
            writer.write(settings_and_answer)
            await reader.readuntil(second_request)
            writer.write(goes_away)
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended += 1

    async def test() -> None:
        told = Told()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = Address(*server.sockets[0].getsockname()[:2])
        with checking(told, HTTP, address, protocol="http2") as checks:
            await until(lambda: next(iter(checks.results()))[2] >= 8)
            assert connections >= 4
            assert next(iter(checks.results()))[3] == 0
            assert told == [(7, address, True)]
        server.close()
        await until(lambda: ended == connections)

    run(test)


def test_who_says_too_much_is_not_listened_to() -> None:
    """Pings that never end, to each of which an answer is due; before a check, and after it."""
    ping = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(1000 * ping)
                await writer.drain()
                await reader.read(1 << 16)
        writer.close()

    async def test() -> None:
        told = Told()
        server = await asyncio.start_server(flood, "127.0.0.1", 0)
        address = Address(*server.sockets[0].getsockname()[:2])
        settings = HTTP.model_copy(update={"type": "grpc", "path": None, "interval": 2.0})
        with checking(told, settings, address) as checks:
            await until(lambda: not told[-1][2])
            health = checks.of(7, address)
            assert health is not None
            assert health.problem == "it says too much"
        server.close()

    run(test)


def test_without_descriptors_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def test() -> None:
        told = Told()
        monkeypatch.setattr(select, "epoll", none)
        with checking(told, HTTP, Address("127.0.0.1", 1)) as checks:
            assert told == [(7, Address("127.0.0.1", 1), True)]
            assert checks.connections == 0

    run(test)


def test_tcp_asks_for_a_connection_only() -> None:
    async def test() -> None:
        told = Told()
        async with serving() as server:
            with checking(told, TCP, server.address) as checks:
                await until(lambda: server.connections > 3)
                assert server.requests == 0
                await until(lambda: checks.connections == 0)
                await server.stop()
                await until(lambda: told[-1] == (7, server.address, False))

    run(test)


def test_tcp_waits_for_who_takes_long_to_connect() -> None:
    """A listener's queue is full, so that its kernel does not answer until it has room."""

    async def test() -> None:
        told = Told()
        settings = TCP.model_copy(update={"timeout": 0.3})
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
            address = Address(*server.getsockname()[:2])
            with (
                socket.create_connection((address.host, address.port)),
                checking(told, settings, address) as checks,
            ):
                await until(lambda: not told[-1][2])
                health = checks.of(7, address)
                assert health is not None
                assert health.problem == "no answer within 0.3 s"
                checks.set([CheckedService(7, "orders", "http", TCP, (address,))])
                await until(lambda: checks.connections == 1)
                server.listen(100)
                await until(lambda: told[-1][2])

    run(test)


@pytest.mark.parametrize("settings", [HTTP, TCP], ids=["http", "tcp"])
def test_what_cannot_be_watched_says_nothing_of_the_endpoint(
    settings: HealthCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks go on, and pass where there is a server when one can be watched again."""

    class Full:
        def __init__(self) -> None:
            self._epoll = epoll()

        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._epoll, name)

    async def test() -> None:
        told = Told()
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
            address = Address(*server.getsockname()[:2])
            with (
                socket.create_connection((address.host, address.port)),
                checking(told, settings, address) as checks,
            ):
                await until(lambda: checks.late > 2)
                assert told == [(7, address, True)]

    epoll = select.epoll
    monkeypatch.setattr("pysidecar.health.prober.select.epoll", Full)
    run(test)


def test_tcp_asks_nobody_who_is_gone_while_it_connects() -> None:
    async def test() -> None:
        told = Told()
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
            address = Address(*server.getsockname()[:2])
            with (
                socket.create_connection((address.host, address.port)),
                checking(told, TCP, address) as checks,
            ):
                await until(lambda: checks.connections == 1)
                checks.set([])
                assert checks.connections == 0
                told.clear()
                other = Address("127.0.0.1", 1)
                checks.set([CheckedService(8, "others", "http", TCP, (other,))])
                await until(lambda: told and not told[-1][2])
                assert told.now() == {other: False}

    run(test)


def test_what_is_known_outlives_a_change_of_the_others() -> None:
    async def test() -> None:
        told = Told()
        async with serving() as ill, serving() as new:
            ill.status = 500
            with checking(told, HTTP, ill.address) as checks:
                await until(lambda: not told[-1][2])
                service = CheckedService(7, "orders", "http", HTTP, (ill.address, new.address))
                told.clear()
                checks.set([service])
                assert told == [(7, new.address, True)]
                health = checks.of(7, ill.address)
                assert health is not None
                assert not health.healthy
                checks.set([replace(service, settings=replace_interval(HTTP))])
                assert len(told) == 1
                requests = ill.requests
                await until(lambda: ill.requests > requests)
                checks.set([replace(service, endpoints=(new.address,))])
                assert told[-1] == (7, ill.address, True)  # whoever has it then
                assert checks.of(7, ill.address) is None
                checks.set([])
                await until(lambda: new.is_left and ill.is_left)
                requests = new.requests + ill.requests
                await asyncio.sleep(0.3)  # some intervals without a check
                assert new.requests + ill.requests == requests

    run(test)


def replace_interval(settings: HealthCheck) -> HealthCheck:
    return settings.model_copy(update={"interval": 0.15})


def test_our_own_listeners_are_not_asked() -> None:
    async def test() -> None:
        told = Told()
        async with serving() as server:
            own = {server.address: "admin.listen"}
            with checking(told, HTTP, server.address, own=own.get) as checks:
                assert told == [(7, server.address, False)]
                health = checks.of(7, server.address)
                assert health is not None
                assert health.problem == "it is the sidecar's own listener, admin.listen"
                await asyncio.sleep(0.3)
                assert server.connections == 0

    run(test)


def test_few_connections_serve_many_endpoints() -> None:
    """They wait for their turn, and none is left out."""

    async def test() -> None:
        told = Told()
        async with contextlib.AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(serving()) for _ in range(40)]
            with checking(told, HTTP, *(each.address for each in servers), most=4) as checks:
                await until(lambda: all(each.requests >= 3 for each in servers))
                assert checks.connections <= 4
                assert checks.late > 0
                assert all(healthy for _, _, healthy in told)

    run(test)


def test_checks_of_many_do_not_come_at_once() -> None:
    """Their first ones are spread over an interval: a quarter of them is 50, give or take five
    standard deviations of 6."""

    async def test() -> None:
        prober = Prober(most=500)
        now = asyncio.get_running_loop().time()
        for number in range(200):
            target = Target(
                Address("127.0.0.1", 1 + number),
                interval=100.0,
                timeout=1.0,
                converse=None,
                told=lambda problem: None,
            )
            prober.add(target)
        times = [when - now for when, _, _ in prober._times]
        prober.close()
        for quarter in range(4):
            assert 20 < sum(25 * quarter <= each < 25 * (quarter + 1) for each in times) < 80

    run(test)


# ---- what is said of it ----


def test_many_that_fail_together_are_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        checks = HealthChecks(Told(), most=4)
        for number in range(1000):
            checks._log(logging.WARNING, "orders: %s is unhealthy", number)

    run(test)
    assert len(caplog.records) == 20


def test_panic_is_said_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outages = OutageLog()
    panic = Outage(7, "orders", 10, 4, True, 50)
    outages.look([panic._replace(panic=False, available=9)])
    assert not caplog.records
    outages.look([panic])
    outages.look([panic._replace(available=3)])
    outages.look([])
    outages.look([panic._replace(panic=False, available=0, percent=0)])
    assert [record.getMessage() for record in caplog.records] == [
        "orders: 4 of its 10 endpoints are available, less than its healthy_panic_threshold of "
        "50%: requests go to all of them",
        "orders: enough of its endpoints are available again",
        "orders: 0 of its 10 endpoints are available: requests are answered with an error "
        "(healthy_panic_threshold is 0%)",
    ]
