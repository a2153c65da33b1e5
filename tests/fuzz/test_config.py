"""A configuration, whatever is in it, is understood, or refused with lines that say where."""

from __future__ import annotations

import random
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pysidecar.config import Config, ConfigError, parse
from tests.control.configurations import EVERYTHING

SETTINGS = settings(
    max_examples=100,
    deadline=None,  # a busy machine
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def keys(value: Any) -> set[str]:
    """All keys that are in it, at any depth."""
    if isinstance(value, dict):
        return set(value) | {key for each in value.values() for key in keys(each)}
    if isinstance(value, list):
        return {key for each in value for key in keys(each)}
    return set()


def scalars(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [each for part in value.values() for each in scalars(part)]
    if isinstance(value, list):
        return [each for part in value for each in scalars(part)]
    return [value]


WHOLE = yaml.safe_load(EVERYTHING)
KEYS = sorted(keys(WHOLE))
VALUES = [*scalars(WHOLE), "~", "~/x", "null", "nullog.jsonl", "truelog", "1e9", "0x10", "::1", "/"]

values = st.recursive(
    st.sampled_from(VALUES)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=25,
)


def check(text: bytes | str) -> None:
    try:
        config = parse(text, source="here")
    except ConfigError as refused:
        error = refused
    else:
        assert isinstance(config, Config)
        return
    assert error.problems
    assert all(line.startswith("here") for line in str(error).splitlines()), str(error)


def set_inside(value: Any, path: list[int], new: Any) -> Any:
    """The value, with one part replaced: the one to which the numbers lead."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return new
    at: Any = list(value)[path[0] % len(value)] if isinstance(value, dict) else path[0] % len(value)
    copy: Any = value.copy()
    copy[at] = set_inside(value[at], path[1:], new)
    return copy


@SETTINGS
@given(st.dictionaries(st.sampled_from(sorted(WHOLE)), values, max_size=6))
def test_sections_of_anything(document: Any) -> None:
    check(yaml.safe_dump(document, allow_unicode=True))


@SETTINGS
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), values)
def test_one_value_of_a_good_one_is_another(path: list[int], new: Any) -> None:
    check(yaml.safe_dump(set_inside(WHOLE, path, new), allow_unicode=True))


@SETTINGS
@given(st.integers(0), st.integers(1, 6))
def test_bytes_of_a_good_one_are_others(seed: int, changes: int) -> None:
    generator = random.Random(seed)
    text = bytearray(EVERYTHING.encode())
    special = b"\0\t\n\r !\"#%&'*,-.:<>?@[]`{|}~\x7f\x80\xc2\xff01aeonx"
    for _ in range(changes):
        at = generator.randrange(len(text))
        match generator.randrange(3):
            case 0:
                text[at] = generator.choice(special)
            case 1:
                del text[at : at + generator.randrange(1, 9)]
            case _:
                text[at:at] = bytes(generator.choices(special, k=generator.randrange(1, 5)))
    check(bytes(text))


@SETTINGS
@given(st.binary(max_size=60) | st.text(max_size=60))
def test_anything_at_all(text: bytes | str) -> None:
    check(text)
