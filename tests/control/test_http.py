"""Requests as strangers send them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysidecar.admin import http
from pysidecar.admin.http import HttpServer, Request, RequestError, Response, parse_request


def test_a_request_is_read() -> None:
    request = parse_request(b"GET /a?b=c&b=d&e= HTTP/1.1\r\nHOST:  [::1]:15000 \r\nX: y")
    assert request == Request("GET", "/a", {"b": "d", "e": ""}, keep_alive=True)


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Close", False),
        (b"GET / HTTP/1.0", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive", True),
        (b"HEAD http://127.0.0.1:15000/ HTTP/1.1\r\nHost: localhost", True),
        (b"GET / HTTP/1.1\nHost: localhost", True),
    ],
)
def test_whether_a_connection_goes_on(head: bytes, keep_alive: bool) -> None:
    assert parse_request(head).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET /", 400),
        (b"GET / HTTP/2.0\r\nHost: localhost", 400),
        (b"get / HTTP/1.1\r\nHost: localhost", 400),
        (b"GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n folded", 400),
        (b"GET / HTTP/1.1\r\nHost : localhost", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: \0", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked", 400),
        (b"GET //[ HTTP/1.1\r\nHost: localhost[", 400),
        (b"GET ftp HTTP/1.1\r\nHost: localhost", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5", 405),
        (b"GET / HTTP/1.1\r\nHost: evil.example", 403),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost", 403),
    ],
)
def test_what_is_no_request_is_said_to_be_none(head: bytes, status: int) -> None:
    with pytest.raises(RequestError, match="expected") as caught:
        parse_request(head)
    assert caught.value.status == status


_PIECES = st.sampled_from(
    *(b"GET | |/|HTTP/1.1|\r\n|\n|Host:|localhost|[|]|%|?|://|@|:|\0|\xff".split(b"|"),)
)


@given(st.lists(st.one_of(_PIECES, st.binary(max_size=4)), max_size=24).map(b"".join))
def test_whatever_comes_is_a_request_or_refused(head: bytes) -> None:
    with suppress(RequestError):
        parse_request(head)


def served(
    converse: Callable[[HttpServer, tuple[str, int]], Awaitable[None]],
    handle: Callable[[Request], Awaitable[Response]] | None = None,
) -> HttpServer:
    """A server that answers the path, while the client converses with it."""

    async def answer(request: Request) -> Response:
        return Response(request.path.encode())

    async def run() -> HttpServer:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = HttpServer(listener, handle or answer)
            server.start()
            try:
                async with asyncio.timeout(20):
                    await converse(server, listener.getsockname())
            finally:
                await server.stop()
            assert server.connections == 0
            return server

    return asyncio.run(run())


GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_pipelined_requests_are_answered_in_order_and_garbage_ends_them() -> None:
    async def converse(server: HttpServer, address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        requests = [GET % b"/%d" % number for number in range(100)]
        writer.write(b"".join(requests) + b"\0garbage\r\n\r\n" + GET % b"/more")
        text = (await reader.read()).decode()
        writer.close()
        bodies = text.split("HTTP/1.1 ")[1:]
        assert [body.rpartition("\r\n\r\n")[2] for body in bodies[:100]] == [
            f"/{number}" for number in range(100)
        ]
        assert [body[:3] for body in bodies[100:]] == ["400"]

    assert served(converse).bad_requests == 1


def test_bytes_may_come_one_by_one() -> None:
    async def converse(server: HttpServer, address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        for byte in GET % b"/slow":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.readuntil(b"/slow")).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()

    served(converse)


@pytest.mark.parametrize("sent", [b"", b"GET / HTT", b"\r\n\r"])
def test_an_unfinished_request_ends_in_time(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.05)

    async def converse(server: HttpServer, address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(sent)
        assert await reader.read() == b""
        writer.close()

    served(converse)


def test_a_trickle_does_not_make_the_time_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.1)

    async def converse(server: HttpServer, address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        ended = asyncio.ensure_future(reader.read())
        while not ended.done():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        writer.close()

    served(converse)


def test_an_idle_connection_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_TIMEOUT", 0.05)

    async def converse(server: HttpServer, address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(GET % b"/")
        assert (await reader.read()).endswith(b"\r\n\r\n/")
        writer.close()

    served(converse)


def test_an_answer_that_nobody_takes_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ANSWER_TIMEOUT", 0.05)

    async def answer(request: Request) -> Response:
        return Response(bytes(64 << 20))

    async def converse(server: HttpServer, address: tuple[str, int]) -> None:
        with socket.create_connection(address) as client:
            client.sendall(GET % b"/")
            while not server.connections:
                await asyncio.sleep(0.001)
            while server.connections:
                await asyncio.sleep(0.001)

    served(converse, answer)


def test_a_request_that_is_too_long_is_refused() -> None:
    async def converse(server: HttpServer, address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40000)
        assert (await reader.read(12)) == b"HTTP/1.1 431"
        writer.close()

    served(converse)


def test_a_new_connection_takes_the_place_of_the_longest_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MOST_OF_A_PEER", 2)

    async def converse(server: HttpServer, address: tuple[str, int]) -> None:
        streams = [await asyncio.open_connection(*address) for _ in range(2)]
        for reader, writer in streams:  # the first one is then the one that is idle for longest
            writer.write(GET % b"/here")
            await reader.readuntil(b"/here")
        third_reader, third = await asyncio.open_connection(*address)
        assert await streams[0][0].read() == b""
        for _, writer in (streams[1], (third_reader, third)):
            writer.write(b"GET /busy HTTP/1.1\r\nHost: loc")
        while server.connections < 2 or any(each.idle for each in server._connections):
            await asyncio.sleep(0.001)
        refused, fourth = await asyncio.open_connection(*address)
        assert await refused.read() == b""
        for reader, writer in (streams[1], (third_reader, third)):
            writer.write(b"alhost\r\n\r\n")
            await reader.readuntil(b"/busy")
        for writer in (streams[0][1], streams[1][1], third, fourth):
            writer.close()

    assert served(converse).refused == 1


def test_an_error_of_ours_is_an_answer_and_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def answer(request: Request) -> Response:
        raise ZeroDivisionError

    async def converse(server: HttpServer, address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(GET % b"/")
        assert (await reader.read()).startswith(b"HTTP/1.1 500 ")
        writer.close()

    served(converse, answer)
    assert "ZeroDivisionError" in caplog.text
