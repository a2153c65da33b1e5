"""Takeover as a whole: what applications say is registered and subscribed, and what the registry
says becomes endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.background import in_background
from pysidecar.config import Config, ProvidedService, WantedService
from pysidecar.dataplane import DemandedService
from pysidecar.listeners import open_listener
from pysidecar.log import Mistakes
from pysidecar.registry import make_registry
from pysidecar.registry.client import LONGEST_PAUSE, SETTLE_TIME, RegistryClient
from pysidecar.registry.service import CALLS, GRPC_COMMON, Instance, Registration, ServiceKey
from pysidecar.routing.found import NOTHING_FOUND, FoundService, FoundServices, Role
from pysidecar.routing.policies import Policies
from pysidecar.takeover.advertised import advertised, expand, is_local, local_hosts
from pysidecar.takeover.api import MeshApi
from pysidecar.takeover.bodies import Body, BodyError, service_key
from pysidecar.takeover.described import describe
from pysidecar.takeover.dubbo_api import DubboApi
from pysidecar.takeover.endpoints import Endpoints, Selection
from pysidecar.takeover.json_api import JsonApi
from pysidecar.takeover.liveness import Liveness
from pysidecar.takeover.state import State, default_path
from pysidecar.takeover.table import (
    CONFIGURATION,
    ON_DEMAND,
    Publication,
    ServiceTable,
    TableError,
    Watcher,
)

__all__ = ["Takeover"]

log = logging.getLogger(__name__)
_mistakes = Mistakes(log)

_METADATA_SERVICE = "org.apache.dubbo.metadata.MetadataService"
_METADATA_SERVICES = {
    "dubbo": (_METADATA_SERVICE,),
    "tri": (_METADATA_SERVICE, f"{_METADATA_SERVICE}V2"),
}
# Where Dubbo's providers register by themselves, with our address: see `dubbo_environment`.
_BY_THEMSELVES = {"dubbo": ("zookeeper", "sofaregistry"), "tri": ("zookeeper",)}
_LOCAL_WEIGHT = 100
_ROLES = {role.value: role for role in Role}
# Seconds. Changes that come together make one table; many that do not, one after each pause.
_PAUSE = 0.01
_LONGEST_PAUSE = 0.5
_PAUSE_AFTER_MISTAKE = 5.0
_MANY = 2000  # instances, from which on choosing among them takes the event loop too long
_MOST_WARNINGS = 1000  # about addresses that are not called
_LEAVE_TIMEOUT = 2.0  # for the registry to take everything back
_AWAY_PAUSE = 0.25  # until it is seen that the registry is back
_PATIENCE = 10.0  # for all that one user unpublishes at a time; SOFARPC waits for each answer
_MOST_PATIENT = 1000  # users
_SETTLE_TIMEOUT = 1.0  # for requests to go where an application was told that they do


class Takeover(Watcher):
    """Its life: ``open``, ``restore``, ``start``, then ``leave`` to be gentle, ``stop``, ``close``.
    ``found`` is called in the loop each time that where requests go has changed, and begins a task
    that makes it so. ``own`` are the sidecar's listeners, by what they are for."""

    def __init__(
        self,
        config: Config,
        own: Mapping[Address, str],
        found: Callable[[FoundServices], asyncio.Task[None]],
    ) -> None:
        settings = config.takeover
        assert settings is not None
        self._settings = settings
        self._own = own
        self._found = found
        self.table = ServiceTable()
        self.address = advertised(settings.advertise, settings.provider, config.registry.address)
        """What the registry is told."""
        registry = config.registry.address
        self._endpoints = Endpoints(
            loopback=not registry or is_local(self.address) or all(map(is_local, registry)),
            provider=self.address,
        )
        self._registry = make_registry(config.registry)
        self._client = RegistryClient(self._registry, self.table.push)
        self._config = config
        self._policies = Policies(settings.services)
        self._stack = contextlib.ExitStack()
        self._servers: list[JsonApi] = []
        self._liveness = Liveness(self.table)
        self._state = State(
            self.table,
            settings.state or default_path(config.outbound.control_path, settings.api),
        )
        self._registered: dict[ServiceKey, Registration] = {}
        self._leaving = False
        self._services: dict[tuple[Role, ServiceKey], FoundService] = {}
        self._stale: set[ServiceKey] = set()
        self._changes: dict[ServiceKey, float] = {}  # seconds since the epoch
        self._warned: set[Address] = set()
        self._refused = False  # something on demand
        self._timer: asyncio.TimerHandle | None = None
        self._table = NOTHING_FOUND
        self._applying: asyncio.Task[None] | None = None
        self._building: asyncio.Task[None] | None = None  # a table that takes longer
        self._pause = _PAUSE
        self._ending: dict[tuple[ServiceKey, int], asyncio.Task[None]] = {}
        """What takes away what a user unpublished, one for each service."""
        self._waits: dict[int, float] = {}  # until when its unpublishes wait, by user

    # ---- Life ----

    def open(self) -> None:
        """Listens, for the APIs. Raises StartError."""
        self._stack.callback(self._state.claim())
        settings, registry = self._settings, self._config.registry.type
        ports = frozenset(address.port for address in self._own)
        listener = self._listen(settings.api, "takeover.api")
        self._servers.append(
            MeshApi(
                self.table,
                settings,
                listener,
                own_ports=ports,
                unpublish=self.unpublish,
                settled=self.settled,
            )
        )
        if settings.dubbo_api is not None:
            listener = self._listen(settings.dubbo_api, "takeover.dubbo_api")
            self._servers.append(
                DubboApi(
                    self.table,
                    settings,
                    listener,
                    registry=registry,
                    own_ports=ports,
                    unpublish=self.unpublish,
                    settled=self.settled,
                )
            )

    def _listen(self, address: Address, key: str) -> socket.socket:
        listener = open_listener(address, key)
        self._stack.callback(listener.close)
        return listener

    def restore(self) -> FoundServices:
        """What was known before, and what the configuration has: calls find it as soon as there is
        somebody who takes them."""
        self._state.restore()
        self.apply(self._config)
        self._stale.update(each.service for each in self.table.publications)
        self._stale.update(service for service, *_ in self.table.subscriptions)
        self._table = self._look_again()
        return self._table

    async def start(self) -> None:
        """From here on applications and the registry are spoken to. After ``restore``."""
        self.table.watch(self)
        for service in {each.service for each in self.table.publications}:
            self._register(service)
        for service, _, instances in self.table.subscriptions:
            self._stale.add(service)
            self._client.subscribe(service, instances)
        self._state.start()
        self._liveness.start()
        self._client.start()
        for server in self._servers:
            await server.start()
        self._build()

    def apply(self, config: Config) -> None:
        """What the configuration itself publishes and subscribes has changed, perhaps."""
        assert config.takeover is not None
        if config.takeover.await_timeout != self._settings.await_timeout:
            self._stale.update(service for service, _, _ in self.table.subscriptions)
        self._config, self._settings = config, config.takeover
        self._policies = Policies(config.takeover.services)
        wanted = {_key(each) for each in config.takeover.subscribe} | {
            ServiceKey.parse(each.protocol, each.subscribe)
            for each in config.services.values()
            if each.subscribe
        }
        for service, uids, _ in self.table.subscriptions:
            if CONFIGURATION in uids and service not in wanted:
                self.table.unsubscribe(service, CONFIGURATION)
            if ON_DEMAND in uids and not self._settings.on_demand:
                self.table.unsubscribe(service, ON_DEMAND)
        for service in wanted:
            self.table.subscribe(service, CONFIGURATION)
        self._publish_configured(
            {
                (each.service, each.address): each
                for each in map(_publication, config.takeover.publish)
            }
        )

    def _publish_configured(
        self, provided: Mapping[tuple[ServiceKey, Address], Publication]
    ) -> None:
        published = {
            (each.service, each.address): each
            for each in self.table.publications
            if each.uid == CONFIGURATION
        }
        for service, address in published.keys() - provided.keys():
            self.table.unpublish(service, CONFIGURATION, address)
        for place, publication in provided.items():
            before = published.get(place)
            alive = before.alive if before is not None else publication.alive
            self.table.publish(replace(publication, alive=alive))

    async def unpublish(self, service: ServiceKey, uid: int) -> None:
        """As ``ServiceTable.unpublish``, and returns when no consumer elsewhere should call it any
        more, so that the application can stop; until then it is served. While the registry is away
        it returns at once, and the application is served as long as it listens, until consumers
        have heard. Who unpublishes very many, one after the other, waits for some seconds in all,
        and who says it twice for the first time. Raises TableError."""
        place = (service, uid)
        ends = self._ending.get(place)
        if ends is None or not self._leaves(service, uid):
            registration = self._registered.get(service)
            leaving = self.table.begin_unpublish(service, uid)
            before, ends = (
                ends,
                asyncio.get_running_loop().create_task(
                    self._unpublish(place, registration, leaving)
                ),
            )
            self._ending[place] = ends
            if before is not None:  # what it was to take away was published anew
                before.cancel()
        patience = self._patience_with(uid) if self._client.state == "connected" else 0.0
        await asyncio.wait([ends], timeout=patience)

    def _leaves(self, service: ServiceKey, uid: int) -> bool:
        """Whether all that this user may unpublish of it is leaving already."""
        return all(
            each.leaving for each in self.table.published_of(service) if uid in (0, each.uid)
        )

    def _patience_with(self, uid: int) -> float:
        """Seconds for which an unpublish of this user may still wait."""
        now = asyncio.get_running_loop().time()
        until = self._waits.get(uid, 0.0)
        if until < now - _PATIENCE:
            until = now + _PATIENCE
            if len(self._waits) >= _MOST_PATIENT:
                self._waits.clear()
            self._waits[uid] = until
        return max(0.0, until - now)

    async def _unpublish(
        self,
        place: tuple[ServiceKey, int],
        registration: Registration | None,
        leaving: Sequence[Publication],
    ) -> None:
        try:
            if registration is not None:
                await self._unregister(registration, leaving)
        finally:
            if self._ending.get(place) is asyncio.current_task():
                del self._ending[place]
                self.table.end_unpublish(leaving)

    async def _unregister(self, registration: Registration, leaving: Sequence[Publication]) -> None:
        """After a registry was away, consumers keep for some seconds what it does not tell of."""
        loop = asyncio.get_running_loop()
        until = 0.0
        while self._client.state != "connected":
            if not self._serves(leaving):
                return
            await asyncio.sleep(_AWAY_PAUSE)
            until = loop.time() + LONGEST_PAUSE + SETTLE_TIME
        await self._withdraw([registration])
        while loop.time() < until and self._serves(leaving):
            await asyncio.sleep(_AWAY_PAUSE)

    def _serves(self, leaving: Iterable[Publication]) -> bool:
        """Whether the application of any of them listens, and has not published it anew."""
        return any(
            found.address == each.address and found.leaving and found.alive
            for each in leaving
            for found in self.table.published_of(each.service)
        )

    async def settled(self) -> None:
        """Returns when requests go as the table is now, and a sidecar that is killed then knows of
        it; not later than after a second."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_TIMEOUT):
                while self._building is not None:
                    await asyncio.wait([self._building])
                if self._stale:
                    self._build()
                for each in filter(None, (self._building, self._applying, self._state.noted)):
                    await asyncio.wait([each])

    async def _withdraw(self, registrations: Sequence[Registration]) -> None:
        if self._client.state == "connected":
            gone = [each for each in registrations if self._registered.get(each.service) is None]
            await self._client.unregistered(gone, _LEAVE_TIMEOUT)
            await asyncio.sleep(self._registry.spread)

    async def leave(self) -> None:
        """Takes back what is registered, and returns when no consumer should call any more, or the
        registry is away."""
        registrations = list(self._registered.values())
        self._leaving = True
        self._registered.clear()
        if registrations:
            await self._withdraw(registrations)

    async def stop(self) -> None:
        """Ends what ``start`` began."""
        for server in self._servers:
            await server.stop()
        self._liveness.stop()
        ending = list(self._ending.values())
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        if self._building is not None:
            self._building.cancel()
            await asyncio.wait([self._building])
        if self._timer is not None:
            self._timer.cancel()
        await self._client.stop()
        await self._state.stop()

    def close(self) -> None:
        """Ends what ``open`` began."""
        self._stack.close()

    # ---- What others see ----

    @property
    def description(self) -> Sequence[str]:
        """For people: a line each."""
        return [
            f"mesh API: http://{self._settings.api}",
            f"registry: {self._registry.description}, which is told of {self.address}",
        ]

    @property
    def most_connections(self) -> int:
        """Of applications, to say something; their calls are the data plane's."""
        return sum(server.gate.limits.connections for server in self._servers)

    @property
    def is_registered(self) -> bool:
        """Whether consumers elsewhere may know of anything here."""
        return bool(self._registered)

    @property
    def status(self) -> dict[str, Any]:
        """For people and programs, as plain values."""
        return {
            "registry": {
                "type": self._config.registry.type,
                "description": self._registry.description,
                "state": self._client.state,
                "instances": self._client.instances,
                "cut": self._client.cut,
            },
            "advertised": str(self.address),
            "published": sum(role is Role.PUBLISHED for role, _ in self._services),
            "registered": sum(map(self._client.is_registered, self._registered.values())),
            "subscribed": sum(role is Role.SUBSCRIBED for role, _ in self._services),
        }

    def details(self, role: str, protocol: str, name: str) -> dict[str, Any]:
        """Of a service as the data plane names it; empty where there is none."""
        if role not in _ROLES:
            return {}
        spoken = CALLS if protocol in CALLS else (protocol,)
        for key in (ServiceKey.parse(each, name) for each in spoken):
            if (_ROLES[role], key) in self._services:
                break
        else:
            return {}
        found = describe(self.table, _ROLES[role], key, self._is_registered, self._client.is_cut)
        if _ROLES[role] is Role.SUBSCRIBED:
            found["policy"] = self._policies.of(key)
        return found

    def _is_registered(self, service: ServiceKey) -> bool:
        registration = self._registered.get(service)
        return registration is not None and self._client.is_registered(registration)

    # ---- Watching the table ----

    @override
    def published(self, publication: Publication) -> None:
        self._register(publication.service)

    @override
    def unpublished(self, publication: Publication) -> None:
        self._register(publication.service)

    @override
    def subscribed(self, service: ServiceKey) -> None:
        self._stale.add(service)
        self._client.subscribe(service)

    @override
    def unsubscribed(self, service: ServiceKey) -> None:
        self._stale.add(service)
        self._client.unsubscribe(service)

    @override
    def pushed(self, service: ServiceKey) -> None:
        self._stale.add(service)

    @override
    def changed(self) -> None:
        self._schedule(self._pause)

    def _register(self, service: ServiceKey) -> None:
        """As its publications are now: one registration for all of them."""
        self._stale.add(service)
        publications = [
            each
            for each in self.table.published_of(service)
            if each.is_offered and not self._leaving
        ]
        before = self._registered.pop(service, None)
        if not publications:
            if before is not None:
                self._client.unregister(before)
            return
        registration = Registration(service, _instance(self.address, publications))
        self._registered[service] = registration
        if registration != before:
            self._client.register(registration)

    def demand(self, services: Iterable[DemandedService]) -> None:
        """Requests wait for these services, which nobody subscribed: this does."""
        for each in services if self._settings.on_demand else ():
            try:
                self.table.demand(_demanded(each))
            except (BodyError, TableError) as error:
                log.log(
                    logging.DEBUG if self._refused else logging.WARNING,
                    "a service that was called is not subscribed on demand: %s",
                    error,
                )
                self._refused = True

    # ---- From the table to where requests go ----

    def _schedule(self, delay: float) -> None:
        if self._timer is None or self._timer.when() > asyncio.get_running_loop().time() + delay:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(delay, self._build)

    def _build(self) -> None:
        """Makes a table of what is known now; one that is under way is followed by another."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._building is not None:
            return  # it looks again when it is done
        if sum(len(self.table.instances_of(service)) for service in self._stale) > _MANY:
            self._building = asyncio.get_running_loop().create_task(self._build_beside())
        else:
            try:
                self._tell(self._look_again())
            except Exception as error:
                self._tell_later(error)
            self._pause = _PAUSE

    async def _build_beside(self) -> None:
        """As ``_build``, while the loop goes on."""
        began = time.monotonic()
        try:
            questions = self._questions(time.time())
            self._take_all(await in_background(lambda: _answered(questions)))
            self._tell(self._table_now())
            if self._applying is not None:
                await asyncio.wait([self._applying])
        except Exception as error:
            self._tell_later(error)
        finally:
            self._building = None
            # However much changes, others have as much time as this takes.
            self._pause = min(max(_PAUSE, time.monotonic() - began), _LONGEST_PAUSE)
            if self._stale:
                self._schedule(self._pause)

    def _tell(self, table: FoundServices) -> None:
        if table != self._table:
            self._applying = self._found(table)
            self._table = table
        if self._changes:
            self._schedule(max(_PAUSE, min(self._changes.values()) - time.time()))

    def _tell_later(self, error: Exception) -> None:
        _mistakes.tell(error, "calls go where they went before; it is tried again in 5 s")
        self._schedule(_PAUSE_AFTER_MISTAKE)

    def _look_again(self) -> FoundServices:
        self._take_all(_answered(self._questions(time.time())))
        return self._table_now()

    def _table_now(self) -> FoundServices:
        return FoundServices(tuple(self._services.values()), self._passed())

    def _questions(self, now: float) -> list[_Question]:
        """Of which instances of what is stale endpoints are to be chosen."""
        self._stale.update(key for key, at in self._changes.items() if at <= now)
        if self._stale:
            self._look_at_own()
        stale, self._stale = self._stale, set()
        questions = []
        for service in stale:
            try:
                question = self._question(service, now)
            except Exception as error:
                self._try_later(service, error)
                continue
            if question is not None:
                questions.append(question)
        return questions

    def _look_at_own(self) -> None:
        hosts = local_hosts()
        own = {
            address: what
            for listener, what in self._own.items()
            for address in (listener, *expand(listener, hosts))
        }
        self._endpoints = replace(self._endpoints, own=own)  # a thread may have the one before

    def _question(self, service: ServiceKey, now: float) -> _Question | None:
        """None where nobody wants it. What is published of it needs no choice."""
        publications = list(self.table.published_of(service))
        local = [each.address for each in publications if each.alive] or [
            each.address for each in publications if not each.taken
        ]
        if publications:
            self._put(FoundService(service, Role.PUBLISHED, _even(local)))
        else:
            self._services.pop((Role.PUBLISHED, service), None)
        self._changes.pop(service, None)
        if not self.table.is_subscribed(service):
            self._services.pop((Role.SUBSCRIBED, service), None)
            return None
        wait = 0 if self.table.is_known(service) else round(self._settings.await_timeout * 1000)
        return _Question(
            service, self.table.instances_of(service), local, wait, self._endpoints, now
        )

    def _take_all(self, answers: Iterable[tuple[_Question, Selection | Exception]]) -> None:
        for question, selection in answers:
            try:
                if isinstance(selection, Exception):
                    raise selection
                self._take(question, selection)
            except Exception as error:
                self._try_later(question.service, error)

    def _try_later(self, service: ServiceKey, error: Exception) -> None:
        self._changes[service] = time.time() + _PAUSE_AFTER_MISTAKE
        _mistakes.tell(
            error, f"calls of {service} go where they went before; it is tried again in 5 s"
        )

    def _take(self, question: _Question, selection: Selection) -> None:
        service = question.service
        if not self.table.is_subscribed(service):
            return  # any more
        self._put(
            FoundService(
                *(service, Role.SUBSCRIBED, selection.endpoints, question.wait),
                zones=selection.zones,
                warming=selection.warming,
            )
        )
        if selection.changes < math.inf:
            self._changes[service] = selection.changes
        self._warn(service, selection.refused)

    def _put(self, found: FoundService) -> None:
        place = (found.role, found.key)
        if self._services.get(place) != found:
            self._services[place] = found

    def _warn(self, service: ServiceKey, refused: Sequence[tuple[Address, str]]) -> None:
        for address, reason in refused:
            if len(self._warned) >= _MOST_WARNINGS:
                return
            if address not in self._warned:
                self._warned.add(address)
                log.warning(
                    "the registry says that %s is at %s, which is not called: %s",
                    service,
                    address,
                    reason,
                )

    def _passed(self) -> tuple[tuple[str, str, Address], ...]:
        ports = {
            protocol: Address("127.0.0.1", port) for protocol, port in self._settings.ports.items()
        }
        names = self._settings.pass_unknown
        if names is not None:
            return tuple(
                (protocol, name, address) for protocol, address in ports.items() for name in names
            )
        registry = self._config.registry.type
        called = [each for each in self.table.publications if each.service.protocol in CALLS]
        places = {
            each.address for each in called if each.alive and each.service.name not in GRPC_COMMON
        }
        passed = [
            ("grpc", name, address)
            for address in (places if len(places) == 1 else ())
            for name in GRPC_COMMON
        ]
        for protocol, is_published in (
            ("dubbo", any(each.service.protocol == "dubbo" for each in self.table.publications)),
            ("tri", bool(called)),
        ):
            by_itself = registry in _BY_THEMSELVES[protocol] and not is_published
            if protocol in ports:
                names = ("*",) if by_itself else _METADATA_SERVICES[protocol]
                passed.extend((protocol, name, ports[protocol]) for name in names)
        return tuple(passed)


@dataclass(frozen=True, slots=True)
class _Question:
    """Which endpoints a service that is subscribed has."""

    service: ServiceKey
    instances: tuple[Instance, ...]
    local: Sequence[Address]
    wait: int
    endpoints: Endpoints
    now: float


def _answered(questions: Sequence[_Question]) -> list[tuple[_Question, Selection | Exception]]:
    """In any thread."""
    return [(each, _answer(each)) for each in questions]


def _answer(question: _Question) -> Selection | Exception:
    """Nothing that is wrong with one service is another's."""
    try:
        return question.endpoints.select(question.instances, question.local, question.now)
    except Exception as error:
        return error


