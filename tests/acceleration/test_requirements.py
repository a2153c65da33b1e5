"""Where connections cannot be accelerated, they are relayed, and the log says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceleration.support import CLIENT_FIRST, V4, Server

_TARGET = f"{V4},{CLIENT_FIRST}"
_SAID = "connections are relayed without acceleration"

# Run with less rights than ours, or with a data plane that misses something. The sidecar is a child
# of it, so `without` has to act there: by way of the interpreter's start-up (PYTHONPATH).
_SCRIPT = """
import json, subprocess, sys
from pysidecar.testing import Sidecar, SidecarError

mode, routes, traffic, target = sys.argv[1:]
found = {"stdout": "", "access_log": ""}
sidecar = Sidecar({"outbound": {"routes": json.loads(routes)}, "acceleration": mode})
try:
    with sidecar:
        command = [traffic, "run", "to=" + target, "exactly=1", "up=900000", "down=900000"]
        found["stdout"] = sidecar.hooked.run(command, check=True).stdout
except SidecarError as error:
    found["log"] = str(error)
else:
    found["log"] = sidecar.log
    found["access_log"] = sidecar.access_log
print(json.dumps(found))
"""


def _run(
    server: Server, mode: str, *, rights: str = "", startup: str = "", directory: Path
) -> dict[str, Any]:
    wrapper = ["setpriv", f"--bounding-set={rights}", "--"] if rights else []
    environment = dict(os.environ)
    if startup:
        (directory / "sitecustomize.py").write_text(startup)
        paths = [str(directory), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = ":".join(filter(None, paths))
    done = subprocess.run(
        [
            *(*wrapper, sys.executable, "-c", _SCRIPT),
            *(mode, json.dumps(server.routes), server.program, _TARGET),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


_WITHOUT_PROGRAMS = """
import pathlib
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path, **more: path.name != "accelerate.bpf.o" and exists(path, **more)
"""

_MISSING = {
    "all three": ("-bpf,-net_admin,-perfmon,-sys_admin", "", "CAP_BPF CAP_NET_ADMIN CAP_PERFMON"),
    "net_admin": ("-net_admin", "", "missing capabilities: CAP_NET_ADMIN"),
    "bpf": ("-bpf,-sys_admin", "", "missing capabilities: CAP_BPF"),
    "programs": ("", _WITHOUT_PROGRAMS, "built without it"),
}


@pytest.fixture(params=_MISSING)
def missing(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    rights, startup, said = _MISSING[request.param]
    if rights and os.geteuid() != 0:
        pytest.skip("takes rights away, so it needs them")
    return rights, startup, said


def test_auto_relays_and_says_once_what_is_missing(
    server: Server, tmp_path: Path, missing: tuple[str, str, str]
) -> None:
    rights, startup, said = missing
    found = _run(server, "auto", rights=rights, startup=startup, directory=tmp_path)
    assert found["log"].count(_SAID) == 1
    assert said in found["log"]
    assert " complete " in found["stdout"]
    (line,) = found["access_log"].splitlines()
    assert json.loads(line)["path"] == "relay"


def test_require_does_not_start_and_says_what_is_missing(
    server: Server, tmp_path: Path, missing: tuple[str, str, str]
) -> None:
    rights, startup, said = missing
    found = _run(server, "require", rights=rights, startup=startup, directory=tmp_path)
    assert "acceleration.mode is require, but connections cannot be accelerated" in found["log"]
    assert said in found["log"]
    assert "Traceback" not in found["log"]
    assert found["stdout"] == ""


def test_off_says_nothing(server: Server, tmp_path: Path) -> None:
    found = _run(server, "off", directory=tmp_path)
    assert _SAID not in found["log"]
    (line,) = found["access_log"].splitlines()
    assert json.loads(line)["path"] == "relay"
