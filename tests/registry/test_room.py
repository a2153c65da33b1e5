"""How much of what a registry tells is kept."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysidecar.address import Address
from pysidecar.registry.known import Known
from pysidecar.registry.room import FAIR, Room, Share
from pysidecar.registry.service import Instance, ServiceKey


def _instances(count: int, metadata: str = "") -> dict[Address, Instance]:
    addresses = [Address(f"10.0.{n >> 8}.{n & 255}", 80) for n in range(count)]
    more = (("about", metadata),) if metadata else ()
    return {each: Instance(each, metadata=more) for each in addresses}


def test_all_is_kept_as_it_is_where_there_is_room() -> None:
    room = Room(instances=100, characters=1000)
    wanted = _instances(100, "x")
    taken, share = room.take(wanted)
    assert taken is wanted
    assert share == Share(100, 600)
    room.give_back(share)
    assert room.taken == Share()


def test_each_service_has_a_few_however_large_others_are() -> None:
    room = Room(instances=100, characters=1000)
    first, _ = room.take(_instances(500))
    assert len(first) == 100
    late, _ = room.take(_instances(500))
    assert list(late) == list(first)[:FAIR]
    assert room.taken.instances == 100 + FAIR


def test_what_instances_say_is_left_out_before_they_are() -> None:
    room = Room(instances=100, characters=1000)
    taken, share = room.take(_instances(20, "x" * 95))
    assert [bool(each.metadata) for each in taken.values()] == [True] * 10 + [False] * 10
    assert share == Share(20, 1000)
    late, _ = room.take(_instances(1, "x"))
    assert not next(iter(late.values())).metadata


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.booleans())))
def test_it_is_never_exceeded_by_more_than_the_few(
    steps: list[tuple[int, int, bool]],
) -> None:
    room = Room(instances=50, characters=500)
    shares: list[Share] = []
    for count, length, back in steps:
        taken, share = room.take(_instances(count, "x" * length))
        assert len(taken) == share.instances >= min(count, FAIR)
        shares.append(share)
        if back:
            room.give_back(shares.pop(0))
        assert room.taken.instances == sum(each.instances for each in shares)
        assert room.taken.instances <= 50 + FAIR * len(shares)
        assert room.taken.characters == sum(each.characters for each in shares) <= 500
    for share in shares:
        room.give_back(share)
    assert room.taken == Share()


def test_known_services_share_it(caplog: pytest.LogCaptureFixture) -> None:
    told: dict[ServiceKey, Sequence[Instance]] = {}
    known = Known(told.__setitem__, Room(instances=100))
    large, late = ServiceKey("http", "large"), ServiceKey("http", "late")
    for service in (large, late):
        known.add(service, ())
        known.push(service, list(_instances(500).values()))
    assert (len(told[large]), len(told[late]), known.count) == (100, FAIR, 100 + FAIR)
    assert known.cut == 2
    assert len(caplog.messages) == 1
    assert "of large 100 instances" in caplog.text
    known.push(large, list(_instances(50).values()))
    assert not known.is_cut(large)
    known.push(late, list(_instances(60).values()))
    assert (len(told[late]), known.is_cut(late)) == (50, True)
    known.remove(large)
    known.push(late, list(_instances(60).values()))
    assert (len(told[late]), known.cut, known.count) == (60, 0, 60)


def test_what_was_known_before_has_room_as_well() -> None:
    known = Known(lambda *_: None, Room(instances=100))
    known.add(ServiceKey("http", "large"), list(_instances(500).values()))
    assert (known.count, known.cut) == (100, 1)
