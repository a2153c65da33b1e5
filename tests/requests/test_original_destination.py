"""Requests that no rule is about, to where the application connected: to both ends, the two
connections are like one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest
from hyperframe.frame import GoAwayFrame, HeadersFrame

from pysidecar.dataplane import Protocol
from tests.dataplane.support import Plane, Server, linger_reset
from tests.requests.http2 import NO_ERROR, PREFACE, Peer
from tests.requests.support import RequestPlane, Upstream, read_all, read_message, read_until
from tests.requests.test_core import GET, OK, POST, to_the_endpoints


@contextlib.contextmanager
def direct(protocol: Protocol = Protocol.HTTP) -> Iterator[tuple[Plane, Server]]:
    route = to_the_endpoints(protocol=protocol)
    with Server() as server, Plane(before_start=route) as plane:
        yield plane, server


def ask(client: socket.socket, server: Server, request: bytes = GET) -> socket.socket:
    """Sends a request on a connection of its own: the server's end, which has read its head."""
    client.sendall(request)
    upstream = server.accept()
    read_until(upstream, b"\r\n\r\n")
    return upstream


def exchange(client: socket.socket, upstream: socket.socket) -> None:
    client.sendall(GET)
    read_until(upstream, b"\r\n\r\n")
    upstream.sendall(OK)
    assert read_message(client)[1] == b"ok"


# ---- whose connection it is ----


def test_ends_with_its_client() -> None:
    """A server that serves one connection after the other would wait for the next request on it."""
    with direct() as (plane, server):
        client = plane.through(server.address)
        upstream = ask(client, server)
        upstream.sendall(OK)
        read_message(client)
        client.close()
        assert upstream.recv(1) == b""


def test_is_nobody_elses() -> None:
    with direct() as (plane, server):
        clients = [plane.through(server.address) for _ in range(3)]
        upstreams = []
        for client in clients:
            upstreams.append(ask(client, server))
            upstreams[-1].sendall(OK)
            read_message(client)
        for client, upstream in zip(clients, upstreams, strict=True):
            exchange(client, upstream)


def test_nobody_gets_what_was_connected_for_a_client_that_left() -> None:
    with direct() as (plane, server):
        for _ in range(20):
            client = plane.through(server.address)
            client.sendall(GET)
            linger_reset(client)
            client.close()
        client = plane.through(server.address)
        client.sendall(GET.replace(b"/a", b"/mine"))
        while True:
            upstream = server.accept()
            with contextlib.suppress(ConnectionResetError):
                if b"/mine" in (head := upstream.recv(65536)):
                    break
                # Whoever asked has left, which the connection tells.
                assert not head or read_all(upstream) == b""
        upstream.sendall(OK)
        assert read_message(client)[1] == b"ok"


def test_client_ends_with_its_idle_server() -> None:
    with direct() as (plane, server):
        client = plane.through(server.address)
        upstream = ask(client, server)
        upstream.sendall(OK)
        read_message(client)
        upstream.close()
        assert client.recv(1) == b""


def test_connection_is_authenticated() -> None:
    """As by NTLM, whose second step has to come on the connection of the first one."""
    with direct() as (plane, server):
        client = plane.through(server.address)
        upstream = ask(
            client, server, b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: NTLM a\r\n\r\n"
        )
        upstream.sendall(
            b"HTTP/1.1 401 No\r\nWWW-Authenticate: NTLM b\r\nContent-Length: 0\r\n\r\n"
        )
        assert b" 401 " in read_message(client)[0]
        exchange(client, upstream)


# ---- its end ----


