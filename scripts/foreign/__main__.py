"""CPython's own network tests, hooked: whatever passes natively has to pass."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.table import Table

from pysidecar.testing import Sidecar, SidecarError
from scripts.foreign.differences import Difference, Verdict, judge, read_differences
from scripts.foreign.modes import MODES, Mode
from scripts.foreign.run import MODULES, run_module

# How often a test that differs is run again, alone. It counts unless it passes each time: other
# people's tests have their own ideas of how fast a machine is.
_REPEATS = 2

Outcomes = dict[str, str]  # by test

_console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Result:
    mode: Mode
    verdict: Verdict
    unsteady: list[str]
    """Tests that failed once, and not when they were repeated."""
    connections: int
    """How many connections took one of the paths that the mode is about."""
    seconds: float

    @property
    def good(self) -> bool:
        return self.verdict.good and self.connections > 0


class _Runner:
    """Runs modules in `directory`, so many at a time."""

    def __init__(self, modules: Sequence[str], directory: Path, at_a_time: int) -> None:
        self._modules = modules
        self._directory = directory
        self._at_a_time = at_a_time

    def _each(self, run: Callable[[str], Outcomes]) -> dict[str, Outcomes]:
        with ThreadPoolExecutor(self._at_a_time) as pool:
            return dict(zip(self._modules, pool.map(run, self._modules), strict=True))

    def natively(self) -> dict[str, Outcomes]:
        """By module."""
        environment = _plain_environment()
        directory = self._directory / "native"
        return self._each(lambda module: run_module(module, directory / module, environment))

    def hooked(
        self, mode: Mode, native: Mapping[str, Outcomes], differences: tuple[Difference, ...]
    ) -> _Result:
        """What passes natively, through a sidecar of its own."""
        began = time.monotonic()
        with Sidecar(mode.settings) as sidecar:
            environment = _plain_environment() | sidecar.environment
            outcomes, unsteady = self._hooked(self._directory / mode.name, native, environment)
        paths = [json.loads(line)["path"] for line in sidecar.access_log.splitlines()]
        return _Result(
            mode,
            judge(_merged(native), outcomes, mode.name, differences),
            unsteady,
            sum(path in mode.paths for path in paths),
            time.monotonic() - began,
        )

    def _hooked(
        self, directory: Path, native: Mapping[str, Outcomes], environment: Mapping[str, str]
    ) -> tuple[Outcomes, list[str]]:
        def run(attempt: str, module: str, only: Collection[str]) -> Outcomes:
            return run_module(module, directory / attempt / module, environment, only=only)

        first = self._each(lambda module: run("first", module, _passing(native[module])))
        outcomes = _merged(first)
        suspects = {
            module: different
            for module, found in first.items()
            if (different := _passing(native[module]) - _passing(found) - {module})
        }
        unsteady: list[str] = []
        for module, tests in suspects.items():
            again = [_passing(run(f"again-{n}", module, tests)) for n in range(_REPEATS)]
            unsteady += sorted(tests.intersection(*again))
        return outcomes | dict.fromkeys(unsteady, "ok"), unsteady


def _merged(modules: Mapping[str, Outcomes]) -> Outcomes:
    return {test: outcome for found in modules.values() for test, outcome in found.items()}


def _passing(outcomes: Outcomes) -> set[str]:
    return {test for test, outcome in outcomes.items() if outcome == "ok"}


def _plain_environment() -> dict[str, str]:
    """Ours, without what would have the tests behave differently, or be hooked already."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "LD_PRELOAD"
        and not name.startswith(("MOSNHOOK_", "PYTHON"))
        and not name.lower().endswith("_proxy")
    }


def _print_table(results: Sequence[_Result]) -> None:
    table = Table("hooked", "same", "known", "new", "gone", "once", "connections", "seconds")
    for result in results:
        verdict = result.verdict
        counts = (verdict.same, len(verdict.known), len(verdict.new), len(verdict.gone))
        numbers = (*counts, len(result.unsteady), result.connections, round(result.seconds))
        table.add_row(result.mode.name, *map(str, numbers))
    _console.print(table)
    for result in results:
        name, verdict = result.mode.name, result.verdict
        for test, what in verdict.new.items():
            _console.print(f"{name}: new: {test} ({what})", markup=False)
        for test in verdict.gone:
            _console.print(f"{name}: listed as a difference, but passes: {test}", markup=False)
        for test in result.unsteady:
            _console.print(f"{name}: failed once, not when repeated: {test}", markup=False)
        if result.connections == 0:
            _console.print(
                f"{name}: nothing was tested: no connection took {set(result.mode.paths)}"
            )


def _chosen(names: Sequence[str], patterns: str | None, what: str) -> list[str]:
    wanted = patterns.split(",") if patterns else ["*"]
    for pattern in wanted:
        if not fnmatch.filter(names, pattern):
            raise click.BadParameter(f"no {what} {pattern}; expected some of {', '.join(names)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, each) for each in wanted)]


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # unwinding stops what runs


@click.command(help=__doc__)
@click.option("--module", help="only these modules of the test suite (patterns, commas)")
@click.option("--mode", help="only these ways of being hooked (patterns, commas)")
@click.option("--logs", type=click.Path(path_type=Path), help="keep the tests' output here")
def main(module: str | None, mode: str | None, logs: Path | None) -> None:
    signal.signal(signal.SIGTERM, _terminated)
    if importlib.util.find_spec("test.test_socket") is None:
        raise click.ClickException("this Python was installed without its own tests")
    modules = _chosen(MODULES, module, "module")
    modes = _chosen([each.name for each in MODES], mode, "mode")
    differences = read_differences(tuple(each.name for each in MODES))
    results = []
    with tempfile.TemporaryDirectory(prefix="pysidecar-foreign-") as temporary:
        runner = _Runner(modules, logs or Path(temporary), 2 * (os.cpu_count() or 1) + 1)
        began = time.monotonic()
        native = runner.natively()
        passing = len(_passing(_merged(native)))
        _console.print(
            f"{len(modules)} modules, {passing} tests that pass natively "
            f"({time.monotonic() - began:.0f} s)"
        )
        for each in MODES:
            if each.name not in modes:
                continue
            if each.needs_bpf and os.geteuid() != 0:
                _console.print(f"{each.name}: left out: acceleration takes root")
                continue
            results.append(runner.hooked(each, native, differences))
            _print_table(results[-1:])
    _print_table(results)
    sys.exit(0 if all(result.good for result in results) else 1)


if __name__ == "__main__":
    try:
        main()
    except SidecarError as error:
        sys.exit(f"test-foreign: {error}")
