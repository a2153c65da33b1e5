"""A way to a server that can be cut, as a network is: nobody is told, nothing passes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Self

from pysidecar.address import Address

_PIECE = 65536


class Relay:
    """Listens on ``address`` and passes everything on to another, in a thread of its own. What is
    sent while it is cut arrives afterwards, as with TCP."""

    def __init__(self, target: Address) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._serving: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", 0), self._loop
        ).result()
        self.address = Address("127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Nothing passes from here on."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def heal(self) -> None:
        """Everything passes again."""
        self._loop.call_soon_threadsafe(self._open.set)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await self._open.wait()
            try:
                there = await asyncio.open_connection(self._target.host, self._target.port)
            except OSError:
                return
            with contextlib.closing(there[1]):
                ways = [
                    self._loop.create_task(self._pass(reader, there[1])),
                    self._loop.create_task(self._pass(there[0], writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
            await self._open.wait()

    async def _end(self) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)
