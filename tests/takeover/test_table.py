"""What is published and subscribed, by whom."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pysidecar.address import Address
from pysidecar.registry.service import Instance, ServiceKey
from pysidecar.takeover.bodies import service_key
from pysidecar.takeover.state import MAX_BYTES as MAX_STATE_BYTES
from pysidecar.takeover.table import (
    MAX_BYTES_PER_USER,
    Publication,
    ServiceTable,
    TableError,
    Watcher,
)

ECHO = ServiceKey("bolt", "Echo:1.0")
HERE = Address("127.0.0.1", 12200)
ALICE, BOB = 1000, 1001


class Seen(Watcher):
    def __init__(self, table: ServiceTable) -> None:
        self.calls: list[tuple[str, Any]] = []
        table.watch(self)

    def published(self, publication: Publication) -> None:
        self.calls.append(("published", publication))

    def unpublished(self, publication: Publication) -> None:
        self.calls.append(("unpublished", publication))

    def subscribed(self, service: ServiceKey) -> None:
        self.calls.append(("subscribed", service))

    def unsubscribed(self, service: ServiceKey) -> None:
        self.calls.append(("unsubscribed", service))

    def pushed(self, service: ServiceKey) -> None:
        self.calls.append(("pushed", service))


def test_who_watches_is_told_once() -> None:
    table = ServiceTable()
    seen = Seen(table)
    published = Publication(ECHO, HERE, ALICE)
    table.publish(published)
    table.publish(published)
    table.set_alive(published, False)
    table.set_alive(published, False)
    assert table.unpublish(ECHO, ALICE)
    assert not table.unpublish(ECHO, ALICE)
    assert [what for what, _ in seen.calls] == ["published", "published", "unpublished"]
    assert [each.alive for _, each in seen.calls] == [True, False, False]


def test_only_its_user_and_root_unpublish_a_service() -> None:
    table = ServiceTable()
    table.publish(Publication(ECHO, HERE, ALICE))
    with pytest.raises(TableError, match="another user"):
        table.unpublish(ECHO, BOB)
    with pytest.raises(TableError, match="another user"):
        table.publish(Publication(ECHO, HERE, BOB))
    with pytest.raises(TableError, match="another user"):
        table.publish(Publication(ECHO, Address("127.0.0.1", 6666), BOB))
    assert [each.uid for each in table.publications] == [ALICE]
    assert table.unpublish(ECHO, 0)
    assert not list(table.publications)


def test_what_the_same_calls_may_be_meant_for_has_one_user() -> None:
    """grpc and tri are one on the wire, and health checks are about all of it."""
    table = ServiceTable()
    grpc, tri = ServiceKey("grpc", "a.Echo"), ServiceKey("tri", "a.Echo", "1.0")
    health, other = ServiceKey("grpc", "grpc.health.v1.Health"), ServiceKey("grpc", "b.Other")
    table.publish(Publication(grpc, HERE, ALICE))
    table.publish(Publication(other, HERE, BOB))
    for service in (tri, health):
        with pytest.raises(TableError, match="another user"):
            table.publish(Publication(service, HERE, BOB))
    table.publish(Publication(tri, HERE, ALICE))
    table.unpublish(grpc, ALICE)
    with pytest.raises(TableError, match="another user"):
        table.publish(Publication(grpc, HERE, BOB))
    table.publish(Publication(health, HERE, 0))
    table.unpublish(tri, ALICE)
    table.publish(Publication(grpc, HERE, BOB))
    table.publish(Publication(ServiceKey("dubbo", "b.Other"), HERE, ALICE))


def test_a_subscription_lasts_until_the_last_user_is_gone() -> None:
    table = ServiceTable()
    seen = Seen(table)
    table.subscribe(ECHO, ALICE)
    table.subscribe(ECHO, BOB)
    table.push(ECHO, [Instance(HERE)])
    assert table.unsubscribe(ECHO, ALICE)
    assert not table.unsubscribe(ECHO, ALICE)
    assert table.instances_of(ECHO) == (Instance(HERE),)
    assert table.unsubscribe(ECHO, BOB)
    table.push(ECHO, [])
    assert [what for what, _ in seen.calls] == ["subscribed", "pushed", "unsubscribed"]
    assert table.instances_of(ECHO) == ()


def test_the_same_push_is_no_change_but_the_first_empty_one_is() -> None:
    table = ServiceTable()
    table.subscribe(ECHO, ALICE)
    assert not table.is_known(ECHO)
    seen = Seen(table)
    for _ in range(2):
        table.push(ECHO, [])
    assert table.is_known(ECHO)
    assert len(seen.calls) == 1


def test_calls_of_bolt_which_say_no_group_have_one_user() -> None:
    table = ServiceTable()
    grouped = ServiceKey("bolt", ECHO.name, group="another")
    table.publish(Publication(ECHO, HERE, ALICE))
    with pytest.raises(TableError, match="another user"):
        table.publish(Publication(grouped, HERE, BOB))
    table.publish(Publication(ServiceKey("dubbo", ECHO.name), HERE, BOB))
    table.publish(Publication(grouped, HERE, ALICE))
    table.unpublish(ECHO, ALICE)
    with pytest.raises(TableError, match="another user"):
        table.publish(Publication(ECHO, HERE, BOB))
    table.unpublish(grouped, ALICE)
    table.publish(Publication(ECHO, HERE, BOB))


@pytest.mark.parametrize("protocol", ["dubbo", "tri"])
@pytest.mark.parametrize(("name", "version"), [("Echo", "0.0.0"), ("Echo:0.0.0", "")])
def test_dubbos_word_for_no_version_is_none(protocol: str, name: str, version: str) -> None:
    """Else who publishes that would share the calls of who publishes without."""
    assert service_key(protocol, name, "", version) == ServiceKey(protocol, "Echo")
    assert ServiceKey.parse(protocol, "Echo:0.0.0") == ServiceKey(protocol, "Echo")


@pytest.mark.parametrize(("uid", "share"), [(ALICE, 1), (0, 8)])
def test_a_user_has_so_many_and_no_more(uid: int, share: int) -> None:
    table = ServiceTable(limit=2)
    for number in range(2 * share):
        table.publish(Publication(ServiceKey("bolt", f"S{number}:1.0"), HERE, uid))
        table.subscribe(ServiceKey("bolt", f"S{number}:1.0"), uid)
    with pytest.raises(TableError, match=f"user {uid} has published"):
        table.publish(Publication(ECHO, HERE, uid))
    with pytest.raises(TableError, match=f"user {uid} has subscribed"):
        table.subscribe(ECHO, uid)
    table.subscribe(ECHO, BOB)
    table.unpublish(ServiceKey("bolt", "S0:1.0"), uid)
    table.publish(Publication(ECHO, HERE, uid))


def _publish_all(table: ServiceTable, uid: int) -> None:
    metadata = (("text", "\N{GRINNING FACE}" * 10_000),)
    for number in range(10_000):
        key = ServiceKey("bolt", f"{uid}-{number}")
        table.publish(Publication(key, HERE, uid, metadata=metadata))


def _publish_long(table: ServiceTable, uid: int) -> None:
    """As much as is taken."""
    with pytest.raises(TableError, match=f"user {uid} has .* bytes of services already, the limit"):
        _publish_all(table, uid)


def test_a_user_says_so_many_bytes_and_no_more() -> None:
    table = ServiceTable()
    _publish_long(table, ALICE)
    published, _ = table.counts(ALICE)
    assert published == MAX_BYTES_PER_USER // 40_600
    table.publish(Publication(ECHO, HERE, BOB))
    long = ServiceKey("bolt", f"{ALICE}-0")
    assert table.unpublish(long, ALICE)
    table.publish(Publication(long, HERE, ALICE, metadata=(("text", "shorter"),)))
    table.publish(Publication(long, HERE, ALICE, metadata=(("text", "a little longer"),)))


def test_whatever_many_users_say_it_is_kept_on_disk_with_all_that_others_say() -> None:
    """One who is many has less and less room, and others' services are not lost for that."""
    table = ServiceTable()
    table.publish(Publication(ECHO, HERE, BOB))
    for uid in range(100_000, 100_030):
        _publish_long(table, uid)
    _publish_long(table, 0)
    table.publish(Publication(ServiceKey("bolt", "Another"), HERE, BOB))
    text = TypeAdapter(list[Publication]).dump_json(list(table.publications))
    assert len(text) < MAX_STATE_BYTES


