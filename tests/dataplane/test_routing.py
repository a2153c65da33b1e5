"""Which upstream a connection gets."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
from collections import Counter
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import Action, Balance, End, Route, RouteTable, Timeouts, ffi, lib
from pysidecar.interception.rules.namespace import inside
from pysidecar.routing.rules import compile_rules
from tests.dataplane.support import (
    Entry,
    MakePlane,
    Plane,
    Server,
    closed_address,
    silent_server,
    table,
)
from tests.namespaces import ip, namespace
from tests.users import needs_root
from tests.waiting import eventually

ELSEWHERE = Address("10.11.12.13", 4711)


def to(*servers: Server, balance: Balance = Balance.ROUND_ROBIN) -> Route:
    return Route(balance=balance, endpoints=tuple(server.address for server in servers))


def answered_by(plane: Plane, destination: Address, *servers: Server) -> int:
    """Which server a connection reaches: its index. The connection is closed again."""
    client = plane.through(destination)
    client.sendall(b"x")
    ready, _, _ = select.select([server.listener for server in servers], [], [], 10)
    (listener,) = ready
    connection, _ = listener.accept()
    connection.close()
    client.close()
    return [server.listener for server in servers].index(listener)


def test_the_first_match_in_the_order_of_the_file_wins(plane: Plane) -> None:
    with Server() as narrow, Server() as wide, Server() as late:
        plane.data.set_routes(
            table(
                ("10.1.0.0/16", (80, 80), to(narrow)),
                ("10.0.0.0/8", None, to(wide)),
                ("10.1.2.0/24", None, to(late)),  # hidden by the one above
            )
        )
        servers = (narrow, wide, late)
        assert answered_by(plane, Address("10.1.2.3", 80), *servers) == 0
        assert plane.next_closed().route == 0
        assert answered_by(plane, Address("10.1.2.3", 81), *servers) == 1
        assert plane.next_closed().route == 1
        assert answered_by(plane, Address("10.9.9.9", 80), *servers) == 1
        record = plane.next_closed()
        assert record.route == 1
        assert record.original_destination == Address("10.9.9.9", 80)
        assert record.upstream == wide.address


def test_ipv6_prefixes_and_families_are_apart(plane: Plane) -> None:
    with Server() as v4, Server("::1") as v6:
        plane.data.set_routes(table(("::/0", None, to(v6)), ("0.0.0.0/0", None, to(v4))))
        assert answered_by(plane, Address("2001:db8::7", 443), v4, v6) == 1
        assert answered_by(plane, Address("10.0.0.1", 443), v4, v6) == 0


def test_a_route_may_refuse(plane: Plane, server: Server) -> None:
    plane.data.set_routes(table(("127.0.0.0/8", None, Route(action=Action.REFUSE))))
    with pytest.raises(ConnectionResetError):
        plane.through(server.address).recv(1)
    record = plane.next_closed()
    assert record.action is Action.REFUSE
    assert record.end is End.REFUSED_BY_ROUTE
    assert server.accepts_nothing()


def test_round_robin_takes_turns(plane: Plane) -> None:
    with Server() as a, Server() as b, Server() as c:
        plane.data.set_routes(table(("10.0.0.0/8", None, to(a, b, c))))
        turns = [answered_by(plane, ELSEWHERE, a, b, c) for _ in range(9)]
        assert Counter(turns) == {0: 3, 1: 3, 2: 3}


def test_least_connections_prefers_the_idle_one(plane: Plane) -> None:
    with Server() as a, Server() as b:
        route = to(a, b, balance=Balance.LEAST_CONNECTIONS)
        plane.data.set_routes(table(("10.0.0.0/8", None, route)))

        def loads() -> Counter[Address | None]:
            return Counter(record.upstream for record in plane.data.snapshot())

        def connect_until(count: int) -> None:
            clients.append(plane.through(ELSEWHERE))
            eventually(lambda: loads().total() - loads()[None] == count, "the upstream")

        clients: list[socket.socket] = []
        for count in range(1, 11):
            connect_until(count)
        assert loads() == {a.address: 5, b.address: 5}
        for _ in range(4):
            a.accept().close()
        for client in clients:
            if select.select([client], [], [], 0.01)[0]:
                client.close()
        eventually(lambda: loads()[a.address] == 1, "four connections to end")
        for count in range(7, 11):
            connect_until(count)
        assert loads() == {a.address: 5, b.address: 5}


def test_the_next_endpoint_is_tried_when_one_refuses(plane: Plane, server: Server) -> None:
    dead = closed_address()
    plane.data.set_routes(
        table(("10.0.0.0/8", None, Route(endpoints=(dead, dead, server.address))))
    )
    for _ in range(6):
        assert answered_by(plane, ELSEWHERE, server) == 0
        assert plane.next_closed().upstream == server.address
    assert plane.data.counters().connect_failures > 0


def test_when_all_endpoints_refuse_the_connect_fails(plane: Plane) -> None:
    dead = Route(endpoints=(closed_address(), closed_address()))
    plane.data.set_routes(table(("10.0.0.0/8", None, dead)))
    with pytest.raises(ConnectionResetError):
        plane.through(ELSEWHERE).recv(1)
    record = plane.next_closed()
    assert record.end is End.UPSTREAM_CONNECT
    assert record.errno == errno.ECONNREFUSED
    assert plane.data.counters().connect_failures == 2


def turns(plane: Plane, count: int, *servers: Server) -> Counter[int]:
    return Counter(answered_by(plane, ELSEWHERE, *servers) for _ in range(count))


def ejected(plane: Plane) -> list[Address]:
    return [each.endpoint for each in plane.data.ejected()]


@pytest.mark.parametrize("balance", [Balance.ROUND_ROBIN, Balance.LEAST_CONNECTIONS])
def test_an_endpoint_that_failed_has_no_turn(plane: Plane, balance: Balance) -> None:
    dead = closed_address()
    with Server() as a, Server() as b:
        route = Route(balance=balance, endpoints=(dead, a.address, b.address))
        plane.data.set_routes(table(("10.0.0.0/8", None, route)))
        eventually(lambda: turns(plane, 1, a, b) and ejected(plane) == [dead], "the dead one")
        after = turns(plane, 20, a, b)
        # The turns of the dead one are shared, too.
        assert abs(after[0] - after[1]) <= 1 or balance is Balance.LEAST_CONNECTIONS
    assert plane.data.counters().connect_failures == 1


def test_the_turns_of_several_that_failed_are_shared_by_all_others(plane: Plane) -> None:
    with Server() as a, Server() as b:
        endpoints = (closed_address(), a.address, closed_address(), b.address)
        plane.data.set_routes(table(("10.0.0.0/8", None, Route(endpoints=endpoints))))
        turns(plane, 4, a, b)
        assert {*ejected(plane)} == {endpoints[0], endpoints[2]}
        assert turns(plane, 16, a, b) == {0: 8, 1: 8}


@needs_root
def test_an_endpoint_that_cannot_be_reached_is_ejected() -> None:
    unreachable = Address("192.0.2.1", 80)

    def check() -> None:
        with Plane() as plane, Server() as server:
            route = Route(endpoints=(unreachable, server.address))
            plane.data.set_routes(table(("10.0.0.0/8", None, route)))
            turns(plane, 4, server)
            assert plane.data.counters().connect_failures == 1
            assert ejected(plane) == [unreachable]

    with namespace("unreachable") as name:
        ip("-n", name, "route", "add", "unreachable", f"{unreachable.host}/32")
        inside(name, check)


def test_an_endpoint_is_tried_again_after_its_time(make_plane: MakePlane) -> None:
    plane = make_plane(timeouts=Timeouts(ejection=0.3))
    dead = closed_address()
    with Server() as a:
        route = Route(endpoints=(dead, a.address))
        plane.data.set_routes(table(("10.0.0.0/8", None, route)))
        turns(plane, 2, a)
        assert ejected(plane) == [dead]
        with Server(port=dead.port) as b:
            eventually(lambda: answered_by(plane, ELSEWHERE, a, b) == 1, "the one that is back")
            eventually(lambda: not ejected(plane), "the ejection to end")
            assert turns(plane, 10, a, b) == {0: 5, 1: 5}


@pytest.mark.parametrize("late_first", [True, False])
def test_where_all_endpoints_failed_they_are_tried_as_ever(plane: Plane, late_first: bool) -> None:
    dead, late = closed_address(), closed_address()
    endpoints = (late, dead) if late_first else (dead, late)
    plane.data.set_routes(table(("10.0.0.0/8", None, Route(endpoints=endpoints))))
    with pytest.raises(ConnectionResetError):
        plane.through(ELSEWHERE).recv(1)
    assert {*ejected(plane)} == {dead, late}
    with Server(port=late.port) as server:
        for _ in range(4):
            answered_by(plane, ELSEWHERE, server)
            # The server may know of a connection before the worker does.
            eventually(lambda: ejected(plane) == [dead], "the ejection to end")


def test_the_ejected_are_the_last_that_are_tried(plane: Plane) -> None:
    dead = closed_address()
    with Server() as spare, Server() as first:
        route = Route(endpoints=(dead, first.address, spare.address))
        plane.data.set_routes(table(("10.0.0.0/8", None, route)))
        turns(plane, 3, first, spare)
        failures = plane.data.counters().connect_failures
        first.close()
        turns(plane, 3, spare)
        assert plane.data.counters().connect_failures == failures + 1
    with Server(port=dead.port) as back:
        assert turns(plane, 3, back) == {0: 3}


def test_an_endpoint_that_does_not_answer_in_time_has_failed(make_plane: MakePlane) -> None:
    plane = make_plane(timeouts=Timeouts(connect=0.2))
    with silent_server() as silent, Server() as server:
        route = Route(endpoints=(silent, server.address))
        plane.data.set_routes(table(("10.0.0.0/8", None, route)))
        turns(plane, 10, server)
        assert ejected(plane) == [silent]
    assert plane.data.counters().connect_failures == 1


def test_what_is_not_the_endpoints_doing_ejects_nobody(plane: Plane, server: Server) -> None:
    unreachable = Address("224.0.0.1", 80)  # ENETUNREACH: TCP does not go there
    route = Route(endpoints=(unreachable, server.address))
    plane.data.set_routes(table(("10.0.0.0/8", None, route)))
    turns(plane, 10, server)
    assert plane.data.counters().connect_failures == 5
    assert ejected(plane) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_who_listens_everywhere_is_found_on_loopback(
    make_plane: MakePlane, server: Server, host: str
) -> None:
    """A connection to one's own listener would go round for ever."""
    own = Address(host, server.address.port)
    plane = make_plane(before_start=lambda data: data.set_own_addresses([own]))
    plane.through(server.address)
    assert plane.next_closed().end is End.LOOP
    with Server() as other, plane.through(other.address):
        other.accept().close()
    assert server.accepts_nothing()


