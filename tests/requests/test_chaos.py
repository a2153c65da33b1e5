"""Many clients and rude upstreams at random: whatever happens, each request has at most its one
answer, and nothing is left when they are gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import Timeouts
from tests.requests.frames import BOLT, DUBBO, Answer, Request, Wire
from tests.requests.support import RequestPlane
from tests.waiting import eventually

SECONDS = float(os.environ.get("CHAOS_SECONDS", "2"))
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
PATIENCE = 30.0
TIMEOUT_MS = 3000  # of Bolt's and Dubbo's requests, which the service's is below


@dataclass
class Chaos:
    """What both ends share."""

    random: random.Random
    deadline: float
    outcomes: Counter[str] = field(default_factory=Counter)

    def goes_on(self) -> bool:
        return time.monotonic() < self.deadline

    async def pause(self) -> None:
        """Mostly none."""
        which = self.random.random()
        if which > 0.9:
            await asyncio.sleep(self.random.random() * 0.02)
        elif which > 0.5:
            await asyncio.sleep(0)

    async def write(self, writer: Writer, data: bytes) -> None:
        """In pieces, with pauses."""
        while data:
            size = self.random.choice((len(data), len(data), self.random.randint(1, len(data))))
            writer.write(data[:size])
            data = data[size:]
            await writer.drain()
            if data:
                await self.pause()


def cut(writer: Writer) -> None:
    """A reset."""
    sock = writer.get_extra_info("socket")
    if sock is not None:  # else it is closed already, as with OSError
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# ---- HTTP ----


def nonces(nonce: bytes, size: int) -> bytes:
    return (nonce + b" ") * (1 + size // (len(nonce) + 1))


async def read_request(reader: Reader) -> tuple[bytes, bytes] | None:
    """Nonce and body. None: no more."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    match = re.search(rb"^[A-Z]+ /(\S+) ", head)
    assert match, head
    length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
    body = b""
    if length:
        body = await reader.readexactly(int(length[1]))
    elif b"chunked" in head:
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
    assert body.replace(match[1] + b" ", b"") == b"", "another's body"
    return match[1], body


