"""Whatever a program does with a socket, in whatever order: the hook is not to be noticed.

Random sequences of calls are run natively and hooked, and have to say the same. Those that differ
are run again, with more time for what is on its way, so that only what stays different counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from pysidecar.testing import Sidecar
from tests.interop.clients import PROGRAMS
from tests.interop.servers import plain_environment

_WAYS: dict[str, dict[str, Any]] = {
    "unix": {},
    "direct": {"outbound": {"routes": [{"action": "direct"}]}},
}
_SEEDS = 150
_SETTLE = (0.05, 0.5)  # seconds: at first, and again

_Said = dict[int, list[Any]]


def _run(seeds: Sequence[int], settle: float, environment: dict[str, str]) -> _Said:
    done = subprocess.run(
        [sys.executable, PROGRAMS / "sequences.py", str(settle), *map(str, seeds)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


def _alike(native: list[Any], hooked: list[Any]) -> bool:
    return len(native) == len(hooked) and all(map(_alike_call, native, hooked))


def _alike_call(native: list[Any], hooked: list[Any]) -> bool:
    """Equal, but for what docs/hook.md says of an error that is found by receiving or sending."""
    call, said = native
    late = call in ("receive", "peek", "send") and said == "ECONNREFUSED"
    return hooked == native or (late and hooked == [call, "ECONNRESET"])


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.timeout(300)
def test_calls_say_what_they_say_natively(way: str) -> None:
    seeds = range(_SEEDS)
    with Sidecar(_WAYS[way]) as sidecar:
        environments = [plain_environment(), {**os.environ, **sidecar.environment}]
        suspects: Sequence[int] = seeds
        for settle in _SETTLE:
            native, hooked = (_run(suspects, settle, each) for each in environments)
            suspects = [seed for seed in suspects if not _alike(native[seed], hooked[seed])]
            if not suspects:
                break
        connections = sidecar.connections()
    differing = "\n".join(
        f"{seed}:\n  native {native[seed]}\n  hooked {hooked[seed]}" for seed in suspects
    )
    assert not suspects, differing
    assert len(connections) > _SEEDS / 4
