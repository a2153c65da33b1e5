"""What the control plane learns of connections and requests: records, sums, and lines of the access
log."""

from __future__ import annotations

import json
import math
import random
import select
import socket
import struct
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pysidecar import dataplane
from pysidecar.access_log import describe_connection, describe_request
from pysidecar.dataplane import (
    DURATION_BOUNDS,
    FAILURES,
    LOG_TEXTS,
    Action,
    ConnectionPath,
    Direction,
    End,
    Flag,
    Protocol,
    Transport,
    ffi,
    lib,
)
from pysidecar.dataplane.requests import decode_request, read_tally, unpack_requests
from tests.dataplane.support import (
    MakePlane,
    Parked,
    Plane,
    Server,
    closed_address,
    linger_reset,
    take_lines,
)
from tests.waiting import eventually

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
NS_EXACT = 1 << 53
"""Longer durations, from 104 days on, a float has not to the nanosecond."""

FIELDS = {name for name, _ in ffi.typeof("struct dp_record").fields}


def integers(most: int) -> st.SearchStrategy[int]:
    """Small ones, and those at the edges, more often than others."""
    return st.integers(0, most) | st.integers(0, min(most, 70000)) | st.sampled_from([0, most])


GROUPS = [b"\0\0", b"\0\1", b"\xff\xff", b"\x0a\xbc"]
addresses = st.builds(
    lambda ip, port, scope: (ip, port, 0, scope),
    st.binary(min_size=16, max_size=16)
    | st.lists(st.sampled_from(GROUPS), min_size=8, max_size=8).map(b"".join)
    | st.binary(min_size=4, max_size=4).map(lambda ip: bytes(10) + b"\xff\xff" + ip),
    integers(0xFFFF),
    st.just(0) | integers(U32),
)


def texts(most: int) -> st.SearchStrategy[bytes]:
    """What others wrote, of so many bytes at most."""
    return (
        st.binary(max_size=most)
        | st.text(max_size=most).map(lambda text: text.encode(errors="surrogatepass")[:most])
        | st.text(st.characters(max_codepoint=0xFF), max_size=most).map(
            lambda text: text.encode()[:most]
        )
        | st.lists(st.sampled_from(b"\xe0\xed\xf0\xf4\xc1\x80\x9f\xa0a?"), max_size=most).map(bytes)
    )


def ids(size: int) -> st.SearchStrategy[bytes]:
    """Of a trace or a span; zeros: none."""
    return st.just(bytes(size)) | st.binary(min_size=size, max_size=size)


