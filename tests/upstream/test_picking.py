"""Which endpoint is picked. Seeds are fixed, so that nothing here is a matter of luck; the bounds
are such that any other seed would do as well, but for one in a million."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

ROUND_ROBIN, LEAST_CONNECTIONS = 0, 1
NOW = 1_000_000
NEVER = 2**64 - 1  # nobody has failed after that


class Endpoints:
    """A route's."""

    def __init__(self, upstream: tuple[Any, Any], balance: int, count: int) -> None:
        self.ffi, self.lib = upstream
        self.count = count
        self._registry = self.lib.shim_registry()
        route = self.ffi.new("struct shim_route[]", [(1, balance, 0, count)])
        numbers = self.ffi.new("uint32_t[]", list(range(count)))
        self._table = self.lib.shim_table(
            self._registry, 0, self.ffi.NULL, route, 1, numbers, count
        )
        self._cluster = self.lib.shim_take_cluster(self._table, 0)
        self._random = self.ffi.new("uint64_t *", 4711)
        self.active = [0] * count

    def pick(self, since: int = NEVER) -> int:
        return int(self.lib.cluster_pick(self._cluster, since, self._random))

    def picks(self, count: int, *, since: int = NEVER, hold: bool = False) -> list[int]:
        """How often each was picked."""
        counts = self.ffi.new("uint32_t[]", self.count)
        self.lib.shim_pick_many(self._cluster, since, self._random, count, hold, counts)
        picked = list(counts)
        if hold:
            self.active = [a + b for a, b in zip(self.active, picked, strict=True)]
        return picked

    def release(self, index: int, count: int = 1) -> None:
        """So many connections of it end."""
        self.lib.shim_change_active(self._cluster, index, -count)
        self.active[index] -= count

    def fail(self, *indexes: int) -> None:
        for index in indexes:
            self.lib.shim_failed(self._cluster, index, NOW)

    def give_back(self) -> None:
        self.lib.cluster_give_back(self._cluster)

    def close(self) -> None:
        for index, count in enumerate(self.active):
            self.lib.shim_change_active(self._cluster, index, -count)
        self.lib.shim_give_cluster(self._cluster)
        self.lib.table_drop(self._table)
        self.lib.shim_close(self._registry)


@pytest.fixture
def make(upstream: tuple[Any, Any]) -> Iterator[Any]:
    made: list[Endpoints] = []

    def make(balance: int, count: int) -> Endpoints:
        made.append(Endpoints(upstream, balance, count))
        return made[-1]

    yield make
    for each in made:
        each.close()


def spread(counts: Sequence[int]) -> float:
    """How far the most and the least frequent are from the mean, in standard deviations of a fair
    choice."""
    picks, places = sum(counts), len(counts)
    deviation = math.sqrt(picks * (1 / places) * (1 - 1 / places))
    return max(abs(count - picks / places) for count in counts) / deviation


# ---- round robin ----


