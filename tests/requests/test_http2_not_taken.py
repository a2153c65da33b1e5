"""Clients of HTTP/2 that do not take their answers: what waits for them ends, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from pysidecar.dataplane import Flag, Timeouts
from tests.requests.http2 import CANCEL, ENHANCE_YOUR_CALM, PREFACE, Peer, echo, through
from tests.requests.support import RequestPlane, read_until
from tests.waiting import eventually

SHORT = Timeouts(flush=0.5)
NO_WINDOW = {SettingsFrame.INITIAL_WINDOW_SIZE: 0}
ALL = 2**31 - 1


@pytest.fixture(scope="module")
def plane() -> Iterator[RequestPlane]:
    """Before a server that echoes."""
    with through(echo, timeouts=SHORT) as (plane, _):
        yield plane


def ping(client: Peer) -> None:
    """Not so often that it is a flood."""
    time.sleep(0.005)
    client.send(PingFrame(0, opaque_data=b"12345678"))


def until_reset(client: Peer, stream: int) -> Iterator[Frame]:
    """What comes before; the client is lively all the time."""
    ping(client)
    for frame in client.frames():
        if isinstance(frame, RstStreamFrame) and frame.stream_id == stream:
            assert frame.error_code == CANCEL
            return
        if isinstance(frame, PingFrame):
            ping(client)
        elif isinstance(frame, HeadersFrame):
            client.decoder.decode(frame.data)
        yield frame
    raise AssertionError("the connection ended")


def test_an_answer_that_is_not_taken_is_reset_alone(plane: RequestPlane) -> None:
    """A stream on which nothing waits may go on for ever."""
    before = plane.data.counters().streams_not_taken
    client = Peer.client(plane, NO_WINDOW)
    idle = client.begin("/idle")
    small = client.request("/small")
    assert not [each for each in until_reset(client, small) if isinstance(each, DataFrame)]
    assert plane.data.counters().streams_not_taken == before + 1
    client.send(WindowUpdateFrame(idle, window_increment=1000))
    client.send(DataFrame(idle, b"x", flags=["END_STREAM"]))
    assert client.answer(idle)[1] == b"/idle|x"


def test_a_byte_now_and_then_is_not_enough(plane: RequestPlane) -> None:
    client = Peer.client(plane, NO_WINDOW)
    client.gives_credit = False
    stream = client.begin("/little")
    client.send(*(DataFrame(stream, b"x" * 16000) for _ in range(3)))
    client.send(DataFrame(stream, b"", flags=["END_STREAM"]))
    taken = 0
    for frame in until_reset(client, stream):
        if isinstance(frame, DataFrame):
            taken += len(frame.data)
        elif isinstance(frame, PingFrame) and taken < 1000:
            client.send(WindowUpdateFrame(stream, window_increment=1))
    assert taken <= 1001


def answer_for_ever(sock: socket.socket) -> None:
    """In HTTP/1.1."""
    with contextlib.suppress(OSError):
        read_until(sock, b"\r\n\r\n")
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sock.sendall(b"x" * 65536)


def test_a_client_that_reads_nothing_is_disconnected() -> None:
    with through(answer_for_ever, speaks="http", timeouts=SHORT) as (plane, _):
        sock = plane.owned(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((plane.address.host, plane.address.port))
        sock.sendall(PREFACE)
        client = Peer(sock, {SettingsFrame.INITIAL_WINDOW_SIZE: ALL})
        client.send(WindowUpdateFrame(0, window_increment=ALL - 65535))
        client.request("/")
        eventually(lambda: plane.data.counters().closed == 1, "its end")


def test_the_record_of_what_is_not_taken_says_so() -> None:
    with through(answer_for_ever, speaks="http", timeouts=SHORT) as (plane, _):
        client = Peer.client(plane, NO_WINDOW)
        for _ in until_reset(client, client.request("/")):
            pass
        (record,) = eventually(lambda: [*next(plane.data.recent_requests(), [])])
        assert set(record.flags) == {Flag.NOT_TAKEN, Flag.DOWNSTREAM_CLOSED}


def test_one_that_was_sent_away_and_goes_on_is_reset(plane: RequestPlane) -> None:
    """It has been told before."""
    client = Peer.client(plane)
    flood = PingFrame(0, opaque_data=b"12345678").serialize() * 1000
    client.acknowledges = False
    client.sock.sendall(flood * 4)
    assert client.next(GoAwayFrame).error_code == ENHANCE_YOUR_CALM
    with pytest.raises(ConnectionError):
        client.sock.sendall(flood * 1000)


def test_updates_of_windows_without_answers_are_a_flood(plane: RequestPlane) -> None:
    client = Peer.client(plane)
    update = WindowUpdateFrame(0, window_increment=1).serialize()
    with contextlib.suppress(OSError):
        for _ in range(100):
            client.sock.sendall(update * 100)
    assert client.went_away() == ENHANCE_YOUR_CALM
