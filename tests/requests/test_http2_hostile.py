"""Clients and servers of HTTP/2 that mean harm, beside others that have to notice nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable

import pytest
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.requests.http2 import ENHANCE_YOUR_CALM, PATIENCE, Peer, ResetError, echo, through

FLOOD = 50_000
INITIAL_WINDOW_SIZE = SettingsFrame.INITIAL_WINDOW_SIZE


# ---- clients ----


def _provoke(client: Peer, make: Callable[[int], bytes]) -> int:
    """Begins requests that have to be reset, as many at a time as may be, until the other side does
    not want any more. Returns with which error."""
    fields = [(":method", "POST"), (":scheme", "http"), (":authority", "test"), (":path", "/")]
    fields.append(("content-length", "5"))
    client.headers(1, fields)
    block = client.encoder.encode(fields)  # all of it in the table by now
    frames = client.frames()
    for first in range(3, 2 * FLOOD, 200):
        with contextlib.suppress(OSError):
            client.sock.sendall(
                b"".join(
                    HeadersFrame(stream, block, flags=["END_HEADERS"]).serialize() + make(stream)
                    for stream in range(first, first + 200, 2)
                )
            )
        for frame in frames:
            if isinstance(frame, GoAwayFrame):
                return int(frame.error_code)
            if isinstance(frame, RstStreamFrame) and frame.stream_id == first + 198:
                break
    raise AssertionError("all of it was taken")


def _too_much_credit(stream: int) -> bytes:
    return WindowUpdateFrame(stream, window_increment=2**31 - 1).serialize()


def _too_much_body(stream: int) -> bytes:
    return DataFrame(stream, b"123456").serialize()


@pytest.mark.parametrize("make", [_too_much_credit, _too_much_body])
def test_a_client_that_has_its_requests_reset_is_sent_away(make: Callable[[int], bytes]) -> None:
    """Each has been sent on before (MadeYouReset, CVE-2025-8671)."""
    with through(echo) as (plane, _):
        other = Peer.client(plane)
        client = Peer.client(plane)
        assert _provoke(client, make) == ENHANCE_YOUR_CALM
        assert other.answer(other.request("/other"))[1] == b"/other|"


def test_a_huge_bomb_of_compressed_fields_ends_the_connection() -> None:
    with through(echo) as (plane, _):
        other = Peer.client(plane)
        client = Peer.client(plane)
        client.encoder.header_table_size = 4096
        stream = client.begin("/", *[("x-bomb", "v" * 4000)] * 5000)
        assert stream == 1
        assert client.went_away() == ENHANCE_YOUR_CALM
        assert other.answer(other.request("/other"))[1] == b"/other|"


STREAMS = 90  # fewer than a server has to be asked for


def _serve_much(sock: socket.socket, stalled: threading.Event) -> None:
    """Each answer has as many bytes as its path says, as far as there is credit. ``stalled``: there
    are many, and there is none."""
    peer = Peer.server(sock)
    credit = {0: 65535}
    first = 65535
    left: dict[int, int] = {}
    for frame in peer.frames():
        if isinstance(frame, SettingsFrame):
            first = frame.settings.get(INITIAL_WINDOW_SIZE, first)
        elif isinstance(frame, WindowUpdateFrame):
            credit[frame.stream_id] = credit.get(frame.stream_id, first) + frame.window_increment
        elif isinstance(frame, RstStreamFrame):
            left.pop(frame.stream_id, None)
        elif isinstance(frame, HeadersFrame):
            fields = {str(name): str(value) for name, value in peer.decoder.decode(frame.data)}
            left[frame.stream_id] = int(fields[":path"][1:])
            credit.setdefault(frame.stream_id, first)
            peer.headers(frame.stream_id, [(":status", "200")])
        for stream in list(left):
            while left[stream] > 0:
                size = min(left[stream], credit[0], credit[stream], 16384)
                if size <= 0:
                    break
                left[stream] -= size
                credit[0] -= size
                credit[stream] -= size
                ends = ["END_STREAM"] if left[stream] == 0 else []
                peer.send(DataFrame(stream, b"x" * size, flags=ends))
            if left[stream] == 0:
                del left[stream]
        if len(left) == STREAMS and all(credit[0] <= 0 or credit[each] <= 0 for each in left):
            stalled.set()


def test_clients_that_take_nothing_do_not_stall_others_of_the_same_upstream() -> None:
    """All of them share a connection to it."""
    stalled = threading.Event()
    with through(lambda sock: _serve_much(sock, stalled)) as (plane, _):
        greedy = Peer.client(plane, {INITIAL_WINDOW_SIZE: 0})
        for _ in range(STREAMS):
            greedy.begin("/1000000", ends=True)
        assert stalled.wait(PATIENCE)
        other = Peer.client(plane)
        for _ in range(3):
            assert len(other.answer(other.begin("/300000", ends=True))[1]) == 300_000


def _rss_kib() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4


# ---- servers ----


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="malloc is ASan's")
def test_a_flood_of_interim_answers_takes_no_memory() -> None:
    """The client reads nothing of them."""
    sent, go_on = threading.Event(), threading.Event()

    def serve(sock: socket.socket) -> None:
        peer = Peer.server(sock)
        stream = peer.next(HeadersFrame).stream_id
        block = peer.encoder.encode([(":status", "103"), ("link", "x" * 8000)])  # in no table
        frame = HeadersFrame(stream, block, flags=["END_HEADERS"]).serialize()
        for _ in range(150):
            sock.sendall(frame * 20)
        sent.set()
        assert go_on.wait(PATIENCE)
        peer.respond(stream, b"done")
        for _ in peer.frames():
            pass

    with through(serve) as (plane, _):
        client = Peer.client(plane)
        before = _rss_kib()
        stream = client.begin("/", ends=True)
        assert sent.wait(PATIENCE)
        grown = _rss_kib() - before
        go_on.set()
        assert client.answer(stream)[1] == b"done"
        assert grown < 12_000


def test_an_upstream_that_pings_and_does_not_read_is_left() -> None:
    ended = threading.Event()

    def serve(sock: socket.socket) -> None:
        peer = Peer.server(sock)
        stream = peer.next(HeadersFrame).stream_id
        with contextlib.suppress(OSError):
            for _ in range(100):
                peer.send(*(PingFrame(0, opaque_data=b"12345678") for _ in range(1000)))
        ended.set()
        assert stream

    with through(serve) as (plane, _):
        client = Peer.client(plane)
        head, _, _ = client.answer(client.begin("/", ends=True))
        assert head[":status"] == "502"
        assert ended.wait(PATIENCE)


def _go_away_and_answer(sock: socket.socket) -> None:
    """Says that it has not seen the request, again and again, and answers it."""
    peer = Peer.server(sock)
    with contextlib.suppress(OSError):
        stream = peer.next(HeadersFrame).stream_id
        for last in (2**31 - 1, 0, 0):
            peer.send(GoAwayFrame(0, last_stream_id=last, error_code=0))
        peer.respond(stream, b"answered")
        for _ in peer.frames():
            pass


def test_an_upstream_that_takes_back_what_it_answers_is_believed() -> None:
    """The request is sent once more, then it is over."""
    with through(_go_away_and_answer) as (plane, _):
        client = Peer.client(plane)
        with pytest.raises(ResetError):
            client.answer(client.begin("/", ends=True))
