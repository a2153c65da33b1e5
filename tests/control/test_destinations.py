"""Destinations to which nothing can be connected: a hooked program fails as natively."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysidecar import hook_path
from tests.control.conftest import RunningSidecar
from tests.hook.support import SANITIZED, Programs, Result
from tests.waiting import PATIENCE

pytestmark = pytest.mark.skipif(SANITIZED, reason="the hook is the installed one")

# (address, port): 0 as the kernel sees it, 1 where nobody listens.
CAPTURED = [
    ("127.0.0.1", 0),
    ("127.0.0.1", 1),
    ("::1", 0),
    ("::1", 1),
    ("::ffff:127.0.0.1", 0),
    ("0.0.0.0", 0),
    ("0.0.0.0", 1),
    ("::", 0),
    ("::", 1),
    ("::ffff:0.0.0.0", 1),
    ("127.255.255.255", 80),  # the broadcast address of a network, which only its host knows
]
FOR_MANY = [
    ("224.0.0.1", 80),
    ("239.255.255.255", 0),
    ("::ffff:224.0.0.1", 80),
    ("255.255.255.255", 80),
    ("::ffff:255.255.255.255", 80),
    ("ff02::1", 80),
    ("ff0e::1", 0),
]

Connect = Callable[..., Result]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module", params=["unix", "header"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def connect(
    transport: str, programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Connect]:
    """Runs programs/connect.c, hooked or not."""
    sidecar = RunningSidecar(tmp_path_factory.mktemp("sidecar"), config=f"transport: {transport}")

    def connect(*arguments: object, hooked: bool) -> Result:
        environment = dict(os.environ)
        if hooked:
            environment["LD_PRELOAD"] = str(hook_path())
            environment["MOSNHOOK_POLICY"] = str(_page(sidecar))
        done = subprocess.run(
            [str(programs("connect")), *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return Result.parse(done.stdout)

    yield connect
    sidecar.kill()


def _page(sidecar: RunningSidecar) -> Path:
    return sidecar.control_socket.with_name("hook.policy")


def _errno(result: Result) -> int:
    """What became of the connect, sooner or later."""
    at_once = result.number("connect")
    return result.number("so_error") if at_once == errno.EINPROGRESS else at_once


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
@pytest.mark.parametrize(("host", "port"), CAPTURED)
def test_a_captured_connect_fails_as_natively(
    connect: Connect, transport: str, host: str, port: int, mode: str
) -> None:
    option = ["-n"] if mode == "nonblocking" else []
    native = _errno(connect(*option, host, port, hooked=False))
    assert native != 0
    if transport == "unix":
        assert _errno(connect(*option, host, port, hooked=True)) == native
    else:  # connected before the upstream is, and reset when that has failed
        result = connect(*option, "-e", host, port, hooked=True)
        if _errno(result) == 0:
            failures = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)
            # The first call after the reset is told of it, whichever that is.
            if "send" in result.values:
                assert result.number("send") in failures
            else:
                assert result["echo"] in [f"errno {number}" for number in failures]
        else:  # already
            assert _errno(result) == errno.ECONNRESET


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
@pytest.mark.parametrize(("host", "port"), FOR_MANY)
def test_what_is_no_destination_of_tcp_is_refused_at_once(
    connect: Connect, host: str, port: int, mode: str
) -> None:
    option = ["-n"] if mode == "nonblocking" else []
    native = connect(*option, host, port, hooked=False).number("connect")
    assert native == errno.ENETUNREACH
    assert connect(*option, host, port, hooked=True).number("connect") == native
