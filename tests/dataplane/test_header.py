"""Connections that begin with a PROXY v2 header."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import End, Timeouts, Transport
from tests.dataplane.support import (
    SIGNATURE,
    Plane,
    Server,
    closed_address,
    linger_reset,
    proxy_header,
    silent_server,
    tcp_address,
)
from tests.waiting import eventually


def test_a_connection_reaches_its_original_destination(plane: Plane, server: Server) -> None:
    client = plane.through(server.address)
    upstream = server.accept()
    client.sendall(b"question")
    assert upstream.recv(100) == b"question"
    upstream.sendall(b"the answer")
    assert client.recv(100) == b"the answer"
    source = tcp_address(client)  # by the kernel's word, whatever the header says
    client.close()
    assert upstream.recv(100) == b""
    upstream.close()

    record = plane.next_closed()
    assert record.end is End.EOF
    assert record.error is None
    assert record.transport is Transport.HEADER
    assert record.source == source
    assert record.uid == os.geteuid()
    assert record.original_destination == record.upstream == server.address
    assert (record.bytes_sent, record.bytes_received) == (8, 10)


def test_ipv6(plane: Plane) -> None:
    with Server("::1") as server, plane.through(server.address) as client:
        upstream = server.accept()
        upstream.sendall(b"hello")
        upstream.close()
        assert client.recv(100) == b"hello"
        assert client.recv(100) == b""
    assert plane.next_closed().original_destination == server.address


@pytest.mark.parametrize("own", [True, False])
def test_the_tlvs_name_the_process_if_it_is_one_of_the_user(
    plane: Plane, server: Server, own: bool
) -> None:
    pid = os.getpid() if own else 4194304
    tlvs = (
        struct.pack("!BHI", 0xE0, 4, pid)
        + struct.pack("!BHI", 0xE1, 4, 1000)  # what the kernel says counts
        + struct.pack("!BH", 0xE2, 4)
        + b"curl"
        + struct.pack("!BH", 0x04, 7)  # PP2_TYPE_NOOP: unknown ones are skipped
        + b"ignored"
    )
    with plane.through(server.address, tlvs=tlvs):
        server.accept().close()
    record = plane.next_closed()
    assert (record.pid, record.uid, record.process) == (pid if own else None, os.geteuid(), "curl")


def test_a_command_may_be_as_long_as_the_kernel_lets_it_be(plane: Plane, server: Server) -> None:
    for length, expected in ((16, "c" * 16), (17, None)):
        tlvs = struct.pack("!BH", 0xE2, length) + b"c" * length
        with plane.through(server.address, tlvs=tlvs):
            server.accept().close()
        assert plane.next_closed().process == expected


def test_the_last_tlv_may_be_empty(plane: Plane, server: Server) -> None:
    with plane.through(server.address, tlvs=struct.pack("!BH", 0x04, 0)):
        server.accept().close()
    assert plane.next_closed().end in (End.EOF, End.UPSTREAM_RESET)


def test_a_header_has_at_most_4096_bytes(plane: Plane, server: Server) -> None:
    room = 4096 - len(proxy_header(server.address)) - 3
    with plane.through(server.address, tlvs=struct.pack("!BH", 0x04, room) + bytes(room)):
        server.accept().close()
    plane.next_closed()
    with plane.through(server.address, tlvs=struct.pack("!BH", 0x04, room + 1)):  # not even all
        assert plane.next_closed().end is End.HEADER_MALFORMED


def test_a_header_may_come_byte_by_byte_and_with_data_behind(plane: Plane, server: Server) -> None:
    client = plane.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in proxy_header(server.address):
        client.sendall(bytes([byte]))
    client.sendall(b"data")
    assert server.accept().recv(100) == b"data"
    client.close()


@pytest.mark.parametrize(
    ("sent", "end"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", End.HEADER_MALFORMED),
        (b"\r\n\r\nX", End.HEADER_MALFORMED),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", End.HEADER_MALFORMED),
        (SIGNATURE + b"\x11", End.HEADER_MALFORMED),  # version 1 in a v2 header
        (SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11), End.HEADER_MALFORMED),  # addresses too short
        (SIGNATURE + b"\x21\x11\xff\xff", End.HEADER_MALFORMED),  # absurdly long
        (proxy_header(Address("127.0.0.1", 0)), End.UPSTREAM_CONNECT),  # as the kernel says
        (proxy_header(Address("0.0.0.0", 80)), End.HEADER_MALFORMED),
        (proxy_header(Address("10.0.0.1", 1), tlvs=b"\xe0\x00"), End.HEADER_MALFORMED),
        (proxy_header(Address("10.0.0.1", 1), tlvs=b"\xe0\x00\x09abc"), End.HEADER_MALFORMED),
        (SIGNATURE + b"\x20\x00\x00\x00", End.HEADER_NO_ADDRESS),  # LOCAL: a health check
        (SIGNATURE + b"\x21\x00\x00\x00", End.HEADER_NO_ADDRESS),  # UNSPEC
        (SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12), End.HEADER_NO_ADDRESS),  # UDP
    ],
)
def test_a_malformed_header_closes_that_connection_and_no_other(
    plane: Plane, server: Server, sent: bytes, end: End
) -> None:
    with plane.through(server.address) as other, server.accept() as upstream:
        client = plane.connect()
        client.sendall(sent)
        with pytest.raises(ConnectionResetError):
            assert client.recv(1) != b""
        assert plane.next_closed().end is end
        other.sendall(b"still here")
        assert upstream.recv(100) == b"still here"


@pytest.mark.parametrize("length", [0, 5, 20])
def test_a_truncated_header_closes_the_connection(
    plane: Plane, server: Server, length: int
) -> None:
    client = plane.connect()
    client.sendall(proxy_header(server.address)[:length])
    client.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError):
        assert client.recv(1) != b""
    assert plane.next_closed().end is End.HEADER_TRUNCATED


def test_a_slow_header_is_given_up_in_time(make_plane: Callable[..., Plane]) -> None:
    plane = make_plane(timeouts=Timeouts(header=0.2))
    client = plane.connect()
    client.sendall(SIGNATURE[:3])
    with pytest.raises(ConnectionResetError):
        assert client.recv(1) != b""
    record = plane.next_closed()
    assert record.end is End.HEADER_TIMEOUT
    assert 150 < record.duration_ms < 5000


def accept_one(plane: Plane) -> None:
    before = plane.data.counters().accepted
    plane.connect()
    eventually(lambda: plane.data.counters().accepted > before, "being accepted")


def test_the_first_deadline_comes_first(make_plane: Callable[..., Plane]) -> None:
    plane = make_plane(workers=1)
    headers = [number / 100 for number in range(20, 60)]
    random.Random(1).shuffle(headers)
    times: dict[float, float] = {}  # when each was to end and when it did, from the first opening
    begun = datetime.now(UTC)
    for header in headers:
        plane.data.set_timeouts(Timeouts(header=header))
        accept_one(plane)
    eventually(lambda: len(plane.closed()) == len(headers), "all to be closed")
    for header, record in zip(headers, sorted(plane.closed()), strict=True):
        assert record.end is End.HEADER_TIMEOUT
        opened = (record.opened - begun).total_seconds()
        times[opened + header] = opened + record.duration_ms / 1000
    ends = [times[deadline] for deadline in sorted(times)]
    slack = 0.05  # a deadline counts from the beginning of the worker's turn
    assert all(later > earlier - slack for earlier, later in pairwise(ends)), times


def test_an_upstream_that_refuses_resets_the_application(plane: Plane) -> None:
    client = plane.through(closed_address())
    with pytest.raises(ConnectionResetError):
        assert client.recv(1) != b""
    record = plane.next_closed()
    assert record.end is End.UPSTREAM_CONNECT
    assert record.error == "upstream connect failed: ECONNREFUSED"


def test_an_original_destination_that_is_ourselves_is_no_loop(plane: Plane) -> None:
    client = plane.through(plane.header_address)
    with pytest.raises(ConnectionResetError):
        assert client.recv(1) != b""
    assert plane.next_closed().end is End.LOOP


def test_an_application_that_gives_up_while_connecting(make_plane: Callable[..., Plane]) -> None:
    plane = make_plane(timeouts=Timeouts(connect=30))
    with silent_server() as silent:
        client = plane.through(silent)
        eventually(
            lambda: [r.original_destination for r in plane.data.snapshot()] == [silent],
            "the connect to begin",
        )
        linger_reset(client)
        assert plane.next_closed().end is End.DOWNSTREAM_RESET


def test_many_clients_at_once(plane: Plane, server: Server) -> None:
    count = 300

    def serve() -> None:
        for _ in range(count):
            with server.accept() as upstream:
                upstream.sendall(upstream.recv(100))

    thread = threading.Thread(target=serve)
    thread.start()
    clients = [plane.through(server.address) for _ in range(count)]
    for number, client in enumerate(clients):
        client.sendall(str(number).encode())
    assert [client.recv(100) for client in clients] == [str(n).encode() for n in range(count)]
    thread.join()
    for client in clients:
        client.close()
    records = [plane.next_closed() for _ in range(count)]
    assert len({record.id for record in records}) == count
    assert {record.end for record in records} == {End.EOF}
    assert plane.data.live == 0
