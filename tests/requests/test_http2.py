"""HTTP/2 through the data plane, frame by frame."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.dataplane.support import take_lines
from tests.requests.http2 import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    NO_ERROR,
    PREFACE,
    REFUSED_STREAM,
    Peer,
    ResetError,
    echo,
    through,
)
from tests.requests.support import RequestPlane, Upstream, read_exactly, read_message, read_until
from tests.requests.support import echo as echo_http1
from tests.waiting import eventually

BIG = 3 * 1024 * 1024


def line_of(plane: RequestPlane, path: str) -> dict[str, Any]:
    """The line of the access log of the request with the path, once it has ended."""
    seen: list[dict[str, Any]] = []

    def find() -> dict[str, Any] | None:
        seen.extend(json.loads(line) for line in take_lines(plane))
        return next((each for each in seen if each.get("path") == path), None)

    return eventually(find, "its line")


# ---- from one version to the other ----


@pytest.mark.parametrize(
    ("serve", "protocol", "speaks"),
    [
        pytest.param(echo, "http2", "http2", id="http2 to http2"),
        pytest.param(echo_http1, "http2", "http", id="http2 to http1"),
    ],
)
def test_a_request_is_answered(
    serve: Callable[[socket.socket], None], protocol: str, speaks: str
) -> None:
    with through(serve, protocol, speaks=speaks) as (plane, _):
        client = Peer.client(plane)
        head, body, _ = client.answer(client.request("/a?b=c"))
        assert (head[":status"], body) == ("200", b"/a?b=c|")
        for size in (1, 10_000, 16_000):
            stream = client.request("/b", body=b"x" * size)
            assert client.answer(stream)[1] == b"/b|" + b"x" * size


def test_http1_clients_reach_a_service_of_http2() -> None:
    with through(echo, "http", speaks="http2") as (plane, _):
        client = plane.client()
        for body in (b"", b"hello", b"x" * 60_000):
            client.sendall(
                b"POST /c HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            head = read_until(client, b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"x-served: http2" in head
            rest = read_until(client, b"0\r\n\r\n", head.partition(b"\r\n\r\n")[2])
            assert body[:50] in rest
        client.sendall(b"GET /d HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        assert b"/d|" in read_until(client, b"0\r\n\r\n")


def test_auto_tells_http2_by_its_preface() -> None:
    with through(echo, "auto", speaks="http2") as (plane, _):
        client = Peer.client(plane)
        assert client.answer(client.request("/e"))[1] == b"/e|"
        other = plane.client()
        other.sendall(b"GET /f HTTP/1.1\r\nHost: test\r\n\r\n")
        assert b"/f|" in read_until(other, b"0\r\n\r\n")


# ---- what is passed on ----


def test_what_is_meant_for_one_connection_is_not_passed_on() -> None:
    heads: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        head, _, _ = read_message(sock)
        heads.append(head.lower())
        sock.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=5\r\n"
            b"Connection: keep-alive, x-hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n"
        )

    with through(serve, "http2", speaks="http") as (plane, _):
        client = Peer.client(plane)
        stream = client.begin(
            "/g",
            ("te", "trailers"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("x-end", "3"),
            ends=True,
        )
        head, _, _ = client.answer(stream)
    assert "keep-alive" not in head
    assert "connection" not in head
    assert "x-hop" not in head
    assert head["x-end"] == "2"
    assert b"cookie: a=1; b=2" in heads[0]
    assert b"host: test" in heads[0]
    assert b"\r\nte: trailers" in heads[0]


@pytest.mark.parametrize("speaks", ["http2", "http"])
def test_white_space_around_a_value_is_taken_away(speaks: str) -> None:
    """gRPC's clients send it where their users have it in metadata."""
    values: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        if speaks == "http":
            values.append(
                read_message(sock)[0].lower().partition(b"\r\nx-padded:")[2].partition(b"\r\n")[0]
            )
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-End: 1\r\n\r\n")
            return
        server = Peer.server(sock)
        frame, fields = server.read_headers()
        values.append(fields["x-padded"].encode())
        server.respond(frame.stream_id, b"", ("x-end", "\t 1 "))

    with through(serve, "http2", speaks=speaks) as (plane, _):
        client = Peer.client(plane)
        head, _, _ = client.answer(client.begin("/", ("x-padded", " a b\t "), ends=True))
    assert head["x-end"] == "1"
    assert [value.removeprefix(b" ") for value in values] == [b"a b"]


