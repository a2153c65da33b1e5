"""Programs that are hard to hook: threads, emptied environments, two languages in one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.interop.clients import Compiled
from tests.interop.mesh import WEB, Mesh
from tests.interop.servers import Nginx, plain_environment, program
from tests.waiting import PATIENCE

# The first time, and with cgo, Go compiles its own library as well.
_COMPILES_GO = pytest.mark.timeout(240)


def test_threads_that_connect_at_once_are_told_apart(mesh: Mesh, compiled: Compiled) -> None:
    threads, rounds, port = 16, 10, 7007
    result, pid = mesh.run([compiled("threads"), str(threads), str(rounds), str(port)])
    assert result.check().stdout == f"right {threads * rounds}\n"
    asked = Counter(connection.original_destination for connection in result.connections)
    assert asked == {f"10.2.0.{thread}:{port}": rounds for thread in range(threads)}
    for connection in result.connections:
        mesh.check(connection, str(connection.original_destination), "threads", pid=pid)
        assert (connection.bytes_sent, connection.bytes_received) == (64, 64)


@pytest.mark.parametrize("way", ["fork", "vfork", "spawn"])
def test_a_child_with_an_empty_environment_is_captured(
    mesh: Mesh, compiled: Compiled, way: str
) -> None:
    curl = [program("curl"), "-sS", "--fail", f"http://{WEB}/whoami"]
    result, pid = mesh.run([compiled("empty_environment"), way, *curl])
    assert result.check().stdout == f"nginx HTTP/1.1 host={WEB}\n"
    mesh.check(result.connection, f"{WEB}:80", "curl")
    assert result.connection.pid != pid


@_COMPILES_GO
def test_a_go_program_is_captured_where_c_connects_and_only_there(
    mesh: Mesh, compiled: Compiled, web: Nginx
) -> None:
    # 127.0.0.1 is reachable without the sidecar, which is how Go's own way gets there.
    result, pid = mesh.run([compiled("client.go"), WEB, "80", "127.0.0.1", str(web.http)])
    served = "nginx HTTP/1.0 host=interop"
    assert result.check().stdout.splitlines() == [f"cgo {served}", f"net {served}"]
    mesh.check(result.connection, f"{WEB}:80", "client.go", pid=pid)


def _exec(mesh: Mesh, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a program by ``pysidecar exec``, as a user would."""
    configuration = str(mesh.sidecar.config_file)
    return subprocess.run(
        [sys.executable, "-m", "pysidecar", "exec", "-c", configuration, "--", *command],
        capture_output=True,
        text=True,
        env=plain_environment(),
        timeout=PATIENCE,
    )


@_COMPILES_GO
def test_exec_warns_that_a_go_program_is_beyond_the_hook(
    mesh: Mesh, compiled: Compiled, web: Nginx
) -> None:
    process = _exec(mesh, compiled("client.go"), WEB, "80", "127.0.0.1", str(web.http))
    assert process.returncode == 0, process.stderr
    assert re.search(r"\bGo\b", process.stderr)
    assert process.stdout.startswith("cgo nginx ")  # a warning, not a refusal


@pytest.mark.parametrize("name", ["client", "client-musl"])
def test_exec_has_nothing_to_say_about_a_program_that_it_reaches(
    mesh: Mesh, compiled: Compiled, name: str
) -> None:
    process = _exec(mesh, compiled(name), "blocking", WEB, "80")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert process.stdout.splitlines()[0] == f"peer {WEB} 80"
