"""No privilege is needed: everything works without a single capability."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.interop.servers import Nginx

SCRIPT = """
import pathlib, sys
from pysidecar.testing import Sidecar

status = pathlib.Path("/proc/self/status").read_text()
assert "CapEff:\\t0000000000000000" in status, status
good, closed = sys.argv[1:]
with Sidecar() as sidecar:
    done = sidecar.hooked.run(["curl", "-s", f"http://{good}/whoami"], check=True)
    assert done.connection.transport == "unix", done.connection
    assert done.connection.original_destination == good
    assert done.stdout, "an answer"
    refused = sidecar.hooked.run(["curl", "-s", f"http://{closed}/"])
    assert refused.returncode == 7, refused  # "Failed to connect"
    assert "WARNING" not in sidecar.log, sidecar.log
print("ok")
"""
NONE = "--bounding-set=-all --inh-caps=-all --ambient-caps=-all --securebits=+noroot"


def test_the_sidecar_and_the_hook_need_no_capability(web: Nginx, refusing_port: int) -> None:
    command = [sys.executable, "-c", SCRIPT]
    if os.geteuid() == 0:
        command = ["setpriv", *NONE.split(), *command]
    addresses = [f"127.0.0.1:{web.http}", f"127.0.0.1:{refusing_port}"]
    done = subprocess.run(
        [*command, *addresses], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == "ok\n", done.stderr