def test_http1_is_told_that_there_is_no_body_where_there_may_be_one() -> None:
    """Some servers want a length of each POST (411)."""
    heads: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        while True:
            head, _, _ = read_message(sock)
            heads.append(head)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with through(serve, "http2", speaks="http") as (plane, _):
        client = Peer.client(plane)
        for method in ("POST", "PUT", "PATCH", "GET", "DELETE"):
            client.answer(client.begin("/h", (":method", method), ends=True))
    has = [b"\r\nContent-Length: 0" in head for head in heads]
    assert has == [True, True, True, False, False]


def test_what_is_new_in_each_request_leaves_the_others_in_the_table() -> None:
    seen: list[tuple[Peer, dict[str, str]]] = []

    def serve(sock: socket.socket) -> None:
        peer = Peer.server(sock)
        while True:
            frame, fields = peer.read_headers()
            seen.append((peer, fields))
            peer.respond(frame.stream_id)

    with through(serve) as (plane, _):
        client = Peer.client(plane)
        for number in range(3):
            trace = f"00-{number + 1:032x}-00f067aa0ba902b7-01"
            client.answer(client.request("/f", ("traceparent", trace), ("x-tenant", "nine")))
        peer, fields = seen[-1]
        assert fields["traceparent"] == trace
        names = [name for name, _ in peer.decoder.header_table.dynamic_entries]
        assert b"x-tenant" in names
        assert b"traceparent" not in names


def test_trailers_pass_both_ways() -> None:
    got: list[dict[str, str]] = []

    def serve(sock: socket.socket) -> None:
        peer = Peer.server(sock)
        frame, _ = peer.read_headers()
        peer.next(DataFrame)
        got.append(peer.read_headers()[1])
        peer.headers(frame.stream_id, [(":status", "200")])
        peer.send(DataFrame(frame.stream_id, b"body"))
        peer.headers(frame.stream_id, [("x-sum", "2")], "END_STREAM")

    with through(serve) as (plane, _):
        client = Peer.client(plane)
        stream = client.begin("/h", ("te", "trailers"))
        client.send(DataFrame(stream, b"hello"))
        client.headers(stream, [("x-sum", "1")], "END_STREAM")
        head, body, trailers = client.answer(stream)
        assert (head[":status"], body, trailers) == ("200", b"body", {"x-sum": "2"})
    assert got == [{"x-sum": "1"}]


def test_interim_answers_pass() -> None:
    def serve(sock: socket.socket) -> None:
        peer = Peer.server(sock)
        frame, _ = peer.read_headers()
        peer.headers(frame.stream_id, [(":status", "103"), ("link", "</a>")])
        peer.respond(frame.stream_id, b"done")

    with through(serve) as (plane, _):
        client = Peer.client(plane)
        stream = client.request("/i")
        assert client.read_headers(stream)[1] == {":status": "103", "link": "</a>"}
        assert client.answer(stream)[1] == b"done"


# ---- both directions of a stream ----


@pytest.fixture
def held() -> Iterator[tuple[RequestPlane, list[Peer]]]:
    """Connections of the upstream, for the test to go on with."""
    servers: list[Peer] = []
    over = threading.Event()

    def serve(sock: socket.socket) -> None:
        servers.append(Peer.server(sock))
        over.wait()

    with through(serve) as (plane, _):
        yield plane, servers
        over.set()


def server_of(servers: list[Peer]) -> Peer:
    return eventually(lambda: servers[0] if servers else None, "a connection to the upstream")


def test_both_directions_go_on_at_once(held: tuple[RequestPlane, list[Peer]]) -> None:
    plane, servers = held
    client = Peer.client(plane)
    stream = client.begin("/j")
    server = server_of(servers)
    frame, _ = server.read_headers()
    server.headers(frame.stream_id, [(":status", "200")])
    for at in range(5):
        client.send(DataFrame(stream, b"ping%d" % at))
        assert server.next(DataFrame).data == b"ping%d" % at
        server.send(DataFrame(frame.stream_id, b"pong%d" % at))
        assert client.next(DataFrame).data == b"pong%d" % at


