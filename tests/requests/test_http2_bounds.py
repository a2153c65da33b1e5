"""Floods and other attacks in HTTP/2: the connection ends with the right error, and nobody else
notices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.requests.http2 import (
    CANCEL,
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    Peer,
    ResetError,
    echo,
    through,
)
from tests.requests.support import RequestPlane

FLOOD = 5000


@pytest.fixture(scope="module")
def plane() -> Iterator[RequestPlane]:
    """Before a server that echoes."""
    with through(echo) as (plane, _):
        yield plane


@pytest.fixture
def client(plane: RequestPlane) -> Iterator[Peer]:
    """The attacker; beside it another client is served before and after."""
    other = Peer.client(plane)
    assert other.answer(other.request("/before"))[1] == b"/before|"
    yield Peer.client(plane)
    assert other.answer(other.request("/after"))[1] == b"/after|"


def flood(client: Peer, make: Callable[[int], Frame]) -> None:
    """Sends until the other side does not want any more."""
    with contextlib.suppress(OSError):
        for at in range(0, FLOOD, 100):
            client.send(*(make(each) for each in range(at, at + 100)))


def ping(_: int) -> Frame:
    """A PING."""
    return PingFrame(0, opaque_data=b"12345678")


def settings(_: int) -> Frame:
    """Settings without any."""
    return SettingsFrame(0, settings={})


def priority(at: int) -> Frame:
    """A PRIORITY, each of another stream."""
    return PriorityFrame(2 * at + 1, depends_on=0, stream_weight=1)


@pytest.mark.parametrize("make", [ping, settings])
def test_a_flood_of_frames_that_bring_nothing_ends_the_connection(
    client: Peer, make: Callable[[int], Frame]
) -> None:
    flood(client, make)
    client.acknowledges = False
    assert client.went_away() == ENHANCE_YOUR_CALM


def test_priorities_are_ignored(client: Peer) -> None:
    flood(client, priority)
    client.next_id = 2 * FLOOD + 1
    assert client.answer(client.request("/still"))[1] == b"/still|"


def test_a_flood_of_empty_data_ends_the_connection(client: Peer) -> None:
    stream = client.begin("/")
    flood(client, lambda _: DataFrame(stream, b""))
    assert client.went_away() == ENHANCE_YOUR_CALM


def test_requests_that_are_reset_at_once_end_the_connection(client: Peer) -> None:
    with contextlib.suppress(OSError):
        for _ in range(FLOOD):
            stream = client.begin("/", ends=True)
            client.reset(stream, CANCEL)
    assert client.went_away() == ENHANCE_YOUR_CALM


def test_a_flood_of_continuations_ends_the_connection(client: Peer) -> None:
    block = client.encoder.encode([(":method", "GET"), (":scheme", "http"), (":path", "/")])
    client.send(HeadersFrame(1, block))
    with contextlib.suppress(OSError):
        for _ in range(FLOOD):
            client.send(ContinuationFrame(1, client.encoder.encode([("x-more", "y")])))
    assert client.went_away() in (ENHANCE_YOUR_CALM, PROTOCOL_ERROR)


def test_too_large_a_head_is_refused_alone(client: Peer) -> None:
    fields = [(f"x-{at}", "v" * 900) for at in range(90)]
    head, _, _ = client.answer(send_in_pieces(client, fields))
    assert head[":status"] == "431"
    client.next_id = 3
    assert client.answer(client.request("/still"))[1] == b"/still|"


def test_too_many_fields_are_refused_alone(client: Peer) -> None:
    stream = client.begin("/", *((f"x-{at}", "v") for at in range(120)), ends=True)
    head, _, _ = client.answer(stream)
    assert head[":status"] == "431"
    assert client.answer(client.request("/still"))[1] == b"/still|"


def send_in_pieces(client: Peer, fields: list[tuple[str, str]]) -> int:
    """A head that needs CONTINUATION."""
    head = [(":method", "GET"), (":scheme", "http"), (":authority", "test"), (":path", "/")]
    block = client.encoder.encode([*head, *fields])
    pieces = [block[at : at + 16000] for at in range(0, len(block), 16000)]
    frames: list[Frame] = [HeadersFrame(1, pieces[0], flags=["END_STREAM"])]
    frames += [ContinuationFrame(1, piece) for piece in pieces[1:]]
    frames[-1].flags.add("END_HEADERS")
    client.send(*frames)
    return 1


def test_a_bomb_of_compressed_fields_is_refused_alone(client: Peer) -> None:
    client.encoder.header_table_size = 4096
    long = ("x-bomb", "v" * 4000)
    stream = client.begin("/", *[long] * 60, ends=True)
    head, _, _ = client.answer(stream)
    assert head[":status"] == "431"
    assert client.answer(client.request("/still"))[1] == b"/still|"


def test_what_is_no_hpack_ends_the_connection(client: Peer) -> None:
    client.send(HeadersFrame(1, b"\xff\xff\xff\xff\xff\xff", flags=["END_HEADERS", "END_STREAM"]))
    assert client.went_away() == COMPRESSION_ERROR


def test_more_than_its_credit_ends_the_connection(client: Peer) -> None:
    """Or the stream: each has its own credit."""
    stream = client.begin("/")
    with contextlib.suppress(OSError):
        for _ in range(2000):
            client.send(DataFrame(stream, b"x" * 16384))
    frames = (each for each in client.frames() if isinstance(each, RstStreamFrame | GoAwayFrame))
    assert next(frames).error_code == FLOW_CONTROL_ERROR


def test_too_much_credit_ends_the_connection(client: Peer) -> None:
    client.send(WindowUpdateFrame(0, window_increment=2**31 - 1))
    assert client.went_away() == FLOW_CONTROL_ERROR


def test_streams_beyond_the_limit_are_refused(client: Peer) -> None:
    streams = [client.begin(f"/{at}") for at in range(300)]
    refused = set()
    for frame in client.frames():
        if isinstance(frame, RstStreamFrame):
            assert frame.error_code == REFUSED_STREAM
            refused.add(frame.stream_id)
            if len(refused) == 44:
                break
    assert refused == set(streams[256:])


def test_a_window_of_a_byte_holds_nobody_else_up(client: Peer) -> None:
    client.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1}))
    client.gives_credit = False
    stream = client.request("/slow", body=b"x" * 1000)
    assert client.next(DataFrame, stream).data == b"/"
    client.send(WindowUpdateFrame(stream, window_increment=2000))
    body = b"/"
    for frame in client.frames():
        if isinstance(frame, DataFrame):
            body += frame.data
            if "END_STREAM" in frame.flags:
                break
    assert body == b"/slow|" + b"x" * 1000


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([("connection", "close")], id="connection"),
        pytest.param([("te", "gzip")], id="te"),
        pytest.param([("Upper", "case")], id="upper case"),
        pytest.param([("transfer-encoding", "chunked")], id="transfer-encoding"),
    ],
)
def test_a_malformed_head_is_reset_alone(client: Peer, fields: list[tuple[str, str]]) -> None:
    with pytest.raises(ResetError):
        client.answer(client.begin("/", *fields, ends=True))
    assert client.answer(client.request("/still"))[1] == b"/still|"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([("host", "other")], id="host"),
        pytest.param([("content_length", "1")], id="underscore"),
    ],
)
def test_what_could_be_understood_in_two_ways_is_refused(
    client: Peer, fields: list[tuple[str, str]]
) -> None:
    head, _, _ = client.answer(client.begin("/", *fields, ends=True))
    assert head[":status"] == "400"


def test_a_body_of_another_length_than_it_says_is_reset(client: Peer) -> None:
    stream = client.begin("/", ("content-length", "5"))
    client.send(DataFrame(stream, b"123", flags=["END_STREAM"]))
    with pytest.raises(ResetError):
        client.answer(stream)


def _answer_to(plane: RequestPlane, first: bytes) -> bytes:
    """All that a connection brings to who begins with that, once the sidecar has accepted it."""
    sock = plane.client()
    other = Peer.client(plane)  # of the same worker, which accepts one after the other
    assert other.answer(other.request("/"))[1] == b"/|"
    data = b""
    with contextlib.suppress(ConnectionError):
        sock.sendall(first)
        while block := sock.recv(4096):
            data += block
    return data


@pytest.mark.parametrize("body", [b"", b"x" * 300000], ids=["empty", "unread"])
def test_a_request_in_http1_is_answered_in_http1(plane: RequestPlane, body: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = _answer_to(plane, head + body)
    assert answer.startswith(b"HTTP/1.1 505 ")
    assert b"\r\nx-sidecar-reason: malformed_request\r\n" in answer
    assert b"\r\nConnection: close\r\n" in answer


def test_no_preface_ends_the_connection(plane: RequestPlane) -> None:
    frames = _answer_to(plane, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(30))
    goaway = GoAwayFrame(0, error_code=PROTOCOL_ERROR).serialize()
    assert frames.endswith(goaway)
