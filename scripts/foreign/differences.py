"""The list of known differences between native and hooked runs, each with its reason."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Difference", "Verdict", "judge", "read_differences"]

FILE = Path(__file__).with_name("differences.toml")


@dataclass(frozen=True, slots=True)
class Difference:
    """Tests (patterns of ids) that pass natively and differ hooked, in these modes."""

    tests: tuple[str, ...]
    modes: tuple[str, ...]
    reason: str
    races: bool = False
    """Whether it depends on who is faster, so that the tests may pass as well."""

    def covers(self, test: str) -> bool:
        return any(fnmatch.fnmatchcase(test, pattern) for pattern in self.tests)


def read_differences(modes: tuple[str, ...], file: Path = FILE) -> tuple[Difference, ...]:
    """Raises ValueError for an entry that is not as it should be."""
    found = []
    for number, entry in enumerate(tomllib.loads(file.read_text()).get("difference", []), 1):
        try:
            difference = Difference(
                tuple(entry["tests"]),
                tuple(entry["modes"]),
                entry["reason"],
                entry.get("races", False),
            )
        except KeyError as error:
            raise ValueError(f"{file}: entry {number} has no {error}") from None
        if not difference.tests or not difference.reason:
            raise ValueError(f"{file}: entry {number} names no test or no reason")
        if unknown := set(difference.modes) - set(modes):
            raise ValueError(
                f"{file}: entry {number} has unknown modes {unknown}; expected {modes}"
            )
        found.append(difference)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests that pass natively did in one mode."""

    same: int
    known: dict[str, str]
    """Listed differences that occurred, with what happened instead of passing."""
    new: dict[str, str]
    """Differences that nobody listed."""
    gone: list[str]
    """Tests that are listed, and pass, although that is no race."""

    @property
    def good(self) -> bool:
        return not self.new and not self.gone


def judge(
    native: Mapping[str, str],
    hooked: Mapping[str, str],
    mode: str,
    differences: tuple[Difference, ...],
) -> Verdict:
    """Compares two runs. What did not pass natively is not looked at."""
    listed = [difference for difference in differences if mode in difference.modes]
    passing = {test for test, outcome in native.items() if outcome == "ok"}
    expected = {test for test in passing if any(each.covers(test) for each in listed)}
    racing = {test for test in expected if any(each.covers(test) for each in listed if each.races)}
    different = {test: hooked.get(test, "missing") for test in passing if hooked.get(test) != "ok"}
    return Verdict(
        same=len(passing) - len(different),
        known={test: what for test, what in sorted(different.items()) if test in expected},
        new={test: what for test, what in sorted(different.items()) if test not in expected},
        gone=sorted(expected - racing - different.keys()),
    )
