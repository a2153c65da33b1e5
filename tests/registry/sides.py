"""Clients of a registry, as a sidecar is one: in a thread, or in a process that can be killed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any, Self

from pysidecar.address import Address
from pysidecar.config import RegistryEntry
from pysidecar.registry import make_registry
from pysidecar.registry.client import RegistryClient
from pysidecar.registry.service import Instance, Registration, ServiceKey

Seen = dict[Address, Instance]


class Side:
    """A RegistryClient in a thread of its own, and all that it was told."""

    def __init__(self, entry: RegistryEntry) -> None:
        self._entry = entry
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="side")
        self._told: dict[ServiceKey, list[Seen]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self.client = RegistryClient(make_registry(self._entry), self._pushed)
        self.do(self.client.start)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self.client.stop(), self._loop).result(20)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def do(self, call: Callable[..., Any], *arguments: object) -> Any:
        """Calls it in the client's event loop, where all of its calls belong."""

        async def run() -> Any:
            return call(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(20)

    def register(self, *registrations: Registration) -> None:
        for registration in registrations:
            self.do(self.client.register, registration)

    def unregister(self, *registrations: Registration) -> None:
        for registration in registrations:
            self.do(self.client.unregister, registration)

    def unregistered(self, registrations: Sequence[Registration], timeout: float) -> None:
        waiting = self.client.unregistered(registrations, timeout)
        asyncio.run_coroutine_threadsafe(waiting, self._loop).result(timeout + 20)

    def subscribe(self, *services: ServiceKey) -> None:
        for service in services:
            self.do(self.client.subscribe, service)

    def unsubscribe(self, *services: ServiceKey) -> None:
        for service in services:
            self.do(self.client.unsubscribe, service)

    def has_registered(self, *registrations: Registration) -> bool:
        return all(self.do(self.client.is_registered, each) for each in registrations)

    @property
    def state(self) -> str:
        return self.client.state

    def told(self, service: ServiceKey) -> list[Seen]:
        """All pushes of it, by address, the latest last."""
        return list(self._told.get(service, ()))

    def sees(self, service: ServiceKey) -> Seen | None:
        """What it was told last; None: nothing yet."""
        told = self._told.get(service)
        return told[-1] if told else None

    def _pushed(self, service: ServiceKey, instances: Sequence[Instance]) -> None:
        self._told.setdefault(service, []).append({each.address: each for each in instances})


class SideProcess:
    """One in a process of its own, which registers this, and can be killed."""

    def __init__(self, entry: RegistryEntry, *registrations: Registration) -> None:
        plain = [
            [*astuple(each.service), str(each.instance.address), each.instance.weight]
            for each in registrations
        ]
        self._command = [
            *(sys.executable, "-m", __name__),
            json.dumps(entry.model_dump(mode="json")),
            json.dumps(plain),
        ]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "registered\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.communicate()

    def kill(self) -> None:
        """Nobody is told."""
        self.process.kill()
        self.process.wait()


async def _provide(entry: RegistryEntry, registrations: Sequence[Registration]) -> None:
    client = RegistryClient(make_registry(entry), lambda service, instances: None)
    client.start()
    for registration in registrations:
        client.register(registration)
    while not all(map(client.is_registered, registrations)):
        await asyncio.sleep(0.01)
    print("registered", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await client.stop()


def _main() -> None:
    entry = RegistryEntry.model_validate(json.loads(sys.argv[1]))
    registrations = [
        Registration(ServiceKey(*key), Instance(Address.parse(address), weight=weight))
        for *key, address, weight in json.loads(sys.argv[2])
    ]
    asyncio.run(_provide(entry, registrations))


if __name__ == "__main__":
    _main()
