"""A walk over the live connections in pieces, between which they close and others come."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pysidecar import dataplane
from pysidecar.dataplane import ConnectionRecord
from tests.dataplane.support import Plane, Server, open_pair
from tests.waiting import eventually

PIECE = 3


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataplane, "WALK_PIECE", PIECE)


class Pairs:
    """Connections by their ids in the data plane."""

    def __init__(self, plane: Plane, server: Server) -> None:
        self._plane = plane
        self._server = server
        self.by_id: dict[int, tuple[socket.socket, socket.socket]] = {}

    def open(self, count: int) -> None:
        for _ in range(count):
            pair = open_pair(self._plane, self._server, "header")
            [new] = {record.id for record in self._plane.data.snapshot()} - self.by_id.keys()
            self.by_id[new] = pair

    def close(self, ids: set[int]) -> None:
        """Until the data plane has forgotten them."""
        for number in ids:
            for end in self.by_id.pop(number):
                end.close()
        forgotten: set[int] = set()

        def gone() -> bool:
            forgotten.update(record.id for record in self._plane.data.take_closed())
            return forgotten >= ids

        eventually(gone, "connections to be reported")


@pytest.fixture
def pairs(plane: Plane, server: Server) -> Pairs:
    return Pairs(plane, server)


def ids(pieces: Iterator[list[ConnectionRecord]]) -> list[int]:
    return [record.id for piece in pieces for record in piece]


@pytest.mark.parametrize("count", [0, 1, PIECE, 2 * PIECE + 1])
def test_a_walk_sees_each_connection_once(plane: Plane, pairs: Pairs, count: int) -> None:
    pairs.open(count)
    pieces = list(plane.data.walk())
    assert all(1 <= len(piece) <= PIECE for piece in pieces)
    assert sorted(ids(iter(pieces))) == sorted(pairs.by_id)


def test_what_closes_before_the_walk_is_there_is_left_out(plane: Plane, pairs: Pairs) -> None:
    pairs.open(4 * PIECE)
    order = ids(plane.data.walk())
    walk = plane.data.walk()
    seen = ids(iter([next(walk)]))
    assert seen == order[:PIECE]
    # The next one in line, its successor, one that was seen, and the last.
    pairs.close({order[PIECE], order[PIECE + 1], order[0], order[-1]})
    pairs.open(2)  # not looked for
    assert ids(walk) == order[PIECE + 2 : -1]


def test_all_that_is_left_may_close(plane: Plane, pairs: Pairs) -> None:
    pairs.open(2 * PIECE)
    walks = [plane.data.walk() for _ in range(3)]
    for walk in walks:
        next(walk)
    pairs.close(set(pairs.by_id))
    assert [list(walk) for walk in walks] == [[], [], []]


def test_walks_end_in_any_order(plane: Plane, pairs: Pairs) -> None:
    pairs.open(2 * PIECE)
    first, second, third = (plane.data.walk() for _ in range(3))
    for walk in (first, second, third):
        next(walk)
    second.close()
    pairs.close(set(pairs.by_id))
    assert list(third) == list(first) == []


def test_a_walk_may_outlive_its_data_plane(server: Server) -> None:
    with Plane() as plane:
        Pairs(plane, server).open(PIECE + 1)
        abandoned, walk = plane.data.walk(), plane.data.walk()
        next(abandoned)
        next(walk)
    assert list(walk) == []
    abandoned.close()
