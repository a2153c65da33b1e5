"""Dubbo Admin's rules in ZooKeeper, as they are read; Dubbo itself obeys them in
tests/registry/test_zookeeper_java.py."""

from __future__ import annotations

import contextlib
from urllib.parse import quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysidecar.address import Address
from pysidecar.registry.service import Instance
from pysidecar.registry.zookeeper.layout import Variant
from pysidecar.registry.zookeeper.overrides import overridden, read_override

ONE, OTHER = (Instance(Address(f"10.0.0.{each}", 20880)) for each in (7, 8))
RULE = "x?category=configurators&dynamic=false"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], [100, 100]),
        (["10.0.0.7:20880/{}&weight=7"], [7, 100]),
        (["10.0.0.7:20880/{}&disabled=true"], [None, 100]),
        (["0.0.0.0/{}&weight=0"], [0, 0]),
        (["0.0.0.0:20880/{}&weight=3"], [3, 3]),
        (["0.0.0.0:1/{}&weight=3"], [100, 100]),
        # The rule for one provider comes last, whatever the order in which they are kept.
        (["10.0.0.7:20880/{}&disabled=false", "0.0.0.0/{}&disabled=true"], [100, None]),
        (["0.0.0.0/{}&weight=3&priority=2", "0.0.0.0/{}&weight=4&priority=1"], [3, 3]),
        # Of another version or group; switched off; for one consumer, application or side only.
        (["0.0.0.0/{}&weight=3&version=1.0"], [100, 100]),
        (["0.0.0.0/{}&weight=3&group=blue"], [100, 100]),
        (["0.0.0.0/{}&weight=3&enabled=false"], [100, 100]),
        (["10.0.0.7/{}&weight=3"], [100, 100]),
        (["0.0.0.0/{}&weight=3&application=orders"], [100, 100]),
        (["0.0.0.0/{}&weight=3&side=provider"], [100, 100]),
        (["0.0.0.0/{}&weight=3&~host=x"], [100, 100]),
        (["0.0.0.0/{}&timeout=3"], [100, 100]),
    ],
)
def test_rules_count_as_for_dubbos_consumers(rules: list[str], expected: list[int | None]) -> None:
    read = [read_override(quote_plus(f"override://{rule.format(RULE)}")) for rule in rules]
    found = overridden([ONE, OTHER], [rule for rule in read if rule], Variant())
    weights = {each.address: each.weight for each in found}
    assert [weights.get(each.address) for each in (ONE, OTHER)] == expected


@pytest.mark.parametrize("name", ["", "%", "%ff://x", "override://a:b/x?weight=1", "x" * 20_000])
def test_what_cannot_be_understood_is_an_error(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each says another thing
        read_override(name)


@settings(max_examples=50)
@given(st.text(), st.sampled_from(["", "override://0.0.0.0", "override://0.0.0.0/x?weight="]))
def test_no_name_of_a_node_is_a_crash(name: str, begin: str) -> None:
    for each in (begin + name, quote_plus(begin + name, errors="replace")):
        with contextlib.suppress(ValueError):
            read_override(each)
