"""getpeername tells where the application wanted to go."""

from __future__ import annotations

import errno
import socket

from tests.hook.reference import Sidecar
from tests.hook.support import PORT, V4, V6, EchoServer, Runner


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