def test_turns_go_round(make: Any) -> None:
    endpoints = make(ROUND_ROBIN, 3)
    assert [endpoints.pick() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_turn_that_is_given_back_is_the_next(make: Any) -> None:
    endpoints = make(ROUND_ROBIN, 3)
    endpoints.pick()
    assert endpoints.pick() == 1
    endpoints.give_back()
    assert endpoints.pick() == 1


def test_the_turns_of_the_ejected_are_shared_evenly(make: Any) -> None:
    endpoints = make(ROUND_ROBIN, 10)
    endpoints.fail(2, 3, 4, 5, 9)
    assert endpoints.picks(500, since=NOW - 1) == [100, 100, 0, 0, 0, 0, 100, 100, 100, 0]


def test_of_two_the_turns_go_on_when_both_are_ejected(make: Any) -> None:
    endpoints = make(ROUND_ROBIN, 2)
    endpoints.fail(0, 1)
    assert [endpoints.pick(NOW - 1) for _ in range(4)] == [0, 1, 0, 1]


def test_of_many_the_turns_go_on_when_all_are_ejected(make: Any) -> None:
    endpoints = make(ROUND_ROBIN, 100)
    endpoints.fail(*range(100))
    assert endpoints.picks(300, since=NOW - 1) == [3] * 100


def test_a_long_row_of_ejected_ones_does_not_load_those_behind_it(make: Any) -> None:
    """Longer than a pick goes on: then it is any other."""
    endpoints = make(ROUND_ROBIN, 1000)
    endpoints.fail(*range(900))
    picked = endpoints.picks(100_000, since=NOW - 1)
    assert sum(picked[:900]) == 0
    assert min(picked[900:]) > 500
    assert max(picked[900:]) < 2000


# ---- the less busy of two ----


def test_of_two_always_the_less_busy_one(make: Any) -> None:
    endpoints = make(LEAST_CONNECTIONS, 2)
    for _ in range(1000):
        endpoints.picks(1, hold=True)
        assert abs(endpoints.active[0] - endpoints.active[1]) <= 1
    endpoints.release(0, 300)
    assert endpoints.picks(300, hold=True) == [300, 0]


@pytest.mark.parametrize("count", [2, 3, 4, 6, 10, 30, 100])
def test_idle_ones_are_picked_alike(make: Any, count: int) -> None:
    """Of ``count`` normal deviates one is beyond 5.5 once in a hundred thousand times at most."""
    assert spread(make(LEAST_CONNECTIONS, count).picks(1000 * count)) < 5.5


def test_two_choices_are_nearly_as_even_as_all(make: Any) -> None:
    """As many connections as endpoints: by chance alone the busiest would have seven (n/(e k!) of
    them have k: 37 of 10,000 five or more). With two choices the share that has k or more falls
    doubly exponentially: some 1e-2 three, 1e-5 four, 1e-10 five."""
    endpoints = make(LEAST_CONNECTIONS, 10_000)
    endpoints.picks(10_000, hold=True)
    assert max(endpoints.active) <= 4
    assert sum(each >= 3 for each in endpoints.active) < 250


def test_long_lived_connections_stay_even(make: Any) -> None:
    endpoints = make(LEAST_CONNECTIONS, 100)
    endpoints.picks(10_000, hold=True)
    assert max(endpoints.active) - min(endpoints.active) <= 6  # by chance it would be about 50


def test_one_that_comes_back_idle_gets_its_share_but_no_flood(make: Any) -> None:
    endpoints = make(LEAST_CONNECTIONS, 100)
    endpoints.picks(10_000, hold=True)
    endpoints.release(0, endpoints.active[0])
    picked = endpoints.picks(1000, hold=True)
    # It is one of the two once in fifty times: 20 times, with a standard deviation of 4.4.
    assert picked[0] < 20 + 6 * 4.4
    assert picked[0] > 0


@pytest.mark.parametrize("balance", [ROUND_ROBIN, LEAST_CONNECTIONS])
@pytest.mark.parametrize(("count", "ejected"), [(2, 1), (3, 2), (10, 3), (1000, 999), (1000, 500)])
def test_no_ejected_one_is_picked(make: Any, balance: int, count: int, ejected: int) -> None:
    endpoints = make(balance, count)
    endpoints.fail(*range(ejected))
    assert sum(endpoints.picks(2000, since=NOW - 1)[:ejected]) == 0
    # When their time is over they are as good as the others.
    assert sum(endpoints.picks(20 * count, since=NOW)[:ejected]) > 0


@pytest.mark.parametrize("balance", [ROUND_ROBIN, LEAST_CONNECTIONS])
def test_few_that_are_left_among_many_ejected_share_alike(make: Any, balance: int) -> None:
    """They stand side by side, so that whoever goes on from a random place in order would give the
    first of them nearly everything."""
    endpoints = make(balance, 1000)
    endpoints.fail(*range(500), *range(510, 1000))
    picked = endpoints.picks(10_000, since=NOW - 1)[500:510]
    assert sum(picked) == 10_000
    assert min(picked) > 700
    assert max(picked) < 1400


def test_all_that_are_ejected_are_tried_alike(make: Any) -> None:
    endpoints = make(LEAST_CONNECTIONS, 10)
    endpoints.fail(*range(10))
    assert spread(endpoints.picks(10_000, since=NOW - 1)) < 5.5


@pytest.mark.parametrize("balance", [ROUND_ROBIN, LEAST_CONNECTIONS])
@pytest.mark.parametrize("failed", [False, True])
def test_a_single_one_is_always_picked(make: Any, balance: int, failed: bool) -> None:
    endpoints = make(balance, 1)
    if failed:
        endpoints.fail(0)
    assert endpoints.picks(10, since=NOW - 1) == [10]
