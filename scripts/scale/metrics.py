"""``/metrics`` by the number of connections that are open: how long an answer takes, and how much
processor time of the control plane."""

from __future__ import annotations

import time

from pysidecar.testing import Sidecar
from scripts.scale.idle import idle_connections
from scripts.scale.threads import cpu_seconds, get

_COUNTS = (100, 1_000, 9_800)  # 20,000 descriptors allow no more
_ROUNDS = 100


def measure() -> None:
    for count in _COUNTS:
        with Sidecar() as sidecar, idle_connections(sidecar, count):
            get(sidecar, "/metrics")
            before, start = cpu_seconds(sidecar.pid), time.monotonic()
            for _ in range(_ROUNDS):
                text = get(sidecar, "/metrics")
            took = (time.monotonic() - start) / _ROUNDS
            used = cpu_seconds(sidecar.pid).python - before.python
            assert f'transport="header"}} {count}.0' in text
            print(
                f"  {count:,} connections: {took * 1000:.1f} ms, of which a processor works for "
                f"{used / _ROUNDS * 1000:.1f} ms",
                flush=True,
            )