def _key(wanted: WantedService) -> ServiceKey:
    return ServiceKey.named(wanted.protocol, wanted.service, wanted.version, wanted.group)


def _demanded(service: DemandedService) -> ServiceKey:
    """Raises BodyError where a request named what no application could subscribe."""
    names = Body(service._asdict())
    version = names.name("version", "1.0", required=False)
    return service_key(
        "tri" if service.triple else service.protocol.name.lower(),
        names.name("name", "com.example.Orders"),
        names.name("group", "blue", required=False),
        version,
    )


def _publication(provided: ProvidedService) -> Publication:
    """Not alive until somebody has looked."""
    return Publication(
        _key(provided),
        Address("127.0.0.1", provided.port),
        CONFIGURATION,
        weight=provided.weight,
        alive=False,
    )


def _even(addresses: Sequence[Address]) -> tuple[tuple[Address, int], ...]:
    return tuple((address, _LOCAL_WEIGHT) for address in dict.fromkeys(addresses))


def _instance(address: Address, publications: Sequence[Publication]) -> Instance:
    """What all of them are together, seen from elsewhere."""
    latest = max(publications, key=lambda each: each.started)
    metadata: defaultdict[str, str] = defaultdict(str)
    for publication in publications:
        metadata.update(publication.metadata)
    if latest.application:
        metadata.setdefault("application", latest.application)
    return Instance(
        address,
        weight=max(each.weight for each in publications),
        started=latest.started,
        warmup=latest.warmup,
        metadata=tuple(sorted(metadata.items())),
    )
