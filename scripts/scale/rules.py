"""Rules for requests: what it costs to find the one for a request, by how many there are, and to
set a table of services."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from pysidecar.config import parse
from pysidecar.dataplane import DataPlane, Timeouts
from pysidecar.routing.services import ServiceNumbers, pack_services

_ROOT = Path(__file__).resolve().parents[2]
_DATA_PLANE = _ROOT / "pysidecar" / "dataplane"
_ROUNDS = 5
_COUNTS = (10, 1_000, 10_000)
_WAYS = ("host", "domain", "service", "glob")


def measure() -> None:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "route")
        _compile(program)
        for count in _COUNTS:
            costs = {way: _cost(program, way, count) for way in _WAYS}
            text = ", ".join(f"{way} {cost:,.0f} ns" for way, cost in costs.items())
            print(f"  {count:,} rules: {text}", flush=True)
    for count in (1_000, 10_000):
        _change(count)


def _compile(program: Path) -> None:
    sources = [
        Path(__file__).with_name("route.c"),
        _DATA_PLANE / "base" / "places.c",
        _DATA_PLANE / "l7" / "rulebook.c",
    ]
    flags = "-std=gnu11 -D_GNU_SOURCE -O2 -DNDEBUG -Wall -Wextra -Werror".split()
    include = [f"-I{_ROOT / 'hook'}", f"-I{_DATA_PLANE}"]
    subprocess.run(["gcc", *flags, *include, *map(str, sources), "-o", str(program)], check=True)


def _cost(program: Path, way: str, count: int) -> float:
    command = [str(program), way, str(count)]
    return statistics.median(
        float(subprocess.check_output(command, text=True)) for _ in range(_ROUNDS)
    )


def _change(count: int) -> None:
    """Of one service among so many, each with a rule and three endpoints."""
    start = time.thread_time()
    configs = [parse(_text(count, other)) for other in (0, 1)]
    parsing = (time.thread_time() - start) / 2
    numbers = ServiceNumbers()
    start = time.thread_time()
    packed = [pack_services(config, numbers) for config in configs]
    packing = (time.thread_time() - start) / 2
    data = DataPlane(workers=2, timeouts=Timeouts())
    data.start()
    changes = []
    for turn in range(20):
        start = time.thread_time()
        data.set_services(packed[turn % 2])
        changes.append(time.thread_time() - start)
    data.stop()
    data.close()
    print(
        f"  1 of {count:,} services changes: {statistics.median(changes[1:]) * 1e3:.1f} ms to set "
        f"the table (the first one {changes[0] * 1e3:.0f} ms), before that beside the loop "
        f"{parsing * 1e3:.0f} ms to read the file and {packing * 1e3:.0f} ms to pack it",
        flush=True,
    )


def _text(count: int, other: int) -> str:
    lines = ["services:"]
    for n in range(count):
        first = 1 + other * (n == count // 2)
        lines += [
            f"  orders-{n}:",
            "    protocol: http",
            "    endpoints:",
            *(f"      - 10.{first + k}.{n >> 8}.{n & 255}:80" for k in range(3)),
        ]
    lines.append("requests:")
    for n in range(count):
        lines += [f"  - match: {{host: orders-{n}.example.com}}", f"    services: orders-{n}"]
    return "\n".join(lines) + "\n"
