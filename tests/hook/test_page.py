"""The policy page: found, trusted, and heeded while the program runs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hook.reference import DIRECT, HEADER, PAGE_SIZE, UNIX, Sidecar
from tests.hook.support import MAPPED, PORT, SLACK_MS, V4, V6, EchoServer, Interactive, Runner

MakeSidecar = Callable[..., Sidecar]


def test_a_change_of_rules_is_seen_by_running_programs(
    run: Runner, libc: str, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    run.libc = libc
    host, port = upstream.address
    sidecar = make_sidecar(excluded=[], fallback=upstream.address)
    with Interactive(run, "-e", sidecar=sidecar) as program:
        assert program.connect(host, port)["echo"] == "hello"
        assert len(sidecar.requests) == 1
        sidecar.excluded = ["127.0.0.0/8"]
        sidecar.publish()
        assert program.connect(host, port)["echo"] == "hello"
        assert len(sidecar.requests) == 1
        sidecar.excluded = ["10.0.0.0/8"]
        sidecar.publish()
        assert program.connect(host, port)["echo"] == "hello"
        assert len(sidecar.requests) == 2


def test_a_change_of_transport_and_away_behaviour_is_seen(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    sidecar = make_sidecar(excluded=[], fallback=upstream.address)
    with Interactive(run, "-e", sidecar=sidecar) as program:
        for transport in (UNIX, HEADER, UNIX):
            sidecar.transport = transport
            sidecar.publish()
            assert program.connect()["echo"] == "hello"
        assert [one.transport for one in sidecar.wait_for_requests(3)] == [UNIX, HEADER, UNIX]
        sidecar.when_away = DIRECT
        sidecar.publish()
        sidecar.freeze()
        assert program.connect(*upstream.address)["echo"] == "hello"
        assert len(sidecar.requests) == 3


@pytest.mark.parametrize(
    ("excluded", "host", "captured"),
    [
        ("192.0.2.0/24", V4, False),
        ("192.0.2.0/24", MAPPED, False),
        ("198.51.100.0/24", V4, True),
        ("0.0.0.0/0", V4, False),
        ("0.0.0.0/0", V6, True),
        ("::/0", V4, True),
        ("2001:db8::/32", V6, False),
        ("2001:db8::8/128", V6, True),
    ],
)
def test_rules_decide_what_is_captured(
    run: Runner, make_sidecar: MakeSidecar, excluded: str, host: str, captured: bool
) -> None:
    sidecar = make_sidecar(excluded=[excluded], fallback=errno.EDOM)
    result = run("connect", "-n", host, PORT, sidecar=sidecar)
    assert bool(sidecar.requests) is captured
    assert (result["so_error"] == str(errno.EDOM)) is captured


def test_a_page_that_is_half_written_counts_as_away(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    """Its writer died; the next one writes it anew."""
    sidecar.fallback = upstream.address
    with Interactive(run, "-e", sidecar=sidecar) as program:
        assert program.connect()["echo"] == "hello"
        sidecar.publish(torn=True)
        results = [program.connect() for _ in range(6)]
        assert {result.number("connect") for result in results} == {errno.ECONNREFUSED}
        first, *others = [result.number("ms") for result in results]
        assert first < SLACK_MS
        assert min(others) < 100, "it is not waited for twice"
        sidecar.publish()
        assert program.connect()["echo"] == "hello"


@pytest.mark.parametrize("damage", ["magic", "version", "short", "empty", "directory", "fifo"])
def test_a_file_that_is_no_page_counts_as_away(
    run: Runner, tmp_path: Path, sidecar: Sidecar, damage: str
) -> None:
    policy = tmp_path / "damaged"
    content = bytearray(sidecar.policy_path.read_bytes())
    if damage == "directory":
        policy.mkdir()
    elif damage == "fifo":
        os.mkfifo(policy)
    else:
        if damage in ("magic", "version"):
            content[{"magic": 0, "version": 4}[damage]] ^= 1
        policy.write_bytes(content[: {"short": PAGE_SIZE - 1, "empty": 0}.get(damage, PAGE_SIZE)])
    result = run("connect", V4, PORT, MOSNHOOK_POLICY=str(policy))
    assert result.number("connect") == errno.ECONNREFUSED
    assert sidecar.requests == []


def test_the_page_is_found_in_the_runtime_directory(
    run: Runner, tmp_path: Path, upstream: EchoServer
) -> None:
    directory = tmp_path / "pysidecar"
    directory.mkdir()
    with Sidecar(directory, fallback=upstream.address):
        result = run("connect", "-e", V4, PORT, XDG_RUNTIME_DIR=str(tmp_path))
        assert result["echo"] == "hello"
        # Somebody else's, or one that anybody may write, is not to be trusted: it says where this
        # program's traffic goes.
        policy = directory / "hook.policy"
        policy.chmod(0o666)
        result = run("connect", V4, PORT, XDG_RUNTIME_DIR=str(tmp_path))
        assert result.number("connect") == errno.ECONNREFUSED
        if os.geteuid() == 0:
            policy.chmod(0o644)
            os.chown(policy, 65534, 65534)
            result = run("connect", V4, PORT, XDG_RUNTIME_DIR=str(tmp_path))
            assert result.number("connect") == errno.ECONNREFUSED
            # Unless it was named.
            result = run("connect", "-e", V4, PORT, MOSNHOOK_POLICY=str(policy))
            assert result["echo"] == "hello"


def test_a_control_socket_out_of_sight_means_headers(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    """As in a chroot: the page says that the sidecar is alive."""
    sidecar.fallback = upstream.address
    sidecar.control_path.unlink()
    assert run("connect", "-e", V4, PORT, sidecar=sidecar)["echo"] == "hello"
    assert [one.transport for one in sidecar.wait_for_requests()] == [HEADER]


def test_variables_switch_it_off(run: Runner, sidecar: Sidecar, upstream: EchoServer) -> None:
    sidecar.excluded = []
    sidecar.publish()
    result = run("connect", "-e", *upstream.address, sidecar=sidecar, MOSNHOOK_DISABLE="1")
    assert result["echo"] == "hello"
    assert sidecar.requests == []


@pytest.mark.parametrize("where", ["path", "stderr", "number"])
def test_the_log_has_a_line_for_each_decision(
    run: Runner, tmp_path: Path, sidecar: Sidecar, upstream: EchoServer, where: str
) -> None:
    sidecar.fallback = upstream.address
    path = tmp_path / "hook.log"
    target = {"path": str(path), "stderr": "stderr", "number": "2"}[where]
    lines = f"{V4} {PORT}\n{V6} {PORT}\n127.0.0.1 1\n"
    with run.start("connect", sidecar=sidecar, MOSNHOOK_LOG=target) as process:
        errors = process.communicate(lines, timeout=20)[1]
    text = path.read_text() if where == "path" else errors
    prefix = f"mosnhook[{process.pid}] connect-glibc: "
    assert text.splitlines() == [
        f"{prefix}{V4}:{PORT} captured: connected",
        f"{prefix}[2001:db8:0:0:0:0:0:7]:{PORT} captured: connected",
        f"{prefix}127.0.0.1:1 excluded: direct",
    ]
