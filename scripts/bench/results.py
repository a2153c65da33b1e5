"""The results of a run: every round as it was, and what is computed from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.bench.scenarios import SCENARIOS, Metric, Scenario, Values
from scripts.bench.side import Kind, Side
from scripts.bench.sides import DIRECT, SIDES

__all__ = ["Results", "Round", "Spread"]

_FORMAT = 1
_FILE = "results.json"


@dataclass(frozen=True, slots=True)
class Round:
    """What one side gave in one round: values, or why there are none."""

    number: int
    scenario: str
    side: str
    values: Values = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds, with the extremes."""

    median: float
    least: float
    most: float


@dataclass(slots=True)
class Results:
    """All of a run."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    unavailable: dict[str, str]
    """Sides that could not be started, and why."""
    rounds: list[Round] = field(default_factory=list)
    others: Sequence[Side] = ()
    """Sides of this run that are not in `SIDES`."""

    # ---- What was measured ----

    @property
    def scenarios(self) -> list[Scenario]:
        """Those of the run, in their order."""
        names = {each.scenario for each in self.rounds}
        return [scenario for scenario in SCENARIOS if scenario.name in names]

    def sides(self, scenario: Scenario) -> list[Side]:
        """Those that the scenario was measured with, in their order."""
        names = {each.side for each in self.rounds if each.scenario == scenario.name}
        return [side for side in (*SIDES, *self.others) if side.name in names]

    @property
    def failures(self) -> list[Round]:
        """The rounds that broke."""
        return [each for each in self.rounds if each.error]

    def spread(self, scenario: str, side: str, metric: str) -> Spread | None:
        """None where there is no such number, and where one of the rounds broke."""
        rounds = [r for r in self.rounds if (r.scenario, r.side) == (scenario, side)]
        values = [each.values[metric] for each in rounds if metric in each.values]
        if not values or len(values) < len(rounds):
            return None
        return Spread(statistics.median(values), min(values), max(values))

    def best(
        self, scenario: str, metric: Metric, sides: Sequence[Side]
    ) -> tuple[str, float] | None:
        """The side with the best median, and that."""
        found = [
            (side.name, spread.median)
            for side in sides
            if (spread := self.spread(scenario, side.name, metric.name)) is not None
        ]
        if not found:
            return None
        pick = max if metric.higher_is_better else min
        return pick(found, key=lambda each: each[1])

    def best_peer(
        self, scenario: str, metric: Metric, *, behind_hook: bool = False
    ) -> tuple[str, float] | None:
        """The best of all peers, or of those behind our hook."""
        peers = [
            side
            for side in SIDES
            if side.kind is Kind.PEER and (side.behind_hook or not behind_hook)
        ]
        return self.best(scenario, metric, peers)

    def to_direct(self, scenario: Scenario, side: str, metric: Metric) -> float | None:
        """How many times as good as the direct connection."""
        direct = self.spread(scenario.name, DIRECT, metric.name)
        own = self.spread(scenario.name, side, metric.name)
        return metric.times_better(own.median, direct.median) if own and direct else None

    def to_best_peer(self, scenario: Scenario, side: str, metric: Metric) -> float | None:
        """How many times as good as the best peer."""
        peer = self.best_peer(scenario.name, metric)
        own = self.spread(scenario.name, side, metric.name)
        return metric.times_better(own.median, peer[1]) if own and peer else None

    # ---- The file ----

    def write(self, directory: Path) -> Path:
        """Writes the JSON; its path."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / _FILE
        document = {
            "format": _FORMAT,
            "machine": self.machine,
            "settings": self.settings,
            "unavailable": self.unavailable,
            "rounds": [asdict(each) for each in self.rounds],
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
        return path

    @classmethod
    def read(cls, directory: Path) -> Results | None:
        """What `write` wrote, None where there is nothing."""
        path = directory / _FILE
        if not path.exists():
            return None
        document = json.loads(path.read_text())
        if document["format"] != _FORMAT:
            raise ValueError(f"{path} has another format than {_FORMAT}")
        return cls(
            document["machine"],
            document["settings"],
            document["unavailable"],
            [Round(**each) for each in document["rounds"]],
        )
