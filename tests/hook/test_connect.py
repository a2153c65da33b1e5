"""A captured connect behaves as a real one."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable

import pytest

from tests.hook.reference import ASKS, HEADER, PARKED, UNIX, WAITS, Decision, Direct, Sidecar
from tests.hook.support import (
    MAPPED,
    PORT,
    SANITIZED,
    SLACK_MS,
    V4,
    V6,
    EchoServer,
    Interactive,
    Result,
    Runner,
)
from tests.ports import free_port

MakeSidecar = Callable[..., Sidecar]

_FLAGS = {"blocking": WAITS | PARKED, "nonblocking": PARKED}


def _mode(name: str) -> list[str]:
    return ["-n"] if name == "nonblocking" else []


def _assert_connected(result: Result, mode: str, host: str) -> None:
    if mode == "nonblocking":
        assert result.number("connect") == errno.EINPROGRESS
        assert (result["ready"], result["so_error"]) == ("1", "0")
    else:
        assert result.number("connect") == 0
        assert "errno" not in result.values
    assert result["nonblocking"] == str(int(mode == "nonblocking"))
    assert result["peer"] == f"{host} {PORT}"
    assert result["echo"] == "hello"


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
@pytest.mark.parametrize("host", [V4, V6, MAPPED])
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_reaches_the_upstream(
    run: Runner,
    libc: str,
    make_sidecar: MakeSidecar,
    upstream: EchoServer,
    transport: int,
    host: str,
    mode: str,
) -> None:
    run.libc = libc
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    result = run("connect", "-e", *_mode(mode), host, PORT, sidecar=sidecar)
    _assert_connected(result, mode, host)
    assert result.errors == "", "it is silent unless asked"
    (request,) = sidecar.wait_for_requests()
    assert request.transport == transport
    assert request.destination == (host.removeprefix("::ffff:"), PORT)
    assert request.command == f"connect-{libc}"
    assert request.uid == (os.geteuid() if transport == UNIX else None)
    assert request.pid != os.getpid()
    if transport == UNIX:
        assert request.flags == _FLAGS[mode]


@pytest.mark.parametrize("error", [errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH])
@pytest.mark.parametrize("host", [V4, V6])
def test_blocking_connect_fails_with_the_true_errno(
    run: Runner, sidecar: Sidecar, host: str, error: int
) -> None:
    sidecar.fallback = error
    result = run("connect", host, PORT, sidecar=sidecar)
    assert result.number("connect") == error
    assert result.number("peer") == errno.ENOTCONN
    assert result["nonblocking"] == "0"


@pytest.mark.parametrize("error", [errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH])
@pytest.mark.parametrize("host", [V4, V6])
def test_nonblocking_failure_shows_as_the_true_so_error(
    run: Runner, sidecar: Sidecar, host: str, error: int
) -> None:
    sidecar.fallback = error
    result = run("connect", "-n", host, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EINPROGRESS
    assert result.number("so_error") == error
    assert result.number("peer") == errno.ENOTCONN


@pytest.mark.parametrize("answer", [b"nonsense", b"\0" * 12, b"MSHK\1\0\7\0\0\0\0\0"])
def test_nonsense_from_the_sidecar_is_a_refusal(
    run: Runner, sidecar: Sidecar, answer: bytes
) -> None:
    sidecar.fallback = answer
    result = run("connect", V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.ECONNREFUSED


def test_direct_answer_connects_for_real(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    sidecar = make_sidecar(excluded=[], fallback="direct")
    host, port = upstream.address
    result = run("connect", "-e", "-f", host, port, sidecar=sidecar)
    assert (result["connect"], result["echo"]) == ("0", "hello")
    assert result["peer"] == f"{host} {port}"
    assert result["fast_open"] == "1", "it is a fast open"
    assert [one.destination for one in sidecar.requests] == [upstream.address]


# ---- Connecting again ----


@pytest.mark.parametrize("transport", [UNIX, HEADER])
@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
def test_connecting_a_connected_socket_says_so(
    run: Runner,
    make_sidecar: MakeSidecar,
    upstream: EchoServer,
    transport: int,
    mode: str,
) -> None:
    """As the kernel has it: a blocking one is done, a non-blocking one ends by connect, once."""
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    result = run("connect", "-e", *_mode(mode), "-a", PORT, V4, PORT, sidecar=sidecar)
    assert result.number("again") == (errno.EISCONN if mode == "blocking" else 0)
    assert result["echo"] == "hello"
    assert result["peer"] == f"{V4} {PORT}"
    assert len(sidecar.wait_for_requests()) == 1


@pytest.mark.parametrize("host", [V4, V6])
def test_a_blocking_socket_that_failed_connects_again(
    run: Runner, libc: str, sidecar: Sidecar, upstream: EchoServer, host: str
) -> None:
    run.libc = libc
    sidecar.routes = {(host, PORT): errno.EHOSTUNREACH, (host, 99): upstream.address}
    result = run("connect", "-e", "-a", "99", host, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EHOSTUNREACH
    assert (result["again"], result["peer"], result["echo"]) == ("0", f"{host} 99", "hello")


def test_a_nonblocking_socket_that_failed_is_aborted_once_as_natively(
    run: Runner, sidecar: Sidecar
) -> None:
    """The error was taken with SO_ERROR, so the kernel says ECONNABORTED."""
    sidecar.fallback = errno.ECONNREFUSED
    hooked = run("connect", "-n", "-a", PORT, V4, PORT, sidecar=sidecar)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        native = run("connect", "-n", "-a", port, "127.0.0.1", port, sidecar=sidecar)
    names = ("connect", "ready", "so_error", "again", "peer")
    assert [hooked[name] for name in names] == [native[name] for name in names]
    assert native.number("again") == errno.ECONNABORTED


def test_a_nonblocking_socket_that_failed_tells_by_connect_too(
    run: Runner, sidecar: Sidecar
) -> None:
    """For programs that connect again in place of reading SO_ERROR."""
    sidecar.fallback = errno.EHOSTUNREACH
    result = run("connect", "-n", "-s", "-A", 3000, "-a", PORT, V4, PORT, sidecar=sidecar)
    assert result.number("again") == errno.EHOSTUNREACH
    assert len(sidecar.requests) == 1


def test_connect_in_progress_answers_ealready(run: Runner, sidecar: Sidecar) -> None:
    sidecar.fallback = "hold"
    with run.start("connect", "-n", "-a", PORT, V4, PORT, sidecar=sidecar) as process:
        output = process.communicate(timeout=10)[0]
    assert Result.parse(output).number("again") == errno.EALREADY
    assert len(sidecar.requests) == 1


# ---- Time ----


def test_send_timeout_ends_a_blocking_connect(run: Runner, libc: str, sidecar: Sidecar) -> None:
    run.libc = libc
    sidecar.fallback = "hold"
    result = run("connect", "-t", "300", V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EINPROGRESS
    assert 300 <= result.number("ms") < 300 + SLACK_MS


def test_a_timed_out_connect_is_still_under_way(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    sidecar.fallback = "hold"
    arguments = ["-e", "-t", "200", "-A", "5000", "-a", str(PORT), V4, str(PORT)]
    with run.start("connect", *arguments, sidecar=sidecar) as process:
        sidecar.wait_for_requests(1)
        time.sleep(0.3)  # beyond SO_SNDTIMEO: that is the case
        sidecar.release(upstream.address)
        result = Result.parse(process.communicate(timeout=10)[0])
    assert result.number("connect") == errno.EINPROGRESS
    assert (result["again"], result["echo"]) == ("0", "hello")
    assert len(sidecar.requests) == 1


def test_connecting_again_after_a_timeout_waits_again(run: Runner, sidecar: Sidecar) -> None:
    sidecar.fallback = "hold"
    result = run("connect", "-t", "200", "-a", PORT, V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EINPROGRESS
    assert result.number("again") == errno.EALREADY


@pytest.mark.parametrize("kind", ["restart", "interrupt", "timed"])
def test_signals_interrupt_only_if_they_would_natively(
    run: Runner, libc: str, sidecar: Sidecar, upstream: EchoServer, kind: str
) -> None:
    run.libc = libc
    sidecar.fallback = "hold"
    reader, writer = os.pipe()
    process = run.start("signals", kind, writer, V4, PORT, sidecar=sidecar, pass_fds=(writer,))
    os.close(writer)
    with process, os.fdopen(reader, "rb", buffering=0) as report:
        sidecar.wait_for_requests(1)
        if kind == "restart":
            assert [report.read(1) for _ in range(4)] == [b"."] * 4
            sidecar.release(upstream.address)
        text = b""
        while part := report.read(64):
            text += part
        process.communicate(timeout=10)
    error = 0 if kind == "restart" else errno.EINTR
    # With its stdio closed, the descriptors 1 and 2 stayed free the whole time.
    assert text.lstrip(b".\n") == f"fd=0 connect={error} stolen=0 blocking=1\n".encode()


def test_no_handler_sees_a_blocking_socket_that_does_not_block(
    run: Runner, libc: str, sidecar: Sidecar
) -> None:
    """It could leave by longjmp, or use the socket."""
    run.libc = libc
    sidecar.fallback = errno.EHOSTUNREACH
    result = run("steady", 300, V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EHOSTUNREACH
    assert (result["looked"], result["nonblocking"]) == ("1", "0")


@pytest.mark.skipif(
    SANITIZED, reason="ASan leaves the stack of a cancelled thread poisoned and then stumbles on it"
)
def test_cancelling_a_thread_in_connect_leaks_nothing(
    run: Runner, libc: str, sidecar: Sidecar
) -> None:
    run.libc = libc
    sidecar.fallback = "hold"
    with run.start("cancel", V4, PORT, sidecar=sidecar) as process:
        sidecar.wait_for_requests(1)
        result = Result.parse(process.communicate("x", timeout=10)[0])
    assert result["while"] == "1", "the control socket"
    assert (result["cancelled"], result["after"], result["blocking"]) == ("1", "0", "1")


# ---- Kinds of sockets ----


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
@pytest.mark.parametrize("transport", [UNIX, HEADER])
@pytest.mark.parametrize(
    ("host", "source"), [(V4, "127.0.0.9"), (V6, "::1"), (MAPPED, "::ffff:127.0.0.9")]
)
def test_bound_sockets_keep_their_source(
    run: Runner,
    make_sidecar: MakeSidecar,
    upstream: EchoServer,
    transport: int,
    host: str,
    source: str,
    mode: str,
) -> None:
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    port = free_port()
    bound = ["-b", source, "-p", port]
    result = run("connect", "-e", *_mode(mode), *bound, host, PORT, sidecar=sidecar)
    _assert_connected(result, mode, host)
    assert result["local"] == f"{source} {port}"


def test_v6_socket_uses_ipv4_parks_where_there_are_no_others(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    sidecar = make_sidecar(parks=["127.0.0.1"], fallback=upstream.address)
    for options in ([], ["-6"]):
        result = run("connect", "-e", *options, V6, PORT, sidecar=sidecar)
        assert (result["connect"], result["echo"]) == ("0", "hello")
    # Bound, it cannot be made to speak IPv4 any more.
    result = run("connect", "-6", "-b", "::1", V6, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EADDRNOTAVAIL


def test_v6_only_socket_that_failed_is_for_ipv6_only_again(
    run: Runner, make_sidecar: MakeSidecar
) -> None:
    """Where it was made to speak IPv4 meanwhile."""
    sidecar = make_sidecar(parks=["127.0.0.1"], fallback=errno.EHOSTUNREACH)
    result = run("connect", "-6", V6, PORT, sidecar=sidecar)
    assert (result.number("connect"), result["v6_only"]) == (errno.EHOSTUNREACH, "1")


@pytest.mark.parametrize("transport", [UNIX, HEADER])
@pytest.mark.parametrize("addresses", [["127.0.0.1", "::1"], ["::1"]])
@pytest.mark.parametrize("options", [[], ["-n", "-s"], ["-m"]])
def test_v6_only_socket_cannot_reach_ipv4_as_natively(
    run: Runner,
    make_sidecar: MakeSidecar,
    transport: int,
    addresses: list[str],
    options: list[str],
) -> None:
    sidecar = make_sidecar(transport=transport, parks=addresses, listeners=addresses)
    result = run("connect", "-6", *options, MAPPED, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.ENETUNREACH
    assert sidecar.requests == []


@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize(
    ("options", "how", "flags"), [([], "blocking", WAITS), (["-n"], "nonblocking", 0)]
)
def test_mptcp_connects_to_where_the_sidecar_says(
    run: Runner,
    sidecar: Sidecar,
    upstream: EchoServer,
    host: str,
    options: list[str],
    how: str,
    flags: int,
) -> None:
    sidecar.fallback = upstream.address
    result = run("connect", *options, "-m", "-e", host, PORT, sidecar=sidecar)
    _assert_connected(result, how, host)
    assert [(one.transport, one.flags) for one in sidecar.wait_for_requests()] == [(UNIX, flags)]


def test_nonblocking_mptcp_sends_a_header_where_the_answer_is_late(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    """What the sidecar says late is not heeded."""
    sidecar.fallback = upstream.address
    sidecar.holds = True
    with run.start("connect", "-n", "-m", "-e", V4, PORT, sidecar=sidecar) as process:
        sidecar.wait_until_abandoned()
        sidecar.release(errno.EHOSTUNREACH)
        output, _ = process.communicate(timeout=20)
    _assert_connected(Result.parse(output), "nonblocking", V4)
    assert [request.transport for request in sidecar.wait_for_requests(2)] == [UNIX, HEADER]


def test_nonblocking_mptcp_waits_for_a_busy_sidecar_without_listeners(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    sidecar = make_sidecar(listeners=[], fallback="hold")
    with run.start("connect", "-n", "-m", "-e", V4, PORT, sidecar=sidecar) as process:
        sidecar.wait_for_requests(1)
        time.sleep(0.3)  # longer than it would wait for anything else: that is the case
        sidecar.release(upstream.address)
        output, _ = process.communicate(timeout=20)
    result = Result.parse(output)
    assert result.number("connect") == errno.EINPROGRESS
    assert (result["so_error"], result["echo"]) == ("0", "hello")


def test_nonblocking_mptcp_does_not_wait_for_ever(run: Runner, make_sidecar: MakeSidecar) -> None:
    """Only as long as a sidecar without a sign of life counts as alive."""
    sidecar = make_sidecar(listeners=[], fallback="hold")
    result = run("connect", "-n", "-m", V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.ECONNREFUSED
    assert 2000 <= result.number("ms") < 2000 + SLACK_MS


def test_nonblocking_mptcp_does_not_wait_for_a_dead_sidecar(
    run: Runner, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar(listeners=[], fallback="hold")
    with run.start("connect", "-n", "-m", V4, PORT, sidecar=sidecar) as process:
        sidecar.wait_for_requests(1)
        sidecar.kill()
        output, _ = process.communicate(timeout=20)
    result = Result.parse(output)
    assert result.number("connect") == errno.ECONNREFUSED
    assert result.number("ms") < 2000


def test_mptcp_gets_the_true_errno(run: Runner, sidecar: Sidecar) -> None:
    sidecar.fallback = errno.EHOSTUNREACH
    assert run("connect", "-m", V4, PORT, sidecar=sidecar).number("connect") == errno.EHOSTUNREACH


@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_unspecified_destination_means_loopback(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, transport: int
) -> None:
    sidecar = make_sidecar(excluded=[], transport=transport, fallback=upstream.address)
    for host, loopback in (("0.0.0.0", "127.0.0.1"), ("::", "::1")):
        result = run("connect", "-e", host, PORT, sidecar=sidecar)
        assert (result["peer"], result["echo"]) == (f"{loopback} {PORT}", "hello")
    assert [one.destination for one in sidecar.wait_for_requests(2)] == [
        ("127.0.0.1", PORT),
        ("::1", PORT),
    ]


@pytest.mark.parametrize("transport", [UNIX, HEADER])
@pytest.mark.parametrize(
    ("host", "scope"), [("fe80::7", 1), ("febf::7", 1), (V6, 0), ("fec0::7", 0)]
)
def test_the_scope_of_link_local_destinations_is_told_and_no_other(
    run: Runner,
    make_sidecar: MakeSidecar,
    upstream: EchoServer,
    transport: int,
    host: str,
    scope: int,
) -> None:
    """The kernel, too, heeds that of no other address."""
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    assert run("connect", "-S", 1, "-e", host, PORT, sidecar=sidecar)["echo"] == "hello"
    assert [request.scope for request in sidecar.wait_for_requests()] == [scope]


# ---- What is left alone ----


def test_excluded_destinations_are_left_alone(
    run: Runner, libc: str, sidecar: Sidecar, upstream: EchoServer
) -> None:
    run.libc = libc
    host, port = upstream.address
    result = run("connect", "-e", host, port, sidecar=sidecar)
    assert (result["connect"], result["echo"]) == ("0", "hello")
    assert result["peer"] == f"{host} {port}"
    assert sidecar.requests == []


@pytest.mark.parametrize("listener", ["listeners", "parks", "own", "everywhere"])
def test_the_sidecars_own_addresses_are_left_alone(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, listener: str
) -> None:
    everywhere = listener == "everywhere"
    own = ("0.0.0.0", upstream.address[1]) if everywhere else upstream.address
    sidecar = make_sidecar(excluded=[], own=[own])
    addresses = {
        "listeners": sidecar.listeners[0].getsockname(),
        "parks": sidecar.parks[0].getsockname(),
        "own": upstream.address,
        "everywhere": upstream.address,
    }
    result = run("connect", "-n", *addresses[listener], sidecar=sidecar)
    assert result.number("connect") == errno.EINPROGRESS
    assert result["ready"] == ("0" if listener == "parks" else "1")
    assert sidecar.requests == []


def test_udp_is_left_alone(run: Runner, sidecar: Sidecar) -> None:
    result = run("connect", "-u", "-n", V4, PORT, sidecar=sidecar)
    # Whether there is a route depends on the machine.
    assert result.number("connect") in (0, errno.ENETUNREACH)
    assert sidecar.requests == []


@pytest.mark.skipif(SANITIZED, reason="the sanitizers' runtime makes system calls of its own")
def test_excluded_destinations_cost_no_system_call(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    """None but connect, wherever the address is."""
    for sandbox in ("quiet", "quiet-static"):
        result = run("sandbox", sandbox, *upstream.address, sidecar=sidecar)
        assert result["connect"] == "0"
    # The same sandbox kills a connect that is captured: it does see the hook's system calls.
    run("sandbox", "quiet", V4, PORT, sidecar=sidecar, status=-31)


def test_listeners_and_parks_share_the_load(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    hosts = [f"127.0.0.{i}" for i in range(1, 5)]
    sidecar = make_sidecar(listeners=hosts, transport=HEADER, fallback=upstream.address)
    lines = f"{V4} {PORT}\n" * 40
    with run.start("connect", "-e", sidecar=sidecar) as process:
        output = process.communicate(lines, timeout=20)[0]
    assert output.count("echo=hello\n") == 40
    sources = {one.source[0] for one in sidecar.wait_for_requests(40) if one.source}
    assert sources == {"127.0.0.1"}
    assert len(sidecar.accepted) == len(hosts)


# ---- No descriptor left ----


@pytest.fixture
def cramped(run: Runner) -> Runner:
    """Its programs may have no more descriptors than their standard streams and a socket."""
    run.through = ["prlimit", "--nofile=4"]
    return run


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_connect_needs_no_descriptor(
    cramped: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, transport: int, mode: str
) -> None:
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    result = cramped("connect", *_mode(mode), "-e", V4, PORT, sidecar=sidecar)
    _assert_connected(result, mode, V4)
    (request,) = sidecar.wait_for_requests()
    assert request.transport == transport
    assert request.command.startswith("connect-")


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
def test_without_a_descriptor_connect_fails_with_the_true_errno(
    cramped: Runner, sidecar: Sidecar, mode: str
) -> None:
    sidecar.fallback = errno.EHOSTUNREACH
    result = cramped("connect", *_mode(mode), V4, PORT, sidecar=sidecar)
    assert result.number("so_error" if mode == "nonblocking" else "connect") == errno.EHOSTUNREACH
    assert result.number("peer") == errno.ENOTCONN


def test_without_a_descriptor_connect_still_waits_as_it_would(
    cramped: Runner, sidecar: Sidecar
) -> None:
    sidecar.fallback = "hold"
    result = cramped("connect", "-t", 300, V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EINPROGRESS
    assert 300 <= result.number("ms") < 300 + SLACK_MS


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
def test_mptcp_needs_no_descriptor(
    cramped: Runner, sidecar: Sidecar, upstream: EchoServer, mode: str
) -> None:
    sidecar.fallback = upstream.address
    result = cramped("connect", *_mode(mode), "-m", "-e", V4, PORT, sidecar=sidecar)
    _assert_connected(result, mode, V4)


def test_without_a_descriptor_nobody_asks_and_is_relayed(
    cramped: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    sidecar = make_sidecar(asked=ASKED, fallback=upstream.address)
    result = cramped("connect", "-e", V4, PORT, sidecar=sidecar)
    _assert_connected(result, "blocking", V4)
    assert [request.flags for request in sidecar.requests] == [PARKED]


def test_without_a_descriptor_a_new_sidecar_is_found(
    cramped: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    """Its page is another file."""
    first = make_sidecar(fallback=upstream.address)
    with Interactive(cramped, "-e", sidecar=first) as program:
        assert program.connect()["echo"] == "hello"
        first.kill()
        make_sidecar(fallback=upstream.address)
        assert program.connect()["echo"] == "hello"


@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_a_process_without_descriptors_is_as_it_was_after_a_connect(
    run: Runner, libc: str, make_sidecar: MakeSidecar, upstream: EchoServer, transport: int
) -> None:
    run.libc = libc
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    result = run("crowded", V4, PORT, sidecar=sidecar)
    (request,) = sidecar.wait_for_requests()
    assert result.values == {
        "pid": str(request.pid),
        "connect": "0",
        "fds": "40",
        "tasks": "1",
        "limits": "40 40",
        "signals": "0",
        "mask": "1",
        "children": str(errno.ECHILD),
        "locked": "1",
    }


ASKED = ("192.0.2.0/24", "2001:db8::/32")


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
@pytest.mark.parametrize("host", [V4, V6, MAPPED])
def test_who_may_connect_itself_does(
    run: Runner, libc: str, make_sidecar: MakeSidecar, host: str, mode: str
) -> None:
    run.libc = libc
    with EchoServer("::1" if host == V6 else "127.0.0.1") as upstream:
        sidecar = make_sidecar(asked=ASKED, fallback=Direct(upstream.address))
        result = run("connect", "-e", *_mode(mode), host, PORT, sidecar=sidecar)
        _assert_connected(result, mode, host)
        assert upstream.accepted == 1
        assert [request.flags for request in sidecar.requests] == [ASKS]


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
def test_who_asked_in_vain_is_relayed(
    run: Runner, libc: str, make_sidecar: MakeSidecar, upstream: EchoServer, mode: str
) -> None:
    run.libc = libc
    sidecar = make_sidecar(asked=ASKED, fallback=upstream.address)
    result = run("connect", "-e", *_mode(mode), V4, PORT, sidecar=sidecar)
    _assert_connected(result, mode, V4)
    assert [request.flags for request in sidecar.wait_for_requests(2)] == [ASKS, _FLAGS[mode]]


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
def test_who_asks_may_be_refused_at_once(run: Runner, make_sidecar: MakeSidecar, mode: str) -> None:
    sidecar = make_sidecar(asked=ASKED, fallback=errno.EHOSTUNREACH)
    result = run("connect", *_mode(mode), V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.EHOSTUNREACH


LATE_ANSWERS = pytest.mark.parametrize(
    "late", [Direct(("127.0.0.1", 1)), errno.EHOSTUNREACH, ("127.0.0.1", 1)]
)


@LATE_ANSWERS
def test_who_does_not_wait_waits_for_an_answer_only_shortly(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, late: Decision
) -> None:
    """What it says late is not heeded, and the connection goes on as any other."""
    sidecar = make_sidecar(asked=ASKED, fallback="hold")
    with run.start("connect", "-n", "-e", V4, PORT, sidecar=sidecar) as process:
        sidecar.wait_until_abandoned()
        sidecar.fallback = upstream.address
        sidecar.release(late)
        output, _ = process.communicate(timeout=20)
    result = Result.parse(output)
    _assert_connected(result, "nonblocking", V4)
    assert [request.flags for request in sidecar.wait_for_requests(2)] == [ASKS, PARKED]


@LATE_ANSWERS
def test_send_timeout_ends_a_question_but_not_the_connect(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, late: Decision
) -> None:
    sidecar = make_sidecar(asked=ASKED, fallback="hold")
    command = ["-t", "200", "-a", PORT, "-A", "10000", "-e", V4, PORT]
    with run.start("connect", *command, sidecar=sidecar) as process:
        sidecar.wait_until_abandoned()
        sidecar.fallback = upstream.address
        sidecar.release(late)
        output, _ = process.communicate(timeout=20)
    result = Result.parse(output)
    assert result.number("connect") == errno.EINPROGRESS
    assert [request.flags for request in sidecar.wait_for_requests(2)] == [ASKS, PARKED]
    assert result["echo"] == "hello", result.values
