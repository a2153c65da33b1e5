"""Raw peers that speak HTTP/2 frame by frame, so that a test can also send what it must not."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.requests.support import RequestPlane, Upstream, read_exactly
from tests.waiting import PATIENCE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
WINDOW = 65535
Headers = Sequence[tuple[str, str]]

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 8, 9, 11


class Peer:
    """One end of a connection: of a client, or of a server that has accepted one."""

    def __init__(
        self, sock: socket.socket, settings: dict[int, int] | None = None, *, silent: bool = False
    ) -> None:
        """``silent``: it has not sent its settings, which come before all else."""
        self.sock = sock
        self.encoder, self.decoder = Encoder(), Decoder()
        self.next_id = 1
        self.acknowledges = not silent
        """Settings and pings of the other side."""
        self.gives_credit = True
        """For all DATA that comes."""
        if not silent:
            self.send(SettingsFrame(0, settings=settings or {}))

    @classmethod
    def client(cls, plane: RequestPlane, settings: dict[int, int] | None = None) -> Peer:
        """A connection to the plane."""
        sock = plane.client()
        sock.sendall(PREFACE)
        return cls(sock, settings)

    @classmethod
    def server(cls, sock: socket.socket, settings: dict[int, int] | None = None) -> Peer:
        """Of a connection that was accepted."""
        assert read_exactly(sock, len(PREFACE)) == PREFACE
        return cls(sock, settings)

    # ---- sending ----

    def send(self, *frames: Frame) -> None:
        """In one piece."""
        self.sock.sendall(b"".join(frame.serialize() for frame in frames))

    def headers(self, stream: int, fields: Headers, *flags: str) -> None:
        """One HEADERS frame, with all of them."""
        block = self.encoder.encode(list(fields))
        self.send(HeadersFrame(stream, block, flags=["END_HEADERS", *flags]))

    def request(self, path: str = "/", *fields: tuple[str, str], body: bytes | None = None) -> int:
        """A whole one. Returns its stream."""
        if body is not None:
            fields = (*fields, ("content-length", str(len(body))))
        stream = self.begin(path, *fields, ends=body is None)
        if body is not None:
            self.send(DataFrame(stream, body, flags=["END_STREAM"]))
        return stream

    def begin(self, path: str = "/", *fields: tuple[str, str], ends: bool = False) -> int:
        """Its head alone."""
        stream, self.next_id = self.next_id, self.next_id + 2
        own = dict(fields)
        head = [
            (":method", own.pop(":method", "POST" if not ends else "GET")),
            (":scheme", "http"),
            (":authority", own.pop(":authority", "test")),
            (":path", path),
            *((name, value) for name, value in fields if not name.startswith(":")),
        ]
        self.headers(stream, head, *(["END_STREAM"] if ends else []))
        return stream

    def respond(self, stream: int, body: bytes = b"", *fields: tuple[str, str]) -> None:
        """A whole answer."""
        self.headers(stream, [(":status", "200"), *fields])
        self.send(DataFrame(stream, body, flags=["END_STREAM"]))

    def reset(self, stream: int, code: int) -> None:
        """A RST_STREAM."""
        self.send(RstStreamFrame(stream, error_code=code))

    # ---- receiving ----

    def frames(self) -> Iterator[Frame]:
        """Each as it comes, until the connection ends."""
        with contextlib.suppress(ConnectionError):
            while head := read_exactly(self.sock, HEAD_BYTES):
                frame, length = Frame.parse_frame_header(memoryview(head))
                frame.parse_body(memoryview(read_exactly(self.sock, length)))
                self._care_for(frame)
                yield frame

    def _care_for(self, frame: Frame) -> None:
        if isinstance(frame, SettingsFrame | PingFrame) and "ACK" not in frame.flags:
            if self.acknowledges:
                answer: Frame = SettingsFrame(0, flags=["ACK"])
                if isinstance(frame, PingFrame):
                    answer = PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"])
                with contextlib.suppress(OSError):
                    self.send(answer)
        elif isinstance(frame, DataFrame) and self.gives_credit and frame.flow_controlled_length:
            size = frame.flow_controlled_length
            with contextlib.suppress(OSError):
                self.send(WindowUpdateFrame(0, window_increment=size))
                if "END_STREAM" not in frame.flags:
                    self.send(WindowUpdateFrame(frame.stream_id, window_increment=size))

    def next(self, kind: type[Frame], stream: int | None = None) -> Any:
        """The next frame of that kind; others are passed over."""
        for frame in self.frames():
            if isinstance(frame, kind) and stream in (None, frame.stream_id):
                return frame
        raise AssertionError(f"the connection ended without {kind.__name__}")

    def read_headers(self, stream: int | None = None) -> tuple[HeadersFrame, dict[str, str]]:
        """The next head, or trailers."""
        frame = self.next(HeadersFrame, stream)
        block = frame.data
        while "END_HEADERS" not in frame.flags and not block.endswith(b"!"):
            more = self.next(ContinuationFrame)
            block += more.data
            if "END_HEADERS" in more.flags:
                break
        return frame, {_text(name): _text(value) for name, value in self.decoder.decode(block)}

    def answer(self, stream: int) -> tuple[dict[str, str], bytes, dict[str, str]]:
        """Of the stream: its final head, body and trailers. Nothing else may be under way."""
        head: dict[str, str] = {}
        trailers: dict[str, str] = {}
        body = b""
        for frame in self.frames():
            if isinstance(frame, GoAwayFrame):
                raise AssertionError(f"went away with {frame.error_code}")
            if frame.stream_id != stream:
                if isinstance(frame, HeadersFrame):
                    self.decoder.decode(frame.data)
                continue
            if isinstance(frame, RstStreamFrame):
                raise ResetError(frame.error_code)
            if isinstance(frame, HeadersFrame):
                fields = {_text(k): _text(v) for k, v in self.decoder.decode(frame.data)}
                if not head or head[":status"].startswith("1"):
                    head = fields
                else:
                    trailers = fields
            if isinstance(frame, DataFrame):
                body += frame.data
            if "END_STREAM" in frame.flags:
                return head, body, trailers
        raise AssertionError("the connection ended before the answer")

    def went_away(self) -> int:
        """The code of the last GOAWAY before the connection ends."""
        codes = [frame.error_code for frame in self.frames() if isinstance(frame, GoAwayFrame)]
        assert codes, "the connection ended without GOAWAY"
        return int(codes[-1])


class ResetError(Exception):
    """The stream was reset, with this code."""


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def echo(sock: socket.socket) -> None:
    """Answers each request with its path and body, and with its trailers."""
    peer = Peer.server(sock)
    requests: dict[int, tuple[dict[str, str], bytes]] = {}
    for frame in peer.frames():
        if isinstance(frame, HeadersFrame):
            fields = {_text(k): _text(v) for k, v in peer.decoder.decode(frame.data)}
            if frame.stream_id not in requests:
                requests[frame.stream_id] = fields, b""
        elif isinstance(frame, DataFrame):
            head, body = requests[frame.stream_id]
            requests[frame.stream_id] = head, body + frame.data
        elif isinstance(frame, RstStreamFrame):
            requests.pop(frame.stream_id, None)
        if "END_STREAM" in frame.flags and isinstance(frame, HeadersFrame | DataFrame):
            head, body = requests.pop(frame.stream_id)
            _answer(peer, frame.stream_id, head[":path"].encode() + b"|" + body)


def _answer(peer: Peer, stream: int, body: bytes) -> None:
    peer.headers(stream, [(":status", "200"), ("x-served", "http2")])
    pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)]
    for piece in pieces:
        peer.send(DataFrame(stream, piece))
    peer.send(DataFrame(stream, b"", flags=["END_STREAM"]))


@contextlib.contextmanager
def through(
    serve: Callable[[socket.socket], object], protocol: str = "http2", **settings: Any
) -> Iterator[tuple[RequestPlane, Upstream]]:
    """A plane before one upstream. Settings are RequestPlane's."""
    with (
        Upstream(serve) as upstream,
        RequestPlane(protocol, [upstream.address], **settings) as plane,
    ):
        plane.data.log(False, requests=True)
        yield plane, upstream


__all__ = ["PATIENCE", "Peer", "ResetError", "echo", "through"]
