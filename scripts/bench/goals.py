"""What the sidecar has to reach beside its peers, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.bench.results import Results
from scripts.bench.scenarios import HOOK_COST, IDLE, SCENARIOS, Metric, Scenario
from scripts.bench.sides import DIRECT, NOT_CAPTURED

__all__ = ["Outcome", "outcomes"]

_UNPRIVILEGED = ("relay unix", "relay header")
_MAX_IDLE_BYTES = 1024
_MAX_HOOK_COST = 1.02


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal, and what came of it; `measured` is empty where it was not."""

    goal: str
    wanted: str
    measured: str = ""
    reached: bool | None = None


_Base = Callable[[Results, str, Metric], tuple[str, float] | None]


def _direct(results: Results, scenario: str, metric: Metric) -> tuple[str, float] | None:
    spread = results.spread(scenario, DIRECT, metric.name)
    return (DIRECT, spread.median) if spread else None


def _best_peer(results: Results, scenario: str, metric: Metric) -> tuple[str, float] | None:
    return results.best_peer(scenario, metric)


def _best_behind_hook(results: Results, scenario: str, metric: Metric) -> tuple[str, float] | None:
    return results.best_peer(scenario, metric, behind_hook=True)


@dataclass(frozen=True, slots=True)
class _Goal:
    """A side is to be at least so many times as good as its base."""

    sides: tuple[str, ...]
    scenarios: tuple[str, ...]
    metrics: tuple[str, ...]
    factor: float
    base: _Base
    base_name: str


_BULK = ("bulk-upload", "bulk-download")
_GOALS = (
    _Goal(_UNPRIVILEGED, _BULK, ("rate",), 1.3, _best_peer, "the best peer"),
    _Goal(
        _UNPRIVILEGED,
        ("requests-64-32", "requests-64-512", "requests-4096-32", "requests-4096-512"),
        ("rate", "p99"),
        1.15,
        _best_behind_hook,
        "the best peer behind our hook",
    ),
    _Goal(
        _UNPRIVILEGED,
        ("connect-1", "connect-64"),
        ("rate",),
        1.2,
        _best_behind_hook,
        "the best peer behind our hook",
    ),
    _Goal(("full",), _BULK, ("rate",), 0.9, _direct, "direct"),
    _Goal(
        ("full",),
        ("requests-64-32", "requests-4096-32"),
        ("rate",),
        1.3,
        _best_peer,
        "the best peer",
    ),
    _Goal(
        ("action direct",),
        (*_BULK, *(each.name for each in SCENARIOS if each.name.startswith("requests-"))),
        ("rate",),
        0.98,
        _direct,
        "direct",
    ),
)


def outcomes(results: Results) -> Iterator[Outcome]:
    """All goals, those included that the run has no numbers for."""
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    for goal in _GOALS:
        for side in goal.sides:
            for name in goal.scenarios:
                for metric in goal.metrics:
                    yield _compared(results, goal, side, scenarios[name], metric)
    yield _hook_cost(results)
    yield from _idle_memory(results)


def _compared(
    results: Results, goal: _Goal, side: str, scenario: Scenario, metric_name: str
) -> Outcome:
    metric = scenario.metric(metric_name)
    what = f"{side}: {scenario.name}, {metric.name}"
    wanted = f"≥ {goal.factor:g} × {goal.base_name}"
    own = results.spread(scenario.name, side, metric.name)
    base = goal.base(results, scenario.name, metric)
    if own is None or base is None:
        return Outcome(what, wanted)
    ratio = metric.times_better(own.median, base[1])
    return Outcome(what, wanted, f"{ratio:.2f} × {base[0]}", ratio >= goal.factor)


def _hook_cost(results: Results) -> Outcome:
    what, wanted = "hook, destination not captured: connect", f"≤ {_MAX_HOOK_COST:g} × direct"
    ratio = results.spread(HOOK_COST.name, NOT_CAPTURED, "ratio")
    if ratio is None:
        return Outcome(what, wanted)
    return Outcome(what, wanted, f"{ratio.median:.3f} ×", ratio.median <= _MAX_HOOK_COST)


def _idle_memory(results: Results) -> Iterator[Outcome]:
    metric = IDLE.metric("user")
    for side in _UNPRIVILEGED:
        what = f"{side}: user memory for an idle connection"
        own = results.spread(IDLE.name, side, metric.name)
        peer = results.best_peer(IDLE.name, metric)
        wanted = f"≤ {_MAX_IDLE_BYTES:,} B"
        if own is None:
            yield Outcome(what, wanted)
        else:
            yield Outcome(what, wanted, f"{own.median:,.0f} B", own.median <= _MAX_IDLE_BYTES)
        if own is None or peer is None:
            yield Outcome(what, "below every peer")
        else:
            measured = f"{own.median:,.0f} B, {peer[0]} {peer[1]:,.0f} B"
            yield Outcome(what, "below every peer", measured, own.median < peer[1])