async def answer(chaos: Chaos, writer: Writer, nonce: bytes) -> bool:
    """In some way. False: the connection is over."""
    rng = chaos.random
    body = nonces(nonce, rng.choice((1, 1, 100, 5000, 100_000, 400_000)))
    length = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body)
    way = rng.choices(
        (
            "plain chunked close until-close interim slow "
            "late head body reset garbage extra never two-lengths"
        ).split(),
        (20, 10, 3, 3, 5, 5, 2, 2, 2, 2, 2, 2, 1, 1),
    )[0]
    chaos.outcomes[f"upstream {way}"] += 1
    match way:
        case "plain" | "slow" | "late":
            if way != "plain":
                await asyncio.sleep(0.4 if way == "late" else rng.random() * 0.05)
            await chaos.write(writer, length + b"\r\n" + body)
            return way != "late"
        case "interim":
            await chaos.write(writer, b"HTTP/1.1 103 Early Hints\r\n\r\n" + length + b"\r\n" + body)
            return True
        case "chunked":
            await chaos.write(writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while body:
                size = rng.randint(1, 70_000)
                piece, body = body[:size], body[size:]
                await chaos.write(writer, b"%x\r\n%s\r\n" % (len(piece), piece))
            await chaos.write(writer, b"0\r\n\r\n")
            return True
        case "close":
            await chaos.write(writer, length + b"Connection: close\r\n\r\n" + body)
        case "until-close":
            await chaos.write(writer, b"HTTP/1.1 200 OK\r\n\r\n" + body)
        case "extra":
            extra = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
            small = nonces(nonce, 10)
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(small)
            writer.write(head + small + extra)
            await asyncio.sleep(0.05)
        case "head":
            await chaos.write(writer, length[: rng.randint(1, len(length))])
        case "body":
            await chaos.write(writer, length + b"\r\n" + body[: rng.randint(0, len(body) - 1)])
        case "reset":
            await chaos.write(writer, (length + b"\r\n" + body)[: rng.randint(0, len(body) - 1)])
            cut(writer)
        case "garbage":
            await chaos.write(writer, rng.randbytes(100))
        case "two-lengths":
            await chaos.write(writer, length + b"Content-Length: 4\r\n\r\n" + body)
        case "never":
            await asyncio.sleep(1)
    return False


async def serve_http(chaos: Chaos, reader: Reader, writer: Writer) -> None:
    while request := await read_request(reader):
        await chaos.pause()
        if not await answer(chaos, writer, request[0]):
            return
        if chaos.random.random() < 0.02:  # as if it had been idle for long
            return


def http_request(chaos: Chaos, nonce: bytes) -> bytes:
    rng = chaos.random
    line = b" /%s HTTP/1.1\r\nHost: a\r\n" % nonce
    which = rng.random()
    if which < 0.6:
        return rng.choice((b"GET", b"DELETE")) + line + b"\r\n"
    body = nonces(nonce, rng.choice((1, 100, 20_000, 300_000)))
    if which < 0.8:
        return b"POST" + line + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunks = b""
    while body:
        size = rng.randint(1, 70_000)
        chunks += b"%x\r\n%s\r\n" % (len(body[:size]), body[:size])
        body = body[size:]
    return b"PUT" + line + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


async def read_answer(reader: Reader) -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection goes on."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status < 200:
        return await read_answer(reader)
    length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
    body = b""
    if length:
        body = await reader.readexactly(int(length[1]))
    else:
        assert b"chunked" in head, head
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
    return status, body, b"Connection: close" not in head


async def http_client(chaos: Chaos, address: Address, name: str) -> None:
    """One connection."""
    rng = chaos.random
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        for turn in range(rng.randint(1, 5)):
            own = [b"%s.%d.%d" % (name.encode(), turn, i) for i in range(rng.randint(1, 4))]
            data = b"".join(http_request(chaos, nonce) for nonce in own)
            if rng.random() < 0.05:
                data = data[: rng.randint(1, len(data))]
                await chaos.write(writer, data)
                chaos.outcomes["client reset"] += 1
                cut(writer)
                return
            sending = asyncio.create_task(chaos.write(writer, data))
            try:
                if rng.random() < 0.1:
                    await asyncio.sleep(rng.random() * 0.1)  # does not read
                for nonce in own:
                    status, body, goes_on = await read_answer(reader)
                    chaos.outcomes[f"status {status}"] += 1
                    if status == 200:
                        assert body, nonce
                        assert body.replace(nonce + b" ", b"") == b"", (nonce, body[:100])
                    if not goes_on:
                        return
            finally:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await sending
            await chaos.pause()
    except (asyncio.IncompleteReadError, ConnectionError):
        chaos.outcomes["cut"] += 1
    finally:
        writer.close()


# ---- Bolt and Dubbo ----


async def serve_frames(wire: Wire, chaos: Chaos, reader: Reader, writer: Writer) -> None:
    rng = chaos.random
    held: list[bytes] = []
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            request = await wire.read_from(reader)
            if isinstance(request, Answer):
                assert request.heartbeat, request
                continue
            which = rng.random()
            good = wire.answer(Answer(request.id, wire.good, request.content, request.heartbeat))
            if request.heartbeat or (not request.oneway and which < 0.9):
                held.append(good)
            elif which < 0.93:
                held.append(good * 2)
            elif which < 0.95:
                held.append(wire.answer(Answer(request.id + 1_000_000, wire.good, b"evil ")) + good)
            elif which < 0.96:
                held.append(wire.request(Request(request.id, "", b"", heartbeat=True)))
            elif which < 0.98:
                chaos.outcomes["upstream never"] += 1
            elif which < 0.985:
                chaos.outcomes["upstream garbage"] += 1
                await chaos.write(writer, rng.randbytes(100))
                return
            elif which < 0.99:
                chaos.outcomes["upstream cut"] += 1
                await chaos.write(writer, good[:-1])
                cut(writer)
                return
            if rng.random() < 0.5 or len(held) > 20:
                rng.shuffle(held)
                await chaos.write(writer, b"".join(held))
                held = []


async def frames_client(wire: Wire, chaos: Chaos, address: Address, name: str) -> None:
    rng = chaos.random
    reader, writer = await asyncio.open_connection(address.host, address.port)
    own: dict[int, bytes] = {}
    number = rng.randrange(1 << 31)
    try:
        for turn in range(rng.randint(1, 5)):
            data = b""
            for i in range(rng.randint(1, 30)):
                nonce = f"{name}.{turn}.{i}".encode()
                content = nonces(nonce, rng.choice((1, 10, 1000, 100_000)))
                number = (number + 1) & 0x7FFFFFFF
                which = rng.random()
                if which < 0.05:
                    data += wire.request(Request(number, "m", content, oneway=True), TIMEOUT_MS)
                elif which < 0.1:
                    data += wire.request(Request(number, "", b"", heartbeat=True))
                    own[number] = b""
                else:
                    data += wire.request(Request(number, "m", content), TIMEOUT_MS)
                    own[number] = nonce
            if rng.random() < 0.05:
                await chaos.write(writer, data[: rng.randint(1, len(data))])
                cut(writer)
                return
            sending = asyncio.create_task(chaos.write(writer, data))
            try:
                while own:
                    answer = await wire.read_from(reader)
                    assert isinstance(answer, Answer), answer
                    nonce = own.pop(answer.id)  # else it was not asked, or had its answer
                    chaos.outcomes[f"status {answer.status}"] += 1
                    if answer.status == wire.good and nonce:
                        assert answer.content, nonce
                        assert answer.content.replace(nonce + b" ", b"") == b"", (
                            nonce,
                            answer.content[:100],
                        )
                await sending  # calls that want no answer
            finally:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await sending
    except (asyncio.IncompleteReadError, ConnectionError):
        chaos.outcomes["cut"] += 1
    finally:
        writer.close()


# ---- all of them ----

Serve = Callable[[Chaos, Reader, Writer], Awaitable[None]]
Client = Callable[[Chaos, Address, str], Awaitable[None]]


PEERS: dict[str, tuple[Serve, Client]] = {
    "http": (serve_http, http_client),
    **{
        wire.name: (partial(serve_frames, wire), partial(frames_client, wire))
        for wire in (BOLT, DUBBO)
    },
}
GOOD = {"http": 200, "bolt": BOLT.good, "dubbo": DUBBO.good}
each_protocol = pytest.mark.parametrize("protocol", PEERS)


class Upstreams:
    """Servers that are killed now and then, with their connections, and come back."""

    def __init__(self, chaos: Chaos, serve: Serve) -> None:
        self._chaos, self._serve = chaos, serve
        self._servers: dict[int, asyncio.Server] = {}
        self._writers: dict[int, set[Writer]] = {}
        self._stopped: dict[int, list[int]] = {}
        self.errors: list[BaseException] = []

    async def start(self, port: int = 0) -> Address:
        writers: set[Writer] = set()
        stopped: list[int] = []

        async def serve(reader: Reader, writer: Writer) -> None:
            if stopped:  # it was accepted when we stopped
                cut(writer)
                return
            writers.add(writer)
            try:
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    await self._serve(self._chaos, reader, writer)
            except Exception as error:  # told by whoever closes
                self.errors.append(error)
            finally:
                writers.discard(writer)
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=1000)
        port = server.sockets[0].getsockname()[1]
        self._servers[port], self._writers[port], self._stopped[port] = server, writers, stopped
        return Address("127.0.0.1", port)

    async def stop(self, port: int) -> None:
        self._servers.pop(port).close()
        self._stopped.pop(port).append(port)
        for writer in list(self._writers.pop(port)):
            cut(writer)

    async def kill_sometimes(self) -> None:
        while self._chaos.goes_on():
            await asyncio.sleep(self._chaos.random.random())
            port = self._chaos.random.choice(list(self._servers))
            await self.stop(port)
            await asyncio.sleep(self._chaos.random.random() * 0.1)
            await self.start(port)

    async def close(self) -> None:
        for port in list(self._servers):
            await self.stop(port)


