"""Requests through the data plane between raw sockets, where peers are late, rude or gone."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import Action, DataPlane, Protocol, Route, Timeouts
from tests.dataplane.support import (
    Plane,
    Server,
    closed_address,
    linger_reset,
    silent_server,
    table,
)
from tests.requests.support import (
    RequestPlane,
    Upstream,
    echo,
    read_all,
    read_exactly,
    read_message,
    read_until,
    through,
)
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


# ---- another attempt ----


def to_the_endpoints(
    *endpoints: Address, protocol: Protocol = Protocol.HTTP
) -> Callable[[DataPlane], object]:
    """A route that reads requests, for everything; without any, to the original destination."""
    route = Route(Action.REQUESTS, protocol=protocol, endpoints=endpoints)
    routes = table(("0.0.0.0/0", None, route))
    return lambda data: data.set_routes(routes)


def test_another_attempt_finds_nobody() -> None:
    with Server() as server, Plane(before_start=to_the_endpoints(server.address)) as plane:
        client = plane.through(server.address)
        client.sendall(GET)
        upstream = server.accept()
        read_until(upstream, b"\r\n\r\n")
        upstream.sendall(OK)
        read_message(client)
        server.listener.close()
        client.sendall(GET)
        read_until(upstream, b"\r\n\r\n")
        upstream.close()  # as if it had been idle: it is sent again, where nobody listens
        assert b" 502 " in read_message(client)[0]


def test_all_endpoints_of_a_route_are_tried() -> None:
    with Upstream(echo) as upstream:
        dead = [closed_address() for _ in range(3)]
        route = to_the_endpoints(dead[0], dead[1], upstream.address, dead[2])
        with Plane(timeouts=Timeouts(ejection=0), before_start=route) as plane:
            for _ in range(12):
                client = plane.through(dead[0])
                client.sendall(GET)
                assert b" 200 " in read_message(client)[0]


# ---- an answer before the request is complete ----


def test_answer_is_not_lost_to_the_reset_that_follows_it() -> None:
    def refuse(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        # What was not read of the request makes this a reset.

    size = 3_000_000
    with through(refuse) as (plane, _):
        for _ in range(10):
            client = plane.client()
            answer: list[bytes] = []
            reader = threading.Thread(target=lambda c=client, a=answer: a.append(read_all(c)))
            reader.start()
            head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
            with contextlib.suppress(OSError):
                client.sendall(head + bytes(size))
            reader.join()
            assert b" 413 " in answer[0]
            assert answer[0].endswith(b"no")


# ---- who does not read ----


def flood(client: socket.socket, data: bytes, most: int) -> int:
    """Sends it again and again until nobody takes it any more: how many bytes."""
    sent = 0
    client.setblocking(False)
    block = data * (1 + 65536 // len(data))
    while sent < most and select.select([], [client], [], 0.3)[1]:
        with contextlib.suppress(BlockingIOError):
            # In whole messages, but for the last one.
            sent += client.send(block[sent % len(data) :])
    return sent


def test_pipelined_requests_are_not_read_while_answers_are_not() -> None:
    with RequestPlane("http", []) as plane:
        client = plane.client()
        sent = flood(client, GET, 1 << 28)
        assert sent < 1 << 27
        client.settimeout(20)
        rest = (-sent) % len(GET)
        threading.Thread(target=lambda: client.sendall(GET[len(GET) - rest :] if rest else b""))
        data, wanted = b"", sent // len(GET)
        count = 0
        while count < wanted:
            data += client.recv(1 << 20)
            count += data.count(b"HTTP/1.1 503 ")
            data = data[-len(b"HTTP/1.1 503 ") + 1 :]
        assert count == wanted


BOLT_HEARTBEAT = struct.pack("!BBHBIBIHHI", 1, 1, 0, 1, 7, 1, 3000, 0, 0, 0)


def test_heartbeats_are_not_read_while_answers_are_not() -> None:
    with RequestPlane("bolt", []) as plane:
        assert flood(plane.client(), BOLT_HEARTBEAT, 1 << 28) < 1 << 27


def test_interim_answers_are_not_read_while_the_client_does_not() -> None:
    sent: list[int] = []

    def talk(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        sent.append(flood(connection, b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", 1 << 28))

    with through(talk) as (plane, _):
        plane.client().sendall(GET)
        eventually(lambda: sent, "the upstream to be held back")
        assert sent[0] < 1 << 27


def test_many_pipelined_requests_are_answered_in_order() -> None:
    count = 10_000
    with through(echo) as (plane, upstream):
        client = plane.client()
        requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(count))
        threading.Thread(target=client.sendall, args=(requests,)).start()
        rest = b""
        for i in range(count):
            _, body, rest = read_message(client, rest)
            assert body == b"/%d|" % i
        assert upstream.accepted == 1


# ---- nobody waits for ever ----


def test_silent_upstream_without_a_timeout() -> None:
    def never(connection: socket.socket) -> None:
        read_all(connection)

    with through(never, timeout_ms=0, timeouts=Timeouts(idle=0.3)) as (plane, _):
        client = plane.client()
        client.sendall(GET)
        assert b" 504 " in read_message(client)[0]


def test_who_waits_for_a_connection_gets_the_next_one() -> None:
    """There may be one only, and each serves one request."""

    def once(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(OK.replace(b"200 OK", b"200 OK\r\nConnection: close"))

    with through(once, connections=1) as (plane, _):
        clients = [plane.client() for _ in range(10)]
        for client in clients:
            client.sendall(GET)
        for client in clients:
            assert b" 200 " in read_message(client)[0]


# ---- one port, several protocols ----


def copy(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


@pytest.mark.parametrize("hello", [b"SSH-2.0-x\r\n", b"GE", b"", b"G"])
def test_what_is_no_request_goes_to_the_service(hello: bytes) -> None:
    with through(copy, "auto", detect_ms=100) as (plane, _):
        client = plane.client()
        client.sendall(hello)
        time.sleep(0.2)  # behind the deadline
        client.sendall(b"more")
        assert read_until(client, b"more") == hello + b"more"
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""


def test_what_is_no_request_has_nowhere_to_go() -> None:
    with RequestPlane("auto", []) as plane:
        client = plane.client()
        client.sendall(b"SSH-2.0-x\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert read_all(client) == b""
        assert plane.next_closed().end.name in ("UNDETECTED", "UPSTREAM_CONNECT")


def test_detected_request() -> None:
    with through(echo, "auto") as (plane, _):
        client = plane.client()
        for byte in GET:
            client.sendall(bytes([byte]))
        assert read_message(client)[1] == b"/a|"


# ---- drain ----


def test_connection_is_closed_after_the_answer_that_a_drain_found_begun() -> None:
    go_on = threading.Event()

    def slow(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        go_on.wait(20)
        connection.sendall(b"cd")
        read_all(connection)

    with through(slow) as (plane, _):
        client = plane.client()
        client.sendall(GET)
        data = read_until(client, b"ab")
        plane.data.drain()
        go_on.set()
        data += read_all(client)
        assert data.endswith(b"abcd")
        eventually(lambda: plane.data.drained, "the drain")


def test_drain_closes_idle_ones() -> None:
    with through(echo) as (plane, _):
        used, unused = plane.client(), plane.client()
        used.sendall(GET)
        read_message(used)
        eventually(lambda: plane.data.counters().accepted == 2, "both")
        plane.data.drain()
        assert read_all(used) == read_all(unused) == b""


def test_request_that_crosses_a_drain_is_answered() -> None:
    with through(echo) as (plane, _):
        client = plane.client()
        client.sendall(GET)
        read_message(client)
        plane.data.drain()
        client.sendall(GET)
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answer


# ---- upgrades ----


def test_upgrade_with_bytes_read_ahead_on_both_sides() -> None:
    def serve(connection: socket.socket) -> None:
        data = read_until(connection, b"early")
        assert data.endswith(b"early")
        connection.sendall(
            b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello"
        )
        copy(connection)

    def wait(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(
            b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello"
        )
        copy(connection)

    del serve  # bytes before the 101 stay here until it comes
    upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    with through(wait) as (plane, _):
        client = plane.client()
        client.sendall(upgrade + b"early")
        data = read_until(client, b"early")
        assert data.endswith(b"\r\n\r\nhelloearly")
        client.sendall(b"late")
        read_until(client, b"late")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
        record = plane.next_closed()
        assert record.end.name == "EOF"


# ---- a reused connection ----


def test_bytes_behind_an_answer_reach_nobody() -> None:
    def talkative(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        read_all(connection)

    with through(talkative) as (plane, _):
        for _ in range(20):
            client = plane.client()
            client.sendall(GET)
            assert read_message(client)[1:] == (b"ok", b"")


def test_client_resets_at_any_moment() -> None:
    with through(echo) as (plane, _):
        request = POST.replace(b"Content-Length: 3", b"Content-Length: 300")[:-3] + bytes(300)
        for size in range(0, len(request), 7):
            client = plane.client()
            client.sendall(request[:size])
            linger_reset(client)
        client = plane.client()
        client.sendall(GET)
        assert read_message(client)[1] == b"/a|"
        eventually(lambda: plane.data.live == 1, "only this one")


# ---- limits ----


@pytest.mark.parametrize("endpoints", [1, 3])
def test_workers_share_the_connections_of_a_service(endpoints: int) -> None:
    """Nobody is refused because another worker, or another endpoint, has the only one."""
    with contextlib.ExitStack() as stack:
        upstreams = [stack.enter_context(Upstream(echo)) for _ in range(endpoints)]
        addresses = [upstream.address for upstream in upstreams]
        plane = stack.enter_context(RequestPlane("http", addresses, workers=2, connections=1))
        clients = [plane.client() for _ in range(12)]
        for _ in range(20):
            for client in clients:
                client.sendall(GET)
            for client in clients:
                assert b" 200 " in read_message(client)[0]


# ---- attacks ----

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: %d\r\nTransfer-Encoding: chunked" % len(SMUGGLED),
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 0\r\nContent-Length: %d" % len(SMUGGLED),
        b"Content-Length: 0, %d" % len(SMUGGLED),
        b"Content-Length: +0",
        b"Content-Length: 0x0",
        b"Content-Length : 0",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: identity, chunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding\t: chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"X: a\r\n Transfer-Encoding: chunked",
        b"X: a\nTransfer-Encoding: chunked",
        b"X: a\rTransfer-Encoding: chunked",
        b"X: a\0\r\nContent-Length: 0",
        b"Content-Length: 99999999999999999999",
        b"Host: y",
    ],
)
def test_nothing_is_smuggled(head: bytes) -> None:
    """To an upstream that takes what it gets."""
    seen: list[bytes] = []

    def lenient(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            seen.append(data)
            connection.sendall(OK)

    with through(lenient) as (plane, _):
        client = plane.client()
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)
        answer = read_until(client, b"\r\n\r\n")
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")), answer
        with contextlib.suppress(ConnectionResetError):
            assert read_all(client).count(b"HTTP/1.1") == 0
        assert seen == []


def trickle(client: socket.socket, begin: bytes, more: bytes, patience: float) -> float:
    """Sends slowly without end; how long that is suffered."""
    client.sendall(begin)
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < patience:
            if select.select([client], [], [], 0.02)[0] and not client.recv(65536):
                break
            client.sendall(more)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("protocol", "begin", "more"),
    [
        ("http", b"GET / HTTP/1.1\r\n", b"X: y\r\n"),
        ("http", b"G", b"G"),
        ("bolt", struct.pack("!BBHBIBIHHI", 1, 1, 1, 1, 7, 1, 3000, 0, 0, 1 << 20), b"x"),
        ("dubbo", struct.pack("!HBBQI", 0xDABB, 0xC2, 0, 1, 1 << 20), b"x"),
    ],
)
def test_slow_head(protocol: str, begin: bytes, more: bytes) -> None:
    with RequestPlane(protocol, [], timeouts=Timeouts(header=0.3)) as plane:
        assert trickle(plane.client(), begin, more, 10) < 5


def resident() -> int:
    """Bytes of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def assert_grew_less(before: int, most: int) -> None:
    """A sanitizer keeps what was freed."""
    if "san.so" not in os.environ.get("LD_PRELOAD", ""):
        assert resident() - before < most


