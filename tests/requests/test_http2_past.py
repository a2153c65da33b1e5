"""What a client sends for streams of HTTP/2 that are not open any more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, RstStreamFrame

from tests.requests.http2 import (
    CANCEL,
    NO_ERROR,
    PROTOCOL_ERROR,
    Peer,
    echo,
    through,
)
from tests.requests.support import RequestPlane

STREAM_CLOSED = 5
_TRAILERS = [("x-trailer", "1")]


@pytest.fixture(scope="module")
def plane() -> Iterator[RequestPlane]:
    with through(echo) as (plane, _):
        yield plane


def _is_served(client: Peer) -> bool:
    return client.answer(client.request("/after"))[0][":status"] == "200"


def test_a_head_behind_the_end_ends_the_connection(plane: RequestPlane) -> None:
    client = Peer.client(plane)
    stream = client.request()
    client.answer(stream)
    client.headers(stream, _TRAILERS, "END_STREAM")
    assert client.went_away() == STREAM_CLOSED


def test_a_head_behind_a_reset_is_reset_once(plane: RequestPlane) -> None:
    client = Peer.client(plane)
    stream = client.begin("/never")
    client.reset(stream, CANCEL)
    for _ in range(3):
        client.headers(stream, _TRAILERS, "END_STREAM")
    after = client.request("/after")
    codes = []
    for frame in client.frames():
        assert not isinstance(frame, GoAwayFrame)
        if isinstance(frame, RstStreamFrame):
            codes.append((frame.stream_id, frame.error_code))
        if frame.stream_id == after and "END_STREAM" in frame.flags:
            break
    assert codes == [(stream, STREAM_CLOSED)]


def test_what_comes_for_a_stream_that_we_have_reset_is_ignored(plane: RequestPlane) -> None:
    """The client may have sent it before it knew."""
    client = Peer.client(plane)
    stream = client.begin("/a", ("host", "another"))  # refused, with a reset behind the answer
    reset = client.next(RstStreamFrame, stream)
    assert reset.error_code == NO_ERROR
    client.send(DataFrame(stream, b"body"))
    client.headers(stream, _TRAILERS, "END_STREAM")
    client.headers(stream, _TRAILERS, "END_STREAM")
    assert _is_served(client)


def test_a_stream_that_was_passed_over_cannot_be_opened(plane: RequestPlane) -> None:
    client = Peer.client(plane)
    client.next_id = 7
    assert _is_served(client)
    client.next_id = 5
    client.begin("/late", ends=True)
    assert client.went_away() == PROTOCOL_ERROR


def test_what_ended_long_ago_is_ignored(plane: RequestPlane) -> None:
    """Only so much is kept of a connection."""
    client = Peer.client(plane)
    for _ in range(50):
        client.answer(client.request())
    client.headers(1, _TRAILERS, "END_STREAM")
    assert _is_served(client)


def test_priority_of_the_connection_is_an_error(plane: RequestPlane) -> None:
    client = Peer.client(plane)
    client.sock.sendall(b"\0\0\5\2\0\0\0\0\0\0\0\0\1\20")
    assert client.went_away() == PROTOCOL_ERROR