def test_without_a_time_nobody_is_ejected(make_plane: MakePlane, server: Server) -> None:
    plane = make_plane(timeouts=Timeouts(ejection=0))
    route = Route(endpoints=(closed_address(), server.address))
    plane.data.set_routes(table(("10.0.0.0/8", None, route)))
    turns(plane, 10, server)
    assert plane.data.counters().connect_failures == 5
    assert ejected(plane) == []
    # It counts from when it failed, whatever the time was then.
    plane.data.set_timeouts(Timeouts(ejection=60))
    assert len(ejected(plane)) == 1


def test_a_change_holds_for_every_later_connection_and_no_earlier_one(plane: Plane) -> None:
    with Server() as old, Server() as new:
        for turn in range(100):
            before, after = (old, new) if turn % 2 else (new, old)
            plane.data.set_routes(table(("10.0.0.0/8", None, to(before))))
            client = plane.through(ELSEWHERE)
            upstream = before.accept()
            plane.data.set_routes(table(("10.0.0.0/8", None, to(after))))
            assert answered_by(plane, ELSEWHERE, old, new) == (0 if after is old else 1)
            client.sendall(b"still the same upstream")
            assert upstream.recv(100) == b"still the same upstream"
            upstream.close()
            client.close()


def test_failures_and_connections_outlive_a_change(plane: Plane) -> None:
    dead = closed_address()
    with Server() as a, Server() as b:
        first = Route(endpoints=(dead, a.address), key=1)
        plane.data.set_routes(table(("10.0.0.0/8", None, first)))
        turns(plane, 2, a)
        assert plane.data.counters().connect_failures == 1
        held = [plane.through(ELSEWHERE) for _ in range(4)]
        for _ in held:
            a.accept()
        # Another route, in front of which there is one more, and other endpoints beside them.
        balance = Balance.LEAST_CONNECTIONS
        second = Route(balance=balance, endpoints=(b.address, dead, a.address), key=2)
        plane.data.set_routes(table(("10.99.0.0/16", None, Route()), ("10.0.0.0/8", None, second)))
        assert ejected(plane) == [dead]
        assert turns(plane, 10, a, b) == {1: 10}, "the other one has four connections"
        assert plane.data.counters().connect_failures == 1