def test_close_is_passed_on() -> None:
    with direct() as (plane, server):
        client = plane.through(server.address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        upstream = server.accept()
        assert b"\r\nConnection: close\r\n" in read_until(upstream, b"\r\n\r\n")
        upstream.sendall(OK.replace(b" OK", b" OK\r\nConnection: close"))
        assert b"\r\nConnection: close\r\n" in read_all(client)


def test_keep_alive_is_passed_on() -> None:
    kept = b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"
    with direct() as (plane, server):
        client = plane.through(server.address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + kept + b"\r\n")
        upstream = server.accept()
        head = read_until(upstream, b"\r\n\r\n")
        upstream.sendall(OK.replace(b" OK\r\n", b" OK\r\n" + kept))
        for fields in (head, read_message(client)[0] + b"\r\n"):
            assert b"\r\nConnection: keep-alive\r\n" in fields
            assert b"\r\nKeep-Alive: timeout=5\r\n" in fields


@pytest.mark.parametrize("leave", [socket.socket.close, lambda c: c.shutdown(socket.SHUT_WR)])
@pytest.mark.parametrize("request_", [GET, POST])
def test_server_learns_that_nothing_follows(leave: object, request_: bytes) -> None:
    """Who waits for an event, or computes, can stop for a client that is not there any more."""
    with direct() as (plane, server):
        client = plane.through(server.address)
        upstream = ask(client, server, request_)
        leave(client)  # type: ignore[operator]
        read_all(upstream)


def test_answer_comes_after_the_clients_end() -> None:
    with direct() as (plane, server):
        client = plane.through(server.address)
        client.sendall(GET)
        client.shutdown(socket.SHUT_WR)
        upstream = server.accept()
        read_all(upstream)
        upstream.sendall(OK)
        assert read_all(client).endswith(b"ok")


def test_pipelined_requests_come_before_the_clients_end() -> None:
    with direct() as (plane, server):
        client = plane.through(server.address)
        client.sendall(3 * GET)
        client.shutdown(socket.SHUT_WR)
        upstream = server.accept()
        for _ in range(3):
            read_until(upstream, b"\r\n\r\n")
            upstream.sendall(OK)
        assert read_all(upstream) == b""
        upstream.close()
        assert read_all(client).count(b" 200 ") == 3


def test_unanswered_first_request() -> None:
    with direct() as (plane, server):
        client = plane.through(server.address)
        ask(client, server).close()
        assert b" 502 " in read_message(client)[0]


@pytest.mark.parametrize("request_", [GET, POST])
def test_unanswered_request_on_a_kept_connection(request_: bytes) -> None:
    """Whether it is sent again, the client knows best."""
    with direct() as (plane, server):
        client = plane.through(server.address)
        upstream = ask(client, server)
        upstream.sendall(OK)
        read_message(client)
        client.sendall(request_)
        read_until(upstream, b"\r\n\r\n")
        upstream.close()
        assert read_all(client) == b""


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 9\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n4\r\n"]
)
def test_answer_that_ends_early(framing: bytes) -> None:
    with direct() as (plane, server):
        client = plane.through(server.address)
        upstream = ask(client, server)
        upstream.sendall(b"HTTP/1.1 200 OK\r\n" + framing + b"part")
        upstream.close()
        assert read_all(client).rstrip().endswith(b"part")


