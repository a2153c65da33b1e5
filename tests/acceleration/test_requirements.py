"""Where connections cannot be accelerated, they are relayed, and the log says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceleration.support import CLIENT_FIRST, V4, Server

_TARGET = f"{V4},{CLIENT_FIRST}"
_ROOT = Path(__file__).resolve().parents[2]
_SAID = "connections are relayed without acceleration"

# Run with less rights than ours, or with a data plane that misses something. The sidecar is a child
# of it, so `without` has to act there: by way of the interpreter's start-up (PYTHONPATH).
_SCRIPT = """
import json, subprocess, sys
from pysidecar.testing import Sidecar, SidecarError

mode, routes, traffic, target = sys.argv[1:]
found = {"stdout": "", "access_log": ""}
acceleration = {"mode": mode, "receive": True}
sidecar = Sidecar({"outbound": {"routes": json.loads(routes)}, "acceleration": acceleration})
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


@dataclass(frozen=True)
class _Missing:
    """What is taken away, and what the log says of it."""

    said: str = ""
    rights: str = ""
    startup: str = ""
    libbpf: str = ""  # what its place takes

    def make_libbpf(self, directory: Path) -> None:
        library = directory / "libbpf.so.1"
        if self.libbpf == "nothing that loads":
            library.touch()
        else:
            subprocess.run(["gcc", "-shared", "-x", "c", os.devnull, "-o", library], check=True)


_NOTHING = _Missing()


def _run(
    server: Server, mode: str, directory: Path, missing: _Missing = _NOTHING
) -> dict[str, Any]:
    wrapper = ["setpriv", f"--bounding-set={missing.rights}", "--"] if missing.rights else []
    environment = dict(os.environ)
    if missing.startup:
        (directory / "sitecustomize.py").write_text(missing.startup)
        paths = [str(directory), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = ":".join(filter(None, paths))
    if missing.libbpf:
        missing.make_libbpf(directory)
        environment["LD_LIBRARY_PATH"] = str(directory)
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
    "all three": _Missing(
        "CAP_BPF CAP_NET_ADMIN CAP_PERFMON", rights="-bpf,-net_admin,-perfmon,-sys_admin"
    ),
    "net_admin": _Missing("missing capabilities: CAP_NET_ADMIN", rights="-net_admin"),
    "bpf": _Missing("missing capabilities: CAP_BPF", rights="-bpf,-sys_admin"),
    "programs": _Missing("built without it", startup=_WITHOUT_PROGRAMS),
    "libbpf": _Missing("libbpf is missing (", libbpf="nothing that loads"),
    "functions of libbpf": _Missing("libbpf is too old: it has no libbpf_", libbpf="an empty one"),
}


@pytest.fixture(params=_MISSING)
def missing(request: pytest.FixtureRequest) -> _Missing:
    found = _MISSING[request.param]
    if found.rights and os.geteuid() != 0:
        pytest.skip("takes rights away, so it needs them")
    return found


def test_auto_relays_and_says_once_what_is_missing(
    server: Server, tmp_path: Path, missing: _Missing
) -> None:
    found = _run(server, "auto", tmp_path, missing)
    assert found["log"].count(_SAID) == 1
    assert missing.said in found["log"]
    assert " complete " in found["stdout"]
    (line,) = found["access_log"].splitlines()
    assert json.loads(line)["path"] == "relay"


def test_require_does_not_start_and_says_what_is_missing(
    server: Server, tmp_path: Path, missing: _Missing
) -> None:
    found = _run(server, "require", tmp_path, missing)
    assert "acceleration.mode is require, but connections cannot be accelerated" in found["log"]
    assert missing.said in found["log"]
    assert "Traceback" not in found["log"]
    assert found["stdout"] == ""


def test_off_says_nothing(server: Server, tmp_path: Path) -> None:
    found = _run(server, "off", tmp_path)
    assert _SAID not in found["log"]
    (line,) = found["access_log"].splitlines()
    assert json.loads(line)["path"] == "relay"


def test_a_build_without_clang_says_what_it_goes_without(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "build_programs", f"--build-lib={tmp_path}"],
        cwd=_ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "without acceleration by BPF: clang not found" in done.stderr
    assert not list(tmp_path.rglob("*.bpf.o"))
