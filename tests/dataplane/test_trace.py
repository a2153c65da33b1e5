"""Trace points: the stations that connections pass, as docs/debugging.md describes them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import (
    STATIONS,
    Action,
    DataPlane,
    Listener,
    Route,
    Timeouts,
    TraceEvent,
    Transport,
    ffi,
    lib,
)
from tests.dataplane.support import (
    MakePlane,
    Parked,
    Plane,
    Server,
    closed_address,
    hook_request,
    linger_reset,
    open_pair,
    run_alone,
    send_with_fds,
    silent_server,
    table,
    tcp_address,
)
from tests.waiting import eventually

Tracing = Callable[..., "Traced"]
MPTCP = 262
BEGIN = ["accepted", "process", "requested", "routed"]
SERVED = ["completed", "first_bytes", "first_bytes", "ended", "ended", "closed"]


class Traced:
    """A data plane that is traced, and its events so far."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.missed = 0
        self._events: list[TraceEvent] = []

    def events(self) -> list[TraceEvent]:
        while True:
            events, missed = self.plane.data.take_trace()
            self.missed += missed
            self._events += events
            if not events:
                return self._events

    def until_closed(self) -> list[TraceEvent]:
        """Those of the only connection."""
        self.plane.next_closed()
        return [event for event in self.events() if event.session]

    def has(self, name: str, **values: object) -> bool:
        return any(
            event.station.name == name and values.items() <= dict(event.values).items()
            for event in self.events()
        )


@pytest.fixture
def trace(make_plane: MakePlane) -> Tracing:
    def begin(**settings: Any) -> Traced:
        plane = make_plane(**settings)
        plane.data.trace(True)
        return Traced(plane)

    return begin


def names(events: list[TraceEvent]) -> list[str]:
    return [event.station.name for event in events]


def values(events: list[TraceEvent], name: str) -> dict[str, Any]:
    [found] = [event for event in events if event.station.name == name]
    return dict(found.values)


def converse(application: socket.socket, upstream: socket.socket) -> None:
    """A byte there, two back, and an end in order."""
    application.sendall(b"1")
    assert upstream.recv(10) == b"1"
    upstream.sendall(b"22")
    assert application.recv(10) == b"22"
    application.shutdown(socket.SHUT_WR)
    assert upstream.recv(10) == b""
    upstream.close()
    assert application.recv(10) == b""


def test_a_header_is_read_and_its_connection_relayed(trace: Tracing, server: Server) -> None:
    traced = trace()
    converse(*open_pair(traced.plane, server, "header"))
    events = traced.until_closed()
    assert names(events) == [*BEGIN, "connecting", "connected", *SERVED]
    assert values(events, "accepted") == {"transport": "header", "direction": "outbound"}
    assert values(events, "requested") == {"destination": server.address}
    assert values(events, "routed") == {"route": None, "action": "relay"}
    assert values(events, "connecting") == {"endpoint": server.address}
    assert values(events, "closed") == {"end": "eof", "errno": None}
    assert [dict(each.values) for each in events if each.station.name == "first_bytes"] == [
        {"from": "downstream", "bytes": 1},
        {"from": "upstream", "bytes": 2},
    ]
    times = [event.time_ns for event in events]
    assert times == sorted(times)


def test_a_parked_socket_is_completed(trace: Tracing, server: Server) -> None:
    traced = trace()
    converse(*open_pair(traced.plane, server, "unix"))
    events = traced.until_closed()
    assert names(events) == [*BEGIN, "connecting", "connected", "application_connected", *SERVED]
    assert values(events, "process")["process"] == "test"
    assert values(events, "application_connected") == {"parked": True}


