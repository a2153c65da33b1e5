"""The hook breaks no process that it is in, and its children stay hooked."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from tests.hook.reference import HEADER, UNIX, Sidecar
from tests.hook.support import PORT, SANITIZED, V4, EchoServer, Runner

_EVERYWHERE = (
    "execve execve-null execve-other execve-part execv execvp execvpe execl execlp execle fexecve"
    " posix_spawn posix_spawnp vfork"
).split()

needs_plain_hook = pytest.mark.skipif(
    SANITIZED, reason="the sanitizers' runtime cannot do without its own environment"
)


@needs_plain_hook
@pytest.mark.parametrize(
    ("how", "libc"),
    [(how, libc) for libc in ("glibc", "musl") for how in _EVERYWHERE] + [("execveat", "glibc")],
)
def test_children_with_an_empty_environment_stay_hooked(
    run: Runner, sidecar: Sidecar, how: str, libc: str
) -> None:
    run.libc = libc
    sidecar.fallback = errno.EDOM
    child = run.programs("connect", libc)
    result = run("spawn", how, child, V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EDOM
    (request,) = sidecar.wait_for_requests()
    assert request.command == f"connect-{libc}"


@needs_plain_hook
def test_children_keep_their_own_preloaded_libraries(
    run: Runner, libc: str, sidecar: Sidecar
) -> None:
    run.libc = libc
    sidecar.fallback = errno.EDOM
    child, neighbour = run.programs("connect", libc), str(run.programs("neighbour", libc))
    result = run("spawn", "execve-merge", child, V4, PORT, sidecar=sidecar, NEIGHBOUR=neighbour)
    assert result.number("connect") == errno.EDOM
    assert result.errors.startswith("neighbour\n")


@needs_plain_hook
def test_inheriting_can_be_switched_off(run: Runner, sidecar: Sidecar) -> None:
    sidecar.fallback = errno.EDOM
    child = run.programs("connect")
    result = run("spawn", "execve", child, V4, PORT, sidecar=sidecar, MOSNHOOK_INHERIT="0")
    assert result.number("connect") != errno.EDOM
    assert sidecar.requests == []


@needs_plain_hook
@pytest.mark.parametrize("before", [True, False])
def test_other_preloaded_libraries_keep_working(
    run: Runner, libc: str, sidecar: Sidecar, upstream: EchoServer, before: bool
) -> None:
    run.libc = libc
    sidecar.fallback = upstream.address
    neighbour = run.programs("neighbour", libc)
    if before:
        run.preload_before = [neighbour]
    else:
        run.preload_after = [neighbour]
    result = run("connect", "-e", V4, PORT, sidecar=sidecar)
    assert (result["connect"], result["echo"]) == ("0", "hello")
    # In front it sees the application's call, behind us what we make of it.
    assert result.errors.splitlines()[0] == "neighbour"
    if before:
        assert result.errors == "neighbour\n"


@needs_plain_hook
def test_needs_no_unusual_system_call(run: Runner, sidecar: Sidecar, upstream: EchoServer) -> None:
    sidecar.fallback = upstream.address
    for transport in (UNIX, HEADER):
        sidecar.transport = transport
        sidecar.publish()
        assert run("sandbox", "network", V4, PORT, sidecar=sidecar)["connect"] == "0"
    assert [one.transport for one in sidecar.wait_for_requests(2)] == [UNIX, HEADER]


def test_without_unix_sockets_it_sends_headers(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    sidecar.fallback = upstream.address
    assert run("sandbox", "no-unix", V4, PORT, sidecar=sidecar)["connect"] == "0"
    assert [one.transport for one in sidecar.wait_for_requests()] == [HEADER]


def test_where_sockets_remember_nothing_connects_work(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    """Kernels before 5.3: there getpeername answers the park."""
    sidecar.fallback = upstream.address
    result = run("sandbox", "no-memo", V4, PORT, sidecar=sidecar)
    assert result["connect"] == "0"
    assert result.number("peer") in [park.getsockname()[1] for park in sidecar.parks]
    sidecar.fallback = errno.EHOSTUNREACH
    result = run("sandbox", "no-memo", V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EHOSTUNREACH


def test_bypass_switches_the_hook_off_and_on(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    """As the sidecar does it in its own process, should it have been started hooked."""
    sidecar.excluded = []
    sidecar.fallback = errno.EDOM
    sidecar.publish()
    script = (
        "import ctypes, socket, sys\n"
        "for on in (1, 0):\n"
        "    ctypes.CDLL(None).mosnhook_bypass(on)\n"
        "    with socket.socket() as client:\n"
        "        print(client.connect_ex(('127.0.0.1', int(sys.argv[1]))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(upstream.address[1])],
        env=run.environment(sidecar, {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", str(errno.EDOM)]
    assert [one.destination for one in sidecar.requests] == [upstream.address]
