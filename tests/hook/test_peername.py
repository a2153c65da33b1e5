"""getpeername tells where the application wanted to go."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest

from tests.hook.reference import HEADER, UNIX, Direct, Sidecar
from tests.hook.support import MAPPED, PORT, V4, V6, EchoServer, Runner

MakeSidecar = Callable[..., Sidecar]


def test_in_threads_after_dup_and_with_reused_numbers(
    run: Runner, libc: str, sidecar: Sidecar, upstream: EchoServer
) -> None:
    run.libc = libc
    sidecar.fallback = upstream.address
    result = run("threads", 8, 20, V4, 7000, sidecar=sidecar, timeout=50)
    assert result["right"] == "160", result.errors
    assert len(sidecar.requests) == 160


def test_in_children(run: Runner, libc: str, sidecar: Sidecar, upstream: EchoServer) -> None:
    """After fork, and when a child between vfork and _exit made the connection."""
    run.libc = libc
    sidecar.fallback = upstream.address
    result = run("children", V4, PORT, sidecar=sidecar)
    assert (result["inherited"], result["fork"]) == (str(PORT), "0")
    assert (result["vfork"], result["peer"]) == ("0", str(PORT))


def test_at_its_edges_it_is_as_the_kernels(
    run: Runner, libc: str, sidecar: Sidecar, upstream: EchoServer
) -> None:
    run.libc = libc
    sidecar.fallback = upstream.address
    with EchoServer("::1") as native_upstream:
        hooked = run("peername", V6, PORT, sidecar=sidecar)
        native = run("peername", *native_upstream.address, sidecar=sidecar)
    assert hooked["peer"] == f"{V6} {PORT}"
    assert {**hooked.values, "peer": ""} == {**native.values, "peer": ""}
    assert hooked["before"] == hooked["fresh"] == str(errno.ENOTCONN)
    assert (hooked["cut"], hooked["cut_length"], hooked["beyond"]) == ("1", "28", "aa")
    assert hooked["reused"] == "1"


def test_not_of_a_socket_that_went_elsewhere_since(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    """A captured connect fails; then the same socket connects to loopback, which is excluded."""
    host, port = upstream.address
    sidecar.excluded = []
    sidecar.publish()
    sidecar.routes = {(host, 1): errno.EHOSTUNREACH}
    sidecar.own = [upstream.address]
    sidecar.publish()
    result = run("connect", "-e", "-a", port, host, 1, sidecar=sidecar)
    assert result.number("connect") == errno.EHOSTUNREACH
    assert (result["again"], result["peer"], result["echo"]) == ("0", f"{host} {port}", "hello")


def test_accepted_sockets_keep_their_peer(run: Runner, sidecar: Sidecar) -> None:
    """The test's own side of things: a loopback peer that nobody captured."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run("connect", "127.0.0.1", port, sidecar=sidecar)
        assert result["peer"] == f"127.0.0.1 {port}"


@pytest.mark.parametrize("way", ["exec", "rights"])
@pytest.mark.parametrize("host", [V4, V6, MAPPED])
def test_in_a_program_that_got_the_socket_from_another(
    run: Runner, libc: str, sidecar: Sidecar, upstream: EchoServer, way: str, host: str
) -> None:
    """By exec, or by SCM_RIGHTS, to one that has never connected anything."""
    run.libc = libc
    sidecar.fallback = upstream.address
    assert run("passed", way, host, PORT, sidecar=sidecar)["peer"] == f"{host} {PORT}"


@pytest.mark.parametrize("way", ["exec", "rights"])
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_with_each_transport_in_another_program(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, way: str, transport: int
) -> None:
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    assert run("passed", way, V4, PORT, sidecar=sidecar)["peer"] == f"{V4} {PORT}"


@pytest.mark.parametrize("way", ["exec", "rights"])
def test_of_a_direct_connection_in_another_program(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, way: str
) -> None:
    sidecar = make_sidecar(asked=["192.0.2.0/24"], fallback=Direct(upstream.address))
    assert run("passed", way, V4, PORT, sidecar=sidecar)["peer"] == f"{V4} {PORT}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize(("uid", "believed"), [(0, True), (65534, False)])
def test_another_users_word_for_it_is_not_believed(
    run: Runner, sidecar: Sidecar, uid: int, believed: bool
) -> None:
    """Whoever passes a socket could write there what he likes."""
    peer = "{} {}".format(*sidecar.listeners[0].getsockname())
    result = run("passed", "forge", *peer.split(), uid, sidecar=sidecar)
    assert result["peer"] == ("192.0.2.99 99" if believed else peer)


def test_of_a_connect_that_failed_it_is_the_kernels(run: Runner, sidecar: Sidecar) -> None:
    """The socket was connected again since, without the hook's knowing."""
    peer = "{} {}".format(*sidecar.listeners[0].getsockname())
    result = run("passed", "forge-failed", *peer.split(), os.geteuid(), sidecar=sidecar)
    assert result["peer"] == peer


def test_of_an_address_that_is_not_the_sidecars_it_is_the_kernels(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    """Whatever the socket remembers: it may have been connected elsewhere since."""
    result = run("passed", "forge", *upstream.address, os.geteuid(), sidecar=sidecar)
    assert result["peer"] == "{} {}".format(*upstream.address)
