"""Where connections cannot be accelerated, they are relayed, and the log says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceleration.support import CLIENT_FIRST, V4, Server

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes rights away, so it needs them")

_SCRIPT = """
import ctypes, json, pathlib, subprocess, sys
import pysidecar.dataplane as dataplane
from pysidecar.testing import Sidecar, SidecarError
from tests.interop.servers import plain_environment

mode, target, routes, traffic = sys.argv[1:]
settings = {"outbound": {"routes": json.loads(routes)}, "acceleration": mode}
try:
    with Sidecar(settings) as sidecar:
        command = [traffic, "run", "to=" + target, "exactly=1", "up=900000", "down=900000"]
        environment = plain_environment(**sidecar.environment)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    print(json.dumps([done.stdout, sidecar.access_log, sidecar.log]))
except SidecarError as error:
    print(json.dumps(["", "", str(error)]))
"""
_DROP = {
    "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON": "-bpf,-net_admin,-perfmon,-sys_admin",
    "CAP_NET_ADMIN": "-net_admin,-sys_admin",
}
