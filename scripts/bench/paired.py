"""Sides in short turns, one after the other, so that what else the machine does is the same for
all: what is left of a difference is a side's own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.bench.side import Way

__all__ = ["OF_CPU", "OF_RATE", "measure"]

OF_RATE = "of the rate"
OF_CPU = "of the CPU time"

_TURNS = 10  # of each side in each round
_SHARE = 0.5  # of what a round of others takes, for each turn

Turn = Callable[[Way, float], tuple[int, float]]
"""Loads one side; how many requests that was, and the seconds."""


def measure(
    ways: Mapping[str, Way], base: str, turn: Turn, seconds: float
) -> dict[str, dict[str, float]]:
    """By side: its rate, its CPU time for each request, and both in relation to those of `base`.

    A ratio is the median of those of neighbouring turns.
    """
    names = list(ways)
    rates: dict[str, list[float]] = {name: [] for name in names}
    costs: dict[str, list[float]] = {name: [] for name in names}
    for number in range(_TURNS + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            before = _cpu_seconds(ways[name])
            requests, took = turn(ways[name], seconds * _SHARE)
            if number > 0:  # the first one warms up
                rates[name].append(requests / took)
                if ways[name].proxies:
                    costs[name].append(1e6 * (_cpu_seconds(ways[name]) - before) / requests)
    values = {
        name: {
            "rate": statistics.median(rates[name]),
            OF_RATE: _median_ratio(rates[name], rates[base]),
        }
        for name in names
    }
    for name in names:
        if costs[name]:
            values[name]["CPU proxy"] = statistics.median(costs[name])
        if costs[name] and costs[base]:
            values[name][OF_CPU] = _median_ratio(costs[name], costs[base])
    return values


def _median_ratio(own: list[float], base: list[float]) -> float:
    return statistics.median(mine / its for mine, its in zip(own, base, strict=True))


def _cpu_seconds(way: Way) -> float:
    """Of all threads of the proxies, by the nanosecond: turns are short for the hundredths of
    seconds that /proc/PID/stat counts."""
    times = 0
    for process in way.proxies:
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            times += int((task / "schedstat").read_text().split()[0])
    return times / 1e9
