"""etcd v3, in a layout of our own: sidecars find each other by it, and nobody else.

``/pysidecar/services/PROTOCOL/GROUP/NAME[:VERSION]/IP:PORT``, each part percent-encoded, has a JSON
object: ``weight``, ``started`` (seconds since the epoch), ``warmup`` (seconds), ``zone``,
``metadata``. Each key is bound to a lease of its sidecar's session.

Of aetcd only what it generated from etcd's definitions is used: its own client knows no TLS, and
its watches do not say at which revision they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

import grpc
from aetcd import rpc
from typing_extensions import override

from pysidecar.address import Address, NamedAddress
from pysidecar.errors import StartError
from pysidecar.registry import MAX_INSTANCES, Pushed, Registry, RegistryError, Session
from pysidecar.registry.security import authorities, client_context, read_credentials
from pysidecar.registry.servers import Servers
from pysidecar.registry.service import Instance, Registration, ServiceKey
from pysidecar.text import printable

if TYPE_CHECKING:
    from pysidecar.config.takeover import RegistryEntry, RegistryTls

__all__ = ["directory", "key_of", "make", "read_instance", "value_of"]

log = logging.getLogger(__name__)

ROOT: Final = "/pysidecar/services"
MAX_MESSAGE: Final = 16 << 20  # bytes
_PAGE = 1000  # keys in one answer
_CALL_TIME: Final = 5.0  # seconds
_REVOKE_TIME: Final = 2.0  # seconds
_PUSH_DELAY: Final = 0.02  # seconds, in which changes of a service become one push
_PAUSE: Final = 2.0  # seconds until what could not be watched is read again
_MAX_METADATA = 128
_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # Each session connects anew, at once: no waiting that others began.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


# ---- what is where ----


def directory(service: ServiceKey) -> str:
    """What the keys of a service begin with."""
    name = quote(service.name, safe="")
    version = f":{quote(service.version, safe='')}" if service.version else ""
    group = quote(service.group, safe="")
    return f"{ROOT}/{quote(service.protocol, safe='')}/{group}/{name}{version}/"


def key_of(registration: Registration) -> str:
    """Where a registration is."""
    return directory(registration.service) + quote(str(registration.instance.address), safe="")


def value_of(instance: Instance) -> bytes:
    """What is there."""
    fields = {
        "weight": instance.weight,
        "started": instance.started,
        "warmup": instance.warmup,
        "zone": instance.zone,
        "metadata": dict(instance.metadata),
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def read_instance(address: str, value: bytes) -> Instance:
    """From the last part of a key, and its value. Raises ValueError."""
    try:
        fields = json.loads(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("expected an object")
    metadata = fields.get("metadata", {})
    zone = fields.get("zone", "")
    if not isinstance(metadata, dict) or not isinstance(zone, str):
        raise ValueError("expected metadata as an object and zone as a string")
    known = sorted((str(key), str(value)) for key, value in metadata.items())
    return Instance(
        Address.parse(unquote(address)),
        weight=int(_number(fields, "weight", 100)),
        started=_number(fields, "started", 0),
        warmup=_number(fields, "warmup", 0),
        zone=zone,
        metadata=tuple(known[:_MAX_METADATA]),
    )


def _number(fields: Mapping[str, Any], key: str, default: float) -> float:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected {key} as a number")
    if not abs(value) < 1 << 53:  # nor a NaN
        raise ValueError(f"expected {key} as a finite number")
    return value


# ---- sessions ----


def make(entry: RegistryEntry) -> Registry:
    """Raises StartError."""
    client_context(entry.tls)  # says what is wrong with the files, which gRPC does not
    channel_credentials = None if entry.tls is None else _channel_credentials(entry.tls)
    return _Etcd(
        entry.address,
        max(1, math.ceil(entry.session_timeout)),
        read_credentials(entry.credentials),
        channel_credentials,
    )


def _channel_credentials(tls: RegistryTls) -> Any:
    try:
        key = Path(tls.key).read_bytes() if tls.key is not None else None
        chain = Path(tls.certificate).read_bytes() if tls.certificate is not None else None
    except OSError as error:
        raise StartError(f"registry.tls: {error.filename}: {error.strerror}") from None
    # With an empty text gRPC would take those that it brings along.
    return grpc.ssl_channel_credentials(authorities(tls) or b"\n", key, chain)


class _Etcd(Registry):
    def __init__(
        self,
        addresses: tuple[Address | NamedAddress, ...],
        ttl: int,
        credentials: tuple[str, str] | None,
        channel_credentials: Any,
    ) -> None:
        self._servers = Servers(addresses)
        self._ttl = ttl
        self._credentials = credentials
        self._channel_credentials = channel_credentials

    @property
    @override
    def description(self) -> str:
        return f"etcd at {self._servers}"

    @override
    async def open(self, pushed: Pushed) -> Session:
        async def connect(address: Address, verify: str) -> Session:
            session = _EtcdSession(self._channel(address, verify), self._credentials, pushed)
            try:
                await session.begin(self._ttl)
            except BaseException:
                await session.close()
                raise
            return session

        return await self._servers.open(connect)

    def _channel(self, address: Address, verify: str) -> Any:
        target = f"ipv6:{address}" if ":" in address.host else f"ipv4:{address}"
        if self._channel_credentials is None:
            return grpc.aio.insecure_channel(target, _OPTIONS)
        named = [] if verify == address.host else [("grpc.ssl_target_name_override", verify)]
        return grpc.aio.secure_channel(target, self._channel_credentials, [*_OPTIONS, *named])


@dataclass
class _Watched:
    """A service that is watched: what is known of it."""

    service: ServiceKey
    prefix: bytes
    number: int = 0
    """Of its watch on the stream; another one each time."""

    instances: dict[bytes, Instance | None] = field(default_factory=dict)
    """By key; None: cannot be understood."""

    warned: bool = False


class _EtcdSession(Session):
    def __init__(self, channel: Any, credentials: tuple[str, str] | None, pushed: Pushed) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._credentials = credentials
        self._pushed = pushed
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._kv = rpc.KVStub(channel)
        self._leases = rpc.LeaseStub(channel)
        self._lost: asyncio.Future[str] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lease = 0
        self._watches: Any = None
        self._writing = asyncio.Lock()
        self._watched: dict[ServiceKey, _Watched] = {}
        self._by_number: dict[int, _Watched] = {}
        self._numbers = 0
        self._changed: set[ServiceKey] = set()

    async def begin(self, ttl: int) -> None:
        """Returns when there is a lease. Raises RegistryError."""
        await self._authenticate()
        granted = await self._call(self._leases.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl))
        self._lease = granted.ID
        self._watches = rpc.WatchStub(self._channel).Watch(metadata=self._metadata)
        self._run(partial(self._keep_alive, granted.TTL))
        self._run(self._read_watches)

    # ---- registrations ----

    @override
    async def register(self, registration: Registration) -> None:
        await self._call(
            self._kv.Put,
            rpc.PutRequest(
                key=key_of(registration).encode(),
                value=value_of(registration.instance),
                lease=self._lease,
            ),
        )

    @override
    async def unregister(self, registration: Registration) -> None:
        request = rpc.DeleteRangeRequest(key=key_of(registration).encode())
        await self._call(self._kv.DeleteRange, request)

    # ---- subscriptions ----

    @override
    async def subscribe(self, service: ServiceKey) -> None:
        watched = self._watched.get(service)
        if watched is None:
            watched = _Watched(service, directory(service).encode())
            self._watched[service] = watched
        try:
            await self._follow(watched)
        except BaseException:
            await self.unsubscribe(service)
            raise

    @override
    async def unsubscribe(self, service: ServiceKey) -> None:
        watched = self._watched.pop(service, None)
        if watched is not None:
            await self._cancel_watch(watched)

    async def _follow(self, watched: _Watched) -> None:
        """Reads all of it, and watches from there on."""
        await self._cancel_watch(watched)
        revision = await self._read_all(watched)
        if self._watched.get(watched.service) is not watched:
            return
        self._numbers += 1
        watched.number = self._numbers
        self._by_number[watched.number] = watched
        self._push(watched)
        create = rpc.WatchCreateRequest(
            key=watched.prefix,
            range_end=_end_of(watched.prefix),
            start_revision=revision + 1,
            watch_id=watched.number,
            fragment=True,
        )
        await self._write_watch(rpc.WatchRequest(create_request=create))

    async def _cancel_watch(self, watched: _Watched) -> None:
        number, watched.number = watched.number, 0
        if self._by_number.pop(number, None) is not None:
            cancel = rpc.WatchCancelRequest(watch_id=number)
            with contextlib.suppress(RegistryError):  # with the session it ends, too
                await self._write_watch(rpc.WatchRequest(cancel_request=cancel))

    async def _read_all(self, watched: _Watched) -> int:
        """The revision of which everything is. Later pages are of the same one."""
        found: dict[bytes, Instance | None] = {}
        first, revision = watched.prefix, 0
        while True:
            request = rpc.RangeRequest(
                key=first, range_end=_end_of(watched.prefix), limit=_PAGE, revision=revision
            )
            answer = await self._call(self._kv.Range, request)
            revision = revision or answer.header.revision
            for each in answer.kvs:
                found[each.key] = _instance(watched, each)
            if len(found) >= MAX_INSTANCES and answer.more:
                log.warning("%s: more than %d instances", watched.service, MAX_INSTANCES)
            if not answer.kvs or not answer.more or len(found) >= MAX_INSTANCES:
                watched.instances = found
                return revision
            first = answer.kvs[-1].key + b"\0"

    async def _read_watches(self) -> None:
        async for response in self._watches:
            watched = self._by_number.get(response.watch_id)
            if watched is None:
                continue  # cancelled meanwhile
            if response.canceled:
                del self._by_number[watched.number]
                self._run(partial(self._follow_again, watched, response))
                continue
            for event in response.events:
                if event.type == rpc.Event.PUT:
                    if len(watched.instances) < MAX_INSTANCES or event.kv.key in watched.instances:
                        watched.instances[event.kv.key] = _instance(watched, event.kv)
                else:
                    watched.instances.pop(event.kv.key, None)
            if response.events:
                self._push_soon(watched)
        raise RegistryError("the stream of changes has ended")

    async def _follow_again(self, watched: _Watched, response: Any) -> None:
        """The server cancelled the watch. For a compaction in which it had not everything yet, all
        is read again at once."""
        if not response.compact_revision:
            reason = printable(response.cancel_reason[:200])
            log.warning("%s: not watched any more: %s", watched.service, reason)
            await asyncio.sleep(_PAUSE)
        while self._watched.get(watched.service) is watched:
            try:
                await self._follow(watched)
                return
            except RegistryError as error:
                if self._lost.done():
                    return
                log.warning("%s: %s", watched.service, error)
                await asyncio.sleep(_PAUSE)

    def _push_soon(self, watched: _Watched) -> None:
        if watched.service in self._changed:
            return
        self._changed.add(watched.service)
        self._loop.call_later(_PUSH_DELAY, self._push_changed, watched)

    def _push_changed(self, watched: _Watched) -> None:
        self._changed.discard(watched.service)
        if watched.number and self._watched.get(watched.service) is watched:
            self._push(watched)

    def _push(self, watched: _Watched) -> None:
        if not self._lost.done():
            found = [each for each in watched.instances.values() if each is not None]
            self._pushed(watched.service, found)

    # ---- the session ----

    async def _keep_alive(self, ttl: int) -> None:
        """What is not answered in a third of the time is lost: nobody shall believe in a lease that
        has expired."""
        stream = self._leases.LeaseKeepAlive(metadata=self._metadata)
        while True:
            await asyncio.sleep(ttl / 3)
            try:
                async with asyncio.timeout(ttl / 3):
                    await stream.write(rpc.LeaseKeepAliveRequest(ID=self._lease))
                    answer = await stream.read()
            except TimeoutError:
                raise RegistryError("no answer") from None
            if answer is grpc.aio.EOF or answer.TTL <= 0:
                raise RegistryError("the lease has expired")

    async def _authenticate(self) -> None:
        if self._credentials is None:
            return
        name, password = self._credentials
        request = rpc.AuthenticateRequest(name=name, password=password)
        with self._explained():
            answer = await rpc.AuthStub(self._channel).Authenticate(request, timeout=_CALL_TIME)
        self._metadata = (("token", answer.token),)

    async def _call(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        if self._lost.done():
            raise RegistryError(self._lost.result())
        try:
            return await method(request, metadata=self._metadata, timeout=_CALL_TIME)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAUTHENTICATED or self._credentials is None:
                with self._explained():
                    raise
        await self._authenticate()  # a token lives for minutes only
        with self._explained():
            return await method(request, metadata=self._metadata, timeout=_CALL_TIME)

    async def _write_watch(self, request: Any) -> None:
        with self._explained():
            async with self._writing:
                await self._watches.write(request)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            reason = _explain(error)
            if self._lease and error.code() == grpc.StatusCode.NOT_FOUND:
                self._lose(reason)  # the lease. Whether the server is there, streams find out.
            raise RegistryError(reason) from None
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise RegistryError(f"the connection is closed: {error}") from None

    def _run(self, serve: Callable[[], Awaitable[None]]) -> None:
        task = self._loop.create_task(self._serve(serve))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, serve: Callable[[], Awaitable[None]]) -> None:
        """The session lives as long as all that it consists of."""
        try:
            with self._explained():
                await serve()
        except RegistryError as error:
            self._lose(str(error))
        except Exception as error:
            log.exception("the session with etcd ends")
            self._lose(f"{type(error).__name__}: {error}")

    def _lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    @override
    async def closed(self) -> str:
        return await asyncio.shield(self._lost)

    @override
    async def close(self) -> None:
        is_alive = bool(self._lease) and not self._lost.done()
        self._lose("closed")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            if is_alive:
                request = rpc.LeaseRevokeRequest(ID=self._lease)
                await self._leases.LeaseRevoke(
                    request, metadata=self._metadata, timeout=_REVOKE_TIME
                )
        with contextlib.suppress(Exception):
            await self._channel.close()


def _explain(error: grpc.aio.AioRpcError) -> str:
    details = printable((error.details() or "")[:300])
    return f"{error.code().name}: {details}" if details else str(error.code().name)


def _instance(watched: _Watched, pair: Any) -> Instance | None:
    try:
        return read_instance(pair.key[len(watched.prefix) :].decode(), pair.value)
    except ValueError as error:
        if not watched.warned:
            watched.warned = True
            log.warning(
                "%s: a key that is left out: %s: %s",
                watched.service,
                printable(str(error)[:200]),
                printable(pair.key.decode(errors="replace")[:300]),
            )
        return None


def _end_of(prefix: bytes) -> bytes:
    """The first key after all that begin so; prefixes end with a slash."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