durations = (
    integers(NS_EXACT)
    | st.integers(0, NS_EXACT // 1000).map(lambda us: us * 1000 + 500)
    | st.sampled_from([0, 500, 1500, 62_500, 187_500, 999_500])
)
fields_of_a_record: dict[str, st.SearchStrategy[Any]] = {
    "id": integers(U64),
    "opened_ns": integers(U64)
    | st.integers(0, U64 // 10**9 - 1).map(lambda second: second * 10**9 + 999_999_999)
    | st.integers(0, 30000).map(lambda day: day * 86400 * 10**9),
    "duration_ns": durations,
    "bytes_sent": integers(U64),
    "bytes_received": integers(U64),
    "source": addresses,
    "original_destination": addresses,
    "upstream": addresses,
    "pid": integers(U32),
    "uid": integers(U32),
    "route": integers(U32),
    "error": st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(0, 300),
    "transport": st.sampled_from(Transport),
    "direction": st.sampled_from(Direction),
    "action": st.sampled_from(Action),
    "end": st.sampled_from(End),
    "path": st.sampled_from(ConnectionPath),
    "rtt_us": integers(U32),
    "command": texts(16),
}
assert set(fields_of_a_record) == FIELDS - {"reserved"}
records = st.fixed_dictionaries(fields_of_a_record)

fields_of_a_request: dict[str, st.SearchStrategy[Any]] = {
    "connection": integers(U64),
    "began_ns": fields_of_a_record["opened_ns"],
    "duration_ns": durations,
    "first_byte_ns": durations,
    "bytes_sent": integers(U64),
    "bytes_received": integers(U64),
    "source": addresses,
    "upstream": addresses,
    "status": integers(U32),
    "flags": st.sets(st.sampled_from(Flag)).map(lambda flags: sum(1 << flag for flag in flags)),
    "attempts": integers(0xFFFF),
    "protocol": st.sampled_from(Protocol),
    "direction": st.sampled_from(Direction),
    "status_class": st.integers(0, lib.DP_STATUS_CLASSES - 1),
    "answered": st.booleans(),
    "service": texts(lib.DP_SERVICE_BYTES),
    "method": texts(lib.DP_METHOD_BYTES),
    "path": texts(lib.DP_PATH_BYTES),
    "trace_id": ids(lib.DP_TRACE_ID_BYTES),
    "span_id": ids(lib.DP_SPAN_ID_BYTES),
}
assert set(fields_of_a_request) == {
    name for name, _ in ffi.typeof("struct dp_request").fields if name != "reserved"
}
requests = st.fixed_dictionaries(fields_of_a_request)


def line_of(record: Any) -> bytes:
    """As the data plane makes it."""
    line = ffi.new("char[]", lib.DP_LOG_LINE_BYTES)
    size = lib.dp_log_line(LOG_TEXTS, record, line)
    return bytes(ffi.buffer(line, size))


def as_python_makes_it(record: Any) -> bytes:
    (read,) = dataplane._read_records(record, 1)
    return f"{json.dumps(describe_connection(read))}\n".encode()


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(records)
@pytest.mark.timeout(300)  # a busy machine
def test_a_line_is_what_json_dumps_makes_of_the_record(fields: dict[str, Any]) -> None:
    record = ffi.new("struct dp_record *", fields)
    assert line_of(record) == as_python_makes_it(record)


def request_line(request: Any, query: bool) -> bytes:
    """As the data plane makes it."""
    line = ffi.new("char[]", lib.DP_LOG_LINE_BYTES)
    size = lib.dp_request_line(LOG_TEXTS, request, query, line)
    return bytes(ffi.buffer(line, size))


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(requests, st.booleans())
@example({"path": b"/a?b=c", "protocol": Protocol.HTTP}, False)
@example({"path": b"?secret", "protocol": Protocol.HTTP}, False)
@example({"path": b"com.example.Orders?1", "protocol": Protocol.BOLT}, False)
@example({"path": b"\xf0?\x9f\x92\xa9", "protocol": Protocol.HTTP}, False)
@pytest.mark.timeout(300)  # a busy machine
def test_a_line_is_what_json_dumps_makes_of_the_request(
    fields: dict[str, Any], query: bool
) -> None:
    request = ffi.new("struct dp_request *", fields)
    (raw,) = unpack_requests(request, 1)
    described = describe_request(decode_request(raw), query=query)
    assert request_line(request, query) == f"{json.dumps(described)}\n".encode()


def test_a_query_is_nobodys_business() -> None:
    fields = {"path": b"/login?password=1234", "protocol": Protocol.HTTP}
    request = ffi.new("struct dp_request *", fields)
    assert b'"path": "/login",' in request_line(request, query=False)
    assert b'"path": "/login?password=1234",' in request_line(request, query=True)


def test_every_flag_has_its_word() -> None:
    numbers = {
        number: name
        for number, name in ffi.typeof("enum dp_flag").elements.items()
        if name != "DP_FLAG_NONE"
    }
    assert {flag.value: f"DP_FLAG_{flag.name}" for flag in Flag} == numbers
    assert all(0 < number < lib.DP_FLAGS for number in numbers)
    request = ffi.new("struct dp_request *", {"flags": sum(1 << number for number in numbers)})
    words = json.loads(request_line(request, query=False))["flags"]
    assert words == [flag.name.lower() for flag in Flag]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(NS_EXACT, U64))
@example(U64)
def test_longer_durations_are_right_to_a_microsecond(duration_ns: int) -> None:
    record = ffi.new("struct dp_record *", {"duration_ns": duration_ns})
    in_c = json.loads(line_of(record)).pop("duration_ms")
    in_python = json.loads(as_python_makes_it(record)).pop("duration_ms")
    assert math.isclose(in_c, in_python, rel_tol=2**-52, abs_tol=0.0011)


def longest_texts() -> tuple[Any, Any]:
    """And what they point to."""
    longest = ffi.new("struct dp_log_texts *")
    kept = []
    for name, _ in ffi.typeof("struct dp_log_texts").fields:
        most = lib.DP_LOG_FLAG_BYTES if name == "flags" else lib.DP_LOG_TEXT_BYTES
        kept.append(ffi.new("char[]", b"x" * (most - 1)))
        words = getattr(longest, name)
        for index in range(len(words)):
            words[index] = kept[-1]
    return longest, kept


def test_the_longest_line_has_room(plane: Plane) -> None:
    longest, _kept = longest_texts()
    assert lib.dp_log(plane.data._dp, longest, 0) == 0
    address = (bytes.fromhex("ffff" * 8), 0xFFFF, 0, U32)
    record = ffi.new(
        "struct dp_record *",
        {
            "opened_ns": U64,
            "duration_ns": U64 - 1,
            "bytes_sent": U64,
            "bytes_received": U64,
            "source": address,
            "original_destination": address,
            "upstream": address,
            "pid": U32,
            "uid": U32 - 1,
            "rtt_us": U32,
            "error": 1,
            "end": End.EXCLUDED,
            "command": b"\x01" * 16,
        },
    )
    line = ffi.new("char[]", 2 * lib.DP_LOG_LINE_BYTES)
    size = lib.dp_log_line(longest, record, line)
    json.loads(ffi.unpack(line, size))
    assert size <= lib.DP_LOG_LINE_BYTES
    request = ffi.new(
        "struct dp_request *",
        {
            "connection": U64,
            "began_ns": U64,
            "duration_ns": U64 - 1,
            "first_byte_ns": U64 - 1,
            "bytes_sent": U64,
            "bytes_received": U64,
            "source": address,
            "upstream": address,
            "status": U32,
            "answered": 1,
            "flags": (1 << lib.DP_FLAGS) - 1,
            "attempts": 0xFFFF,
            "service": b"\x01" * lib.DP_SERVICE_BYTES,
            "method": b"\x01" * lib.DP_METHOD_BYTES,
            "path": b"\x01" * lib.DP_PATH_BYTES,
        },
    )
    size = lib.dp_request_line(longest, request, True, line)
    assert len(json.loads(ffi.unpack(line, size))["flags"]) == lib.DP_FLAGS
    assert size <= lib.DP_LOG_LINE_BYTES


@pytest.mark.parametrize("name", [name for name, _ in ffi.typeof("struct dp_log_texts").fields])
def test_a_text_that_is_too_long_is_refused(plane: Plane, name: str) -> None:
    texts, _kept = longest_texts()
    most = lib.DP_LOG_FLAG_BYTES if name == "flags" else lib.DP_LOG_TEXT_BYTES
    word = ffi.new("char[]", b"x" * most)
    words = getattr(texts, name)
    words[len(words) - 1] = word
    assert lib.dp_log(plane.data._dp, texts, lib.DP_LOG_CONNECTIONS) < 0


@pytest.mark.parametrize("kind", ["struct dp_record", "struct dp_request"])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_each_field_is_read_where_it_is(kind: str, data: st.DataObject) -> None:
    """As cffi reads them, one by one."""
    size = ffi.sizeof(kind)
    record = ffi.from_buffer(f"{kind} *", data.draw(st.binary(min_size=size, max_size=size)))
    unpack = unpack_requests if kind == "struct dp_request" else dataplane._unpack
    (raw,) = unpack(record, 1)
    for name, field in ffi.typeof(kind).fields:
        expected = getattr(record, name)
        match field.type.kind:
            case "struct":
                inner = (expected.ip, expected.port, expected.reserved, expected.scope_id)
                for part, value in zip(("ip", "port", "reserved", "scope_id"), inner, strict=True):
                    read = getattr(raw, f"{name}_{part}")
                    assert read == (bytes(value) if part == "ip" else value)
            case "array":
                assert getattr(raw, name) == bytes(ffi.buffer(expected))
            case _:
                assert getattr(raw, name) == expected


def test_each_field_of_a_tally_is_read_where_it_is() -> None:
    words = range(1000, 1000 + ffi.sizeof("struct dp_tally") // 8)
    raw = ffi.from_buffer("struct dp_tally *", struct.pack(f"={len(words)}Q", *words))
    tally = read_tally(raw[0])
    assert tally.active == raw.active
    assert tally.statuses == tuple(raw.statuses)
    assert tally.requests == sum(raw.statuses)
    assert tally.flags == {flag: raw.flags[flag] for flag in Flag}
    assert tally.failures == raw.failures
    assert tally.attempts == raw.attempts
    assert (tally.bytes_sent, tally.bytes_received) == tuple(raw.bytes)
    assert tally.durations == tuple(tuple(each) for each in raw.durations)
    assert tally.duration == tuple(us / 1e6 for us in raw.duration_us)
    assert (tally.connections, tally.pending) == (raw.connections, raw.pending)


def test_what_is_a_failure_is_one_for_both_languages() -> None:
    """``failures`` of the sums, see test_requests.c, and ``failed`` of a record."""
    for flag in Flag:
        request = ffi.new("struct dp_request *", {"flags": 1 << flag, "status_class": 2})
        (raw,) = unpack_requests(request, 1)
        assert decode_request(raw).failed == (flag in FAILURES or flag is Flag.SERVICE_ERROR)


# ---- in a running data plane ----


def relayed(plane: Plane, server: Server) -> None:
    with plane.through(server.address), server.accept():
        pass


def test_each_connection_has_one_line_while_the_log_is_on(plane: Plane, server: Server) -> None:
    relayed(plane, server)
    eventually(plane.closed, "the first to end")
    plane.data.log(True)
    for _ in range(3):
        relayed(plane, server)
    linger_reset(plane.through(closed_address()))
    eventually(lambda: len(plane.closed()) == 5, "all to end")
    plane.data.log(False, requests=True)
    relayed(plane, server)
    eventually(lambda: len(plane.closed()) == 6, "the last to end")
    expected = Counter(json.dumps(describe_connection(record)) for record in plane.closed()[1:5])
    assert Counter(line.decode() for line in take_lines(plane)) == expected
    assert take_lines(plane) == []


def test_those_that_are_left_at_a_stop_have_their_lines(plane: Plane, server: Server) -> None:
    plane.data.log(True)
    for _ in range(50):
        plane.through(server.address)
        server.accept()
    eventually(lambda: all(r.upstream for r in plane.data.snapshot()), "all to be relayed")
    plane.stop()
    lines = take_lines(plane)
    assert [json.loads(line)["error"] for line in lines] == ["closed at the drain limit"] * 50
    assert len(plane.closed()) == 50


def test_the_event_tells_that_there_is_something_new(plane: Plane, server: Server) -> None:
    def told(seconds: float) -> bool:
        return bool(select.select([plane.data.event_fd], [], [], seconds)[0])

    for _ in range(20):
        plane.data.clear_event()
        assert not told(0)
        relayed(plane, server)
        assert told(10)


@pytest.mark.parametrize("workers", [1, 3])
def test_sums_are_those_of_the_records(make_plane: MakePlane, server: Server, workers: int) -> None:
    plane = make_plane(workers=workers)
    pick = random.Random(workers)
    for _ in range(60):
        match pick.randrange(4):
            case 0:
                relayed(plane, server)
            case 1:
                client = plane.through(server.address)
                server.accept()
                linger_reset(client)
            case 2:
                plane.connect().sendall(b"nonsense that is no header")
            case _:
                with Parked(plane) as application:
                    application.ask(closed_address())
                    assert application.is_writable()
    open_ = [plane.connect() for _ in range(3)]
    eventually(lambda: len(plane.closed()) == 60, "all to end")
    eventually(lambda: plane.data.live == 3, "those that stay")
    closed = plane.closed()
    tallies = plane.data.tallies()
    assert tallies.closed == Counter((r.direction, r.transport, r.action) for r in closed)
    assert tallies.open == {(Direction.OUTBOUND, Transport.HEADER, Action.RELAY): len(open_)}
    assert tallies.ends == Counter(r.end for r in closed)
    assert tallies.duration == pytest.approx(sum(r.duration_ms for r in closed) / 1000, abs=1e-3)
    assert list(tallies.durations) == [
        sum(low < r.duration_ms / 1000 <= high for r in closed)
        for low, high in zip((-1.0, *DURATION_BOUNDS), (*DURATION_BOUNDS, math.inf), strict=True)
    ]
    assert tallies.lines_dropped == 0


def test_closed_ones_come_in_the_order_in_which_they_closed(
    make_plane: MakePlane, server: Server
) -> None:
    plane = make_plane(workers=3)
    clients = []
    for _ in range(30):
        clients.append(plane.through(server.address))
        server.accept()
    eventually(lambda: all(r.upstream for r in plane.data.snapshot()), "all to be relayed")
    random.Random(1).shuffle(clients)
    ports = []
    for number, client in enumerate(clients, 1):
        ports.append(client.getsockname()[1])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        eventually(lambda n=number: plane.data.counters().closed == n, "it to end")  # type: ignore[misc]
    assert [r.source.port for r in plane.data.take_closed() if r.source] == ports
