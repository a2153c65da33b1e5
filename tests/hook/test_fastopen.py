"""TCP Fast Open in its three forms."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.hook.reference import HEADER, UNIX, Direct, Sidecar
from tests.hook.support import PORT, V4, V6, EchoServer, Runner

MakeSidecar = Callable[..., Sidecar]

CALLS = ["sendto", "sendmsg", "sendmmsg"]
TRANSPORTS = [UNIX, HEADER]


@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("call", CALLS)
def test_message_with_fast_open_connects_and_sends(
    run: Runner,
    libc: str,
    make_sidecar: MakeSidecar,
    upstream: EchoServer,
    transport: int,
    call: str,
    host: str,
) -> None:
    run.libc = libc
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    result = run("connect", "-F", call, "-e", host, PORT, sidecar=sidecar)
    assert (result["connect"], result["echo"]) == ("0", "hello")
    assert result["peer"] == f"{host} {PORT}"
    assert len(sidecar.wait_for_requests()) == 1


@pytest.mark.parametrize("call", CALLS)
def test_message_with_fast_open_fails_with_the_true_errno(
    run: Runner, sidecar: Sidecar, call: str
) -> None:
    sidecar.fallback = errno.EHOSTUNREACH
    result = run("connect", "-F", call, V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EHOSTUNREACH


@pytest.mark.parametrize("call", CALLS)
def test_message_with_fast_open_goes_to_the_endpoint_of_a_direct_route(
    run: Runner, libc: str, make_sidecar: MakeSidecar, upstream: EchoServer, call: str
) -> None:
    run.libc = libc
    sidecar = make_sidecar(asked=[f"{V4}/32"], fallback=Direct(upstream.address))
    result = run("connect", "-F", call, "-e", V4, PORT, sidecar=sidecar)
    assert (result["connect"], result["echo"]) == ("0", "hello")
    assert result["peer"] == f"{V4} {PORT}"
    assert len(sidecar.requests) == 1


@pytest.mark.parametrize("option", ["-n", "-D"])
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("call", CALLS)
def test_nonblocking_message_is_in_progress_as_without_a_cookie(
    run: Runner,
    make_sidecar: MakeSidecar,
    upstream: EchoServer,
    transport: int,
    call: str,
    option: str,
) -> None:
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    result = run("connect", "-F", call, option, V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EINPROGRESS
    assert (result["ready"], result["so_error"]) == ("1", "0")
    assert result["peer"] == f"{V4} {PORT}"
    assert result["nonblocking"] == str(int(option == "-n"))


@pytest.mark.parametrize("option", [[], ["-n"]])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_fast_open_connect_is_a_connect(
    run: Runner,
    make_sidecar: MakeSidecar,
    upstream: EchoServer,
    transport: int,
    option: list[str],
) -> None:
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    result = run("connect", "-f", "-e", *option, V4, PORT, sidecar=sidecar)
    assert result.number("connect") == (errno.EINPROGRESS if option else 0)
    assert result["echo"] == "hello"
    assert [one.destination for one in sidecar.wait_for_requests()] == [(V4, PORT)]


def test_fast_open_connect_fails_with_the_true_errno(run: Runner, sidecar: Sidecar) -> None:
    """The kernel would say 0 and fail later."""
    sidecar.fallback = errno.EHOSTUNREACH
    result = run("connect", "-f", V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EHOSTUNREACH
    assert result["fast_open"] == "1", "the next connect is one again"


@pytest.mark.parametrize("call", CALLS)
def test_messages_to_excluded_destinations_are_left_alone(
    run: Runner, sidecar: Sidecar, upstream: EchoServer, call: str
) -> None:
    result = run("connect", "-F", call, "-e", *upstream.address, sidecar=sidecar)
    assert result["echo"] == "hello"
    assert sidecar.requests == []