def test_what_no_route_names_any_more_is_forgotten(plane: Plane, server: Server) -> None:
    dead = closed_address()
    both, one = Route(endpoints=(dead, server.address)), to(server)
    plane.data.set_routes(table(("10.0.0.0/8", None, both)))
    turns(plane, 2, server)
    assert ejected(plane) == [dead]
    eventually(lambda: plane.data.live == 0, "the connections to end")

    def is_forgotten() -> bool:
        """As soon as no worker has the table with it any more."""
        plane.data.set_routes(table(("10.0.0.0/8", None, one)))
        plane.data.take_closed()
        plane.data.set_routes(table(("10.0.0.0/8", None, both)))
        return ejected(plane) == []

    eventually(is_forgotten, "the workers to use another table")


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif("PYSIDECAR_UNDER_TEST" in os.environ, reason="sanitizers keep what is freed")
def test_table_changes_leave_nothing(plane: Plane, server: Server) -> None:
    """40 endpoints a change, each of at least 64 bytes, that were not there before: 23 MB if they
    stayed. Some changes find connections that use what was there before."""
    rules = table(("10.0.0.0/8", None, Route())).rules

    def change(turn: int) -> None:
        first = [Address(f"127.1.{turn >> 8}.{turn & 255}", 1 + port) for port in range(40)]
        route = Route(endpoints=(server.address, *first), balance=Balance.ROUND_ROBIN, key=turn)
        plane.data.set_routes(RouteTable(rules, (route,)))

    for turn in range(10_000):
        change(turn)
        if turn % 100 == 0:
            held = plane.through(ELSEWHERE)
            upstream = server.accept()
            change(turn)
            held.close()
            upstream.close()
            plane.data.take_closed()
        if turn == 1000:
            before = resident()
    assert resident() < before + 4_000_000


