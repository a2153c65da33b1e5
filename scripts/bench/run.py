"""Runs the rounds: every scenario with every side, in turns."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pysidecar.testing import SidecarError
from scripts.bench import machine
from scripts.bench.processes import BenchError, find_program, wait_until_idle
from scripts.bench.results import Results, Round
from scripts.bench.scenarios import Scenario, Settings
from scripts.bench.side import SPARE_FILES, Side, Site, Way
from scripts.bench.sides import SIDES

__all__ = ["build_load", "idle_connections", "run"]

_LOAD = Path(__file__).parent / "load"
_BUSY = 10  # percent of all CPUs, used by others: numbers get uncertain
_CONNECTIONS = 1024  # that sides have to carry in all scenarios but the idle one


def build_load(directory: Path) -> Path:
    """Compiles the load generator; its path. Another run may be using it meanwhile."""
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / "load"
    new = directory / f"load-{os.getpid()}"
    flags = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
    command: list[str | Path] = [
        find_program("gcc"),
        *flags,
        "-o",
        new,
        *sorted(_LOAD.glob("*.c")),
        "-lnghttp2",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"cannot compile the load generator:\n{done.stderr}")
    new.replace(program)
    return program


def idle_connections(wanted: int) -> int:
    """As many as processes here may have descriptors for; raises our own limit for children."""
    limit = _raise_file_limit()
    return min(wanted, (limit - SPARE_FILES) // 2)


def _raise_file_limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def run(
    scenarios: Sequence[Scenario],
    sides: Sequence[Side],
    settings: Settings,
    load: Path,
    console: Console,
) -> Results:
    """Measures, and shows what is going on and how long it will take."""
    sides = [side for side in sides if any(scenario.takes(side) for scenario in scenarios)]
    others = [side for side in sides if side not in SIDES]
    results = Results(machine.describe(), asdict(settings), {}, others=others)
    results.machine["busy_before"] = _busy(console)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        directory.chmod(0o755)  # programs of other users keep their files there
        site = Site(directory, load, _CONNECTIONS, _raise_file_limit())
        started = _start(stack, sides, site, results, console)
        plan = _plan(scenarios, [side for side in sides if side.name in started], settings)
        progress = stack.enter_context(_progress(console))
        task = progress.add_task("", total=sum(_estimate(s, settings, n) for _, s, n in plan))
        for number, scenario, step in plan:
            description = f"round {number + 1}/{settings.rounds}  {scenario.name}"
            progress.update(task, description=f"{description}  {', '.join(s.name for s in step)}")
            results.rounds += _measure(number, scenario, step, started, site, settings)
            progress.advance(task, _estimate(scenario, settings, step))
    results.machine["busy_after"] = _busy(console)
    return results


def _busy(console: Console) -> float:
    """Percent of the CPUs that others use, while nothing is measured."""
    busy = psutil.cpu_percent(1.0)
    if busy > _BUSY:
        console.print(
            f"[yellow]this machine is busy[/]: other programs use {busy:.0f} % of its CPUs"
        )
    return busy


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
    )


def _start(
    stack: contextlib.ExitStack,
    sides: Sequence[Side],
    site: Site,
    results: Results,
    console: Console,
) -> dict[str, Way]:
    """Starts them all, idle but for their turn; says which of them cannot be had here."""
    ways: dict[str, Way] = {}
    for side in sides:
        reason = side.unavailable()
        if not reason:
            try:
                ways[side.name] = stack.enter_context(side.start(site))
            except (BenchError, SidecarError) as error:
                reason = f"did not start: {error}"
        if reason:
            results.unavailable[side.name] = reason
            console.print(
                f"[yellow]without {side.name}[/]: {escape(reason)}", highlight=False, soft_wrap=True
            )
    return ways


_Step = tuple[int, Scenario, list[Side]]


def _plan(scenarios: Sequence[Scenario], sides: Sequence[Side], settings: Settings) -> list[_Step]:
    """Round by round, in each all scenarios, in each all sides, another side first each time."""
    plan: list[_Step] = []
    for number in range(settings.rounds):
        for scenario in scenarios:
            mine = [side for side in sides if scenario.takes(side)]
            shift = number % len(mine) if mine else 0
            mine = mine[shift:] + mine[:shift]
            if scenario.measure_together is not None:
                # One side alone is not a comparison.
                plan += [(number, scenario, mine)] if len(mine) > 1 else []
            else:
                plan += [(number, scenario, [side]) for side in mine]
    return plan


def _estimate(scenario: Scenario, settings: Settings, sides: Sequence[Side]) -> float:
    """Seconds that a step takes, about."""
    if scenario.fresh:
        return 1.5 + settings.idle_connections / 4000
    if scenario.measure_together is not None:
        return 0.0015 * settings.connect_batches * len(sides)
    return settings.warm_up + settings.seconds + 0.15


def _measure(
    number: int,
    scenario: Scenario,
    sides: Sequence[Side],
    started: dict[str, Way],
    site: Site,
    settings: Settings,
) -> Iterator[Round]:
    names = [side.name for side in sides]
    try:
        if scenario.measure_together is not None:
            ways = {name: started[name] for name in names}
            for name, values in scenario.measure_together(site.load, ways, settings).items():
                yield Round(number, scenario.name, name, values)
            return
        assert scenario.measure is not None
        with contextlib.ExitStack() as stack:
            way = started[names[0]]
            if scenario.fresh:
                large = replace(site, connections=settings.idle_connections, memory_matters=True)
                way = stack.enter_context(sides[0].start(large))
            values = scenario.measure(site.load, way, settings)
            wait_until_idle(way.proxies)
        yield Round(number, scenario.name, names[0], values)
    except (BenchError, SidecarError, psutil.Error) as error:
        for name in names:
            yield Round(number, scenario.name, name, error=str(error) or type(error).__name__)