async def _clients(chaos: Chaos, client: Client, address: Address, count: int) -> None:
    async def one(number: int) -> None:
        turn = 0
        while chaos.goes_on():
            turn += 1
            async with asyncio.timeout(PATIENCE):  # an answer, or the end
                await client(chaos, address, f"{number}.{turn}")

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))


async def _eventually(ask: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(eventually, ask, what)


async def _run(chaos: Chaos, protocol: str, serve: Serve, client: Client) -> None:
    upstreams = Upstreams(chaos, serve)
    addresses = [await upstreams.start() for _ in range(3)]
    timeouts = Timeouts(header=2, ejection=0.2)
    with RequestPlane(protocol, addresses, workers=2, timeouts=timeouts, timeout_ms=300) as plane:
        async with asyncio.TaskGroup() as group:
            group.create_task(upstreams.kill_sometimes())
            group.create_task(_clients(chaos, client, plane.address, 24))
        await _eventually(lambda: plane.data.live == 0, "the connections to end")
        tally = next(plane.data.services())[0].tally
        assert (tally.active, tally.pending) == (0, 0)
        await upstreams.close()
        await _eventually(
            lambda: next(plane.data.services())[0].tally.connections == 0,
            "the upstream connections to end",
        )
    assert not upstreams.errors, upstreams.errors


def _chaos(protocol: str, seconds: float, seed: int | None = None) -> Chaos:
    seed = random.randrange(1 << 32) if seed is None else seed
    print("seed", seed)  # shown with a failure
    chaos = Chaos(random.Random(seed), time.monotonic() + seconds)
    asyncio.run(_run(chaos, protocol, *PEERS[protocol]))
    print(sorted(chaos.outcomes.items()))
    return chaos


@each_protocol
def test_each_request_gets_its_own_answer(protocol: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    chaos = _chaos(protocol, SECONDS)
    assert chaos.outcomes[f"status {GOOD[protocol]}"] > 50
    gc.collect()  # uvloop closes a socket that was cut when nobody has its transport any more
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before, "its descriptors to be closed")


@pytest.mark.soak
@pytest.mark.timeout(0)
@each_protocol
def test_each_request_gets_its_own_answer_for_long(protocol: str) -> None:
    for _ in range(40):
        _chaos(protocol, 15)