@pytest.mark.parametrize("code", [CANCEL, NO_ERROR, ENHANCE_YOUR_CALM])
def test_a_reset_of_the_upstream_reaches_the_client(
    held: tuple[RequestPlane, list[Peer]], code: int
) -> None:
    plane, servers = held
    client = Peer.client(plane)
    stream = client.request(f"/k{code}")
    server = server_of(servers)
    frame, _ = server.read_headers()
    server.headers(frame.stream_id, [(":status", "200")])
    client.read_headers(stream)
    server.reset(frame.stream_id, code)
    assert client.next(RstStreamFrame).error_code == code
    assert line_of(plane, f"/k{code}")["flags"] == ["upstream_reset"]


def test_a_reset_of_the_client_reaches_the_upstream(
    held: tuple[RequestPlane, list[Peer]],
) -> None:
    plane, servers = held
    client = Peer.client(plane)
    stream = client.begin("/l")
    server = server_of(servers)
    frame, _ = server.read_headers()
    client.reset(stream, ENHANCE_YOUR_CALM)
    reset = server.next(RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (frame.stream_id, ENHANCE_YOUR_CALM)
    assert line_of(plane, "/l")["flags"] == ["downstream_closed"]


def test_a_refused_stream_is_sent_again(held: tuple[RequestPlane, list[Peer]]) -> None:
    plane, servers = held
    client = Peer.client(plane)
    stream = client.request("/m", body=b"not idempotent")
    server = server_of(servers)
    frame, _ = server.read_headers()
    server.reset(frame.stream_id, REFUSED_STREAM)
    again, fields = server.read_headers()
    assert fields[":path"] == "/m"
    assert server.next(DataFrame, again.stream_id).data == b"not idempotent"
    server.respond(again.stream_id, b"second")
    assert client.answer(stream)[1] == b"second"
    assert line_of(plane, "/m")["flags"] == ["retried"]


def test_a_stream_beyond_settings_that_had_not_come_is_sent_again() -> None:
    """Whoever opens several connections at once sends each more than it may turn out to take."""
    refusals = iter(range(3))

    def serve(sock: socket.socket) -> None:
        assert read_exactly(sock, len(PREFACE)) == PREFACE
        server = Peer(sock, silent=True)
        frame, _ = server.read_headers()
        refuses = next(refusals, None) is not None
        server.send(SettingsFrame(0, settings={SettingsFrame.MAX_CONCURRENT_STREAMS: not refuses}))
        if refuses:
            server.reset(frame.stream_id, REFUSED_STREAM)
        else:
            server.respond(frame.stream_id, b"at last")
        for _ in server.frames():
            pass

    with through(serve, "http2", speaks="http2") as (plane, _):
        client = Peer.client(plane)
        assert client.answer(client.request("/o"))[1] == b"at last"
        assert line_of(plane, "/o")["flags"] == ["retried"]


def answer_early(
    plane: RequestPlane, servers: list[Peer], gives_credit: bool
) -> tuple[Peer, int, Peer, int]:
    """Before the request has ended. Returns both ends, and the stream of each."""
    client = Peer.client(plane)
    stream = client.begin("/n")
    server = server_of(servers)
    server.gives_credit = gives_credit
    asked = server.read_headers()[0].stream_id
    server.respond(asked, b"enough")
    assert client.answer(stream)[1] == b"enough"
    return client, stream, server, asked


@pytest.mark.parametrize("ends", ["the client", "the server", "a reset of the client"])
def test_a_request_goes_on_after_its_answer(
    held: tuple[RequestPlane, list[Peer]], ends: str
) -> None:
    """As long as both want it: a server may answer first and read an upload afterwards."""
    plane, servers = held
    client, stream, server, asked = answer_early(plane, servers, gives_credit=True)
    for _ in range(20):
        client.send(DataFrame(stream, b"y" * 10_000))
        assert server.next(DataFrame).data
    if ends == "the client":
        client.send(DataFrame(stream, b"end", flags=["END_STREAM"]))
        while "END_STREAM" not in server.next(DataFrame).flags:
            pass
    elif ends == "the server":
        server.reset(asked, NO_ERROR)
        assert client.next(RstStreamFrame).error_code == NO_ERROR
    else:
        client.reset(stream, CANCEL)
        assert server.next(RstStreamFrame).stream_id == asked
    assert line_of(plane, "/n")["status"] == 200
    other = client.request("/o")
    frame, _ = server.read_headers()
    server.respond(frame.stream_id, b"next")
    assert client.answer(other)[1] == b"next"


def test_the_rest_of_a_request_waits_for_a_server_that_has_answered(
    held: tuple[RequestPlane, list[Peer]],
) -> None:
    """Also when the client has sent all of it, and its stream is closed."""
    client, stream, server, asked = answer_early(*held, gives_credit=False)
    for _ in range(10):
        client.send(DataFrame(stream, b"y" * 10_000))
    client.send(DataFrame(stream, b"end", flags=["END_STREAM"]))
    server.gives_credit = True
    server.send(*(WindowUpdateFrame(id, window_increment=1 << 20) for id in (0, asked)))
    body, flags = b"", set[str]()
    while "END_STREAM" not in flags:
        frame = server.next(DataFrame)
        body, flags = body + frame.data, frame.flags
    assert len(body) == 100_003


# ---- credit ----


def test_a_client_that_does_not_read_holds_its_upstream_back_alone(
    held: tuple[RequestPlane, list[Peer]],
) -> None:
    plane, servers = held
    client = Peer.client(plane)
    client.gives_credit = False
    slow = client.request("/p")
    server = server_of(servers)
    first, _ = server.read_headers()
    server.headers(first.stream_id, [(":status", "200")])
    sent = send_until_out_of_credit(server, first.stream_id, BIG, 64 * 1024)
    assert sent < BIG / 2
    other = client.request("/q")
    second, _ = server.read_headers()
    server.headers(second.stream_id, [(":status", "204")], "END_STREAM")
    assert client.read_headers(other)[1][":status"] == "204"
    client.gives_credit = True
    client.send(WindowUpdateFrame(0, window_increment=BIG))
    client.send(WindowUpdateFrame(slow, window_increment=BIG))
    server.send(DataFrame(first.stream_id, b"", flags=["END_STREAM"]))
    assert len(client.answer(slow)[1]) <= sent


def send_until_out_of_credit(peer: Peer, stream: int, most: int, window: int) -> int:
    """DATA, as much as the other side gives credit for without anything being read there."""
    sent = 0
    while window >= 16384 and sent < most:
        peer.send(DataFrame(stream, b"x" * 16384))
        sent += 16384
        window -= 16384
        peer.sock.settimeout(0.2)
        try:
            while window < 16384:
                frame = next(peer.frames())
                if isinstance(frame, WindowUpdateFrame) and frame.stream_id == stream:
                    window += frame.window_increment
        except TimeoutError:
            break
    peer.sock.settimeout(20)
    return sent


def test_long_bodies_pass_both_ways() -> None:
    def serve(sock: socket.socket) -> None:
        peer = Peer.server(sock)
        size = 0
        for frame in peer.frames():
            if isinstance(frame, DataFrame):
                size += len(frame.data)
                if "END_STREAM" in frame.flags:
                    peer.respond(frame.stream_id, str(size).encode())

    with through(serve) as (plane, _):
        client = Peer.client(plane)
        window = client.next(SettingsFrame).settings[SettingsFrame.INITIAL_WINDOW_SIZE]
        connection = 65535
        stream = client.begin("/r")
        sent = 0
        frames = client.frames()
        while sent < BIG:
            while min(window, connection) < 16384:
                frame = next(frames)
                if isinstance(frame, WindowUpdateFrame):
                    if frame.stream_id:
                        window += frame.window_increment
                    else:
                        connection += frame.window_increment
            client.send(DataFrame(stream, b"y" * 16384))
            sent, window, connection = sent + 16384, window - 16384, connection - 16384
        client.send(DataFrame(stream, b"", flags=["END_STREAM"]))
        assert client.answer(stream)[1] == str(sent).encode()


# ---- ends ----


def test_goaway_of_the_upstream_lets_what_is_under_way_end(
    held: tuple[RequestPlane, list[Peer]],
) -> None:
    plane, servers = held
    client = Peer.client(plane)
    first = client.request("/s")
    server = server_of(servers)
    frame, _ = server.read_headers()
    server.send(GoAwayFrame(0, last_stream_id=frame.stream_id, error_code=NO_ERROR))
    server.respond(frame.stream_id, b"last")
    assert client.answer(first)[1] == b"last"
    second = client.request("/t")
    other = eventually(lambda: servers[1] if len(servers) > 1 else None, "another connection")
    frame, _ = other.read_headers()
    other.respond(frame.stream_id, b"anew")
    assert client.answer(second)[1] == b"anew"


def test_a_drain_tells_clients_in_two_steps() -> None:
    with through(echo) as (plane, _):
        client = Peer.client(plane)
        assert client.answer(client.request("/u"))[1] == b"/u|"
        plane.data.drain()
        notice = client.next(GoAwayFrame)
        assert (notice.last_stream_id, notice.error_code) == (2**31 - 1, NO_ERROR)
        stream = client.request("/v")
        assert client.answer(stream)[1] == b"/v|"
        final = client.next(GoAwayFrame)
        assert (final.last_stream_id, final.error_code) == (stream, NO_ERROR)
        assert list(client.frames()) == []


def test_an_upstream_that_ends_is_told_as_a_failure() -> None:
    def serve(sock: socket.socket) -> None:
        Peer.server(sock).read_headers()

    with through(serve) as (plane, _):
        client = Peer.client(plane)
        head, _, _ = client.answer(client.request("/w"))
        assert (head[":status"], head["x-sidecar-reason"]) == ("502", "upstream_reset")
        assert line_of(plane, "/w")["protocol"] == "http2"


def test_no_upstream_is_told_as_a_failure() -> None:
    with Upstream(echo) as gone:
        address = gone.address
    with RequestPlane("http2", [address]) as plane:
        client = Peer.client(plane)
        head, body, _ = client.answer(client.request("/x"))
        assert (head[":status"], head["x-sidecar-reason"]) == ("502", "connect_failed")
        assert body == b"Bad Gateway\n"
        with pytest.raises(ResetError):
            client.answer(client.begin("/y", (":method", "CONNECT")))


# ---- gRPC ----

GRPC = (("content-type", "application/grpc"), ("te", "trailers"))


def test_failures_of_ours_have_a_grpc_status() -> None:
    with Upstream(echo) as gone:
        address = gone.address
    with RequestPlane("grpc", [address]) as plane:
        plane.data.log(False, requests=True)
        client = Peer.client(plane)
        frame, head = client.read_headers(client.request("/a.B/C", *GRPC, body=b"\0\0\0\0\0"))
        assert "END_STREAM" in frame.flags
        assert head == {
            ":status": "200",
            "content-type": "application/grpc",
            "grpc-status": "14",
            "grpc-message": "connect_failed",
            "x-sidecar-reason": "connect_failed",
        }
        line = line_of(plane, "/a.B/C")
        assert [line[key] for key in ("protocol", "service", "method", "status")] == [
            *("grpc", "echo", "C", 14)
        ]


def test_grpc_timeout_is_that_of_the_request(held: tuple[RequestPlane, list[Peer]]) -> None:
    plane, servers = held
    client = Peer.client(plane)
    stream = client.request("/a.B/C", *GRPC, ("grpc-timeout", "50m"), body=b"\0\0\0\0\0")
    _, head = client.read_headers(stream)
    assert head["grpc-status"] == "4"
    server_of(servers).next(RstStreamFrame)


def test_the_status_of_a_call_is_that_of_its_trailers(
    held: tuple[RequestPlane, list[Peer]],
) -> None:
    plane, servers = held
    client = Peer.client(plane)
    stream = client.request("/a.B/D", *GRPC, body=b"\0\0\0\0\0")
    server = server_of(servers)
    frame, _ = server.read_headers()
    server.headers(frame.stream_id, [(":status", "200"), GRPC[0]])
    server.send(DataFrame(frame.stream_id, b"\0\0\0\0\0"))
    server.headers(frame.stream_id, [("grpc-status", "5")], "END_STREAM")
    assert client.answer(stream)[2] == {"grpc-status": "5"}
    assert line_of(plane, "/a.B/D")["status"] == 5
