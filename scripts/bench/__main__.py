"""Measures the sidecar beside a direct connection and beside its peers, all in one run."""

from __future__ import annotations

import fnmatch
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

import click
from rich.console import Console

from scripts.bench import document, plot
from scripts.bench import side as side_of
from scripts.bench.processes import BenchError
from scripts.bench.report import RATIOS, goal_table, scenario_tables
from scripts.bench.results import Results
from scripts.bench.run import build_load, idle_connections, run
from scripts.bench.scenarios import SCENARIOS, Settings
from scripts.bench.side import Kind, Side
from scripts.bench.sides import NOT_CAPTURED, SIDES
from scripts.bench.suites import DOCUMENT, SUITES, Suite

_BUILD = Path(__file__).resolve().parents[2] / "build" / "bench"

_FULL = Settings(rounds=5, seconds=0.5, warm_up=0.2, idle_connections=20_000, connect_batches=1500)
_SHORT = Settings(rounds=2, seconds=0.2, warm_up=0.05, idle_connections=2_000, connect_batches=500)

_SUITES = "\n\n".join(
    "\n".join(
        [
            f"\b\nOf {suite.name}, scenarios:",
            *(f"  {scenario.name:<19} {scenario.title}" for scenario in suite.scenarios),
            "sides:",
            *(f"  {side.name:<19} {side.what}" for side in suite.sides),
        ]
    )
    for suite in SUITES
)
_HELP = f"""\
Measures what a connection and what a request costs: direct, through the sidecar, and through its
peers (HAProxy, nginx, Envoy, redsocks, proxychains, torsocks), each with the best settings that its
documentation names. Connections, requests, and HTTP/2 with gRPC are a run each.

All sides of a run are there in one go on this machine, in turns: round by round, scenario by
scenario, another side first in each round. What to read is the ratio between sides; the absolute
numbers are the machine's. Numbers are medians of the rounds, with the extremes. A side with a
failed connection or request in any round gets no number at all, and where it is not a peer the run
fails.

{_SUITES}

Sides that cannot run here are left out, and it is said why: redsocks and torsocks need root for a
network namespace, where an address that is not on loopback lives; everything else stays on
loopback. A scenario or side can be a pattern, and several are separated by commas:

\b
  make bench SCENARIO='requests-64-*,bulk-*' SIDE='direct,relay*,HAProxy*'
"""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_T = TypeVar("_T", bound=_Named)


def _chosen(kind: str, known: Sequence[_T], patterns: str) -> list[_T]:
    """Those whose name fits one of the patterns, separated by commas."""
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatch.fnmatch(each.name, pattern) for each in known):
            names = ", ".join(each.name for each in known)
            raise click.BadParameter(f"there is no {kind} {pattern!r}; there are: {names}")
    return [each for each in known if any(fnmatch.fnmatch(each.name, p) for p in wanted)]


