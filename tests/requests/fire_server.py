"""A server that answers each request with what it says, as a process that is killed, stopped or
told to behave badly: ``python -m tests.requests.fire_server PROTOCOL PORT JOURNAL``, then a word a
line on its standard input. A request that begins with ``w`` is written to the journal once it is
served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import grpc

from tests.requests import fire_http2
from tests.requests.frames import BOLT, DUBBO, Answer, Request, Wire

SLOW = 0.4  # seconds: longer than an attempt may take
BUSY = {"bolt": 4, "dubbo": 100}
HEALTH = b"/health"
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


class Manners:
    """``answer``, ``slow``, ``reset`` or ``busy``."""

    def __init__(self, journal: str) -> None:
        self.way = "answer"
        self.changed: Callable[[], None] = lambda: None
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def listen(self) -> None:
        reader = Reader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            self.way = line.decode().strip()
            self.changed()

    def note(self, nonce: bytes) -> None:
        """It is served, whatever becomes of its answer."""
        if nonce.startswith(b"w"):
            os.write(self._journal, nonce + b"\n")


def reset(writer: Writer) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def serve_http(manners: Manners, reader: Reader, writer: Writer) -> None:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        found = LENGTH.search(head)
        body = await reader.readexactly(int(found[1])) if found else b""
        way = manners.way
        path = head.split(b" ", 2)[1]
        if way != "busy":
            manners.note(path[1:])
        if way == "slow":
            await asyncio.sleep(SLOW)
        if way == "reset":
            reset(writer)
            return
        status = 503 if way == "busy" else 200
        said = path + body
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(said), said))
        await writer.drain()


async def serve_http2(manners: Manners, reader: Reader, writer: Writer) -> None:
    def asked(exchange: fire_http2.Exchange, answer: Callable[[int, bytes], None]) -> None:
        path = exchange.head[b":path"]
        said = path + exchange.body
        if manners.way == "busy":
            answer(503, said)
            return
        manners.note(path[1:])
        if manners.way == "slow":
            asyncio.get_running_loop().call_later(SLOW, answer, 200, said)
        elif manners.way == "reset":
            reset(writer)
        else:
            answer(200, said)

    await fire_http2.serve(reader, writer, asked)


async def serve_frames(manners: Manners, wire: Wire, reader: Reader, writer: Writer) -> None:
    async def late(request: Request) -> None:
        await asyncio.sleep(SLOW)
        if not writer.is_closing():
            writer.write(wire.answer(Answer(request.id, wire.good, request.content)))

    tasks = set()
    while True:
        request = await wire.read_from(reader)
        assert isinstance(request, Request)
        if manners.way != "busy":
            manners.note(request.content.partition(b".")[0])
        if request.heartbeat:
            writer.write(wire.answer(Answer(request.id, wire.good, b"", heartbeat=True)))
        elif manners.way == "slow":
            task = asyncio.create_task(late(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        elif manners.way == "reset":
            reset(writer)
            return
        else:
            status = BUSY[wire.name] if manners.way == "busy" else wire.good
            writer.write(wire.answer(Answer(request.id, status, request.content)))
        await writer.drain()


class GrpcServer:
    """gRPC's own. To reset its connections, it is stopped and started again."""

    def __init__(self, manners: Manners, port: int) -> None:
        self._manners = manners
        self._port = port
        self._server: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        manners.changed = self._follow

    async def start(self) -> None:
        server = self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handle = grpc.unary_unary_rpc_method_handler(self._answer)
        health = grpc.unary_unary_rpc_method_handler(self._answer_health)
        methods = grpc.method_handlers_generic_handler("fire.Fire", {"r": handle, "w": handle})
        check = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health})
        server.add_generic_rpc_handlers((methods, check))
        server.add_insecure_port(f"127.0.0.1:{self._port}")
        await server.start()

    def _follow(self) -> None:
        if self._manners.way == "reset":
            task = asyncio.create_task(self._restart())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _restart(self) -> None:
        await self._server.stop(None)
        await self.start()

    async def _answer(self, content: bytes, context: Any) -> bytes:
        if self._manners.way == "busy":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        self._manners.note(content.partition(b".")[0])
        if self._manners.way == "slow":
            await asyncio.sleep(SLOW)
        return content

    async def _answer_health(self, content: bytes, context: Any) -> bytes:
        del content, context
        return b"\x08\x02" if self._manners.way == "busy" else b"\x08\x01"


async def main(protocol: str, port: int, journal: str) -> None:
    manners = Manners(journal)
    wires = {"bolt": BOLT, "dubbo": DUBBO}

    async def serve(reader: Reader, writer: Writer) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if protocol in wires:
                await serve_frames(manners, wires[protocol], reader, writer)
            elif protocol == "http2":
                await serve_http2(manners, reader, writer)
            else:
                await serve_http(manners, reader, writer)
        writer.close()

    if protocol == "grpc":
        await GrpcServer(manners, port).start()
    else:
        await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024)
    print("listens", flush=True)
    await manners.listen()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
