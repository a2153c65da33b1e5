"""Clients that check that each answer is their request's: one request after the other each, of
which some may be sent again and some must not."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.requests.fire_http2 import Client
from tests.requests.frames import BOLT, DUBBO, Answer, Request, Wire

__all__ = ["PROTOCOLS", "Load", "ask_all"]

CLIENTS = 16
ON_ONE = 4  # clients of a protocol that multiplexes, on a connection
WRITES_EACH = 4  # each fourth request


@dataclass
class Load:
    """What clients saw, of the idempotent requests (``r``) and of the others (``w``)."""

    deadline: float
    good: Counter[str] = field(default_factory=Counter)
    failures: dict[str, Counter[str]] = field(
        default_factory=lambda: {"r": Counter(), "w": Counter()}
    )
    latencies: array[float] = field(default_factory=lambda: array("d"))
    written: list[bytes] = field(default_factory=list)
    """Those that were to be served once, and were."""

    def requests(self, number: int) -> Iterator[tuple[int, str, bytes]]:
        """A client's: number, kind and nonce of each."""
        i = 0
        while time.monotonic() < self.deadline:
            kind = "w" if i % WRITES_EACH == 0 else "r"
            yield i, kind, b"%b%d-%d" % (kind.encode(), number, i)
            i += 1

    def rate(self, kind: str) -> float:
        """Of failures."""
        failed = self.failures[kind].total()
        return failed / max(1, self.good[kind] + failed)

    @property
    def count(self) -> int:
        return len(self.latencies)

    def note(self, began: float, kind: str, nonce: bytes, failure: str | None) -> None:
        self.latencies.append(time.monotonic() - began)
        if failure is not None:
            self.failures[kind][failure] += 1
            return
        self.good[kind] += 1
        if kind == "w":
            self.written.append(nonce)


async def ask_http(load: Load, port: int, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i, kind, nonce in load.requests(number):
        body = nonce * (i % 40) if i % 3 == 0 else b""
        began = time.monotonic()
        writer.write(
            b"%b /%b HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n%b"
            % (b"POST" if kind == "w" else b"PUT", nonce, len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        said = await reader.readexactly(length)
        status = int(head.split()[1])
        if status == 200:
            assert said == b"/" + nonce + body, (nonce, said)
        load.note(began, kind, nonce, None if status == 200 else str(status))
        if b"connection: close" in head.lower():
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


async def ask_http2(load: Load, client: Client, number: int) -> None:
    for i, kind, nonce in load.requests(number):
        body = nonce * (i % 40) if i % 3 == 0 else b""
        began = time.monotonic()
        method = b"POST" if kind == "w" else b"PUT"
        status, said = await client.ask(method, b"/" + nonce, body)
        if status == "200":
            assert said == b"/" + nonce + body, (nonce, said)
        load.note(began, kind, nonce, None if status == "200" else status)


async def ask_grpc(load: Load, channel: Any, number: int) -> None:
    calls = {kind: channel.unary_unary(f"/fire.Fire/{kind}") for kind in "rw"}
    for i, kind, nonce in load.requests(number):
        content = nonce + b"." * (10 * (i % 40))
        began = time.monotonic()
        failure = None
        try:
            said = await calls[kind](content)
        except grpc.aio.AioRpcError as error:
            failure = error.code().name
        else:
            assert said == content, (content, said)
        load.note(began, kind, nonce, failure)


async def ask_frames(load: Load, wire: Wire, port: int, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i, kind, nonce in load.requests(number):
        content = nonce + b"." * (10 * (i % 40))
        began = time.monotonic()
        writer.write(wire.request(Request(i & 0xFFFF, f"{kind}call", content)))
        found = await wire.read_from(reader)
        assert isinstance(found, Answer)
        assert found.id == i & 0xFFFF
        if found.status == wire.good:
            assert found.content == content
        failure = None if found.status == wire.good else str(found.status)
        load.note(began, kind, nonce, failure)
    writer.close()


async def all_http(load: Load, port: int) -> None:
    await asyncio.gather(*(ask_http(load, port, number) for number in range(CLIENTS)))


async def all_http2(load: Load, port: int) -> None:
    clients = [await Client.connect(port) for _ in range(CLIENTS // ON_ONE)]
    asks = (ask_http2(load, clients[number // ON_ONE], number) for number in range(CLIENTS))
    await asyncio.gather(*asks)
    for client in clients:
        await client.close()


async def all_grpc(load: Load, port: int) -> None:
    # gRPC sends nothing again by itself, and its channels have a connection each.
    options = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(CLIENTS // ON_ONE)
    ]
    asks = (ask_grpc(load, channels[number // ON_ONE], number) for number in range(CLIENTS))
    await asyncio.gather(*asks)
    for channel in channels:
        await channel.close()


async def all_bolt(load: Load, port: int) -> None:
    await asyncio.gather(*(ask_frames(load, BOLT, port, number) for number in range(CLIENTS)))


async def all_dubbo(load: Load, port: int) -> None:
    await asyncio.gather(*(ask_frames(load, DUBBO, port, number) for number in range(CLIENTS)))


PROTOCOLS: dict[str, Callable[[Load, int], Awaitable[None]]] = {
    "http": all_http,
    "http2": all_http2,
    "grpc": all_grpc,
    "bolt": all_bolt,
    "dubbo": all_dubbo,
}


async def ask_all(protocol: str, load: Load, port: int) -> None:
    """Until its deadline."""
    await PROTOCOLS[protocol](load, port)
