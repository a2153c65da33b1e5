"""Everything at once: connections of all kinds, while the control thread reads and changes what the
workers use. Run under ThreadSanitizer, too, which sees what is not ordered between them."""

from __future__ import annotations

import contextlib
import random
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import ip_network

from pysidecar.address import Address
from pysidecar.dataplane import Action, Balance, Route, RouteTable, Timeouts, ffi, lib
from pysidecar.routing.rules import Rule, compile_rules
from tests.dataplane.support import (
    MakePlane,
    Parked,
    Plane,
    closed_address,
    hook_request,
    linger_reset,
    send_with_fds,
)
from tests.serving import Echo, serving
from tests.waiting import PATIENCE

CLIENTS, CONNECTIONS = 4, 40
BULK = bytes(1 << 20)
RELAYED, DIRECT, REFUSED = (Address(f"10.1.2.{last}", 80) for last in (3, 4, 5))


def routes(endpoint: Address, closed: Address) -> list[RouteTable]:
    """Tables that differ in how endpoints are picked, and which there are: some that come and go
    while connections have them."""
    return [
        RouteTable(
            compile_rules(
                Rule([ip_network(destination.host)], None, number)
                for number, destination in enumerate((RELAYED, DIRECT, REFUSED))
            ),
            (
                Route(balance=balance, endpoints=(*passing, closed, endpoint)),
                Route(Action.DIRECT, endpoints=(endpoint,)),
                Route(Action.REFUSE),
            ),
        )
        for balance in (Balance.ROUND_ROBIN, Balance.LEAST_CONNECTIONS)
        for passing in ((), (Address("127.0.0.2", closed.port),), (closed, endpoint))
    ]


# ---- what clients do ----


def exchange(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    left = len(data)
    while left > 0:
        received = len(client.recv(left))
        assert received > 0
        left -= received


def by_header(plane: Plane, data: bytes) -> None:
    with plane.through(RELAYED) as client:
        exchange(client, data)


def aborted(plane: Plane) -> None:
    client = plane.through(RELAYED)
    exchange(client, b"x")
    linger_reset(client)


def refused(plane: Plane) -> None:
    with plane.through(REFUSED) as client, contextlib.suppress(ConnectionError):
        assert client.recv(1) == b""


def parked(plane: Plane, waits: bool) -> None:
    with Parked(plane) as application:
        application.ask(RELAYED, waits=waits)
        assert application.is_writable()
        exchange(application.blocking(), b"parked")


def parked_and_refused(plane: Plane) -> None:
    with Parked(plane) as application:
        application.ask(REFUSED)
        assert application.is_writable()
        assert application.error() != 0


def direct(plane: Plane) -> None:
    with plane.control() as control, plane.owned(socket.socket()) as client:
        send_with_fds(control, hook_request(DIRECT, lib.MOSNHOOK_ASKS), [client.fileno()])
        answer = ffi.from_buffer("struct mosnhook_answer *", control.recv(200))
        assert answer.action == lib.MOSNHOOK_DIRECT
        endpoint = Address.from_native(answer.endpoint)
        assert endpoint
        client.settimeout(PATIENCE)
        client.connect((endpoint.host, endpoint.port))
        exchange(client, b"direct")


def be_a_client(plane: Plane, seed: int) -> None:
    pick = random.Random(seed)
    for _ in range(CONNECTIONS):
        match pick.randrange(8):
            case 0:
                by_header(plane, BULK)
            case 1:
                by_header(plane, b"small")
            case 2:
                aborted(plane)
            case 3:
                refused(plane)
            case 4:
                parked_and_refused(plane)
            case 5:
                direct(plane)
            case waits:
                parked(plane, waits == 7)


# ---- what the control thread does ----


def control(plane: Plane, tables: list[RouteTable], clients: list[Future[None]]) -> set[int]:
    """Until the clients have done: their connections that ended."""
    closed: set[int] = set()
    walk = plane.data.walk()
    turn = 0
    while not all(client.done() for client in clients):
        turn += 1
        plane.data.set_routes(tables[turn % len(tables)])
        plane.data.set_timeouts(Timeouts(connect=2, header=2, ejection=turn % 3 / 10))
        collect(plane, closed)
        plane.data.snapshot()
        if next(walk, None) is None:
            walk = plane.data.walk()
        plane.data.ejected()
        plane.data.counters()
        assert plane.data.passing >= 0  # not compared with `live`: connections end in between
        assert plane.data.live >= 0
    return closed


def collect(plane: Plane, closed: set[int]) -> None:
    ids = [record.id for record in plane.data.take_closed()]
    assert closed.isdisjoint(ids)
    assert len(set(ids)) == len(ids)
    closed.update(ids)


def test_each_connection_is_reported_once_whatever_happens_meanwhile(
    make_plane: MakePlane,
) -> None:
    plane = make_plane(workers=4)
    with serving(Echo) as server, ThreadPoolExecutor(CLIENTS) as pool:
        tables = routes(server, closed_address())
        plane.data.set_routes(tables[0])
        clients = [pool.submit(be_a_client, plane, seed) for seed in range(CLIENTS)]
        closed = control(plane, tables, clients)
        for client in clients:
            client.result()
        left_open = [plane.through(RELAYED) for _ in range(8)]
        for connection in left_open:
            exchange(connection, b"open")
        plane.data.drain()
        plane.stop()
    collect(plane, closed)
    counters = plane.data.counters()
    assert len(closed) == counters.accepted == counters.closed == CLIENTS * CONNECTIONS + 8
    assert counters.buffers == 0
