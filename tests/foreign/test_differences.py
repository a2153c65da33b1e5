"""What `make test-foreign` makes of two runs, and how it runs CPython's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.foreign import run
from scripts.foreign.differences import Difference, judge, read_differences
from scripts.foreign.modes import MODES

LISTED = (Difference(("test_a.Known.*",), ("unix",), "because"),)
NATIVE = {
    "test_a.Known.one": "ok",
    "test_a.Known.two": "ok",
    "test_a.Known.never": "fail",
    "test_a.Other.one": "ok",
}


def test_what_differs_as_listed_is_good() -> None:
    hooked = {"test_a.Known.one": "fail", "test_a.Known.two": "hang", "test_a.Other.one": "ok"}
    verdict = judge(NATIVE, hooked, "unix", LISTED)
    assert verdict.good
    assert verdict.known == {"test_a.Known.one": "fail", "test_a.Known.two": "hang"}
    assert verdict.same == 1


def test_a_listed_difference_that_is_gone_is_not_good() -> None:
    hooked = {"test_a.Known.one": "fail", "test_a.Known.two": "ok", "test_a.Other.one": "ok"}
    verdict = judge(NATIVE, hooked, "unix", LISTED)
    assert verdict.gone == ["test_a.Known.two"]
    assert not verdict.good


def test_a_listed_race_may_pass() -> None:
    races = (Difference(("test_a.Known.*",), ("unix",), "because", races=True),)
    verdict = judge(NATIVE, dict.fromkeys(NATIVE, "ok"), "unix", races)
    assert verdict.good
    assert verdict.same == 3


@pytest.mark.parametrize("outcome", ["fail", "skip", "hang", "crash", None])
def test_whatever_else_does_not_pass_is_not_good(outcome: str | None) -> None:
    hooked = {"test_a.Known.one": "fail", "test_a.Known.two": "fail"}
    if outcome is not None:
        hooked["test_a.Other.one"] = outcome
    verdict = judge(NATIVE, hooked, "unix", LISTED)
    assert verdict.new == {"test_a.Other.one": outcome or "missing"}
    assert not verdict.good


def test_a_difference_holds_for_its_modes_only() -> None:
    hooked = dict.fromkeys(NATIVE, "ok") | {"test_a.Known.one": "fail"}
    verdict = judge(NATIVE, hooked, "header", LISTED)
    assert verdict.new == {"test_a.Known.one": "fail"}
    assert not verdict.gone


def test_the_list_can_be_read() -> None:
    read_differences(tuple(mode.name for mode in MODES))


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ('tests = ["a"]\nmodes = ["unix"]', "has no 'reason'"),
        ('tests = []\nmodes = ["unix"]\nreason = "so"', "names no test or no reason"),
        ('tests = ["a"]\nmodes = ["unixx"]\nreason = "so"', "unknown modes"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: str, complaint: str) -> None:
    file = tmp_path / "list.toml"
    file.write_text(f"[[difference]]\n{entry}\n")
    with pytest.raises(ValueError, match=f"entry 1 .*{complaint}"):
        read_differences(("unix",), file)


SUITE = """
import os, time, unittest

class Tests(unittest.TestCase):
    def test_1_ok(self): pass
    def test_2_fail(self): self.fail()
    def test_3_skip(self): self.skipTest("so")
    def test_4_crash(self): os.abort()
    def test_5_hang(self): time.sleep(1000)
    def test_6_exit(self): os._exit(0)
    def test_7_subtest(self):
        for number in range(3):
            with self.subTest(number):
                self.assertNotEqual(number, 1)
    def test_8_ok(self): pass
"""


def test_tests_behind_a_hang_and_a_crash_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ``test`` is a package of this test's: CPython's is not everywhere."""
    package = tmp_path / "test"
    (package / "support").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "support" / "__init__.py").write_text("use_resources = None\n")
    (package / "support" / "os_helper.py").write_text(
        "import contextlib\n\n@contextlib.contextmanager\ndef temp_cwd(name):\n    yield\n"
    )
    (package / "test_made_up.py").write_text(SUITE)
    monkeypatch.setattr(run, "STALL", 3.0)  # a process has to start in it
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    outcomes = run.run_module("test_made_up", tmp_path / "run", environment)
    expected = {"1_ok": "ok", "2_fail": "fail", "3_skip": "skip", "4_crash": "crash"}
    expected |= {"5_hang": "hang", "6_exit": "crash", "7_subtest": "fail", "8_ok": "ok"}
    tests = {f"test.test_made_up.Tests.test_{name}": what for name, what in expected.items()}
    assert outcomes == tests | {"test_made_up": "ok"}

    only = ["test.test_made_up.Tests.test_8_ok"]
    outcomes = run.run_module("test_made_up", tmp_path / "again", environment, only=only)
    assert outcomes == {only[0]: "ok", "test_made_up": "ok"}