def test_calls_for_what_is_nowhere_do_not_end_what_is_subscribed_on_demand() -> None:
    table = ServiceTable(limit=3)
    nowhere = [ServiceKey("http", f"nowhere-{number}") for number in range(5)]
    table.demand(ECHO)
    table.push(ECHO, [Instance(HERE)])
    for each in nowhere:
        table.demand(each)
    found = [service for service, *_ in table.subscriptions]
    assert found == [ECHO, *nowhere[-2:]]
    for each in found:
        table.push(each, [Instance(HERE)])
    with pytest.raises(TableError, match="on demand there are subscribed 3 services"):
        table.demand(nowhere[0])


def test_what_is_leaving_may_come_back() -> None:
    table = ServiceTable()
    seen = Seen(table)
    published = Publication(ECHO, HERE, ALICE)
    table.publish(published)
    with pytest.raises(TableError, match="another user"):
        table.begin_unpublish(ECHO, BOB)
    leaving = table.begin_unpublish(ECHO, ALICE)
    assert [each.is_offered for each in table.published_of(ECHO)] == [False]
    table.publish(published)
    table.end_unpublish(leaving)
    assert list(table.publications) == [published]
    table.end_unpublish(table.begin_unpublish(ECHO, ALICE))
    assert not list(table.publications)
    assert seen.calls[-1][0] == "unpublished"
    assert table.begin_unpublish(ECHO, ALICE) == []


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "unpublish", "subscribe", "unsubscribe"]),
        st.integers(0, 3),
        st.sampled_from([0, ALICE, BOB]),
    ),
    max_size=60,
)


@given(_STEPS)
def test_counts_are_right_after_anything(steps: list[tuple[str, int, int]]) -> None:
    """A user whose count is wrong could have too many, or at last none."""
    table = ServiceTable(limit=3)
    for what, number, uid in steps:
        service = ServiceKey("bolt", f"S{number}:1.0")
        try:
            if what == "publish":
                table.publish(Publication(service, Address("127.0.0.1", 1 + uid), uid))
            elif what == "unpublish":
                table.unpublish(service, uid)
            elif what == "subscribe":
                table.subscribe(service, uid)
            else:
                table.unsubscribe(service, uid)
        except TableError:
            continue
    for uid in (0, ALICE, BOB):
        published = sum(each.uid == uid for each in table.publications)
        subscribed = sum(uid in uids for _, uids, _ in table.subscriptions)
        assert table.counts(uid) == (published, subscribed)
        assert uid == 0 or max(published, subscribed) <= 3
