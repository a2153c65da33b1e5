"""Health checks: what they cost the control plane, by how many endpoints are asked every five
seconds. The endpoints are addresses of 127.0.0.0/8, and one process answers at all of them."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import resource
import struct
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import cast

import uvloop

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.health.checks import CheckedService, HealthChecks

_COUNTS = (1_000, 10_000)
_INTERVAL = 5.0
_SECONDS = 20.0
_KINDS = {
    "http": HealthCheck(type="http", path="/health"),
    "grpc": HealthCheck(type="grpc"),
    "bolt": HealthCheck(type="bolt"),
    "dubbo": HealthCheck(type="dubbo"),
    "tcp": HealthCheck(type="tcp"),
}


def measure() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        for kind, settings in _KINDS.items():
            with _server(kind) as port:
                for count in _COUNTS:
                    _show(kind, settings, port, count)
        with _server("http") as port:
            share = uvloop.run(_measure_streams(port, 1_000))
            print(
                f"  http by asyncio's streams, 1,000 endpoints: {share:.1%} of a core", flush=True
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _show(kind: str, settings: HealthCheck, port: int, count: int) -> None:
    share, checks, longest = uvloop.run(_measure(settings, port, count))
    print(
        f"  {kind}, {count:,} endpoints every {_INTERVAL:g} s: {share:.1%} of a core, "
        f"{share / (checks or 1) * 1e6:.0f} µs a check, {checks:,.0f} checks a second, the loop "
        f"held for {longest * 1e3:.0f} ms at most",
        flush=True,
    )


def _addresses(port: int, count: int) -> list[Address]:
    return [Address(f"127.1.{n >> 8}.{n & 255}", port) for n in range(count)]


async def _measure(settings: HealthCheck, port: int, count: int) -> tuple[float, float, float]:
    """The share of a core, checks a second, and for how long nothing else ran at most."""
    checks = HealthChecks(lambda changes: None, most=16_384)
    checks.set([CheckedService(1, "any", "http", settings, _addresses(port, count))])
    await asyncio.sleep(1.5 * _INTERVAL)  # all are connected
    before = _sums(checks)
    began, used = time.monotonic(), time.process_time()
    longest = await _longest_turn(_SECONDS)
    seconds, share = time.monotonic() - began, time.process_time() - used
    passed, failed = _sums(checks)
    assert failed == 0, f"{failed} checks failed"
    checks.close()
    return share / seconds, (passed - before[0]) / seconds, longest


async def _longest_turn(seconds: float) -> float:
    """Of the loop, seen by somebody who wants a turn each five milliseconds."""
    longest, last = 0.0, time.monotonic()
    end = last + seconds
    while last < end:
        await asyncio.sleep(0.005)
        now = time.monotonic()
        longest, last = max(longest, now - last - 0.005), now
    return longest


def _sums(checks: HealthChecks) -> tuple[int, int]:
    [(_, _, passed, failed)] = checks.results()
    return passed, failed


async def _measure_streams(port: int, count: int) -> float:
    """The same checks as anybody would write them."""

    async def check(address: Address) -> None:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(
            f"GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async def ask(address: Address, delay: float) -> None:
        await asyncio.sleep(delay)
        while True:
            await check(address)
            await asyncio.sleep(_INTERVAL)

    tasks = [
        asyncio.create_task(ask(address, n * _INTERVAL / count))
        for n, address in enumerate(_addresses(port, count))
    ]
    await asyncio.sleep(_INTERVAL)
    began, used = time.monotonic(), time.process_time()
    await asyncio.sleep(_SECONDS)
    share = (time.process_time() - used) / (time.monotonic() - began)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return share


# ---- who answers ----


class _Answering(asyncio.Protocol):
    """One answer for each request, which comes as a whole."""

    def __init__(self, kind: str) -> None:
        self._answer = getattr(self, f"_{kind}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer(data))

    def _http(self, data: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"

    def _tcp(self, data: bytes) -> bytes:
        return b""

    def _bolt(self, data: bytes) -> bytes:
        number = struct.unpack_from(">I", data, 5)[0]
        return struct.pack(">BBHBIBHHHI", 1, 0, 0, 1, number, 1, 0, 0, 0, 0)

    def _dubbo(self, data: bytes) -> bytes:
        return data[:2] + b"\x22\x14" + data[4:]

    def _grpc(self, data: bytes) -> bytes:
        at = 24 if data.startswith(b"PRI") else 0
        answer = b"\0\0\0\x04\0\0\0\0\0" if at else b""
        while at + 9 <= len(data):
            size = int.from_bytes(data[at : at + 3], "big")
            if data[at + 3] == 0:  # DATA: the end of a request
                stream = data[at + 5 : at + 9]
                answer += b"\0\0\x01\x01\x04" + stream + b"\x88"
                answer += b"\0\0\x07\0\0" + stream + b"\0\0\0\0\x02\x08\x01"
                answer += b"\0\0\x04\x01\x05" + stream + b"\x00\x01a\x00"
            at += 9 + size
        return answer


def _serve(kind: str, ready: Connection) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Answering(kind), "0.0.0.0", 0, backlog=16_384)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


@contextlib.contextmanager
def _server(kind: str) -> Iterator[int]:
    """The port of a process that answers."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(kind, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()
