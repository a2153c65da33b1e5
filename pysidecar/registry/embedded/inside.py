"""The registry that only this process has."""

from __future__ import annotations

import asyncio
import math

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.registry import Pushed, Registry, RegistryError, Session
from pysidecar.registry.embedded.store import Store
from pysidecar.registry.service import Registration, ServiceKey

__all__ = ["InsideRegistry"]


class InsideRegistry(Registry):
    """What is registered in one session is pushed to all of them."""

    def __init__(self) -> None:
        self.store = Store(self._changed)
        self._sessions: dict[_InsideSession, None] = {}

    @property
    @override
    def description(self) -> str:
        return "the registry inside this sidecar"

    @override
    async def open(self, pushed: Pushed) -> Session:
        session = _InsideSession(self, pushed)
        self._sessions[session] = None
        return session

    def left(self, session: _InsideSession) -> None:
        """It is closed."""
        self._sessions.pop(session, None)

    def _changed(self, service: ServiceKey, address: Address) -> None:
        for session in self._sessions:
            session.changed(service)


class _InsideSession(Session):
    def __init__(self, registry: InsideRegistry, pushed: Pushed) -> None:
        loop = asyncio.get_running_loop()
        self._registry = registry
        self._store = registry.store
        self._pushed = pushed
        self._lease = self._store.open("this process", trusted=True, timeout=math.inf, now=0)
        self._watched: set[ServiceKey] = set()
        self._due: dict[ServiceKey, None] = {}
        self._closed: asyncio.Future[str] = loop.create_future()

    @override
    async def register(self, registration: Registration) -> None:
        self._check_open()
        self._store.register(self._lease, registration)

    @override
    async def unregister(self, registration: Registration) -> None:
        self._check_open()
        self._store.unregister(self._lease, registration.service, registration.instance.address)

    @override
    async def subscribe(self, service: ServiceKey) -> None:
        self._check_open()
        self._watched.add(service)
        self.changed(service)

    @override
    async def unsubscribe(self, service: ServiceKey) -> None:
        self._watched.discard(service)

    @override
    async def closed(self) -> str:
        return await asyncio.shield(self._closed)

    @override
    async def close(self) -> None:
        if not self._closed.done():
            self._closed.set_result("it was closed")
            self._registry.left(self)
            self._store.end(self._lease)

    def changed(self, service: ServiceKey) -> None:
        """It is pushed soon: several changes in one go are one."""
        if service in self._watched:
            if not self._due:
                asyncio.get_running_loop().call_soon(self._push)
            self._due[service] = None

    def _push(self) -> None:
        due, self._due = self._due, {}
        for service in due:
            if service in self._watched and not self._closed.done():
                self._pushed(service, [held.instance for held in self._store.held(service)])

    def _check_open(self) -> None:
        if self._closed.done():
            raise RegistryError("the session is closed")
