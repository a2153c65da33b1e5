"""What an application waits for an answer of the mesh API, which comes when what it said is on
disk: with the state on this disk, and in memory (where there is nothing to wait for)."""

from __future__ import annotations

import http.client
import json
import statistics
import tempfile
import time
from pathlib import Path

from pysidecar.testing import Sidecar
from scripts.bench.processes import free_port

_TIMES = 300
_PAUSE = 0.002  # seconds
_DIRECTORIES = (("on disk", Path.cwd()), ("in memory", Path("/dev/shm")))


def measure() -> None:
    for where, directory in _DIRECTORIES:
        with tempfile.TemporaryDirectory(dir=directory) as name:
            took = sorted(_answers(Path(name)))
        print(
            f"  a subscribe, with the state {where}: answered after "
            f"{statistics.median(took) * 1e3:.1f} ms, 99 of 100 after "
            f"{took[len(took) * 99 // 100] * 1e3:.1f} ms",
            flush=True,
        )


def _answers(directory: Path) -> list[float]:
    """Seconds each."""
    api = free_port()
    takeover = {
        "api": f"127.0.0.1:{api}",
        "consumer": f"127.0.0.1:{free_port()}",
        "provider": f"127.0.0.1:{free_port()}",
        "state": str(directory / "state.json"),
    }
    took = []
    with Sidecar({"access_log": "off", "takeover": takeover}):
        client = http.client.HTTPConnection("127.0.0.1", api)
        for number in range(_TIMES):
            body = json.dumps({"serviceName": f"host-{number}", "protocolType": "http"})
            began = time.monotonic()
            client.request("POST", "/services/subscribe", body)
            client.getresponse().read()
            took.append(time.monotonic() - began)
            time.sleep(_PAUSE)
        client.close()
    return took
