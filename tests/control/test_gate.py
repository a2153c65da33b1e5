"""The admin interface and what strangers do to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import select
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import uvloop
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from pysidecar import admin
from pysidecar.admin import AdminServer
from pysidecar.web.gate import Gate

Server = tuple[str, int]
GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
MUCH = 64 << 20


class _Broken:
    """A sidecar that serves, and of which nothing else can be shown."""

    state = "serving"

    def descriptors(self) -> dict[str, str]:
        return {"state": "enough"}


class _Admin(AdminServer):
    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(body=bytes(MUCH))


def served(converse: Callable[[Gate, Server], Awaitable[None]]) -> Gate:
    """The admin interface of such a sidecar, while a client converses with it."""

    async def run() -> Gate:
        observed: Any = _Broken()
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        server = _Admin(observed, listener)
        await server.start()
        try:
            async with asyncio.timeout(20):
                await converse(server.gate, address)
        finally:
            await server.stop()
        async with asyncio.timeout(20):
            while server.gate.connections:
                await asyncio.sleep(0.001)
        return server.gate

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the sidecar
        return runner.run(run())


async def answer(address: Server, request: bytes) -> bytes:
    """All that comes for it until the end, be it a reset."""
    reader, writer = await asyncio.open_connection(*address)
    with closing(writer):
        received = b""
        try:
            writer.write(request)
            while data := await reader.read(65536):
                received += data
        except ConnectionError:
            pass
        return received


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET % b"/ready", 200),
        (b"HEAD /ready HTTP/1.1\r\nHost: 127.0.0.1:15000\r\n\r\n", 200),
        (b"GET /ready HTTP/1.0\r\nHost: [::1]\r\n\r\n", 200),
        (GET % b"/nothing", 404),
        (GET % b"/connections?closed=-1", 400),
        (b"POST /ready HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n12345", 405),
        (b"GET /ready HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET /ready HTTP/1.1\r\nHost: localhost\r\nA: \0\r\n\r\n", 400),
        (b"GET /ready HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10000 + b"\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_requests_are_answered_and_the_bad_ones_counted(request_bytes: bytes, status: int) -> None:
    async def converse(gate: Gate, address: Server) -> None:
        assert (await answer(address, request_bytes)).split()[1] == b"%d" % status

    assert served(converse).bad_requests == (status >= 400)


def test_a_connection_has_one_answer() -> None:
    async def converse(gate: Gate, address: Server) -> None:
        received = await answer(address, GET % b"/ready" * 1000)
        assert received.count(b"HTTP/1.1 ") == 1
        assert b"Connection: close" in received

    assert served(converse).bad_requests == 0


def test_bytes_may_come_one_by_one() -> None:
    async def converse(gate: Gate, address: Server) -> None:
        reader, writer = await asyncio.open_connection(*address)
        for byte in GET % b"/ready":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()

    served(converse)


@pytest.mark.parametrize("sent", [b"", b"GET / HTT", GET[:-2] % b"/ready"])
def test_an_unfinished_request_ends_in_time(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "LIMITS", replace(admin.LIMITS, request_timeout=0.05))

    async def converse(gate: Gate, address: Server) -> None:
        assert await answer(address, sent) == b""

    served(converse)


def test_a_trickle_does_not_make_the_time_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "LIMITS", replace(admin.LIMITS, request_timeout=0.1))

    async def converse(gate: Gate, address: Server) -> None:
        reader, writer = await asyncio.open_connection(*address)
        ended = asyncio.ensure_future(asyncio.wait([asyncio.ensure_future(reader.read())]))
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        while not ended.done():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        writer.close()

    served(converse)


def test_an_answer_that_nobody_takes_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "LIMITS", replace(admin.LIMITS, answer_timeout=0.2))

    async def converse(gate: Gate, address: Server) -> None:
        with socket.create_connection(address) as client:
            client.sendall(GET % b"/")
            while not gate.connections:
                await asyncio.sleep(0.001)
            while gate.connections:
                await asyncio.sleep(0.001)

    served(converse)


def test_a_request_without_an_end_ends() -> None:
    async def converse(gate: Gate, address: Server) -> None:
        endless = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: yyyyyyyy\r\n" * 10000
        assert b"200 OK" not in await answer(address, endless)

    assert served(converse).bad_requests == 1


def test_a_new_connection_takes_the_place_of_the_oldest_without_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin, "LIMITS", replace(admin.LIMITS, of_a_peer=2))

    async def converse(gate: Gate, address: Server) -> None:
        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            before = gate.connections + gate.refused
            stream = await asyncio.open_connection(*address, limit=1024)
            while gate.connections + gate.refused == before and gate.connections < 2:
                await asyncio.sleep(0.001)
            return stream

        streams = [await connect() for _ in range(3)]
        # The first one's place is the third one's now.
        await asyncio.wait([asyncio.ensure_future(streams[0][0].read())])
        for _, writer in streams[1:]:  # both have a request, with an answer that takes long
            writer.write(GET % b"/")
        while any(each.waiting for each in gate._connections):
            await asyncio.sleep(0.001)
        streams.append(await connect())
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await streams[3][0].readexactly(1)
        for reader, _ in streams[1:3]:
            received = len(await reader.readuntil(b"\r\n\r\n"))
            while data := await reader.read(1 << 20):
                received += len(data)
            assert received > MUCH
        for _, writer in streams:
            writer.close()

    assert served(converse).refused == 1


def test_a_connection_may_lose_its_place_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin, "LIMITS", replace(admin.LIMITS, of_a_peer=2))
    failures: list[dict[str, Any]] = []

    async def converse(gate: Gate, address: Server) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
        with contextlib.ExitStack() as stack:
            for _ in range(64):  # without a turn of the loop
                stack.enter_context(socket.create_connection(address))
            while gate.connections < 2 or socket_is_waiting(gate):
                await asyncio.sleep(0.001)
        assert (await answer(address, GET % b"/ready")).startswith(b"HTTP/1.1 200 OK\r\n")
        gc.collect()  # a task that failed is told of when it goes

    served(converse)
    assert not failures


def socket_is_waiting(gate: Gate) -> bool:
    """Whether a connection is to be accepted."""
    return bool(select.select([gate._listener], [], [], 0)[0])


def test_an_error_of_ours_is_an_answer_and_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def converse(gate: Gate, address: Server) -> None:
        assert (await answer(address, GET % b"/connections")).startswith(b"HTTP/1.1 500 ")

    assert served(converse).bad_requests == 0
    assert "AttributeError" in caplog.text


_PIECES = st.sampled_from(
    *(b"GET | |/|HTTP/1.1|\r\n|\n|Host:|localhost|[|]|%|?|://|@|:|\0|\xff".split(b"|"),)
)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(st.one_of(_PIECES, st.binary(max_size=4)), max_size=24), min_size=20))
def test_whatever_comes_the_next_one_is_served(requests: list[list[bytes]]) -> None:
    async def converse(gate: Gate, address: Server) -> None:
        for pieces in requests:
            _, writer = await asyncio.open_connection(*address)
            writer.write(b"".join(pieces))
            writer.close()
        assert (await answer(address, GET % b"/ready")).startswith(b"HTTP/1.1 200 OK\r\n")

    served(converse)
