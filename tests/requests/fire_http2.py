"""HTTP/2 by the library ``h2``: a client of many streams, and who serves them, for the tests under
fire."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError

__all__ = ["Client", "Exchange", "serve"]

READ_BYTES = 1 << 16
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@dataclass
class Exchange:
    """What is known of a stream."""

    head: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)


def fields(event: RequestReceived | ResponseReceived) -> dict[bytes, bytes]:
    return {bytes(name): bytes(value) for name, value in event.headers or ()}


class Client:
    """A connection; ``ask`` may be called again before it has returned."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader, self._writer = reader, writer
        self._connection = H2Connection(H2Configuration(header_encoding=None))
        self._connection.initiate_connection()
        self._flush()
        self._exchanges: dict[int, Exchange] = {}
        self._waiting: dict[int, asyncio.Future[str | None]] = {}
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def connect(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def close(self) -> None:
        self._listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listening
        self._writer.close()

    async def ask(self, method: bytes, path: bytes, body: bytes) -> tuple[str, bytes]:
        """The status, or why there is none, and the body."""
        stream = self._connection.get_next_available_stream_id()
        head = [
            (b":method", method),
            (b":scheme", b"http"),
            (b":authority", b"web"),
            (b":path", path),
            (b"content-length", b"%d" % len(body)),
        ]
        exchange = self._exchanges[stream] = Exchange()
        waiting = self._waiting[stream] = asyncio.get_running_loop().create_future()
        self._connection.send_headers(stream, head)
        self._connection.send_data(stream, body, end_stream=True)
        self._flush()
        problem = await waiting
        del self._exchanges[stream]
        return problem or exchange.head[b":status"].decode(), bytes(exchange.body)

    def _flush(self) -> None:
        self._writer.write(self._connection.data_to_send())

    async def _listen(self) -> None:
        problem = "ended"
        try:
            while data := await self._reader.read(READ_BYTES):
                for event in self._connection.receive_data(data):
                    self._heard(event)
                self._flush()
        except (OSError, ProtocolError) as error:
            problem = repr(error)
        for waiting in self._waiting.values():
            waiting.set_result(problem)

    def _heard(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            assert event.stream_id
            self._exchanges[event.stream_id].head = fields(event)
        elif isinstance(event, DataReceived):
            assert event.stream_id
            self._exchanges[event.stream_id].body += event.data or b""
            if event.flow_controlled_length:
                self._connection.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
        elif isinstance(event, StreamEnded):
            self._waiting.pop(event.stream_id).set_result(None)
        elif isinstance(event, StreamReset):
            assert event.stream_id
            self._waiting.pop(event.stream_id).set_result(f"reset: {event.error_code}")
        else:
            assert not isinstance(event, ConnectionTerminated), event


Answer = Callable[[int, bytes], None]
"""Status and body; called once."""


class _Server:
    def __init__(self, writer: Writer, asked: Callable[[Exchange, Answer], None]) -> None:
        self._writer = writer
        self._asked = asked
        self._exchanges: dict[int, Exchange] = {}
        self.connection = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.connection.initiate_connection()
        self.flush()

    def flush(self) -> None:
        if not self._writer.is_closing():
            self._writer.write(self.connection.data_to_send())

    def heard(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._exchanges[event.stream_id] = Exchange(fields(event))
        elif isinstance(event, DataReceived):
            assert event.stream_id
            self._exchanges[event.stream_id].body += event.data or b""
            if event.flow_controlled_length:
                self.connection.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
        elif isinstance(event, StreamReset):
            assert event.stream_id
            self._exchanges.pop(event.stream_id, None)
        elif isinstance(event, StreamEnded):
            assert event.stream_id
            stream = event.stream_id
            self._asked(
                self._exchanges[stream], lambda status, body: self._answer(stream, status, body)
            )

    def _answer(self, stream: int, status: int, body: bytes) -> None:
        if self._exchanges.pop(stream, None) is None:
            return  # it was reset meanwhile
        head = [(b":status", b"%d" % status), (b"content-length", b"%d" % len(body))]
        self.connection.send_headers(stream, head, end_stream=not body)
        if body:
            self.connection.send_data(stream, body, end_stream=True)
        self.flush()


async def serve(reader: Reader, writer: Writer, asked: Callable[[Exchange, Answer], None]) -> None:
    """A connection, until it ends; ``asked`` gets each request."""
    server = _Server(writer, asked)
    with contextlib.suppress(ProtocolError):
        while data := await reader.read(READ_BYTES):
            for event in server.connection.receive_data(data):
                server.heard(event)
            server.flush()
            await writer.drain()
