"""``/connections``: for how long nothing else is answered while it is, by the number of
connections."""

from __future__ import annotations

import http.client
import subprocess
import time

from pysidecar.testing import Sidecar
from scripts.scale.idle import idle_connections

_COUNTS = (100, 1_000, 9_800)  # 20,000 descriptors allow no more
_ROUNDS = 5
_REQUESTS = {
    "all": "/connections",
    "lines": "/connections?format=ndjson",
    "none of them": "/connections?uid=4294967294",
}


def measure() -> None:
    for count in _COUNTS:
        with Sidecar() as sidecar, idle_connections(sidecar, count):
            for name, path in _REQUESTS.items():
                rounds = sorted(_one(sidecar, path) for _ in range(_ROUNDS))
                silent, took, size = rounds[_ROUNDS // 2]
                print(
                    f"  {count:,} connections, {name}: {took * 1000:.0f} ms, {size / 1e6:.2f} MB, "
                    f"others wait for {silent * 1000:.1f} ms at most",
                    flush=True,
                )


def _one(sidecar: Sidecar, path: str) -> tuple[float, float, int]:
    """The longest that ``/ready`` took meanwhile, how long the answer took, both in seconds, and
    its size."""
    url = f"http://{sidecar.admin}{path}"
    command = ["curl", "--silent", "--fail", "--output", "/dev/null"]
    command += ["--write-out", "%{time_total} %{size_download}", url]
    longest = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        while client.poll() is None:
            start = time.monotonic()
            _ready(sidecar)
            longest = max(longest, time.monotonic() - start)
        assert client.stdout is not None
        took, size = client.stdout.read().split()
    return longest, float(took), int(size)


def _ready(sidecar: Sidecar) -> None:
    connection = http.client.HTTPConnection(sidecar.admin.host, sidecar.admin.port)
    connection.request("GET", "/ready")
    connection.getresponse().read()
    connection.close()