def test_answer_that_is_reset() -> None:
    with direct() as (plane, server):
        client = plane.through(server.address)
        upstream = ask(client, server)
        upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
        read_until(client, b"part")
        linger_reset(upstream)
        upstream.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_answer_until_the_end() -> None:
    with direct() as (plane, server):
        client = plane.through(server.address)
        upstream = ask(client, server)
        upstream.sendall(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        upstream.close()
        answer = read_all(client)
        assert answer.endswith(b"\r\n\r\nall of it")
        assert b"chunked" not in answer


# ---- a proxy that the application knows of ----

TO_PROXY = (
    b"GET http://x.example/a?b HTTP/1.1\r\nHost: else\r\nProxy-Authorization: Basic abc\r\n\r\n"
)
CONNECT = b"CONNECT x.example:443 HTTP/1.1\r\nHost: x.example:443\r\nProxy-Authorization: b\r\n\r\n"


def test_request_to_a_proxy() -> None:
    with direct() as (plane, server):
        client = plane.through(server.address)
        client.sendall(TO_PROXY)
        upstream = server.accept()
        head = read_until(upstream, b"\r\n\r\n")
        assert head.startswith(b"GET http://x.example/a?b HTTP/1.1\r\nHost: x.example\r\n")
        assert b"\r\nProxy-Authorization: Basic abc\r\n" in head
        upstream.sendall(
            b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
        )
        assert b"\r\nProxy-Authenticate: Basic\r\n" in read_message(client)[0]


def test_request_to_a_proxy_that_a_service_gets() -> None:
    heads: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        heads.append(read_until(connection, b"\r\n\r\n"))
        connection.sendall(OK.replace(b"200 OK", b"407 Who\r\nProxy-Authenticate: Basic"))

    with Upstream(answer) as upstream, RequestPlane("http", [upstream.address]) as plane:
        client = plane.client()
        client.sendall(TO_PROXY)
        assert b"Proxy-" not in read_message(client)[0]
        assert heads[0].startswith(b"GET /a?b HTTP/1.1\r\nHost: x.example\r\n")
        assert b"Proxy-" not in heads[0]
        client.sendall(CONNECT)
        assert b" 405 " in read_all(client)


def test_tunnel_of_a_proxy() -> None:
    with direct() as (plane, server):
        client = plane.through(server.address)
        client.sendall(CONNECT + b"early")
        upstream = server.accept()
        head = read_until(upstream, b"\r\n\r\n")
        assert head.startswith(b"CONNECT x.example:443 HTTP/1.1\r\nHost: x.example:443\r\n")
        assert b"\r\nProxy-Authorization: b\r\n" in head
        assert b"Connection" not in head
        # What it says of a body means nothing (RFC 9110, 9.3.6).
        upstream.sendall(b"HTTP/1.0 200 Fine\r\nContent-Length: 7\r\n\r\nhello")
        assert upstream.recv(5, socket.MSG_WAITALL) == b"early"
        assert read_until(client, b"hello") == b"HTTP/1.1 200 Fine\r\n\r\nhello"
        client.sendall(b"more")
        client.shutdown(socket.SHUT_WR)
        assert read_all(upstream) == b"more"
        upstream.sendall(b"last")
        upstream.close()
        assert read_all(client) == b"last"


def test_proxy_that_makes_no_tunnel() -> None:
    """What follows was meant for the tunnel: no request, whatever it looks like."""
    with direct() as (plane, server):
        client = plane.through(server.address)
        client.sendall(CONNECT + GET)
        upstream = server.accept()
        assert read_until(upstream, b"\r\n\r\n").count(b"HTTP/1.1") == 1
        upstream.sendall(OK.replace(b"200 OK", b"407 Who\r\nProxy-Authenticate: Basic"))
        answer = read_all(client)
        assert b" 407 " in answer
        assert b"\r\nProxy-Authenticate: Basic\r\n" in answer
        client.close()
        assert read_all(upstream) == b""


# ---- HTTP/2 ----


def ask_http2(client: Peer, server: Server) -> Peer:
    """One request on a connection of its own, answered: the server's end."""
    stream = client.request()
    upstream = Peer.server(server.accept())
    answer(client, stream, upstream)
    return upstream


def answer(client: Peer, stream: int, upstream: Peer) -> None:
    upstream.respond(upstream.read_headers()[0].stream_id, b"ok")
    assert client.answer(stream)[1] == b"ok"


def http2_client(plane: Plane, server: Server) -> Peer:
    client = plane.through(server.address)
    client.sendall(PREFACE)
    return Peer(client)


def test_http2_connection_ends_with_its_client() -> None:
    """So that a server that is to end, and waits for its clients, does."""
    with direct(Protocol.HTTP2) as (plane, server):
        client = http2_client(plane, server)
        upstream = ask_http2(client, server)
        answer(client, client.request(), upstream)
        client.sock.close()
        assert upstream.next(GoAwayFrame).error_code == NO_ERROR
        assert list(upstream.frames()) == []


def test_http2_connection_is_nobody_elses() -> None:
    with direct(Protocol.HTTP2) as (plane, server):
        clients = [http2_client(plane, server) for _ in range(3)]
        upstreams = [ask_http2(client, server) for client in clients]
        for client, upstream in zip(clients, upstreams, strict=True):
            answer(client, client.request(), upstream)


@pytest.mark.parametrize("leave", [socket.socket.close, linger_reset])
def test_http2_client_may_leave_with_requests_under_way(
    leave: Callable[[socket.socket], object],
) -> None:
    with direct(Protocol.HTTP2) as (plane, server):
        client = http2_client(plane, server)
        client.request()
        client.request()
        upstream = Peer.server(server.accept())
        for _ in range(2):
            upstream.read_headers()
        leave(client.sock)
        for _ in upstream.frames():
            pass
        ask_http2(http2_client(plane, server), server)


def test_http2_client_is_told_that_its_server_goes_away() -> None:
    """What is under way is still answered."""
    with direct(Protocol.HTTP2) as (plane, server):
        client = http2_client(plane, server)
        upstream = ask_http2(client, server)
        stream = client.request()
        asked = upstream.read_headers()[0].stream_id
        upstream.send(GoAwayFrame(0, last_stream_id=asked))
        assert client.next(GoAwayFrame).last_stream_id == stream
        upstream.respond(asked, b"ok")
        assert client.answer(stream)[1] == b"ok"
        assert list(client.frames()) == []
        read_all(upstream.sock)  # without a reset


def test_http2_client_ends_with_its_idle_server() -> None:
    with direct(Protocol.HTTP2) as (plane, server):
        client = http2_client(plane, server)
        ask_http2(client, server).sock.close()
        assert client.next(GoAwayFrame).error_code == NO_ERROR
        assert list(client.frames()) == []


def test_http2_client_ends_with_its_busy_server() -> None:
    with direct(Protocol.HTTP2) as (plane, server):
        client = http2_client(plane, server)
        upstream = ask_http2(client, server)
        client.begin()
        upstream.read_headers()
        server.listener.close()
        upstream.sock.close()
        frames = list(client.frames())
        heads = [frame.data for frame in frames if isinstance(frame, HeadersFrame)]
        assert (b":status", b"502") in list(client.decoder.decode(heads[0], raw=True))
        assert GoAwayFrame in map(type, frames)
