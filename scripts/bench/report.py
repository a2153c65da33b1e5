"""The results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from scripts.bench.goals import Outcome
from scripts.bench.results import Results, Spread
from scripts.bench.scenarios import Metric, Scenario
from scripts.bench.side import Kind, Side

__all__ = ["RATIOS", "goal_table", "number", "ratio", "scenario_tables", "spread_text"]

RATIOS = "Ratios are how many times as good: above 1 is faster, or less time or memory."
_STYLES = {Kind.DIRECT: "dim", Kind.OURS: "bold cyan", Kind.PEER: ""}


def number(value: float, metric: Metric) -> str:
    """With as many digits as make sense for it."""
    return f"{value:,.{metric.digits}f}"


def spread_text(spread: Spread | None, metric: Metric) -> str:
    """``median (least–most)``; a dash for none."""
    if spread is None:
        return "-"
    extremes = f"{number(spread.least, metric)}–{number(spread.most, metric)}"
    return f"{number(spread.median, metric)} ({extremes})"


def ratio(value: float | None) -> str:
    """Two digits; a dash for none."""
    return "-" if value is None else f"{value:.2f}"


def scenario_tables(results: Results) -> Iterator[Table]:
    """A table for each metric that is compared; the first of a scenario has its other ones, too."""
    for scenario in results.scenarios:
        others = [metric for metric in scenario.metrics if not metric.compared]
        for metric in scenario.metrics:
            if metric.compared:
                yield _table(results, scenario, metric, others)
                others = []


def _table(results: Results, scenario: Scenario, metric: Metric, others: list[Metric]) -> Table:
    title = f"{scenario.title}: {metric.name}  [dim]{scenario.name}[/]"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column(f"{metric.unit}", justify="right", no_wrap=True)
    table.add_column("× direct", justify="right", no_wrap=True)
    table.add_column("× best peer", justify="right", no_wrap=True)
    for other in others:
        table.add_column(f"{other.name}\n{other.unit}", justify="right", no_wrap=True)
    for side in results.sides(scenario):
        row = _row(results, scenario, side, metric, others)
        table.add_row(*row, style=_STYLES[side.kind])
    return table


def _row(
    results: Results, scenario: Scenario, side: Side, metric: Metric, others: list[Metric]
) -> Iterator[str | Text]:
    yield side.name
    broken = [r for r in results.failures if (r.scenario, r.side) == (scenario.name, side.name)]
    if broken:
        yield Text(f"{len(broken)} broken", style="red")
        return
    yield spread_text(results.spread(scenario.name, side.name, metric.name), metric)
    yield ratio(results.to_direct(scenario, side.name, metric))
    yield ratio(results.to_best_peer(scenario, side.name, metric))
    for other in others:
        spread = results.spread(scenario.name, side.name, other.name)
        yield number(spread.median, other) if spread else "-"


def goal_table(outcomes: Iterable[Outcome]) -> Table:
    """All goals, and whether they were reached."""
    table = Table(title="Goals", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("goal", "wanted", "measured", ""):
        table.add_column(heading)
    for outcome in outcomes:
        table.add_row(
            escape(outcome.goal), outcome.wanted, outcome.measured or "-", _verdict(outcome)
        )
    return table


def _verdict(outcome: Outcome) -> Text:
    if outcome.reached is None:
        return Text("not measured", style="dim")
    return Text("reached", style="green") if outcome.reached else Text("missed", style="red")
