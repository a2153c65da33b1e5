"""An aiohttp server in a thread, and what an aiohttp client does with it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

import aiohttp
from aiohttp import web

from tests.waiting import PATIENCE

__all__ = ["converse", "echoes", "serving"]


async def _echo(request: web.Request) -> web.Response:
    return web.Response(text=f"aiohttp {await request.text()}")


async def _stream(request: web.Request) -> web.StreamResponse:
    """Each piece as it comes."""
    response = web.StreamResponse()
    await response.prepare(request)
    async for piece in request.content.iter_any():
        await response.write(piece)
    return response


async def _socket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(compress=True)
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(f"aiohttp {message.data}")
    return socket


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """``/echo``, ``/stream`` and, for WebSockets, ``/socket``; the port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/echo", _echo)
    application.router.add_route("*", "/stream", _stream)
    application.router.add_get("/socket", _socket)
    runner = web.AppRunner(application, shutdown_timeout=1)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port: int = runner.addresses[0][1]
        return port

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()


async def echoes(address: str, count: int) -> list[str]:
    """The answers to so many concurrent requests with their numbers as bodies."""
    async with aiohttp.ClientSession(f"http://{address}") as session:

        async def one(number: int) -> str:
            async with session.put("/echo", data=str(number)) as response:
                return await response.text()

        return await asyncio.gather(*map(one, range(count)))


async def converse(address: str, count: int) -> tuple[list[str], list[str]]:
    """What comes back for each of so many numbers: as pieces of one body, where each is sent when
    the last has come back, and as messages of a WebSocket."""
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        while (piece := await pieces.get()) is not None:
            yield piece.encode()

    streamed, messages = [], []
    async with aiohttp.ClientSession(f"http://{address}") as session:
        await pieces.put("0")  # the server sends its head with the first piece
        async with session.put("/stream", data=body()) as response:
            for number in range(count):
                streamed.append((await response.content.readany()).decode())
                await pieces.put(str(number + 1) if number + 1 < count else None)
            assert await response.content.readany() == b""
        async with session.ws_connect("/socket", compress=15) as socket:
            for number in range(count):
                await socket.send_str(str(number))
                messages.append(await socket.receive_str(timeout=PATIENCE))
    return streamed, messages