def test_ten_thousand_routes(plane: Plane, server: Server) -> None:
    entries: list[Entry] = [
        (f"10.{i >> 8}.{i & 255}.0/24", (1000, 1000 + i % 7), Route(action=Action.REFUSE))
        for i in range(9_999)
    ]
    plane.data.set_routes(table(*entries, ("10.0.0.0/8", None, to(server))))
    assert answered_by(plane, Address("10.3.4.5", 999), server) == 0
    plane.next_closed()
    plane.through(Address("10.3.4.5", 1000))
    assert plane.next_closed().route == 3 * 256 + 4


def test_an_inconsistent_table_is_refused_and_the_old_one_stays(
    plane: Plane, server: Server
) -> None:
    good = table(("10.0.0.0/8", None, to(server)))
    plane.data.set_routes(good)
    with pytest.raises(OSError, match="Invalid argument"):
        plane.data.set_routes(RouteTable(rules=good.rules, routes=()))
    assert answered_by(plane, ELSEWHERE, server) == 0


@pytest.mark.parametrize(
    ("first", "count", "result"),
    [
        (0, 1, 0),
        (1, 0, 0),
        (0, 2, -errno.EINVAL),
        (1, 1, -errno.EINVAL),
        (2, 0, -errno.EINVAL),
        (1, 0xFFFFFFFF, -errno.EINVAL),
        (0xFFFFFFFF, 1, -errno.EINVAL),
    ],
)
def test_a_route_has_endpoints_that_are_there(
    plane: Plane, first: int, count: int, result: int
) -> None:
    rules = ffi.from_buffer(compile_rules([]))
    route = ffi.new("struct dp_route[]", [(0, lib.DP_RELAY, lib.DP_ROUND_ROBIN, first, count)])
    endpoints = ffi.new("struct mosnhook_address[]", [Address("127.0.0.1", 80).to_native()])
    arguments = (ffi.cast("struct mosnhook_rules *", rules), route, 1, endpoints, 1)
    assert lib.dp_set_routes(plane.data._dp, lib.DP_OUTBOUND, *arguments) == result
