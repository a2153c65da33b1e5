"""A sidecar's session with a registry that ``pysidecar registry`` serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import Any, Final

from typing_extensions import override

from pysidecar.address import Address, NamedAddress
from pysidecar.background import in_background
from pysidecar.registry import Pushed, Registry, RegistryError, Session
from pysidecar.registry.embedded import wire
from pysidecar.registry.servers import Servers
from pysidecar.registry.service import Instance, Registration, ServiceKey

__all__ = ["RemoteRegistry"]

_LONG_LINE: Final = 32768  # bytes, from which on reading it takes the event loop too long
_TURN: Final = 0.005  # seconds of reading one line after the other until others have their turn


class RemoteRegistry(Registry):
    """Of several addresses the first that answers is taken."""

    def __init__(self, addresses: Sequence[Address | NamedAddress], timeout: float) -> None:
        self._servers = Servers(addresses)
        self._timeout = timeout

    @property
    @override
    def description(self) -> str:
        return f"the embedded registry at {self._servers}"

    @override
    async def open(self, pushed: Pushed) -> Session:
        return await self._servers.open(lambda address, _: _open(address, self._timeout, pushed))


async def _open(address: Address, timeout: float, pushed: Pushed) -> Session:
    """Raises RegistryError and OSError."""
    reader, writer = await asyncio.open_connection(
        address.host, address.port, limit=wire.MOST_BYTES_OF_ANSWER
    )
    session = _RemoteSession(reader, writer, pushed)
    try:
        await session.greet(timeout)
    except BaseException:
        session.lose("it did not greet us")
        raise
    return session


class _RemoteSession(Session):
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pushed: Pushed
    ) -> None:
        loop = asyncio.get_running_loop()
        self._reader = reader
        self._writer = writer
        self._pushed = pushed
        self._watched: set[ServiceKey] = set()
        self._last = 0
        self._silence = 0.0  # seconds of it that are too many, while an answer is waited for
        self._takes = False  # what it said
        self._limit: asyncio.Timeout | None = None  # of a call that waits
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._lost: asyncio.Future[str] = loop.create_future()
        self._tasks = [loop.create_task(self._read())]

    async def greet(self, timeout: float) -> None:
        """Before anything else. Raises RegistryError."""
        answer = await self._call("hello", registry=wire.VERSION, timeout=timeout)
        lease = answer.get("timeout")
        if type(lease) is not float or not wire.TIMEOUTS[0] <= lease <= wire.TIMEOUTS[1]:
            raise RegistryError("the answer is not one of a registry")
        self._tasks.append(asyncio.get_running_loop().create_task(self._renew(lease)))

    @override
    async def register(self, registration: Registration) -> None:
        await self._call(
            "register",
            service=wire.plain_service(registration.service),
            instance=wire.plain_instance(registration.instance),
        )

    @override
    async def unregister(self, registration: Registration) -> None:
        await self._call(
            "unregister",
            service=wire.plain_service(registration.service),
            address=str(registration.instance.address),
        )

    @override
    async def subscribe(self, service: ServiceKey) -> None:
        self._watched.add(service)
        await self._call("subscribe", service=wire.plain_service(service))

    @override
    async def unsubscribe(self, service: ServiceKey) -> None:
        self._watched.discard(service)
        await self._call("unsubscribe", service=wire.plain_service(service))

    @override
    async def closed(self) -> str:
        return await asyncio.shield(self._lost)

    @override
    async def close(self) -> None:
        with contextlib.suppress(RegistryError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._call("end")
        self.lose("it was closed")

    # ---- under way ----

    async def _call(self, do: str, **parameters: Any) -> dict[str, Any]:
        if self._lost.done():
            raise RegistryError(self._lost.result())
        self._last += 1
        number = self._last
        line = wire.text_of({"id": number, "do": do, **parameters}).encode() + b"\n"
        if len(line) > wire.MOST_BYTES_OF_REQUEST:
            raise RegistryError(f"{len(line)} bytes are more than the registry takes")
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._writer.write(line)
            answer = await future
        finally:
            self._waiting.pop(number, None)
        if answer.get("ok") is not True:
            raise RegistryError(str(answer.get("error", "it failed")))
        return answer

    async def _renew(self, lease: float) -> None:
        """Keeps the registry from forgetting us, and notices where it is silent. What it has to
        say of very many instances comes before its answer, and may take long to read."""
        self._silence = lease * 2 / 3
        try:
            while True:
                await asyncio.sleep(lease / 3)
                async with asyncio.timeout(None if self._takes else self._silence) as limit:
                    self._limit = limit
                    try:
                        await self._call("renew")
                    finally:
                        self._limit = None
        except TimeoutError:
            self.lose(f"it was silent for {lease:g} s")
        except RegistryError as error:
            self.lose(str(error))

    def _be_patient(self, *, takes: bool) -> None:
        """It said something, which is being taken or was."""
        self._takes = takes
        if self._limit is not None and not self._limit.expired():
            until = asyncio.get_running_loop().time() + self._silence
            self._limit.reschedule(None if takes else until)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _TURN
        try:
            while True:
                line = await self._reader.readuntil(b"\n")
                self._be_patient(takes=True)
                await self._take(line)
                self._be_patient(takes=False)
                if loop.time() > until:  # reading and taking what is there already does not wait
                    await asyncio.sleep(0)
                    until = loop.time() + _TURN
        except asyncio.IncompleteReadError:
            self.lose("it closed the connection")
        except asyncio.LimitOverrunError:
            self.lose("it says more in a line than can be")
        except ValueError as error:
            self.lose(f"what it says is not of a registry: {error}")
        except OSError as error:
            self.lose(os.strerror(error.errno or 0))

    async def _take(self, line: bytes) -> None:
        if len(line) >= _LONG_LINE:
            self._push(*await in_background(lambda: wire.read_long_push(line)))
            return
        message = wire.read_line(line)
        if "service" in message:
            instances = message.get("instances")
            if not isinstance(instances, list):
                raise ValueError("expected instances")
            self._push(
                wire.read_service(message["service"]),
                list(map(wire.InstanceReader().read, instances)),
            )
        elif isinstance(reason := message.get("closing"), str):
            self.lose(reason)
        elif (future := self._waiting.get(_number(message))) is not None and not future.done():
            future.set_result(message)

    def _push(self, service: ServiceKey, instances: list[Instance]) -> None:
        if service in self._watched:
            self._pushed(service, instances)

    def lose(self, reason: str) -> None:
        """It is of no use any more."""
        if self._lost.done():
            return
        self._lost.set_result(reason)
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(RegistryError(reason))
        self._writer.transport.abort()


def _number(message: dict[str, Any]) -> int:
    number = message.get("id")
    if type(number) is not int:
        raise ValueError("expected an id")
    return number