@pytest.mark.parametrize("speaks", ["bolt", "dubbo"])
def test_memory_is_not_taken_by_what_is_only_announced(speaks: str) -> None:
    announced = {
        "bolt": struct.pack("!BBHBIBIHHI", 1, 1, 1, 1, 7, 1, 3000, 0, 0, 15 << 20),
        "dubbo": struct.pack("!HBBQI", 0xDABB, 0xC2, 0, 1, 15 << 20),
    }[speaks]
    with RequestPlane(speaks, []) as plane:
        before = resident()
        for _ in range(200):
            plane.client().sendall(announced + bytes(1000))
        eventually(lambda: plane.data.counters().accepted == 200, "all")
        assert_grew_less(before, 32 << 20)


@pytest.mark.parametrize(("begin", "more"), [(b"1;", b"a"), (b"0\r\n", b"a: b\r\n")])
def test_endless_chunk_extensions_and_trailers(begin: bytes, more: bytes) -> None:
    with through(echo) as (plane, _):
        client = plane.client()
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head + begin + more * 20_000)
        assert re.match(rb"HTTP/1.1 4\d\d ", read_until(client, b"\r\n\r\n"))


def test_many_connections_of_one_client() -> None:
    with through(echo, workers=2) as (plane, _):
        clients = [plane.client() for _ in range(500)]
        for client in clients:
            client.sendall(GET)
        for client in clients:
            assert read_message(client)[1] == b"/a|"
        for client in clients:
            linger_reset(client)
        eventually(lambda: plane.data.live == 0, "all of them to end")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"",
    ],
)
def test_answer_that_is_none(answer: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(answer)

    with through(serve) as (plane, _):
        client = plane.client()
        for _ in range(2):  # the client's connection goes on
            client.sendall(GET)
            assert b" 502 " in read_message(client)[0]


def test_answers_of_other_ids_reach_nobody() -> None:
    request = struct.pack("!BBHBIBiHHI", 1, 1, 1, 1, 7, 1, 3000, 0, 0, 4) + b"ping"

    def answer(number: int, content: bytes) -> bytes:
        return struct.pack("!BBHBIBHHHI", 1, 0, 2, 1, number, 1, 0, 0, 0, 4) + content

    def serve(connection: socket.socket) -> None:
        while data := read_exactly(connection, 26):
            own = int.from_bytes(data[5:9])
            wrong = [answer((own + step) & 0xFFFFFFFF, b"evil") for step in (1, -1, 16, 1 << 31)]
            connection.sendall(b"".join(wrong) + answer(own, b"pong") + answer(own, b"evil"))

    with through(serve, "bolt") as (plane, _):
        client = plane.client()
        for _ in range(50):
            client.sendall(request)
            data = read_exactly(client, 24)
            assert (data[5:9], data[-4:]) == (b"\0\0\0\7", b"pong")


def test_client_that_does_not_read_answers_of_bolt() -> None:
    """Has a bound, and others do not wait for it."""
    size = 500_000

    def serve(connection: socket.socket) -> None:
        while data := read_exactly(connection, 22):
            head = struct.pack("!BBHB4sBHHHI", 1, 0, 2, 1, data[5:9], 1, 0, 0, 0, size)
            connection.sendall(head + bytes(size))

    def request(number: int) -> bytes:
        return struct.pack("!BBHBIBiHHI", 1, 1, 1, 1, number, 1, 20000, 0, 0, 0)

    with through(serve, "bolt") as (plane, _):
        greedy, modest = plane.client(), plane.client()
        before = resident()
        greedy.sendall(b"".join(request(i) for i in range(300)))
        for i in range(20):
            modest.sendall(request(i))
            assert len(read_exactly(modest, 20 + size)) == 20 + size
        assert_grew_less(before, 64 << 20)


def test_client_cannot_have_all_memory() -> None:
    """Where an upstream does not read, the client is held back, and others are not refused."""
    go_on = threading.Event()
    frame = struct.pack("!BBHBIBiHHI", 1, 1, 1, 1, 7, 1, 20000, 0, 0, 1 << 20) + bytes(1 << 20)

    def stalled(connection: socket.socket) -> None:
        go_on.wait(20)

    with through(stalled, "bolt") as (plane, _):
        before = resident()
        assert flood(plane.client(), frame, 1 << 28) < 1 << 26
        assert_grew_less(before, 1 << 26)
        go_on.set()


# ---- stale connections, long bodies, other tables ----


@pytest.mark.parametrize(
    ("request_", "status", "arrivals"), [(GET, b" 200 ", 3), (POST, b" 502 ", 2)]
)
def test_stale_connection(request_: bytes, status: bytes, arrivals: int) -> None:
    """What may have had its effect already is not sent again."""
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        rest = b""
        for turn in range(2):
            head, _, rest = read_message(connection, rest)
            seen.append(head)
            if turn == 0:
                connection.sendall(OK)

    with through(serve) as (plane, _):
        client = plane.client()
        client.sendall(GET)
        assert b" 200 " in read_message(client)[0]
        client.sendall(request_)
        assert status in read_message(client)[0]
        assert len(seen) == arrivals


def test_stale_connections_only() -> None:
    """It is sent again once, not on each of them."""
    seen: list[bytes] = []
    stale = threading.Event()

    def serve(connection: socket.socket) -> None:
        rest = b""
        while True:
            head, _, rest = read_message(connection, rest)
            if stale.is_set():
                seen.append(head)
                return
            time.sleep(0.05)  # so that each client needs a connection of its own
            connection.sendall(OK)

    with through(serve) as (plane, upstream):
        clients = [plane.client() for _ in range(5)]
        for client in clients:
            client.sendall(GET)
        for client in clients:
            read_message(client)
        assert upstream.accepted == 5
        stale.set()
        clients[0].sendall(GET)
        assert b" 502 " in read_message(clients[0])[0]
        assert len(seen) == 2


def pattern(size: int) -> bytes:
    return b"".join(i.to_bytes(4) for i in range(size // 4))


BIG = 6_000_000


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_long_answer_to_a_slow_reader(framing: str, version: bytes) -> None:
    data = pattern(BIG)
    heads = {
        "length": b"Content-Length: %d\r\n" % BIG,
        "chunked": b"Transfer-Encoding: chunked\r\n",
        "close": b"Connection: close\r\n",
    }

    def serve(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        body = b"%x\r\n" % BIG + data + b"\r\n0\r\n\r\n" if framing == "chunked" else data
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + heads[framing] + b"\r\n" + body)
        if framing != "close":
            read_all(connection)

    with through(serve) as (plane, _):
        client = plane.client()
        client.sendall(b"GET / HTTP/%s\r\nHost: x\r\nConnection: close\r\n\r\n" % version)
        received = b""
        while block := client.recv(1 << 20):
            received += block
            time.sleep(0.002)
        head, _, body = received.partition(b"\r\n\r\n")
        if b"chunked" in head:
            pieces = []
            while size := int(body[: body.index(b"\r\n")], 16):
                start = body.index(b"\r\n") + 2
                pieces.append(body[start : start + size])
                body = body[start + size + 2 :]
            body = b"".join(pieces)
        assert body == data


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_long_request_to_a_slow_reader(framing: str) -> None:
    data = pattern(BIG)
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        body = read_until(connection, b"\r\n\r\n").partition(b"\r\n\r\n")[2]
        while not (body.endswith(b"0\r\n\r\n") if framing == "chunked" else len(body) >= BIG):
            body += connection.recv(1 << 20)
            time.sleep(0.002)
        received.append(body)
        connection.sendall(OK)

    with through(serve) as (plane, _):
        client = plane.client()
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n")
        if framing == "length":
            client.sendall(b"Content-Length: %d\r\n\r\n" % BIG + data)
        else:
            client.sendall(b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % BIG + data)
            client.sendall(b"\r\n0\r\n\r\n")
        assert b" 200 " in read_message(client)[0]
        client.sendall(GET)  # the connection goes on
        body = received[0]
        if framing == "chunked":
            pieces = []
            while size := int(body[: body.index(b"\r\n")], 16):
                start = body.index(b"\r\n") + 2
                pieces.append(body[start : start + size])
                body = body[start + size + 2 :]
            body = b"".join(pieces)
        assert body == data


@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_is_lost_while_tables_change(workers: int) -> None:
    with (
        Upstream(echo) as one,
        Upstream(echo) as other,
        RequestPlane("http", [one.address], workers=workers) as plane,
    ):
        done = threading.Event()
        failed: list[bytes] = []
        counts: list[int] = []

        def ask() -> None:
            client, count = plane.client(), 0
            while not done.is_set():
                client.sendall(POST)
                head, body, _ = read_message(client)
                if body != b"/a|abc":
                    failed.append(head)
                count += 1
            counts.append(count)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for i in range(100):
            plane.set_upstreams([(one, other)[i % 2].address])
            time.sleep(0.01)
        done.set()
        for thread in threads:
            thread.join()
        assert not failed
        assert min(counts) > 10


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 500000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n2faf0800\r\n"],
)
def test_reset_of_a_client_whose_upstream_does_not_read(framing: bytes) -> None:
    gone = threading.Event()

    def deaf(connection: socket.socket) -> None:
        gone.wait(20)

    with through(deaf) as (plane, _):
        client = plane.client()
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing)
        flood(client, bytes(1000), 1 << 28)
        linger_reset(client)
        eventually(lambda: plane.data.live == 0, "the reset to be seen")
        gone.set()
