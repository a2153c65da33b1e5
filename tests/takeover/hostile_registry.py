"""A registry that takes everything, and says whatever it is told to, as the embedded one would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Self

from pysidecar.address import Address


def instances(count: int, *, hosts: int = 10, **more: Any) -> bytes:
    """So many that differ, as the protocol writes them. ``hosts``: the first byte of them."""
    end = "".join(f",{json.dumps(key)}:{json.dumps(value)}" for key, value in more.items())
    return ",".join(
        f'{{"address":"{hosts}.{n >> 16}.{n >> 8 & 255}.{n & 255}:{n % 60000 + 1}"{end}}}'
        for n in range(count)
    ).encode()


def told(*addresses: str) -> bytes:
    """Instances at those."""
    return ",".join(json.dumps({"address": each}) for each in addresses).encode()


def push(service: str, of_it: bytes) -> bytes:
    """A line that tells of them."""
    return b'{"service":{"protocol":"http","name":"%b"},"instances":[%b]}\n' % (
        service.encode(),
        of_it,
    )


class HostileRegistry:
    """In a thread of its own. ``says`` has what is told of a service that is subscribed."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.says: dict[str, bytes] = {}
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hostile")
        self._clients: set[asyncio.StreamWriter] = set()
        self.sessions = 0
        """How many there were."""
        self.subscribed: set[str] = set()
        """Of which services something is taken."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, self._host, 0))
        self.address = Address(*self._server.sockets[0].getsockname()[:2])
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def say(self, lines: bytes | Iterable[bytes]) -> None:
        """To all that are connected, as quickly as they take it."""
        self._run(self._say([lines] if isinstance(lines, bytes) else lines))

    async def _say(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            for client in list(self._clients):
                with contextlib.suppress(OSError):
                    client.write(line)
                    await client.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                request = json.loads(line)
                answer = {"id": request["id"], "ok": True}
                if request["do"] == "hello":
                    answer["timeout"] = 10.0
                    self.sessions += 1
                writer.write(json.dumps(answer).encode() + b"\n")
                if request["do"] == "hello":
                    self._clients.add(writer)
                name = request.get("service", {}).get("name")
                if request["do"] == "subscribe":
                    self.subscribed.add(name)
                    writer.write(push(name, self.says.get(name, b"")))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@contextlib.contextmanager
def hostile_registry() -> Iterator[HostileRegistry]:
    """On loopback."""
    with HostileRegistry() as made:
        yield made
