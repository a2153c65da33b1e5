"""Reads nodes, and reads them again whenever ZooKeeper says that they changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from kazoo.exceptions import KazooException, NoAuthError, NoNodeError
from typing_extensions import override

from pysidecar.address import Address
from pysidecar.registry import MAX_INSTANCES, Pushed, RegistryError
from pysidecar.registry.service import VARIED, Instance, ServiceKey
from pysidecar.registry.zookeeper.applications import (
    ApplicationInstance,
    MetadataService,
    Services,
    definition_path,
    definitions_path,
    instances_of,
    mapping_path,
    metadata_path,
    read_instance,
    read_mapping,
    read_services,
    services_path,
)
from pysidecar.registry.zookeeper.connection import Connection
from pysidecar.registry.zookeeper.layout import Provider, Variant, read_node, variant
from pysidecar.registry.zookeeper.metadata import ask
from pysidecar.registry.zookeeper.overrides import (
    Override,
    overridden,
    overrides_path,
    read_override,
)
from pysidecar.text import printable

__all__ = ["Applications", "Directory", "explain"]

log = logging.getLogger(__name__)

_PAUSE: Final = 2.0  # seconds until what could not be read is read again
_AT_ONCE: Final = 100  # names; to read more takes so long that a thread does it
_REMEMBERED: Final = 30.0  # seconds for who registered by interface to come back by application
_MAX_REVISIONS = 64  # of one application, of which metadata is kept
_MAX_RULES = 1000  # of one interface
_ASKED: Final = 3  # instances of a revision, one after the other
_ASKED_AT_ONCE: Final = 8  # of all applications
_ASK_PATIENCE: Final = 1.0  # seconds for which a new revision's services are waited for
_ASK_PAUSE: Final = 10.0  # seconds until a revision that nobody explained is asked about again


def explain(error: KazooException) -> str:
    """For people."""
    if isinstance(error, NoAuthError):
        return "NoAuth: its nodes belong to other credentials than registry.credentials"
    name = type(error).__name__.removesuffix("Error")
    return f"{name}: {error}" if str(error) else name


class _Follower:
    """Something to read, for as long as somebody wants it. ``read`` sets watches that say so where
    it changes."""

    _gives_up = True
    """Where it cannot be read at first: somebody else tries again."""

    def __init__(self, connection: Connection, what: str) -> None:
        self._connection = connection
        self._what = what
        self._changed = asyncio.Event()
        self._read_once: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._warned = False
        self._task: asyncio.Task[None] | None = None
        # Always the same function: ZooKeeper's client keeps each one until it was called.
        self._watch = connection.watcher(self._changed.set)

    async def started(self) -> None:
        """Returns when it was read once. Raises RegistryError if it could not be."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow())
        await asyncio.shield(self._read_once)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._read_once.cancel()

    async def read(self) -> None:
        """All of it. What fails here is tried again."""
        raise NotImplementedError

    async def _follow(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self.read()
            except KazooException as error:
                reason = explain(error)
                if self._tell_first(RegistryError(reason)) and self._gives_up:
                    return
                self._warn(f"{reason}; it is read again")
                await asyncio.sleep(_PAUSE)
                continue
            except RegistryError as error:  # the session is lost
                self._tell_first(error)
                return
            except Exception as error:
                log.exception("%s", printable(self._what))
                self._tell_first(RegistryError(f"{type(error).__name__}: {error}"))
                self._connection.fail(f"{type(error).__name__}: {error}")
                return
            self._tell_first(None)
            await self._changed.wait()

    def _tell_first(self, error: RegistryError | None) -> bool:
        if self._read_once.done():
            return False  # or nobody waits any more
        if error is None:
            self._read_once.set_result(None)
        else:
            self._read_once.set_exception(error)
            self._read_once.exception()  # somebody may wait for it, or nobody
        return True

    async def _children(self, path: str) -> list[str]:
        """None of a node that is not there yet."""
        return await self._watched("get_children", path) or []

    async def _data(self, path: str) -> bytes | None:
        answer = await self._watched("get", path)
        return answer[0] if answer else None

    async def _watched(self, call: str, path: str) -> Any:
        while True:
            try:
                return await self._connection.call(call, path, watch=self._watch)
            except NoNodeError:
                if await self._connection.call("exists", path, watch=self._watch) is None:
                    return None

    def _warn(self, problem: str) -> None:
        """Once: what others write wrong, they go on to write."""
        if not self._warned:
            self._warned = True
            log.warning("%s: %s", printable(self._what), printable(problem[:300]))


class Application(_Follower):
    """All instances of an application of Dubbo 3."""

    _gives_up = False

    def __init__(self, connection: Connection, name: str, asking: asyncio.Semaphore) -> None:
        super().__init__(connection, services_path(name))
        self.name = name
        self._permission = asking
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._silent: dict[str, asyncio.TimerHandle] = {}
        """Revisions that nobody explained, until they are asked about again."""
        self._of_interfaces: set[Directory] = set()
        self._stale: set[str] = set()
        self._watches: dict[str, Callable[[Any], None]] = {}
        self._instances: dict[str, ApplicationInstance | None] = {}
        self._services: dict[str, Services | None] = {}

    def instances_of(
        self, protocol: str, interface: str, which: Variant, defined: bool
    ) -> Iterator[Instance]:
        """``defined``: whether those provide it whose revision nobody knows."""
        for instance in self._instances.values():
            if instance is None:
                continue
            services = self._services.get(instance.revision)
            if services is not None or defined:
                yield from instances_of(protocol, interface, which, instance, services)

    @property
    def addresses(self) -> set[Address]:
        """Of all of its instances."""
        instances = (each for each in self._instances.values() if each is not None)
        found = (addresses for each in instances for addresses in each.addresses.values())
        return {address for addresses in found for address in addresses}

    async def read(self) -> None:
        """Children, those of them that changed, and what new revisions say."""
        names = await self._children(self._what)
        if len(names) > MAX_INSTANCES:
            self._warn(f"{len(names)} instances, of which {MAX_INSTANCES} are read")
        wanted = sorted(names)[:MAX_INSTANCES]
        gone = self._instances.keys() - set(wanted)
        for name in gone:
            del self._instances[name]
            self._watches.pop(name, None)
        missing = [name for name in wanted if name not in self._instances or name in self._stale]
        await asyncio.gather(*(self._read_instance(name) for name in missing))
        revisions = {each.revision for each in self._instances.values() if each} - {""}
        self._services = {key: found for key, found in self._services.items() if key in revisions}
        self._silent = {key: timer for key, timer in self._silent.items() if key in revisions}
        begun = []
        for revision in sorted(revisions)[:_MAX_REVISIONS]:
            if self._services.get(revision) is not None:
                continue
            if not (asked := self._asked_about(revision)):
                self._services[revision] = await self._read_services(revision)
            elif revision not in self._asking:
                task = asyncio.get_running_loop().create_task(self._ask(revision, asked))
                self._asking[revision] = task
                if revision not in self._silent:
                    begun.append(task)
        if begun:
            await asyncio.wait(begun, timeout=_ASK_PATIENCE)
        self._tell()

    def _tell(self) -> None:
        for interface in self._of_interfaces:
            interface.read_again()

    def _asked_about(self, revision: str) -> list[MetadataService]:
        """Empty: it is in ZooKeeper."""
        having = [each for each in self._instances.values() if each and each.revision == revision]
        asked = dict.fromkeys(each.asked for each in having if each.asked is not None)
        return [] if any(each.asked is None for each in having) else list(asked)

    async def _ask(self, revision: str, asked: list[MetadataService]) -> None:
        """Any of these. While nobody answers, what the application writes into ZooKeeper counts."""
        for service in random.sample(asked, min(len(asked), _ASKED)):
            try:
                async with self._permission:
                    found = await ask(
                        service, self.name, revision, loopback=self._connection.on_loopback
                    )
            except Exception as error:  # whoever answers may say anything
                self._warn(f"{service.address} does not say what it provides: {error}")
                continue
            self._services[revision] = found
            del self._asking[revision]
            self._silent.pop(revision, None)
            self._tell()
            return
        self._silent[revision] = asyncio.get_running_loop().call_later(
            _ASK_PAUSE, self._ask_again, revision
        )

    def _ask_again(self, revision: str) -> None:
        self._asking.pop(revision, None)
        self._changed.set()

    @override
    def stop(self) -> None:
        super().stop()
        for task in self._asking.values():
            task.cancel()
        for timer in self._silent.values():
            timer.cancel()

    async def _read_instance(self, name: str) -> None:
        self._stale.discard(name)
        watch = self._watches.get(name)
        if watch is None:
            watch = self._connection.watcher(lambda: self._set_stale(name))
            self._watches[name] = watch
        try:
            data, _ = await self._connection.call("get", f"{self._what}/{name}", watch=watch)
            self._instances[name] = read_instance(data)
        except NoNodeError:
            self._instances.pop(name, None)
        except ValueError as error:
            self._instances[name] = None
            self._warn(f"{name[:200]}: {error}")

    def _set_stale(self, name: str) -> None:
        self._stale.add(name)
        self._changed.set()

    async def _read_services(self, revision: str) -> Services | None:
        try:
            data, _ = await self._connection.call("get", metadata_path(self.name, revision))
            return read_services(data)
        except NoNodeError:
            return None
        except ValueError as error:
            self._warn(f"revision {revision[:200]}: {error}")
            return None


class Applications:
    """Those that any interface is mapped to."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asking = asyncio.Semaphore(_ASKED_AT_ONCE)
        self._by_name: dict[str, Application] = {}

    async def of(self, directory: Directory, names: tuple[str, ...]) -> list[Application]:
        """Those of that directory are these from here on."""
        for name, application in list(self._by_name.items()):
            if name not in names:
                application._of_interfaces.discard(directory)
                if not application._of_interfaces:
                    application.stop()
                    del self._by_name[name]
        found = []
        for name in names:
            if name not in self._by_name:
                self._by_name[name] = Application(self._connection, name, self._asking)
            application = self._by_name[name]
            application._of_interfaces.add(directory)
            found.append(application)
        for application in found:
            with contextlib.suppress(RegistryError):  # which it says itself
                await application.started()
        return found

    def stop(self) -> None:
        """Nobody wants any."""
        for application in self._by_name.values():
            application.stop()


class Directory(_Follower):
    """The node whose children provide all variants of an interface, and with Dubbo the
    applications that it is mapped to."""

    def __init__(
        self,
        connection: Connection,
        path: str,
        service: ServiceKey,
        applications: Applications,
        pushed: Pushed,
    ) -> None:
        super().__init__(connection, path)
        self._protocol = service.protocol
        self._interface = service.name
        self._all_applications = applications
        self._pushed = pushed
        self._services: dict[ServiceKey, Variant] = {}
        self._told: dict[ServiceKey, list[Instance]] = {}
        self._nodes: dict[str, Provider | None] = {}
        self._applications: list[Application] = []
        self._rules: list[Override] = []
        self._defined: dict[tuple[str, Variant], bool] = {}
        self._found: set[tuple[str, Variant]] = set()
        self._by_url: dict[Address, float] = {}
        """Who is or was registered by interface, and so says for itself what it provides; when it
        was last seen, in either form."""
        self._is_read = False

    def add(self, service: ServiceKey) -> None:
        """It is told of what is known, or will be."""
        self._services[service] = variant(service)
        self._told.pop(service, None)
        if self._applications:
            self.read_again()
        else:
            self.push()

    def read_again(self) -> None:
        """Something else than its own nodes changed."""
        self._changed.set()

    def remove(self, service: ServiceKey) -> bool:
        """Whether others are still wanted."""
        self._services.pop(service, None)
        return bool(self._services)

    async def leave(self) -> None:
        """Nobody wants it any more."""
        self.stop()
        await self._all_applications.of(self, ())

    async def read(self) -> None:
        """Children, and with Dubbo the mapping."""
        names = await self._children(self._what)
        if len(names) > MAX_INSTANCES:
            self._warn(f"{len(names)} children, of which {MAX_INSTANCES} are read")
        await self._read_nodes(sorted(names)[:MAX_INSTANCES])
        if self._protocol in VARIED:
            mapped = await self._data(mapping_path(self._interface))
            names_of = read_mapping(mapped) if mapped else ()
            self._applications = await self._all_applications.of(self, names_of)
            await self._read_definitions()
            await self._read_rules()
        self._is_read = True
        self.push()

    async def _read_nodes(self, names: list[str]) -> None:
        known = self._nodes
        new = [name for name in names if name not in known]
        if len(new) > _AT_ONCE:
            read, problems = await asyncio.to_thread(_read_all, self._protocol, new)
        else:
            read, problems = _read_all(self._protocol, new)
        for problem in problems:
            self._warn(problem)
        self._nodes = {name: known[name] if name in known else read[name] for name in names}

    async def _read_rules(self) -> None:
        try:
            names = await self._children(overrides_path(self._what))
        except NoAuthError:
            self._warn("configurators may not be read, so none of them holds")
            return
        if len(names) > _MAX_RULES:
            self._warn(f"{len(names)} configurators, of which {_MAX_RULES} are read")
        self._rules = []
        for name in sorted(names)[:_MAX_RULES]:
            try:
                rule = read_override(name)
            except ValueError as error:
                self._warn(f"a configurator that is left out: {error}: {name}")
                continue
            if rule is not None:
                self._rules.append(rule)

    async def _read_definitions(self) -> None:
        """Which applications say that they provide which of our services."""
        self._defined = {}
        if not self._applications:
            return
        watch, call = self._watch, self._connection.call
        any_says = await call("exists", definitions_path(self._interface), watch=watch)
        for application in self._applications:
            for which in set(self._services.values()):
                key = application.name, which
                path = definition_path(self._interface, which, application.name)
                wanted = any_says and path and key not in self._found
                if wanted and await call("exists", path, watch=watch):
                    self._found.add(key)
                self._defined[key] = not any_says or key in self._found

    def _note_by_url(self, providers: list[Provider]) -> None:
        """One that takes a service back does so here, and its application lives on: with another
        revision, for which it is unregistered for a moment."""
        now = asyncio.get_running_loop().time()
        applications = {each for found in self._applications for each in found.addresses}
        seen = {each.instance.address for each in providers} | (applications & self._by_url.keys())
        self._by_url |= dict.fromkeys(seen, now)
        self._by_url = {key: at for key, at in self._by_url.items() if now - at < _REMEMBERED}

    def push(self) -> None:
        """To each service that it changed for."""
        if not self._is_read:
            return
        providers = [each for each in self._nodes.values() if each is not None]
        self._note_by_url(providers)
        for service, which in self._services.items():
            found: dict[Any, Instance] = {}
            for provider in providers:
                instance = provider.instance
                before = found.get(instance.address)
                if provider.variant == which and (
                    before is None or before.started <= instance.started
                ):
                    found[instance.address] = instance
            if self._rules:
                called = overridden(found.values(), self._rules, which)
                found = {instance.address: instance for instance in called}
            for application in self._applications:
                defined = self._defined.get((application.name, which), False)
                for instance in application.instances_of(
                    *(self._protocol, self._interface, which, defined)
                ):
                    if instance.address not in self._by_url:
                        found.setdefault(instance.address, instance)
            told = list(found.values())
            if self._told.get(service) != told:
                self._told[service] = told
                self._pushed(service, told)


def _read_all(protocol: str, names: list[str]) -> tuple[dict[str, Provider | None], list[str]]:
    read: dict[str, Provider | None] = {}
    problems: list[str] = []
    for name in names:
        try:
            read[name] = read_node(protocol, name)
        except ValueError as error:
            read[name] = None
            problems.append(f"a node that is left out: {error}: {name}")
    return read, problems[:1]
