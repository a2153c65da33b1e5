"""ZooKeeper, in the layouts of Dubbo and SOFARPC, so that applications that register themselves
there find those behind sidecars, and are found: see ``layout`` and ``applications``.

A session here is one connection. ZooKeeper keeps its own session, and with it the nodes that it
created, until its timeout has passed: the next connection goes on with it, or takes the nodes over.
"""

from __future__ import annotations

import contextlib
import random
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from kazoo.exceptions import (
    KazooException,
    NodeExistsError,
    NoNodeError,
    RolledBackError,
    RuntimeInconsistency,
)
from typing_extensions import override

from pysidecar.address import Address, NamedAddress
from pysidecar.registry import Pushed, Registry, RegistryError, Session
from pysidecar.registry.security import client_context, read_credentials
from pysidecar.registry.servers import Servers
from pysidecar.registry.service import Registration, ServiceKey
from pysidecar.registry.zookeeper.connection import Connection, SessionId
from pysidecar.registry.zookeeper.following import Applications, Directory, explain
from pysidecar.registry.zookeeper.layout import directory, node_name, read_node, variant

if TYPE_CHECKING:
    from pysidecar.config.takeover import RegistryEntry

__all__ = ["make"]

_ATTEMPTS = 5  # to write what others write, too
# What a transaction ends with when nodes came or went since they were looked at.
_OVERTAKEN = (NoNodeError, NodeExistsError, RolledBackError, RuntimeInconsistency)
_ONLINE = b"\x01"  # as SOFARPC writes it; Dubbo ignores it


def make(entry: RegistryEntry) -> Registry:
    """Raises StartError."""
    return _ZooKeeper(
        entry.address,
        entry.session_timeout,
        read_credentials(entry.credentials),
        client_context(entry.tls),
    )


class _ZooKeeper(Registry):
    def __init__(
        self,
        addresses: tuple[Address | NamedAddress, ...],
        session_timeout: float,
        credentials: tuple[str, str] | None,
        context: ssl.SSLContext | None,
    ) -> None:
        self._servers = Servers(addresses, first=random.randrange(1 << 16))
        self._session_timeout = session_timeout
        self._credentials = credentials
        self._context = context
        self.left: SessionId | None = None
        """What the last connection left at the servers when it was lost."""

    @property
    @override
    def description(self) -> str:
        return f"zookeeper at {self._servers}"

    @override
    async def open(self, pushed: Pushed) -> Session:
        return _ZooKeeperSession(self, await self._servers.open(self._connect), pushed)

    async def _connect(self, address: Address, verify: str) -> Connection:
        connection = self._connection(address, verify, self.left)
        try:
            await connection.open()
        except RegistryError:
            await connection.close()
            if not connection.expired or self.left is None:
                raise
            self.left = None
            return await self._connect(address, verify)
        except BaseException:
            connection.abandon()
            raise
        self.left = None
        return connection

    def _connection(self, address: Address, verify: str, session: SessionId | None) -> Connection:
        return Connection(
            address,
            verify=verify,
            session_timeout=self._session_timeout,
            context=self._context,
            credentials=self._credentials,
            session=session,
        )


class _ZooKeeperSession(Session):
    def __init__(self, registry: _ZooKeeper, connection: Connection, pushed: Pushed) -> None:
        self._registry = registry
        self._connection = connection
        self._pushed = pushed
        self._applications = Applications(connection)
        self._directories: dict[tuple[str, str], Directory] = {}  # by protocol and path

    @override
    async def register(self, registration: Registration) -> None:
        with _explained():
            path, name = directory(registration.service), node_name(registration)
            for _ in range(_ATTEMPTS):
                if await self._take(path, name, registration):
                    return
        raise RegistryError("others change the same nodes all the time")

    @override
    async def unregister(self, registration: Registration) -> None:
        with _explained():
            path, name = directory(registration.service), node_name(registration)
            try:
                names = await self._connection.call("get_children", path)
            except NoNodeError:
                return
            for each in (*_replaced(names, name, registration), name):
                with contextlib.suppress(NoNodeError):
                    await self._connection.call("delete", f"{path}/{each}")

    async def _take(self, path: str, name: str, registration: Registration) -> bool:
        """The node is there and ours, and no other one of the same service and address. False:
        nodes came or went meanwhile."""
        connection, node = self._connection, f"{path}/{name}"
        try:
            names = await connection.call("get_children", path)
        except NoNodeError:
            await connection.call("ensure_path", path)
            return False
        replaced = _replaced(names, name, registration)
        is_there = name in names
        if is_there and not replaced and await self._owns(node):
            return True

        def fill(transaction: Any) -> None:
            if is_there:  # of an earlier session, whose end would take it away
                transaction.delete(node)
            transaction.create(node, _ONLINE, acl=connection.acl, ephemeral=True)
            for each in replaced:
                transaction.delete(f"{path}/{each}")

        results = await connection.commit(fill)
        problems = [each for each in results if isinstance(each, Exception)]
        for problem in problems:
            if not isinstance(problem, _OVERTAKEN):
                raise problem
        return not problems

    async def _owns(self, node: str) -> bool:
        session, found = self._connection.session, await self._connection.call("exists", node)
        return found is not None and session is not None and found.ephemeralOwner == session[0]

    @override
    async def subscribe(self, service: ServiceKey) -> None:
        with _explained():
            path = directory(service)
            place = service.protocol, path
            followed = self._directories.get(place)
            if followed is None:
                followed = self._directories[place] = Directory(
                    self._connection, path, service, self._applications, self._pushed
                )
            followed.add(service)
            try:
                await followed.started()
            except RegistryError:
                if self._directories.get(place) is followed:
                    del self._directories[place]
                    followed.stop()
                raise

    @override
    async def unsubscribe(self, service: ServiceKey) -> None:
        with _explained():
            place = service.protocol, directory(service)
            followed = self._directories.get(place)
            if followed is not None and not followed.remove(service):
                del self._directories[place]
                await followed.leave()

    @override
    async def closed(self) -> str:
        reason = await self._connection.lost()
        self._registry.left = self._connection.session
        return reason

    @override
    async def close(self) -> None:
        for followed in self._directories.values():
            followed.stop()
        self._applications.stop()
        await self._connection.close()


def _replaced(names: list[str], name: str, registration: Registration) -> list[str]:
    """Other nodes that a sidecar wrote of the same service and address: this one, before it said
    something else, or before it was started again."""
    service, address = registration.service, registration.instance.address
    begin = quote_plus(f"{service.protocol}://{address}")
    found = []
    for each in names:
        if each == name or not each.startswith(begin):
            continue
        with contextlib.suppress(ValueError):
            provider = read_node(service.protocol, each)
            if (
                provider is not None
                and provider.ours
                and provider.instance.address == address
                and provider.variant == variant(service)
            ):
                found.append(each)
    return found


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except KazooException as error:
        raise RegistryError(explain(error)) from None
    except ValueError as error:
        raise RegistryError(str(error)) from None
