"""Heads of HTTP/1.1: what it costs to read one, and to write it again."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_DATA_PLANE = _ROOT / "pysidecar" / "dataplane"
_ROUNDS = 9
_WHAT = (
    "request of 208 bytes, read and written",
    "answer of 248 bytes, read and written",
    "one more byte of a head of 30,000 that comes in single bytes",
)


def measure() -> None:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "http1")
        flags = "-std=gnu11 -D_GNU_SOURCE -O2 -DNDEBUG -Wall -Wextra -Werror -fPIC".split()
        include = [f"-I{_ROOT / 'hook'}", f"-I{_DATA_PLANE}"]
        sources = [Path(__file__).with_name("http1.c"), *(_DATA_PLANE / "l7").glob("http1*.c")]
        command = ["gcc", *flags, *include, *map(str, sources), "-o", str(program)]
        subprocess.run(command, check=True)
        # As root ahead of everybody else on the machine.
        ahead = ("chrt", "--fifo", "1") if os.geteuid() == 0 else ()
        rounds = [
            [float(cost) for cost in subprocess.check_output([*ahead, program], text=True).split()]
            for _ in range(_ROUNDS)
        ]
    for what, costs in zip(_WHAT, zip(*rounds, strict=True), strict=True):
        print(f"  {what}: {statistics.median(costs):,.0f} ns", flush=True)
