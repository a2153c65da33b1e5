"""A build on a machine that has no libnghttp2."""

from __future__ import annotations

import http.client
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pysidecar import hook_path
from pysidecar.testing import Sidecar, SidecarError
from tests.interop import servers
from tests.interop.servers import free_port, program
from tests.requests.support import Upstream, echo
from tests.waiting import PATIENCE

_ROOT = Path(__file__).resolve().parents[2]
_HEADERS = "/usr/include/nghttp2"
_BUILT = ("pysidecar", "hook", "setup.py", "pyproject.toml", "README.md", "LICENSE", "LICENSES")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to hide libnghttp2's headers"),
    pytest.mark.skipif("PYSIDECAR_UNDER_TEST" in os.environ, reason="makes its own build"),
]


@dataclass(frozen=True)
class Build:
    """What was built, and what that said."""

    directory: Path
    python: Path
    said: str


def _script(path: Path, *command: str | Path, more: str = "") -> Path:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@" {more}\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Of a copy, and where there seem to be no headers."""
    directory = tmp_path_factory.mktemp("build")
    listed = subprocess.check_output(["git", "ls-files", "-z", "--", *_BUILT], cwd=_ROOT)
    for name in filter(None, map(os.fsdecode, listed.split(b"\0"))):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes((_ROOT / name).read_bytes())
    shutil.copy(hook_path(), directory / "pysidecar")  # has nothing to do with it
    # That it is quick is worth more here than that what is built is.
    compiler = _script(directory / "compile", "gcc", more="-O0 -g0")
    hidden = f"mount -t tmpfs none {_HEADERS} && exec"
    python = shlex.join([sys.executable, "setup.py", "--quiet"])
    steps = "build_clib build_ext --inplace"
    done = subprocess.run(
        [program("unshare"), "--mount", "sh", "-c", f"{hidden} {python} {steps}"],
        cwd=directory,
        env=os.environ | {"CC": str(compiler)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    interpreter = _script(
        directory / "python", "env", f"PYTHONPATH={directory}:{_ROOT}", sys.executable
    )
    return Build(directory, interpreter, done.stderr)


class _Sidecar(Sidecar):
    """One of that build."""

    def __init__(self, build: Build, settings: dict[str, object]) -> None:
        self.python = str(build.python)
        super().__init__(settings)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server of HTTP/2."""
    directory = tmp_path_factory.mktemp("nghttpd")
    (directory / "file").write_text("from nghttpd")
    port = free_port()
    with servers.running(
        [program("nghttpd"), "--no-tls", "-a", "127.0.0.1", "-d", directory, str(port)],
        log=directory / "log",
        ready=lambda: servers.accepts(port),
    ):
        yield port


def test_everything_else_is_built_and_the_package_is_named(build: Build) -> None:
    [line] = [line for line in build.said.splitlines() if "HTTP/2" in line]
    assert line == "without HTTP/2: libnghttp2 1.50 or newer (libnghttp2-dev) not found"
    [native] = (build.directory / "pysidecar/dataplane").glob("_native*.so")
    assert b"libnghttp2" not in native.read_bytes()


def test_a_configuration_with_http2_is_refused_in_a_line(build: Build) -> None:
    settings: dict[str, object] = {
        "services": {"orders": {"protocol": "grpc", "endpoints": ["127.0.0.1:1"]}},
        "takeover": {"publish": [{"service": "a.B", "protocol": "tri", "port": 1}]},
    }
    with pytest.raises(SidecarError) as refused, _Sidecar(build, settings):
        pass
    reason = "expected another protocol: this pysidecar was built without libnghttp2-dev"
    lines = [line for line in str(refused.value).splitlines() if "sidecar.yaml: " in line]
    assert [line.partition("sidecar.yaml: ")[2] for line in lines] == [
        f"services.orders.protocol: {reason}",
        f"takeover.publish[0].protocol: {reason}",
    ]


def test_other_protocols_are_served_and_http2_is_relayed(build: Build, web: int) -> None:
    port = free_port()
    with Upstream(echo) as upstream:
        settings: dict[str, object] = {
            "services": {"a": {"protocol": "http", "endpoints": [str(upstream.address)]}},
            "listeners": [{"listen": f"127.0.0.1:{port}", "protocol": "auto"}],
            "requests": [{"services": "a"}],
            "outbound": {"routes": [{"match": {"ports": web}, "action": "requests"}]},
        }
        with _Sidecar(build, settings) as sidecar:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            client.request("GET", "/path")
            assert client.getresponse().read() == b"/path|"
            client.close()
            command = ["curl", "-sS", "--http2-prior-knowledge", f"http://127.0.0.1:{web}/file"]
            assert sidecar.hooked.run(command, check=True).stdout == "from nghttpd"
            connection = sidecar.wait_for_connection(f"127.0.0.1:{web}", closed=True)
            assert connection.bytes_received > 0
            assert len(sidecar.requests()) == 1
