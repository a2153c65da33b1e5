"""Requests through the data plane between raw sockets, where peers are late, rude or gone."""

from __future__ import annotations

import contextlib

from tests.dataplane.support import Server, silent_server
from tests.requests.support import RequestPlane, read_message, read_until
from tests.waiting import eventually

POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# ---- before there is an upstream ----


def test_body_waits_for_a_connection() -> None:
    with silent_server() as address, RequestPlane("http", [address], timeout_ms=300) as plane:
        client = plane.client()
        client.sendall(POST)
        head, _, _ = read_message(client)
        assert b" 504 " in head
        assert b"close" in head  # the body was not read


def test_failed_request_without_body_leaves_the_connection_open() -> None:
    with silent_server() as address, RequestPlane("http", [address], timeout_ms=300) as plane:
        client = plane.client()
        client.sendall(GET)
        head, _, _ = read_message(client)
        assert b" 504 " in head
        assert b"close" not in head
        client.sendall(GET)
        assert b" 504 " in read_message(client)[0]


# ---- the plane stops ----


def test_stops_while_it_connects() -> None:
    with silent_server() as address, RequestPlane("http", [address]) as plane:
        plane.client().sendall(GET)
        eventually(lambda: plane.data.counters().accepted, "the connection")
        plane.stop()  # then the fixture closes it, which checks that nothing is left


def test_stops_with_idle_connections_to_many_endpoints() -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server()) for _ in range(40)]
        upstreams = [server.address for server in servers]
        plane = stack.enter_context(RequestPlane("http", upstreams))
        client = plane.client()
        for server in servers:
            client.sendall(GET)
            upstream = server.accept()
            read_until(upstream, b"\r\n\r\n")
            upstream.sendall(OK)
            read_message(client)
