"""A server that answers each request with what it says, as a process that is killed, stopped or
told to behave badly: ``python -m tests.requests.fire_server PROTOCOL PORT``, then a word a line on
its standard input."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import sys

from tests.requests.frames import BOLT, DUBBO, Answer, Request, Wire

SLOW = 0.4  # seconds: longer than an attempt may take
BUSY = {"bolt": 4, "dubbo": 100}
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


class Manners:
    """``answer``, ``slow``, ``reset`` or ``busy``."""

    way = "answer"

    async def listen(self) -> None:
        reader = Reader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            self.way = line.decode().strip()


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
        if way == "slow":
            await asyncio.sleep(SLOW)
        if way == "reset":
            reset(writer)
            return
        status = 503 if way == "busy" else 200
        said = head.split(b" ", 2)[1] + body
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(said), said))
        await writer.drain()


async def serve_frames(manners: Manners, wire: Wire, reader: Reader, writer: Writer) -> None:
    async def late(request: Request) -> None:
        await asyncio.sleep(SLOW)
        if not writer.is_closing():
            writer.write(wire.answer(Answer(request.id, wire.good, request.content)))

    tasks = set()
    while True:
        request = await wire.read_from(reader)
        assert isinstance(request, Request)
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


async def main(protocol: str, port: int) -> None:
    manners = Manners()
    wires = {"bolt": BOLT, "dubbo": DUBBO}

    async def serve(reader: Reader, writer: Writer) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if protocol in wires:
                await serve_frames(manners, wires[protocol], reader, writer)
            else:
                await serve_http(manners, reader, writer)
        writer.close()

    await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024)
    print("listens", flush=True)
    await manners.listen()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
