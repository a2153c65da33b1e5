"""SOFARegistry: session servers are asked for by HTTP, and one of them is spoken to over one
connection: Bolt v1 with bodies in the draft of Hessian 2.

What is registered over a connection is there for as long as that is open. The server pushes by
requests of its own, each with all instances of a service.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import aiohttp
from typing_extensions import override

from pysidecar.address import Address
from pysidecar.background import in_background
from pysidecar.registry import MAX_INSTANCES, Pushed, Registry, RegistryError, Session
from pysidecar.registry.bolt import HESSIAN, BoltError, Command, Frame, FrameReader, Kind
from pysidecar.registry.draft_hessian import HessianError, JavaObject, dumps, loads
from pysidecar.registry.servers import Servers
from pysidecar.registry.service import Instance, Registration, ServiceKey
from pysidecar.registry.sofaregistry_data import (
    DEFAULT_ZONE,
    MODEL,
    Identity,
    Push,
    UnusableError,
    publisher,
    read_push,
    subscriber,
)
from pysidecar.text import printable

if TYPE_CHECKING:
    from pysidecar.config import RegistryEntry

__all__ = ["make"]

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT: Final = 1.5
_ANSWER_TIMEOUT: Final = 5.0
_CLOSE_TIMEOUT: Final = 0.5
# The server closes a connection after 45 s of silence.
_LONGEST_SILENCE: Final = 15.0
_READ_SIZE: Final = 64 << 10  # bytes
_LARGE: Final = 16 << 10  # bytes, some sixty instances: two milliseconds to read
_MAX_LIST: Final = 64 << 10  # bytes of names of session servers
_MAX_SEGMENTS: Final = 64
_MAX_HELD: Final = 128 << 20  # bytes of the latest pushes of all services
_NO_PROCESSOR: Final = 6  # Bolt's status


class _Lost(Exception):
    """Why a session is lost, for people."""


class _SofaRegistry(Registry):
    spread = 2.5  # the server waits for more changes before it pushes: 1.9 s by default, measured

    def __init__(self, entry: RegistryEntry) -> None:
        self._servers = Servers(entry.address)
        self._zone = entry.zone
        self._silence = min(_LONGEST_SILENCE, entry.session_timeout / 2)
        # A registration keeps its id from one session to the next: so it replaces what the server
        # has not yet noticed to be gone.
        self._process = uuid.uuid4()
        self._versions = itertools.count(1)

    @property
    @override
    def description(self) -> str:
        return f"sofaregistry at {self._servers}"

    @override
    async def open(self, pushed: Pushed) -> Session:
        return await self._servers.open(lambda address, _: self._open(address, pushed))

    async def _open(self, address: Address, pushed: Pushed) -> Session:
        """By the session servers that the one at ``address`` names."""
        try:
            servers = await _session_servers(address, self._zone)
        except aiohttp.ClientError as error:
            raise RegistryError(str(error)) from None
        random.shuffle(servers)
        problem = ""
        for server in servers:
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT):
                    reader, writer = await asyncio.open_connection(
                        server.host, server.port, limit=_READ_SIZE
                    )
            except OSError as error:
                problem = f"{server}: {error.strerror or 'no answer'}"
            else:
                return _Session(reader, writer, pushed, self._identify, self._zone, self._silence)
        raise RegistryError(f"of its session servers, {problem}")

    def _identify(self, what: str) -> Identity:
        """Those of the same have the same id."""
        return Identity(
            str(uuid.uuid5(self._process, what)), next(self._versions), int(time.time() * 1000)
        )


async def _session_servers(address: Address, zone: str) -> list[Address]:
    """At least one. Raises RegistryError, OSError and ClientError."""
    async with aiohttp.ClientSession(trust_env=False) as client:
        # No server has to be in our zone.
        for each in dict.fromkeys((zone or DEFAULT_ZONE, "")):
            query = {"instanceId": "DEFAULT_INSTANCE_ID", "zone": each, "appName": "pysidecar"}
            url = f"http://{address}/api/servers/query"
            async with client.get(url, params=query, allow_redirects=False) as response:
                if response.status != 200:
                    raise RegistryError(f"HTTP status {response.status}")
                body = b""
                async for part in response.content.iter_any():
                    body += part
                    if len(body) > _MAX_LIST:
                        raise RegistryError("a list of session servers without an end")
            if servers := _read_servers(body.decode("utf-8", "replace")):
                return servers
    raise RegistryError("it knows of no session server")


def _read_servers(text: str) -> list[Address]:
    """``10.0.0.5:9600;10.0.0.6:9600?weight=3``."""
    servers = []
    for each in text.strip().split(";"):
        with contextlib.suppress(ValueError):
            servers.append(Address.parse(each.partition("?")[0].strip()))
    return list(dict.fromkeys(servers))


class _Subscription:
    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.warned = False
        self._segments: dict[str, tuple[int, tuple[Instance, ...]]] = {}
        self._sizes: dict[str, int] = {}  # bytes

    @property
    def size(self) -> int:
        return sum(self._sizes.values())

    def take(self, push: Push, size: int) -> bool:
        """Whether it is news: one that the server repeats, or that others overtook, is none."""
        before = self._segments.get(push.segment)
        if before is None and len(self._segments) == _MAX_SEGMENTS:
            return False
        if before is not None and 0 < push.version <= before[0]:
            return False
        self._segments[push.segment] = (push.version, push.instances)
        self._sizes[push.segment] = size
        return True

    @property
    def instances(self) -> list[Instance]:
        found: dict[Address, Instance] = {}
        for _, instances in self._segments.values():
            for instance in instances:
                found.setdefault(instance.address, instance)
        return list(itertools.islice(found.values(), MAX_INSTANCES))


class _Session(Session):
    """Reads until the connection ends, which is also how it sees that the server is silent."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pushed: Pushed,
        identify: Callable[[str], Identity],
        zone: str,
        silence: float,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._pushed = pushed
        self._identify = identify
        self._zone = zone
        self._silence = silence
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Frame | None]] = {}
        self._subscriptions: dict[ServiceKey, _Subscription] = {}
        self._services: dict[str, ServiceKey] = {}  # by the id of their subscription
        self._held = 0  # bytes
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[str] = loop.create_future()
        self._task = loop.create_task(self._run())

    # ---- what is wanted of it ----

    @override
    async def register(self, registration: Registration) -> None:
        await self._publish(registration, wanted=True)

    @override
    async def unregister(self, registration: Registration) -> None:
        with contextlib.suppress(UnusableError):  # then it is not there
            await self._publish(registration, wanted=False)

    async def _publish(self, registration: Registration, *, wanted: bool) -> None:
        service = registration.service
        identity = self._identify(f"{service.protocol} {service} {registration.instance.address}")
        await self._register(publisher(registration, identity, self._zone, wanted=wanted))

    @override
    async def subscribe(self, service: ServiceKey) -> None:
        if service in self._subscriptions:
            return
        # Always a new id: nothing that was pushed for an earlier one is taken for this one.
        identity = self._identify(uuid.uuid4().hex)
        request = subscriber(service, identity, self._zone, wanted=True)
        self._subscriptions[service] = _Subscription(identity)
        self._services[identity.id] = service
        try:
            await self._register(request)
        except BaseException:
            self._forget(service)
            raise

    @override
    async def unsubscribe(self, service: ServiceKey) -> None:
        subscription = self._forget(service)
        if subscription is None:
            return
        before = subscription.identity
        identity = Identity(before.id, before.version + 1, before.timestamp)
        await self._register(subscriber(service, identity, self._zone, wanted=False))

    def _forget(self, service: ServiceKey) -> _Subscription | None:
        subscription = self._subscriptions.pop(service, None)
        if subscription is not None:
            del self._services[subscription.identity.id]
            self._held -= subscription.size
        return subscription

    @override
    async def closed(self) -> str:
        return await asyncio.shield(self._ended)

    @override
    async def close(self) -> None:
        self._end("closed")
        self._task.cancel()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._writer.wait_closed()
        self._writer.transport.abort()

    # ---- requests ----

    async def _register(self, request: JavaObject) -> None:
        answer = await self._ask(request)
        message = printable(str(answer.fields.get("message")))
        if answer.fields.get("success") is not True:
            raise RegistryError(f"not taken: {message}")
        if answer.fields.get("refused") is True:
            raise RegistryError(f"refused: {message}")

    async def _ask(self, request: JavaObject) -> JavaObject:
        """The answer. Raises RegistryError."""
        number = next(self._ids)
        frame = Frame(
            *(Kind.REQUEST, Command.REQUEST, number & 0xFFFFFFFF),
            request.class_name,
            dumps(request),
            timeout=int(_ANSWER_TIMEOUT * 1000),
        )
        if self._ended.done():
            raise RegistryError(self._ended.result())
        future: asyncio.Future[Frame | None] = asyncio.get_running_loop().create_future()
        self._waiting[frame.id] = future
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                await self._send(frame)
                answer = await future
        except TimeoutError:
            raise RegistryError(f"no answer within {_ANSWER_TIMEOUT:g} s") from None
        except OSError as error:
            raise RegistryError(str(error)) from None
        finally:
            del self._waiting[frame.id]
        if answer is None:
            raise RegistryError(self._ended.result())
        if answer.status:
            raise RegistryError(f"status {answer.status} of Bolt")
        try:
            return _read_object(answer)
        except HessianError as error:
            raise RegistryError(f"its answer cannot be read: {error}") from None

    async def _send(self, frame: Frame) -> None:
        self._writer.write(frame.encode())
        await self._writer.drain()

    # ---- what comes ----

    async def _run(self) -> None:
        try:
            await self._read()
        except (_Lost, OSError) as error:
            self._end(str(error) or type(error).__name__)
        except (BoltError, HessianError) as error:
            self._end(f"the server sent what cannot be read: {error}")
        except Exception as error:
            log.exception("the session with SOFARegistry failed")
            self._end(f"{type(error).__name__}: {error}")

    async def _read(self) -> None:
        """Raises what ends the session."""
        frames = FrameReader()
        asked = False
        while True:
            try:
                async with asyncio.timeout(self._silence):
                    data = await self._reader.read(_READ_SIZE)
            except TimeoutError:
                if asked:
                    raise _Lost(f"it has been silent for {2 * self._silence:g} s") from None
                asked = True
                await self._tell(Frame(Kind.REQUEST, Command.HEARTBEAT, self._next_id()))
                continue
            if not data:
                raise _Lost("the server closed the connection")
            asked = False
            for frame in frames.feed(data):
                await self._take(frame)

    def _next_id(self) -> int:
        return next(self._ids) & 0xFFFFFFFF

    async def _tell(self, frame: Frame) -> None:
        """What no answer is awaited of: a server that does not read is silent, too."""
        try:
            async with asyncio.timeout(self._silence):
                await self._send(frame)
        except TimeoutError:
            raise _Lost(f"it has not read for {self._silence:g} s") from None

    async def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.RESPONSE:
            future = self._waiting.get(frame.id)
            if future is not None and not future.done():
                future.set_result(frame)
            return
        answer: Frame | None
        if frame.command == Command.HEARTBEAT:
            answer = Frame(Kind.RESPONSE, Command.HEARTBEAT, frame.id)
        else:
            answer = await self._take_request(frame)
        if frame.kind == Kind.REQUEST:
            await self._tell(answer)
        await asyncio.sleep(0)  # others, whatever is there already

    async def _take_request(self, frame: Frame) -> Frame:
        """The answer. Of configuration data, which SOFARPC's own client asks for, there is nothing
        to be known."""
        if frame.class_name not in (MODEL + "ReceivedData", MODEL + "ReceivedConfigData"):
            return Frame(Kind.RESPONSE, Command.RESPONSE, frame.id, status=_NO_PROCESSOR)
        if frame.class_name == MODEL + "ReceivedData":
            if len(frame.content) > _LARGE:
                push = await in_background(lambda: read_push(_read_object(frame)))
            else:
                push = read_push(_read_object(frame))
            if push is not None:
                self._push(push, len(frame.content))
        result = JavaObject(MODEL + "Result", {"success": True, "message": None})
        return Frame(*(Kind.RESPONSE, Command.RESPONSE, frame.id), result.class_name, dumps(result))

    def _push(self, push: Push, size: int) -> None:
        for each in push.subscriptions:
            service = self._services.get(each)
            if service is None:
                continue
            subscription = self._subscriptions[service]
            if push.unusable and not subscription.warned:
                subscription.warned = True
                log.warning(
                    "SOFARegistry names %d instances of %s that cannot be used: no IP address "
                    "with a port, or more than %d",
                    *(push.unusable, printable(str(service)), MAX_INSTANCES),
                )
            self._held -= subscription.size
            news = subscription.take(push, size)
            self._held += subscription.size
            if self._held > _MAX_HELD:
                raise _Lost(f"it pushes more than {_MAX_HELD} bytes")
            if news:
                self._pushed(service, subscription.instances)

    # ---- the end ----

    def _end(self, reason: str) -> None:
        if self._ended.done():
            return
        reason = printable(reason)
        self._ended.set_result(reason)
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)
        self._writer.close()


def _read_object(frame: Frame) -> JavaObject:
    """Raises HessianError."""
    if frame.codec != HESSIAN:
        raise HessianError(f"codec {frame.codec}, not Hessian")
    value = loads(frame.content)
    if not isinstance(value, JavaObject):
        raise HessianError("no object")
    return value


def make(entry: RegistryEntry) -> Registry:
    """See ``pysidecar.registry.make_registry``."""
    return _SofaRegistry(entry)