def test_endpoints_are_tried_until_one_answers(trace: Tracing, server: Server) -> None:
    traced = trace()
    dead = closed_address()
    traced.plane.data.set_routes(
        table(("0.0.0.0/0", None, Route(endpoints=(dead, server.address))))
    )
    failed = 0
    for _ in range(2):  # it is the dead one's turn for one of them
        converse(*open_pair(traced.plane, server, "unix"))
        done = traced.plane.next_closed()
        events = [event for event in traced.events() if event.session == done.id]
        assert values(events, "routed") == {"route": 0, "action": "relay"}
        tried = names(events)[len(BEGIN) :]
        if "connect_failed" in tried:
            failed += 1
            assert tried[:4] == ["connecting", "connect_failed", "connecting", "connected"]
            assert values(events, "connect_failed") == {"errno": "ECONNREFUSED", "attempt": 1}
            assert values(events, "connected") == {"attempt": 2}
    assert failed == 1
    assert traced.has("table_adopted", table="outbound", routes=1)


def test_a_refused_connect_fails_the_application(trace: Tracing) -> None:
    traced = trace()
    application = Parked(traced.plane)
    application.ask(closed_address())
    events = traced.until_closed()
    assert names(events) == [
        *BEGIN,
        *("connecting", "connect_failed", "refused", "application_failed", "closed"),
    ]
    assert values(events, "application_failed") == {"errno": "ECONNREFUSED", "parked": True}
    assert values(events, "closed") == {"end": "upstream_connect", "errno": "ECONNREFUSED"}


def test_a_route_refuses(trace: Tracing, server: Server) -> None:
    traced = trace()
    traced.plane.data.set_routes(table(("0.0.0.0/0", None, Route(action=Action.REFUSE))))
    traced.plane.through(server.address)
    events = traced.until_closed()
    assert names(events) == [*BEGIN, "refused", "closed"]
    assert values(events, "routed") == {"route": 0, "action": "refuse"}
    assert values(events, "refused")["end"] == "refused_by_route"


@pytest.mark.parametrize(
    ("timeout", "timer", "end"),
    [
        ("header", "request", "header_timeout"),
        ("connect", "connect", "upstream_timeout"),
        ("idle", "idle", "idle_timeout"),
    ],
)
def test_timers_that_expire_say_which(
    trace: Tracing, server: Server, timeout: str, timer: str, end: str
) -> None:
    traced = trace(timeouts=Timeouts(**{timeout: 0.05}))
    with silent_server() as silent:
        if timeout == "header":
            traced.plane.connect()
        else:
            traced.plane.through(silent if timeout == "connect" else server.address)
        events = traced.until_closed()
    assert values(events, "expired") == {"timer": timer}
    assert names(events)[-1] == "closed"
    assert values(events, "closed")["end"] == end


def test_a_socket_that_never_comes_expires(trace: Tracing, server: Server) -> None:
    traced = trace(timeouts=Timeouts(header=0.05))
    application = traced.plane.owned(socket.socket(proto=MPTCP))
    control = traced.plane.control()
    send_with_fds(control, hook_request(server.address, 0), [application.fileno()])
    events = traced.until_closed()
    assert values(events, "expired") == {"timer": "complete"}
    assert values(events, "closed")["end"] == "downstream_gone"


def test_a_receiver_that_stops_and_goes_on(trace: Tracing, server: Server) -> None:
    traced = trace()
    application, upstream = open_pair(traced.plane, server, "header")
    left = 0
    application.settimeout(0)
    while not traced.has("held_back", to="upstream"):
        with contextlib.suppress(BlockingIOError):
            left += application.send(bytes(1 << 20))
    assert not traced.has("goes_on")
    while left:
        left -= len(upstream.recv(1 << 20))
    eventually(lambda: traced.has("goes_on", to="upstream"), "the end of the backpressure")


