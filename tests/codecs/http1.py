"""Reads and writes HTTP/1.1, with our codec and with those of others, all in the same terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import h11
import httptools

Fields = list[tuple[bytes, bytes]]  # names in lower case

ROOM = 1 << 16


@dataclass
class Message:
    """One that is complete, unless it is said to be not."""

    method: bytes = b""
    target: bytes = b""  # as it was sent; of ours, the path
    authority: bytes = b""
    status: int = 0
    reason: bytes = b""
    http10: bool = False
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    complete: bool = False

    def values(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.fields if each == name]


@dataclass
class Reading:
    """What a connection brought."""

    messages: list[Message] = field(default_factory=list)
    error: str = ""
    status: int = 0  # that the error is to be answered with

    @property
    def complete(self) -> list[Message]:
        return [message for message in self.messages if message.complete]


class Http1:
    """Our codec."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi, self._lib = ffi, lib
        self._codec = lib.codec_http1
        self._limits = ffi.new(
            "struct limits *", {"line_bytes": 8192, "head_bytes": 32768, "fields": 100}
        )

    def _decoder(self, response: bool, facts: dict[str, bool]) -> Any:
        decoder = self._ffi.new("struct decoder *", {"limits": self._limits, "response": response})
        if response:
            self._codec.expect(decoder, self._ffi.new("struct facts *", facts))
        return decoder

    def _events(self, decoder: Any, pieces: Sequence[bytes]) -> Iterator[tuple[int, Any]]:
        """With the message that belongs to each; at the end, what finish() says."""
        message = self._ffi.new("struct message *")
        consumed = self._ffi.new("size_t *")
        data = b""
        for piece in pieces:
            data += piece
            while True:
                buffer = self._ffi.from_buffer("uint8_t[]", data)
                event = self._codec.decode(decoder, buffer, len(data), consumed, message)
                if event != self._lib.CODEC_MORE:
                    yield event, message
                data = data[consumed[0] :]
                if event == self._lib.CODEC_ERROR:
                    return
                if event == self._lib.CODEC_MORE:
                    break
        event = self._codec.finish(decoder, message)
        if event != self._lib.CODEC_MORE:
            yield event, message

    def _text(self, text: Any) -> bytes:
        return bytes(self._ffi.buffer(text.at, text.size)) if text.size else b""

    def _fields(self, message: Any) -> Fields:
        return [
            (self._text(each.name).lower(), self._text(each.value))
            for each in message.fields[0 : message.field_count]
        ]

    def _head(self, head: Any) -> Message:
        return Message(
            method=self._text(head.method),
            target=self._text(head.path),
            authority=self._text(head.authority),
            status=head.status,
            reason=self._text(head.reason),
            http10=head.facts.http10,
            fields=self._fields(head),
        )

    def read(
        self, *pieces: bytes, response: bool = False, facts: dict[str, bool] | None = None
    ) -> Reading:
        reading = Reading()
        decoder = self._decoder(response, facts or {})
        for event, message in self._events(decoder, pieces):
            if event == self._lib.CODEC_HEAD:
                reading.messages.append(self._head(message))
            elif event == self._lib.CODEC_DATA:
                reading.messages[-1].body += self._text(message.data)
            elif event == self._lib.CODEC_END:
                reading.messages[-1].trailers = self._fields(message)
                reading.messages[-1].complete = True
            else:
                reading.error = self._ffi.string(message.problem).decode()
                reading.status = message.http_status
        return reading

    def pass_on(
        self, data: bytes, *, response: bool = False, facts: dict[str, bool] | None = None
    ) -> list[bytes]:
        """Each message as it is passed on, as far as it came."""
        facts = facts or {"keep_alive": True}
        encoder = self._ffi.new("struct encoder *")
        adjustment = self._ffi.new("struct adjustment *", {"facts": facts})
        to = self._ffi.new("uint8_t[]", ROOM)
        passed: list[bytes] = []
        for event, message in self._events(self._decoder(response, facts), [data]):
            if event == self._lib.CODEC_HEAD:
                size = self._codec.encode(encoder, message, adjustment, to, ROOM)
                assert size > 0
                passed.append(bytes(self._ffi.buffer(to, size)))
            elif event == self._lib.CODEC_DATA:
                size = self._codec.before_data(encoder, message.data.size, to)
                passed[-1] += bytes(self._ffi.buffer(to, size)) + self._text(message.data)
                size = self._codec.after_data(encoder, to)
                passed[-1] += bytes(self._ffi.buffer(to, size))
            elif event == self._lib.CODEC_END:
                size = self._codec.end(encoder, message, to, ROOM)
                passed[-1] += bytes(self._ffi.buffer(to, size))
        return passed


class _Listener:
    """What httptools calls back."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._in_head = False

    def on_message_begin(self) -> None:
        self.messages.append(Message())
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self.messages[-1].target += url

    def on_status(self, reason: bytes) -> None:
        self.messages[-1].reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        message = self.messages[-1]
        (message.fields if self._in_head else message.trailers).append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        self.messages[-1].body += body

    def on_message_complete(self) -> None:
        self.messages[-1].complete = True


class _Requests(_Listener):
    parser: Any

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.messages[-1].method = self.parser.get_method()
        self.messages[-1].http10 = self.parser.get_http_version() == "1.0"


class _Responses(_Listener):
    parser: Any

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.messages[-1].status = self.parser.get_status_code()


def read_with_llhttp(data: bytes, *, response: bool = False) -> Reading:
    """An answer that ends with the connection is never complete here."""
    listener: Any = _Responses() if response else _Requests()
    parser_type = httptools.HttpResponseParser if response else httptools.HttpRequestParser
    parser: Any = parser_type(listener)
    listener.parser = parser
    reading = Reading(listener.messages)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        reading.error = str(error)
    return reading


def _fields_of(event: Any) -> Fields:
    return [(bytes(name), bytes(value)) for name, value in event.headers]


def _collect(connection: Any, reading: Reading) -> bool:
    """The events that are there. False: nothing more is to come."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return event is not h11.PAUSED
        if isinstance(event, h11.ConnectionClosed):
            return False
        if isinstance(event, h11.Request):
            reading.messages.append(
                Message(
                    bytes(event.method),
                    bytes(event.target),
                    http10=event.http_version == b"1.0",
                    fields=_fields_of(event),
                )
            )
        elif isinstance(event, h11.Response | h11.InformationalResponse):
            reading.messages.append(
                Message(
                    status=event.status_code,
                    reason=bytes(event.reason),
                    fields=_fields_of(event),
                    complete=event.status_code < 200,
                )
            )
        elif isinstance(event, h11.Data):
            reading.messages[-1].body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            reading.messages[-1].trailers = _fields_of(event)
            reading.messages[-1].complete = True
            return False


def read_request_with_h11(data: bytes) -> Reading:
    """The first of them."""
    reading = Reading()
    connection = h11.Connection(h11.SERVER)
    try:
        connection.receive_data(data)
        if _collect(connection, reading):
            connection.receive_data(b"")
            _collect(connection, reading)
    except h11.RemoteProtocolError as error:
        reading.error = str(error)
    return reading


def read_response_with_h11(data: bytes, method: str = "GET") -> Reading:
    """Interim ones and the first other one."""
    reading = Reading()
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    try:
        connection.receive_data(data)
        if _collect(connection, reading):
            connection.receive_data(b"")
            _collect(connection, reading)
    except h11.RemoteProtocolError as error:
        reading.error = str(error)
    return reading