@click.command(help=_HELP, context_settings={"max_content_width": 100})
@click.option(
    "--of",
    "part",
    type=click.Choice([suite.name for suite in SUITES]),
    help="Of connections only, of requests (HTTP/1.1, Bolt, Dubbo), or of HTTP/2 and gRPC.",
)
@click.option("--scenario", default="*", metavar="NAMES", help="Scenarios to run; default: all.")
@click.option("--side", default="*", metavar="NAMES", help="Sides to run; default: all.")
@click.option("--short", is_flag=True, help="Fewer and shorter rounds: at most three minutes each.")
@click.option(
    "--beside",
    type=click.Path(exists=True, dir_okay=False),
    metavar="PYTHON",
    help="Our sides a second time, by the pysidecar that this interpreter has installed: two "
    "versions in one run.",
)
@click.option("--rounds", type=click.IntRange(1), help=f"Default: {_FULL.rounds}.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 600),
    help=f"Measured for each side, scenario and round; default: {_FULL.seconds:g}.",
)
@click.option(
    "--idle-connections",
    type=click.IntRange(1),
    help=f"Default: {_FULL.idle_connections:,}, or what the limit of open files allows.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for results.json, results.png and results.svg, those of requests and of "
    "HTTP/2 in folders of their own. Default: docs/performance for a complete run, which "
    "docs/performance.md then is about, else build/bench/results.",
)
@click.option("--no-plot", is_flag=True, help="No picture, for which matplotlib is needed.")
@click.option("--docs", is_flag=True, help="Measure nothing; write the tables of the page anew.")
@click.option("--check", is_flag=True, help="Measure nothing; say whether the tables are right.")
def main(
    part: str | None,
    scenario: str,
    side: str,
    short: bool,
    beside: str | None,
    rounds: int | None,
    seconds: float | None,
    idle_connections: int | None,
    output: Path | None,
    no_plot: bool,
    docs: bool,
    check: bool,
) -> None:
    if docs or check:
        sys.exit(_document(check))
    scenarios, sides = _chosen("scenario", SCENARIOS, scenario), _chosen("side", SIDES, side)
    settings = _settings(_SHORT if short else _FULL, rounds, seconds, idle_connections)
    as_documented = not (short or beside or rounds or seconds or idle_connections)
    console, progress = Console(width=_width()), Console(stderr=True)
    if settings.idle_connections < (idle_connections or _FULL.idle_connections) and not short:
        progress.print(
            f"{settings.idle_connections:,} idle connections: "
            "a process here may not have descriptors for more"
        )
    load, good = build_load(_BUILD), True
    for suite in SUITES:
        of_suite = [each for each in scenarios if each in suite.scenarios]
        if part not in (None, suite.name) or not of_suite:
            continue
        complete = of_suite == [*suite.scenarios] and set(sides) >= set(suite.sides)
        directory = output / suite.folder if output else _BUILD / "results" / suite.folder
        if complete and as_documented and not output:
            directory = suite.documented
        measured = _all_sides(sides, beside)
        results = run(of_suite, measured, settings, load, progress)
        _show(console, suite, results)
        _write(console, suite, results, directory, plotted=not no_plot)
        good = good and _only_peers_failed(results)
    if not good:
        sys.exit(1)


def _write(
    console: Console, suite: Suite, results: Results, directory: Path, *, plotted: bool
) -> None:
    written = [results.write(directory)]
    if plotted:
        written += plot.draw(results, suite.panels, directory)
    for path in written:
        console.print(f"written: {path}", highlight=False)
    if directory == suite.documented:
        _document(check=False)


def _only_peers_failed(results: Results) -> bool:
    """A peer that fails is a finding."""
    peers = {side.name for side in SIDES if side.kind is Kind.PEER}
    return all(broken.side in peers for broken in results.failures)


def _all_sides(sides: Sequence[Side], beside: str | None) -> list[Side]:
    if beside is None:
        return [*sides]
    return [each for side in sides for each in _with_beside(side, beside)]


def _with_beside(side: Side, python: str) -> list[Side]:
    ours = side.kind is Kind.OURS and side.name != NOT_CAPTURED
    return [side, side_of.beside(side, python)] if ours else [side]


def _settings(
    base: Settings, rounds: int | None, seconds: float | None, idle: int | None
) -> Settings:
    seconds = seconds or base.seconds
    return Settings(
        rounds=rounds or base.rounds,
        seconds=seconds,
        warm_up=min(base.warm_up, seconds),
        idle_connections=idle_connections(idle or base.idle_connections),
        connect_batches=base.connect_batches,
    )


def _width() -> int | None:
    """What is not a terminal has all the room that tables need."""
    return None if sys.stdout.isatty() else 140


def _show(console: Console, suite: Suite, results: Results) -> None:
    for table in scenario_tables(results):
        console.print(table)
    console.print(RATIOS, highlight=False)
    console.print(goal_table(suite.goals(results)))
    for broken in results.failures:
        console.print(
            f"broken: {broken.scenario}, {broken.side}, round {broken.number + 1}: {broken.error}",
            style="red",
            markup=False,
            highlight=False,
        )


def _document(check: bool) -> int:
    current, generated = document.current_and_generated()
    if check and current != generated:
        print("docs/performance.md is not what its results say: run `make bench-docs`")
        return 1
    if not check:
        DOCUMENT.write_text(generated)
    return 0


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # everything that was started is stopped on the way out


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    try:
        main(prog_name="bench", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BenchError as error:
        sys.exit(f"bench: {error}")
