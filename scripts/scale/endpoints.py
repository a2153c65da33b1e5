"""Endpoints: what it costs to pick one, by how many there are, and a change of the route table."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from pathlib import Path

from pysidecar.address import Address
from pysidecar.dataplane import DataPlane, Route, RouteTable, Timeouts, pack_routes
from pysidecar.destinations import PortRange
from pysidecar.routing.rules import Rule, compile_rules

_ROOT = Path(__file__).resolve().parents[2]
_DATA_PLANE = _ROOT / "pysidecar" / "dataplane"
_PARTS = ("cluster", "endpoint", "latency", "maglev", "shared", "weighing")
_ROUNDS = 5
_WAYS = {
    "turn": "round_robin",
    "two": "least_connections",
    "all": "a look at all",
    "weighted-turn": "weighted round_robin",
    "weighted-random": "random",
    "weighted-two": "least_requests",
    "ring": "ring_hash",
    "table": "maglev",
    "ewma": "peak_ewma",
}
_COUNTS = (2, 100, 10_000)
_ROUTES, _ENDPOINTS_OF_A_ROUTE = (500, 5_000, 50_000), 3


def measure() -> None:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "pick")
        _compile(program)
        for count in _COUNTS:
            for threads in (1, 2):
                _show(program, count, 0, threads)
        for ejected in (_COUNTS[-1] // 2, _COUNTS[-1] * 99 // 100):
            _show(program, _COUNTS[-1], ejected, 1)
    for count in _ROUTES:
        _change(count)


def _compile(program: Path) -> None:
    sources = [
        Path(__file__).with_name("pick.c"),
        *(_DATA_PLANE / "base" / f"{part}.c" for part in ("map", "places", "slab")),
        *(_DATA_PLANE / "upstream" / f"{part}.c" for part in _PARTS),
    ]
    flags = "-std=gnu11 -D_GNU_SOURCE -O2 -DNDEBUG -Wall -Wextra -Werror -pthread".split()
    include = [f"-I{_ROOT / 'hook'}", f"-I{_DATA_PLANE}"]
    subprocess.run(["gcc", *flags, *include, *map(str, sources), "-o", str(program)], check=True)


def _show(program: Path, count: int, ejected: int, threads: int) -> None:
    """The median of some rounds. As root ahead of everybody else on the machine, so that the
    workers meet."""
    ahead = ("chrt", "--fifo", "1") if os.geteuid() == 0 else ()
    costs = []
    for way in _WAYS:
        command = [*ahead, program, way, str(count), str(ejected), str(threads)]
        rounds = [float(subprocess.check_output(command, text=True)) for _ in range(_ROUNDS)]
        costs.append(statistics.median(rounds))
    print(
        f"  {count:,} endpoints, {ejected:,} ejected, {threads} worker{'s' * (threads > 1)}: "
        + ", ".join(
            f"{name} {cost:,.0f} ns" for name, cost in zip(_WAYS.values(), costs, strict=True)
        ),
        flush=True,
    )


def _change(count: int) -> None:
    """Of one route among so many, in the middle."""
    rules = compile_rules(
        Rule([ip_network(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")], [PortRange(80, 80)], n)
        for n in range(count)
    )
    tables = [RouteTable(rules, _routes(count, other)) for other in (0, 1)]
    start = time.thread_time()
    packed = [pack_routes(table) for table in tables]
    packing = (time.thread_time() - start) / 2
    data = DataPlane(workers=2, timeouts=Timeouts())
    data.start()
    data.set_routes(packed[0])
    changes = [_timed(partial(data.set_routes, packed[turn % 2])) for turn in range(1, 40)]
    looking = min(_timed(data.ejected) for _ in range(_ROUNDS))
    data.stop()
    data.close()
    print(
        f"  1 of {count:,} routes changes: {min(changes) * 1e3:.2f} ms to set the table, before "
        f"that {packing * 1e3:.0f} ms beside the loop to pack it; {looking * 1e3:.2f} ms to look "
        "for ejected ones",
        flush=True,
    )


def _routes(count: int, other: int) -> tuple[Route, ...]:
    """All their endpoints are different ones. `other`: of those of one route."""
    return tuple(
        Route(
            endpoints=tuple(
                Address(f"10.{place + other * (n == count // 2)}.{n >> 8}.{n & 255}", 80)
                for place in range(_ENDPOINTS_OF_A_ROUTE)
            )
        )
        for n in range(count)
    )


def _timed(call: Callable[[], object]) -> float:
    """Seconds of processor time of this thread: others run beside it."""
    start = time.thread_time()
    call()
    return time.thread_time() - start
