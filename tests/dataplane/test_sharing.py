"""How connections are shared out among the workers."""

from __future__ import annotations

import random
import select
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import Action, End, Route, lib
from tests.dataplane.support import (
    MakePlane,
    Parked,
    Plane,
    Server,
    hook_request,
    linger_reset,
    open_pair,
    send_with_fds,
    table,
)
from tests.waiting import PATIENCE, eventually

WORKERS = 4

# What each worker decides from is at most one connection of each other worker too old; of many
# connections, an eighth more do not matter.
_UNSEEN = WORKERS


def _is_even(loads: list[int]) -> bool:
    return max(loads) <= min(loads) + min(loads) // 8 + _UNSEEN


def wait_until_counted(plane: Plane, count: int) -> None:
    eventually(lambda: sum(plane.data.loads) == count, f"{count} connections to be counted")


@pytest.fixture
def four(make_plane: MakePlane) -> Plane:
    return make_plane(workers=WORKERS)


@pytest.mark.parametrize("transport", ["header", "unix"])
def test_connections_that_come_one_by_one_are_shared_out_evenly(
    four: Plane, server: Server, transport: str
) -> None:
    pairs = []
    for count in range(1, 3 * WORKERS + 1):
        pairs.append(open_pair(four, server, transport))
        wait_until_counted(four, len(pairs))
        assert max(four.data.loads) == -(-count // WORKERS), four.data.loads
    for client, upstream in pairs:
        client.sendall(b"x")
        assert upstream.recv(1) == b"x"


@pytest.mark.parametrize("transport", ["header", "unix"])
def test_connections_that_come_at_once_are_shared_out_evenly(
    four: Plane, server: Server, transport: str
) -> None:
    count = 32
    with ThreadPoolExecutor(count) as pool:
        clients = list(pool.map(lambda _: _client(four, server, transport), range(count)))
        upstreams = [server.accept() for _ in clients]
    wait_until_counted(four, count)
    assert _is_even(four.data.loads), four.data.loads
    for upstream in upstreams:
        upstream.sendall(b"x")
    assert all(client.recv(1) == b"x" for client in clients)


def test_connections_that_ask_and_go_themselves_are_shared_out_evenly(
    four: Plane, server: Server
) -> None:
    direct = Route(Action.DIRECT, endpoints=(server.address,))
    four.data.set_routes(table(("0.0.0.0/0", None, direct)))
    request = hook_request(Address("10.1.2.3", 80), lib.MOSNHOOK_ASKS)
    for count in range(1, 2 * WORKERS + 1):
        application, control = four.owned(socket.socket()), four.control()
        send_with_fds(control, request, [application.fileno()])
        assert control.recv(200)
        application.connect((server.address.host, server.address.port))
        wait_until_counted(four, count)
        assert max(four.data.loads) == -(-count // WORKERS), four.data.loads


def test_connections_that_say_nothing_are_shared_out_evenly(four: Plane) -> None:
    for count in range(1, 2 * WORKERS + 1):
        (four.control if count % 2 else four.connect)()
        wait_until_counted(four, count)
        assert max(four.data.loads) == -(-count // WORKERS), four.data.loads


@pytest.mark.parametrize("transport", ["header", "unix"])
def test_whoever_has_lost_connections_gets_the_next_ones(
    four: Plane, server: Server, transport: str
) -> None:
    """Connections close and come again, in any order."""
    choice = random.Random(1)
    pairs = [open_pair(four, server, transport) for _ in range(16)]
    for _ in range(10):
        choice.shuffle(pairs)
        for client, upstream in pairs[:10]:
            linger_reset(client)
            upstream.close()
        del pairs[:10]
        wait_until_counted(four, len(pairs))
        while len(pairs) < 16:
            few = min(four.data.loads)
            pairs.append(open_pair(four, server, transport))
            wait_until_counted(four, len(pairs))
            assert few < 4 or min(four.data.loads) == 4
    assert four.data.loads == [4, 4, 4, 4]


@pytest.mark.parametrize("transport", ["header", "unix"])
def test_a_drain_loses_none_that_came_before(four: Plane, server: Server, transport: str) -> None:
    """Wherever they are: at a listener, between two workers, or being connected."""
    count = 200
    clients = [_ask(four, server, transport) for _ in range(count)]
    four.data.drain()
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(_serve_and_close, server, clients)
        eventually(lambda: four.data.drained and not four.data.passing, "the end of all")
        four.stop()
        serving.result()
    assert [record.end for record in four.closed()] == [End.EOF] * count


def _serve_and_close(server: Server, clients: list[socket.socket]) -> None:
    upstreams = [server.accept() for _ in clients]
    for upstream in upstreams:
        upstream.sendall(b"x")
        upstream.close()
    for client in clients:
        assert client.recv(2) == b"x"
        client.close()


def _ask(plane: Plane, server: Server, transport: str) -> socket.socket:
    """A client that does not wait for its connection."""
    if transport == "header":
        return plane.through(server.address)
    application = Parked(plane)
    application.ask(server.address)
    return application.blocking()


def _client(plane: Plane, server: Server, transport: str) -> socket.socket:
    """One that does."""
    client = _ask(plane, server, transport)
    assert select.select([], [client], [], PATIENCE)[1]
    return client
