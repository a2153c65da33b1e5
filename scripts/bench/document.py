"""Writes the tables of docs/performance.md, so that they are never another run's."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence

from scripts.bench.report import RATIOS, ratio, spread_text
from scripts.bench.results import Results
from scripts.bench.scenarios import Scenario
from scripts.bench.side import Kind
from scripts.bench.suites import DOCUMENT, SUITES, Suite

__all__ = ["current_and_generated"]

_NOTHING = ["No run is committed yet: `make bench` writes one."]
_KINDS = {Kind.DIRECT: "the limit", Kind.OURS: "ours", Kind.PEER: "peer"}


def current_and_generated() -> tuple[str, str]:
    """The page as it is, and as it ought to be by the committed results."""
    parts = {
        f"{suite.name}-{name}": functools.partial(part, suite, Results.read(suite.documented))
        for suite in SUITES
        for name, part in _PARTS.items()
    }
    current = DOCUMENT.read_text()

    def generated(found: re.Match[str]) -> str:
        lines = "\n".join(parts[found["name"]]())
        return f"{found['begin']}\n{lines}\n{found['end']}"

    pattern = (
        r"(?P<begin><!-- bench: (?P<name>[\w-]+) -->)\n.*?(?P<end><!-- bench: end of (?P=name) -->)"
    )
    return current, re.sub(pattern, generated, current, flags=re.S)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{' --- |' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _sides(suite: Suite, results: Results | None) -> Iterator[str]:
    rows = [(side.name, _KINDS[side.kind], side.what, side.settings or "-") for side in suite.sides]
    yield from _table(("side", "", "what it is", "settings beside the defaults"), rows)


def _scenarios(suite: Suite, results: Results | None) -> Iterator[str]:
    rows = [
        (
            f"`{scenario.name}`",
            scenario.title,
            ", ".join(f"{metric.name} ({metric.unit})" for metric in scenario.metrics),
        )
        for scenario in suite.scenarios
    ]
    yield from _table(("scenario", "load", "numbers"), rows)


def _run(suite: Suite, results: Results | None) -> Iterator[str]:
    if results is None:
        yield from _NOTHING
        return
    machine, settings = results.machine, results.settings
    yield (
        f"Linux {machine['kernel']}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:g} GiB, congestion control {machine['congestion_control']}. "
        f"{settings['rounds']} rounds of {settings['seconds']:g} s "
        f"each, after {settings['warm_up']:g} s of warming up; "
        f"{settings['idle_connections']:,} idle connections. Other programs used "
        f"{machine['busy_before']:.0f} % of the CPUs before, {machine['busy_after']:.0f} % after."
    )
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield f"Versions: {versions}."
    for name, reason in results.unavailable.items():
        yield ""
        yield f"Without {name}: {reason}."


def _results(suite: Suite, results: Results | None) -> Iterator[str]:
    if results is None:
        yield from _NOTHING
        return
    yield f"Median (least–most) of all rounds. {RATIOS}"
    for scenario in results.scenarios:
        yield ""
        yield f"**{scenario.title}** (`{scenario.name}`)"
        yield ""
        yield from _scenario_table(results, scenario)


def _scenario_table(results: Results, scenario: Scenario) -> Iterator[str]:
    headings = ["side"]
    for metric in scenario.metrics:
        headings.append(f"{metric.name}, {metric.unit}")
        if metric.compared:
            headings += ["× direct", "× best peer"]
    rows = []
    for side in results.sides(scenario):
        row = [side.name]
        for metric in scenario.metrics:
            row.append(spread_text(results.spread(scenario.name, side.name, metric.name), metric))
            if metric.compared:
                row.append(ratio(results.to_direct(scenario, side.name, metric)))
                row.append(ratio(results.to_best_peer(scenario, side.name, metric)))
        rows.append(row)
    yield from _table(headings, rows)


def _goals(suite: Suite, results: Results | None) -> Iterator[str]:
    if results is None:
        yield from _NOTHING
        return
    verdicts = {None: "not measured", True: "reached", False: "**missed**"}
    rows = [
        (each.goal, each.wanted, each.measured or "-", verdicts[each.reached])
        for each in suite.goals(results)
    ]
    yield from _table(("goal", "wanted", "measured", ""), rows)


_PARTS: dict[str, Callable[[Suite, Results | None], Iterator[str]]] = {
    "sides": _sides,
    "scenarios": _scenarios,
    "run": _run,
    "results": _results,
    "goals": _goals,
}
