"""What a provider with Dubbo 3 says of itself. With ``metadata-type=local``, the default, nobody
but the application knows what services a revision of it has: its own service of metadata tells.

Read from Dubbo's sources: ``MetadataService`` takes a revision and answers with a ``MetadataInfo``,
over ``dubbo`` in Hessian 2, over ``tri`` with that in a wrapper of Protobuf; 3.3 has beside it
``MetadataServiceV2``, whose messages are Protobuf themselves (``metadata_service_v2.proto``). The
version of either is the instance's word, its group is the application's name.

Neither the registry that names the address nor who answers there is trusted: one question has a
time and a size, and no answer is more than an error.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

from pysidecar.background import in_background
from pysidecar.registry.refusal import refusal
from pysidecar.registry.zookeeper.applications import MetadataService, Services, services_of
from pysidecar.registry.zookeeper.hessian import Reader, dump_map, dump_text

__all__ = ["ask"]

MAX_ANSWER: Final = 4 << 20  # bytes: some thousand services
_TIMEOUT: Final = 5.0  # seconds
_MOST_BESIDE: Final = 1 << 16  # bytes of HTTP/2 that are not of the answer
_READ: Final = 1 << 12  # bytes: other tasks have their turn after them
_AT_ONCE: Final = 1 << 12  # bytes; to read more takes so long that a thread does it
_NAME = "org.apache.dubbo.metadata.MetadataService"
_SECOND = "2.0.0"  # the version that MetadataServiceV2 has

_HEAD = struct.Struct(">HBBQI")
_MAGIC, _FLAGS, _OK, _EVENT = 0xDABB, 0xC2, 20, 0x20  # a request in two ways, in Hessian 2
_VALUES = (1, 4)  # what an answer begins with that has one, of which the second has attachments


async def ask(
    service: MetadataService, application: str, revision: str, *, loopback: bool
) -> Services:
    """The services of that revision. ``loopback``: addresses on loopback may be meant. Raises
    ValueError."""
    if reason := refusal(service.address, loopback=loopback):
        raise ValueError(f"{service.address} cannot be meant: {reason}")
    call = _ask_dubbo if service.protocol == "dubbo" else _ask_triple
    try:
        async with asyncio.timeout(_TIMEOUT):
            return await call(service, application, revision)
    except TimeoutError:
        raise ValueError(f"no answer within {_TIMEOUT:g} s") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


# ---- by Dubbo's own protocol ----


async def _ask_dubbo(service: MetadataService, application: str, revision: str) -> Services:
    body = b"".join(
        [
            *map(dump_text, ("2.0.2", _NAME, service.version, "getMetadataInfo")),
            *map(dump_text, ("Ljava/lang/String;", revision)),
            dump_map(
                {
                    "path": _NAME,
                    "interface": _NAME,
                    "version": service.version,
                    "group": application,
                }
            ),
        ]
    )
    reader, writer = await asyncio.open_connection(service.address.host, service.address.port)
    try:
        writer.write(_HEAD.pack(_MAGIC, _FLAGS, 0, 1, len(body)) + body)
        while True:
            magic, flags, status, _, size = _HEAD.unpack(await reader.readexactly(_HEAD.size))
            if magic != _MAGIC or size > MAX_ANSWER:
                raise ValueError("an answer that is not Dubbo's")
            answer = await reader.readexactly(size)
            if flags & _EVENT:
                continue  # a heartbeat, or that it ends
            if status != _OK:
                raise ValueError(f"its status is {status}")
            return await _read(_read_dubbo, answer, revision)
    finally:
        await _leave(writer)


def _read_dubbo(answer: bytes, revision: str) -> Services:
    reader = Reader(answer)
    if reader.value() not in _VALUES:
        raise ValueError("it does not know that revision")
    return _read_info(reader.value(), revision)


def _read_info(info: object, revision: str) -> Services:
    """A ``MetadataInfo``, by its fields."""
    if not isinstance(info, dict) or not isinstance(services := info.get("services"), dict):
        raise ValueError("it does not know that revision")
    if info.get("revision") not in (None, revision):
        raise ValueError(f"it tells of revision {info.get('revision')}")
    return services_of(services.values())


# ---- by triple ----


async def _ask_triple(service: MetadataService, application: str, revision: str) -> Services:
    if service.version == _SECOND:
        path, message, read = f"/{_NAME}V2/GetMetadataInfo", _text(1, revision), _read_second
    else:
        wrapped = [_text(1, "hessian2"), _field(2, dump_text(revision)), _text(3, _STRING)]
        path, message, read = f"/{_NAME}/getMetadataInfo", b"".join(wrapped), _read_wrapped
    reader, writer = await asyncio.open_connection(service.address.host, service.address.port)
    try:
        call = _Call(service, application, path, message)
        while not call.is_over:
            writer.write(call.to_send())
            data = await reader.read(_READ)
            if not data:
                raise ValueError("it closed the connection")
            call.hear(data)
        return await _read(read, call.answer, revision)
    except H2Error as error:
        raise ValueError(f"its HTTP/2 is wrong: {type(error).__name__}") from None
    finally:
        await _leave(writer)


_STRING = "java.lang.String"


class _Call:
    """One of gRPC, on a connection of its own; no I/O."""

    def __init__(self, service: MetadataService, group: str, path: str, message: bytes) -> None:
        self._connection = H2Connection(H2Configuration(header_encoding="utf-8"))
        self._connection.initiate_connection()
        self._received = 0
        self._heard = bytearray()
        self._status: str | None = None
        self._reason = ""
        self.is_over = False
        headers = [
            *((":method", "POST"), (":scheme", "http"), (":path", path)),
            *((":authority", str(service.address)), ("content-type", "application/grpc+proto")),
            *(("te", "trailers"), ("tri-service-version", service.version)),
            ("tri-service-group", group),
        ]
        self._connection.send_headers(1, headers)
        head = struct.pack(">BI", 0, len(message))
        self._connection.send_data(1, head + message, end_stream=True)

    def to_send(self) -> bytes:
        return bytes(self._connection.data_to_send())

    def hear(self, data: bytes) -> None:
        self._received += len(data)
        for event in self._connection.receive_data(data):
            self._happened(event)
        if self._received - len(self._heard) > _MOST_BESIDE + _READ:
            raise ValueError("it sends too much that is not of its answer")

    def _happened(self, event: Event) -> None:
        if isinstance(event, ResponseReceived | TrailersReceived):
            fields: dict[Any, Any] = dict(event.headers or ())
            self._status = fields.get("grpc-status", self._status)
            self._reason = fields.get("grpc-message", self._reason)
        elif isinstance(event, DataReceived):
            self._heard += event.data or b""
            if len(self._heard) > MAX_ANSWER:
                raise ValueError("its answer is too long")
            self._connection.acknowledge_received_data(event.flow_controlled_length or 0, 1)
        elif isinstance(event, StreamReset | ConnectionTerminated):
            raise ValueError("it does not answer")
        elif isinstance(event, StreamEnded):
            self.is_over = True

    @property
    def answer(self) -> bytes:
        if self._status not in (None, "0"):
            raise ValueError(f"its status is {self._status}: {self._reason}")
        if len(self._heard) < 5 or self._heard[0] != 0:
            raise ValueError("an answer without a message")
        return bytes(self._heard[5 : 5 + int.from_bytes(self._heard[1:5])])


def _read_wrapped(answer: bytes, revision: str) -> Services:
    """A ``TripleResponseWrapper``."""
    data = next((value for number, value in _fields(answer) if number == 2), b"")
    return _read_info(Reader(data if isinstance(data, bytes) else b"").value(), revision)


def _read_second(answer: bytes, revision: str) -> Services:
    """A ``MetadataInfoV2``."""
    entries = []
    for number, value in _fields(answer):
        if number == 2 and value != revision.encode():
            raise ValueError("it tells of another revision")
        if number == 3:  # an entry of a map: the value is its second field
            entries += [_entry(each) for at, each in _fields(value) if at == 2]
    return services_of(entries)


_ENTRY = {1: "name", 2: "group", 3: "version", 4: "protocol", 5: "port"}


def _entry(data: bytes | int) -> dict[str, Any]:
    """A ``ServiceInfoV2``."""
    params: dict[str, str] = {}
    entry: dict[str, Any] = {"params": params}
    for number, value in _fields(data):
        if number in _ENTRY:
            entry[_ENTRY[number]] = value if isinstance(value, int) else _decoded(value)
        elif number == 7:
            pair = {at: _decoded(each) for at, each in _fields(value) if isinstance(each, bytes)}
            params[pair.get(1, "")] = pair.get(2, "")
    return entry


def _decoded(value: bytes) -> str:
    return value.decode(errors="replace")


def _fields(data: bytes | int) -> Iterator[tuple[int, bytes | int]]:
    """Of a message of Protobuf, by number. Those of other kinds than numbers and bytes end it."""
    if isinstance(data, int):
        raise ValueError("a number in the place of a message")
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _varint(data, at)
        if key & 7 == 0:
            yield key >> 3, value
        elif key & 7 == 2 and at + value <= len(data):
            yield key >> 3, data[at : at + value]
            at += value
        else:
            raise ValueError("a message that cannot be read")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next thing is."""
    number = 0
    for place, byte in enumerate(data[at : at + 10]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, at + place + 1
    raise ValueError("a message that ends in the middle of a number")


def _field(number: int, value: bytes) -> bytes:
    size, rest = [], len(value)
    while rest > 127:
        size.append(rest & 127 | 128)
        rest >>= 7
    return bytes([number << 3 | 2, *size, rest]) + value


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


# ---- both ----


async def _read(read: Callable[[bytes, str], Services], answer: bytes, revision: str) -> Services:
    if len(answer) <= _AT_ONCE:
        return read(answer, revision)
    return await in_background(lambda: read(answer, revision))


async def _leave(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()