def test_how_bytes_are_moved(trace: Tracing, server: Server) -> None:
    """Many are spliced; few are copied again."""
    traced = trace()
    application, upstream = open_pair(traced.plane, server, "header")
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            application.sendall(bytes(1 << 20))
        application.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    while not traced.has("splicing", **{"from": "downstream"}):
        assert upstream.recv(1 << 20)
    ended.set()
    while upstream.recv(1 << 20):
        pass
    sender.join()
    assert traced.has("first_bytes", **{"from": "downstream"})
    upstream.close()
    traced.plane.next_closed()
    sent = [dict(event.values) for event in traced.events() if event.station.name == "ended"]
    assert {each["from"] for each in sent} == {"downstream", "upstream"}
    assert {"from": "upstream", "bytes": 0} in sent


@pytest.mark.parametrize("side", ["downstream", "upstream"])
def test_a_reset_says_by_whom(trace: Tracing, server: Server, side: str) -> None:
    traced = trace()
    pair = open_pair(traced.plane, server, "header")
    pair[0].sendall(b"x")
    assert pair[1].recv(1) == b"x"
    linger_reset(pair[side == "upstream"])
    events = traced.until_closed()
    assert values(events, "reset") == {"by": side, "errno": "ECONNRESET"}
    assert values(events, "closed")["end"] == f"{side}_reset"


@pytest.mark.parametrize("established", [True, False])
def test_a_direct_connection_is_left_to_the_application(
    trace: Tracing, server: Server, established: bool
) -> None:
    traced = trace()
    endpoint = server.address if established else closed_address()
    traced.plane.data.set_routes(
        table(("0.0.0.0/0", None, Route(Action.DIRECT, endpoints=(endpoint,))))
    )
    application = traced.plane.owned(socket.socket())
    control = traced.plane.control()
    request = hook_request(Address("10.1.2.3", 80), lib.MOSNHOOK_ASKS)
    send_with_fds(control, request, [application.fileno()])
    assert control.recv(200)
    application.connect_ex((endpoint.host, endpoint.port))
    application.close()
    if established:
        server.accept().close()
    events = traced.until_closed()
    assert names(events) == [*BEGIN, "direct", "closed"]
    assert values(events, "routed")["action"] == "direct"
    assert values(events, "direct") == {"endpoint": endpoint}
    assert (values(events, "closed")["end"] == "upstream_connect") != established


def test_who_cannot_go_there_itself_is_relayed(trace: Tracing, server: Server) -> None:
    traced = trace()
    application = Parked(traced.plane)
    application.control = traced.plane.control()
    application.send(hook_request(server.address, lib.MOSNHOOK_ASKS), [application.socket.fileno()])
    assert application.control.recv(200)
    application.send(
        hook_request(server.address, lib.MOSNHOOK_PARKED), [application.socket.fileno()]
    )
    application.control.close()
    assert application.is_writable()
    converse(application.blocking(), server.accept())
    events = traced.until_closed()
    assert names(events)[:10] == [
        *BEGIN,
        "not_direct",
        *BEGIN[1:],
        *("connecting", "connected"),
    ]


@pytest.mark.parametrize("waits", [True, False])
def test_a_socket_that_cannot_be_parked_connects_itself(
    trace: Tracing, server: Server, waits: bool
) -> None:
    traced = trace()
    application = traced.plane.owned(socket.socket(proto=MPTCP))
    control = traced.plane.control()
    request = hook_request(server.address, lib.MOSNHOOK_WAITS if waits else 0)
    send_with_fds(control, request, [application.fileno()])
    answer = ffi.from_buffer("struct mosnhook_answer *", control.recv(100))
    endpoint = Address.from_native(answer.endpoint)
    assert endpoint
    application.connect((endpoint.host, endpoint.port))
    converse(application, server.accept())
    events = traced.until_closed()
    assert values(events, "application_connected") == {"parked": False}
    ways = ["connecting", "connected"], ["application_connected"]
    assert names(events)[3:7] == (
        ["routed", *ways[0], *ways[1]] if waits else [*ways[1], "routed", *ways[0]]
    )


