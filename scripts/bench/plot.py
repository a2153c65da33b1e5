"""The results as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.bench.processes import BenchError
from scripts.bench.report import number
from scripts.bench.results import Results
from scripts.bench.scenarios import SCENARIOS
from scripts.bench.side import Kind

__all__ = ["draw"]

_COLUMNS = 3
_COLOURS = {Kind.DIRECT: "#9a9a9a", Kind.OURS: "#1f6fb4", Kind.PEER: "#e08a2e"}
_WHO = {Kind.DIRECT: "direct", Kind.OURS: "pysidecar", Kind.PEER: "peers"}
_FORMATS = ("png", "svg")


def draw(results: Results, wanted: Sequence[tuple[str, str]], directory: Path) -> list[Path]:
    """Writes the picture in each format, a panel for each scenario and metric; nothing where none
    has numbers."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchError(
            "there is no matplotlib to draw with: scripts/set_up.py --bench installs it, "
            "--no-plot does without"
        ) from None
    mpl.rcParams["svg.hashsalt"] = "pysidecar"  # the same results make the same file
    panels = [panel for panel in wanted if _bars(results, *panel)]
    if not panels:
        return []
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    most = max(len(_bars(results, *panel)) for panel in panels)
    height = 0.9 + rows * (0.9 + 0.27 * most)
    figure = Figure(figsize=(5.2 * columns, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, panel in zip(axes, panels, strict=False):
        _panel(axis, results, *panel)
    for axis in list(figure.axes)[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(_title(results), fontsize=11)
    figure.legend(
        handles=[_swatch(kind) for kind in Kind], loc="outside lower center", ncols=3, frameon=False
    )
    paths = [directory / f"results.{suffix}" for suffix in _FORMATS]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=110, metadata=metadata)
    return paths


def _swatch(kind: Kind) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=_COLOURS[kind], label=_WHO[kind])


def _title(results: Results) -> str:
    machine, settings = results.machine, results.settings
    return (
        f"Median of {settings['rounds']} rounds with the extremes, and × direct.  "
        f"Linux {machine['kernel']}, {machine['cpu']}, {machine['cores']} cores"
    )


def _bars(results: Results, scenario_name: str, metric: str) -> list[tuple[Any, ...]]:
    """For each side: it, the spread, and the ratio to direct."""
    scenario = next(each for each in SCENARIOS if each.name == scenario_name)
    return [
        (side, spread, results.to_direct(scenario, side.name, scenario.metric(metric)))
        for side in results.sides(scenario)
        if (spread := results.spread(scenario_name, side.name, metric)) is not None
    ]


def _panel(axis: Any, results: Results, scenario_name: str, metric_name: str) -> None:
    scenario = next(each for each in SCENARIOS if each.name == scenario_name)
    metric = scenario.metric(metric_name)
    bars = _bars(results, scenario_name, metric_name)
    medians = [spread.median for _, spread, _ in bars]
    errors = [
        [spread.median - spread.least for _, spread, _ in bars],
        [spread.most - spread.median for _, spread, _ in bars],
    ]
    positions = range(len(bars))
    axis.barh(
        positions,
        medians,
        xerr=errors,
        color=[_COLOURS[side.kind] for side, _, _ in bars],
        error_kw={"ecolor": "#333333", "elinewidth": 0.8, "capsize": 2},
        height=0.72,
    )
    axis.set_yticks(list(positions), [side.name for side, _, _ in bars], fontsize=8)
    axis.invert_yaxis()
    direction = "more is better" if metric.higher_is_better else "less is better"
    axis.set_title(f"{scenario.title}\n{metric.name}, {metric.unit} ({direction})", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    for edge in ("top", "right"):
        axis.spines[edge].set_visible(False)
    # From zero, so that lengths can be compared, and with room for the texts.
    axis.set_xlim(0, max(spread.most for _, spread, _ in bars) * 1.35 or 1)
    axis.xaxis.set_major_formatter("{x:,g}")
    for position, (_, spread, times) in zip(positions, bars, strict=True):
        text = number(spread.median, metric) + (f"  ×{times:.2f}" if times is not None else "")
        axis.annotate(
            text,
            (max(spread.most, 0), position),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
