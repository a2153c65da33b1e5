"""Timers by themselves: they know nobody, so that they can be tried without a data plane."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "pysidecar" / "dataplane"
PROGRAMS = Path(__file__).parent / "programs"


def test_timers_expire_in_order_at_their_time_and_once(tmp_path: Path) -> None:
    program = tmp_path / "timers"
    options = "-std=gnu11 -O1 -g -Wall -Wextra -Werror -fsanitize=address,undefined".split()
    sources = (PROGRAMS / "timers.c", SOURCES / "loop" / "timer.c")
    command: list[str | Path] = ["gcc", *options, "-I", SOURCES, *sources, "-o", program]
    subprocess.run(command, check=True, env={"PATH": "/usr/bin:/bin"})
    done = subprocess.run([program], env={}, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