def test_a_lack_of_descriptors_is_said() -> None:
    run_alone(
        """
        import resource
        from tests.dataplane.support import Plane, Server
        from tests.dataplane.test_trace import Traced
        from tests.waiting import eventually

        resource.setrlimit(resource.RLIMIT_NOFILE, (360, 4000))
        plane = Plane(workers=1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (4000, 4000))
        traced = Traced(plane)
        plane.data.trace(True)
        server = Server()
        clients = [plane.through(server.address) for _ in range(200)]
        eventually(
            lambda: traced.has("out_of_descriptors", available=plane.data.counters().fds_budget),
            "a lack of descriptors",
        )
        eventually(lambda: traced.has("closed", end="no_resources"), "a connection refused for it")
        plane.close()
        print("ok")
        """
    )


def test_a_connection_that_came_by_itself_is_closed(make_plane: MakePlane) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = tcp_address(listener)

    def add(data: DataPlane) -> None:
        data.add_listener(listener, Listener(Transport.REDIRECT))

    traced = Traced(make_plane(before_start=add))
    traced.plane.data.trace(True)
    with socket.create_connection((address.host, address.port)):
        events = traced.until_closed()
    assert names(events) == ["accepted", "closed"]
    assert values(events, "accepted")["transport"] == "redirect"
    assert values(events, "closed")["end"] == "loop"


def test_nothing_is_written_while_nobody_looks(plane: Plane, server: Server) -> None:
    traced = Traced(plane)
    converse(*open_pair(plane, server, "header"))
    plane.next_closed()
    assert traced.events() == []
    plane.data.trace(True)
    plane.data.trace(False)
    converse(*open_pair(plane, server, "header"))
    plane.next_closed()
    assert not [event for event in traced.events() if event.session]


def test_what_was_before_a_look_is_not_in_it(trace: Tracing, server: Server) -> None:
    traced = trace()
    converse(*open_pair(traced.plane, server, "header"))
    traced.plane.next_closed()
    traced.plane.data.trace(False)
    traced.plane.data.trace(True)
    assert traced.events() == []
    assert traced.missed == 0


def test_the_oldest_events_are_lost_and_counted(trace: Tracing) -> None:
    traced = trace(workers=1)
    refuse = table(("0.0.0.0/0", None, Route(action=Action.REFUSE)))
    traced.plane.data.set_routes(refuse)
    destination = closed_address()
    each = len([*BEGIN, "refused", "closed"])
    connections = 8192 // each + 100
    for _ in range(connections):
        with traced.plane.through(destination) as client, contextlib.suppress(ConnectionError):
            client.recv(1)
    eventually(lambda: len(traced.plane.closed()) == connections, "all are closed")
    events = [event for event in traced.events() if event.session]
    assert traced.missed > 0
    assert len(events) <= 8192
    adopted = traced.missed + len(traced.events()) - connections * each
    assert 0 <= adopted <= 4  # tables, by the only worker
    assert names(events)[-1] == "closed"
    assert events[-1].session == connections


def test_a_reader_that_turns_it_on_and_off_under_load(plane: Plane, server: Server) -> None:
    """With ThreadSanitizer: what the two threads share."""
    traced = Traced(plane)
    ended = threading.Event()
    failures: list[BaseException] = []

    def load() -> None:
        try:
            while not ended.is_set():
                converse(*open_pair(plane, server, "header"))
        except BaseException as error:
            failures.append(error)

    loads = [threading.Thread(target=load)]
    for thread in loads:
        thread.start()
    for turn in range(1000):
        plane.data.trace(turn % 2 == 0)
        events, _ = plane.data.take_trace()
        assert all(event.station in STATIONS for event in events)
    plane.data.trace(True)
    eventually(lambda: traced.has("closed", end="eof"), "events")
    ended.set()
    for thread in loads:
        thread.join()
    assert not failures


def test_the_table_says_what_all_numbers_are() -> None:
    assert len({station.name for station in STATIONS}) == len(STATIONS)
    for station in STATIONS:
        assert station.name.replace("_", "").isalpha()
        assert station.text
    assert len(STATIONS) == lib.dp_trace_station_count
