"""What outlives a route table, and for how long: against a model, in any order of changes, picks
and ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

ROUND_ROBIN, LEAST_CONNECTIONS = 0, 1
WORKERS, SCOPES = 2, 2
EJECTION_MS = 10
_MOST = 64

Contents = tuple[int, int, tuple[int, ...]]
"""A route: key, balance, endpoints."""


@dataclass(eq=False)
class Endpoint:
    active: int = 0
    failed_ms: int = 0


@dataclass(eq=False)
class Cluster:
    scope: int
    contents: Contents
    endpoints: list[Endpoint]
    turn: int = 0


@dataclass(eq=False)
class Table:
    raw: Any
    clusters: list[Cluster | None]


@dataclass(eq=False)
class Connection:
    cluster: Cluster
    raw: Any
    index: int
    endpoint: Endpoint = field(init=False)

    def __post_init__(self) -> None:
        self.endpoint = self.cluster.endpoints[self.index]


routes = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([ROUND_ROBIN, LEAST_CONNECTIONS]),
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
    ),
    max_size=4,
)


class Lives(RuleBasedStateMachine):
    """Two workers and the control thread, in turns."""

    ffi: Any
    lib: Any

    def __init__(self) -> None:
        super().__init__()
        self.registry = self.lib.shim_registry()
        self.random = self.ffi.new("uint64_t *", 1)
        self.now = 1000
        self.control: list[Table | None] = [None] * SCOPES
        self.offered: list[list[Table | None]] = [[None] * SCOPES for _ in range(WORKERS)]
        self.used: list[list[Table | None]] = [[None] * SCOPES for _ in range(WORKERS)]
        self.connections: list[Connection] = []
        self.clusters: list[Cluster] = []  # the oldest first

    # ---- the model ----

    def tables(self) -> list[Table]:
        """One as often as it is referenced."""
        return [
            table
            for tables in (self.control, *self.offered, *self.used)
            for table in tables
            if table
        ]

    def referenced(self) -> list[Cluster]:
        """In the order in which they were made."""
        kept = {cluster for table in self.tables() for cluster in table.clusters}
        kept |= {connection.cluster for connection in self.connections}
        return [cluster for cluster in self.clusters if cluster in kept]

    def endpoint(self, scope: int, number: int) -> Endpoint:
        for cluster in self.clusters:
            for known, endpoint in zip(cluster.contents[2], cluster.endpoints, strict=True):
                if cluster.scope == scope and known == number:
                    return endpoint
        return Endpoint()

    def intern(self, scope: int, contents: Contents) -> Cluster | None:
        if not contents[2]:
            return None
        turn = 0
        for cluster in self.clusters:
            if cluster.scope == scope and cluster.contents == contents:
                return cluster
            if cluster.scope == scope and cluster.contents[0] == contents[0]:
                turn = cluster.turn
        numbers = contents[2]
        by_number = {number: self.endpoint(scope, number) for number in set(numbers)}
        made = Cluster(scope, contents, [by_number[number] for number in numbers], turn)
        self.clusters.append(made)
        return made

    def collect(self) -> None:
        self.lib.shim_collect(self.registry)
        self.clusters = self.referenced()

    # ---- what happens ----

    @rule(scope=st.integers(0, SCOPES - 1), entries=routes, at_once=st.booleans())
    def change(self, scope: int, entries: list[Contents], at_once: bool) -> None:
        raw_routes: list[tuple[int, int, int, int]] = []
        numbers: list[int] = []
        for key, balance, endpoints in entries:
            raw_routes.append((key, balance, len(numbers), len(endpoints)))
            numbers.extend(endpoints)
        raw = self.lib.shim_table(
            self.registry,
            scope,
            control.raw if (control := self.control[scope]) else self.ffi.NULL,
            self.ffi.new("struct shim_route[]", raw_routes),
            len(raw_routes),
            self.ffi.new("uint32_t[]", numbers),
            len(numbers),
        )
        table = Table(raw, [self.intern(scope, contents) for contents in entries])
        for offered in self.offered:
            self.lib.shim_reference(raw)
            if before := offered[scope]:
                self.lib.table_drop(before.raw)
            offered[scope] = table
        if control:
            self.lib.table_drop(control.raw)
        self.control[scope] = table
        self.clusters = self.referenced()  # what the control thread drops is gone at once
        for worker in range(WORKERS if at_once else 0):
            self.take_over(worker, scope)

    @rule(worker=st.integers(0, WORKERS - 1), scope=st.integers(0, SCOPES - 1))
    def take_over(self, worker: int, scope: int) -> None:
        if table := self.offered[worker][scope]:
            if before := self.used[worker][scope]:
                self.lib.table_release(before.raw)
            self.used[worker][scope], self.offered[worker][scope] = table, None
            self.collect()

    @rule(
        worker=st.integers(0, WORKERS - 1), scope=st.integers(0, SCOPES - 1), which=st.integers(0)
    )
    def connect(self, worker: int, scope: int, which: int) -> None:
        table = self.used[worker][scope]
        if not table or not table.clusters:
            return
        which %= len(table.clusters)
        raw = self.lib.shim_take_cluster(table.raw, which)
        cluster = table.clusters[which]
        assert (raw == self.ffi.NULL) == (cluster is None)
        if not cluster:
            return
        since = self.now - EJECTION_MS
        index = self.lib.cluster_pick(raw, since, self.random)
        self.check_pick(cluster, index, since)
        self.lib.shim_change_active(raw, index, 1)
        cluster.endpoints[index].active += 1
        self.connections.append(Connection(cluster, raw, index))

    def check_pick(self, cluster: Cluster, index: int, since: int) -> None:
        endpoints = cluster.endpoints
        healthy = [at for at, endpoint in enumerate(endpoints) if endpoint.failed_ms <= since]
        if cluster.contents[1] == ROUND_ROBIN:
            if healthy:
                while cluster.turn % len(endpoints) not in healthy:
                    cluster.turn += 1
            assert index == cluster.turn % len(endpoints)
            cluster.turn += 1
            return
        assert index in healthy or not healthy
        if len(healthy) == len(endpoints) > 1:
            others = [each.active for at, each in enumerate(endpoints) if at != index]
            assert endpoints[index].active <= max(others)

    @precondition(lambda self: self.connections)
    @rule(which=st.integers(0), outcome=st.sampled_from(["fails", "succeeds", "ends"]))
    def go_on(self, which: int, outcome: str) -> None:
        connection = self.connections[which % len(self.connections)]
        endpoint = connection.endpoint
        match outcome:
            case "fails":
                self.lib.shim_failed(connection.raw, connection.index, self.now)
                endpoint.failed_ms = self.now
            case "succeeds":
                self.lib.shim_succeeded(connection.raw, connection.index)
                endpoint.failed_ms = 0
            case "ends":
                self.lib.shim_change_active(connection.raw, connection.index, -1)
                endpoint.active -= 1
                self.lib.shim_give_cluster(connection.raw)
                self.connections.remove(connection)
                self.collect()

    @rule(ms=st.integers(1, EJECTION_MS))
    def wait(self, ms: int) -> None:
        self.now += ms

    # ---- what is always true ----

    @invariant()
    def the_same_is_known(self) -> None:
        assert self.lib.shim_cluster_count(self.registry) == len(self.clusters)
        for scope in range(SCOPES):
            expected = {
                (number, endpoint.active, endpoint.failed_ms)
                for cluster in self.clusters
                if cluster.scope == scope
                for number, endpoint in zip(cluster.contents[2], cluster.endpoints, strict=True)
            }
            assert self.known(scope) == sorted(expected)

    def known(self, scope: int) -> list[tuple[int, int, int]]:
        numbers, active = self.ffi.new("uint32_t[]", _MOST), self.ffi.new("uint32_t[]", _MOST)
        failed = self.ffi.new("uint64_t[]", _MOST)
        count = self.lib.shim_endpoints(self.registry, scope, numbers, active, failed, _MOST)
        return sorted((numbers[i], active[i], failed[i]) for i in range(count))

    def teardown(self) -> None:
        while self.connections:
            self.go_on(0, "ends")
        for table in self.tables():
            self.lib.table_drop(table.raw)
        self.lib.shim_close(self.registry)  # asserts that nothing is left


@pytest.mark.timeout(300)  # a failure takes time to be made small
def test_what_is_known_is_what_is_used(upstream: tuple[Any, Any]) -> None:
    class Machine(Lives):
        ffi, lib = upstream

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class Tables:
    """One table after the other, of which a worker takes each over at once."""

    def __init__(self, upstream: tuple[Any, Any]) -> None:
        self.ffi, self.lib = upstream
        self.registry = self.lib.shim_registry()
        self.random = self.ffi.new("uint64_t *", 1)
        self.table: Any = None

    def change(self, *entries: Contents) -> None:
        numbers = [number for _, _, endpoints in entries for number in endpoints]
        raw, first = [], 0
        for key, balance, endpoints in entries:
            raw.append((key, balance, first, len(endpoints)))
            first += len(endpoints)
        routes = self.ffi.new("struct shim_route[]", raw)
        count, numbers = len(numbers), self.ffi.new("uint32_t[]", numbers)
        before = self.table or self.ffi.NULL
        table = self.lib.shim_table(self.registry, 0, before, routes, len(raw), numbers, count)
        if self.table:
            self.lib.table_drop(self.table)
        self.table = table

    def pick(self, route: int) -> int:
        cluster = self.lib.shim_take_cluster(self.table, route)
        index = self.lib.cluster_pick(cluster, 2**64 - 1, self.random)
        self.lib.shim_give_cluster(cluster)
        return int(index)

    def close(self) -> None:
        self.lib.table_drop(self.table)
        self.lib.shim_close(self.registry)


@pytest.fixture
def tables(upstream: tuple[Any, Any]) -> Iterator[Tables]:
    made = Tables(upstream)
    yield made
    made.close()


def test_turns_go_on_wherever_a_route_stands(tables: Tables) -> None:
    one, other = (1, ROUND_ROBIN, (1, 2, 3)), (2, ROUND_ROBIN, (1, 2, 3))
    tables.change(one, other)
    assert [tables.pick(0), tables.pick(0), tables.pick(1)] == [0, 1, 0]
    tables.change((3, ROUND_ROBIN, (1, 2, 3)), other, one)
    assert [tables.pick(0), tables.pick(1), tables.pick(2)] == [0, 1, 2]


def test_turns_go_on_when_an_endpoint_comes_or_goes(tables: Tables) -> None:
    """Where they began anew, the first endpoints would have nearly all connections for as long as
    changes come as fast as connections."""
    picked = []
    for turn in range(12):
        tables.change((1, ROUND_ROBIN, (1, 2, 3, 10 + turn)))
        picked.append(tables.pick(0))
    assert picked == [0, 1, 2, 3] * 3


def test_turns_go_on_from_the_newest(tables: Tables) -> None:
    """Also while a connection still has the route as it was before that."""
    tables.change((1, ROUND_ROBIN, (1, 2, 3)))
    old = tables.lib.shim_take_cluster(tables.table, 0)
    tables.change((1, ROUND_ROBIN, (1, 2, 3, 4)))
    picked = [tables.pick(0) for _ in range(2)]
    tables.change((1, ROUND_ROBIN, (1, 2, 3, 4, 5)))
    picked.append(tables.pick(0))
    tables.lib.shim_give_cluster(old)
    assert picked == [0, 1, 2]


@contextmanager
def registry_of(upstream: tuple[Any, Any]) -> Iterator[Any]:
    _, lib = upstream
    registry = lib.shim_registry()
    yield registry
    lib.shim_close(registry)


def test_a_million_endpoints_come_and_go(upstream: tuple[Any, Any]) -> None:
    """Nothing of them stays, and the table in which they are looked up gets small again."""
    ffi, lib = upstream
    with registry_of(upstream) as registry:
        before = ffi.NULL
        for first in range(0, 1_000_000, 100_000):
            route = ffi.new("struct shim_route[]", [(1, ROUND_ROBIN, 0, 100_000)])
            numbers = ffi.new("uint32_t[]", list(range(first, first + 100_000)))
            table = lib.shim_table(registry, 0, before, route, 1, numbers, 100_000)
            if before:
                lib.table_drop(before)
            before = table
            assert lib.shim_endpoint_count(registry) == 100_000
        lib.table_drop(before)
        assert lib.shim_endpoint_count(registry) == 0
        assert lib.shim_bucket_count(registry) <= 16


@pytest.mark.parametrize("scopes", [(0, 0), (0, 1)])
def test_directions_have_their_own(upstream: tuple[Any, Any], scopes: tuple[int, int]) -> None:
    ffi, lib = upstream
    with registry_of(upstream) as registry:
        route = ffi.new("struct shim_route[]", [(1, ROUND_ROBIN, 0, 1)])
        numbers = ffi.new("uint32_t[]", [7])
        tables = [
            lib.shim_table(registry, scope, ffi.NULL, route, 1, numbers, 1) for scope in scopes
        ]
        assert lib.shim_endpoint_count(registry) == len(set(scopes))
        for table in tables:
            lib.table_drop(table)
