"""What happens while there is no sidecar, or one that does not move."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hook.reference import (
    DIRECT,
    DRAINING,
    GONE,
    HEADER,
    REFUSE,
    STARTING,
    UNIX,
    WAIT,
    Sidecar,
)
from tests.hook.support import (
    PORT,
    SANITIZED,
    SLACK_MS,
    V4,
    EchoServer,
    Interactive,
    Result,
    Runner,
)

MakeSidecar = Callable[..., Sidecar]

MODES = ["blocking", "nonblocking"]

needs_plain_hook = pytest.mark.skipif(
    SANITIZED, reason="the sanitizers' runtime cannot start with a clock of another library"
)


def _mode(name: str) -> list[str]:
    return ["-n"] if name == "nonblocking" else []


def _assert_refused(result: Result) -> None:
    assert result.number("connect") == errno.ECONNREFUSED
    assert result.number("ms") < SLACK_MS


# ---- No page was ever seen: the environment decides ----


@pytest.mark.parametrize("when_away", ["", "refuse", "nonsense", "wait:x", "DIRECT"])
def test_without_a_page_connects_are_refused(
    run: Runner, libc: str, tmp_path: Path, when_away: str
) -> None:
    run.libc = libc
    policy = str(tmp_path / "none")
    result = run("connect", V4, PORT, MOSNHOOK_POLICY=policy, MOSNHOOK_WHEN_AWAY=when_away)
    _assert_refused(result)


def test_without_a_page_loopback_is_excluded(
    run: Runner, tmp_path: Path, upstream: EchoServer
) -> None:
    result = run("connect", "-e", *upstream.address, MOSNHOOK_POLICY=str(tmp_path / "none"))
    assert result["echo"] == "hello"


@pytest.mark.parametrize(("text", "seconds"), [("wait:0.3", 0.3), ("wait:1", 1), ("wait:.2s", 0.2)])
@pytest.mark.parametrize("mode", MODES)
def test_without_a_page_it_waits_as_long_as_told(
    run: Runner, tmp_path: Path, text: str, seconds: float, mode: str
) -> None:
    policy = str(tmp_path / "none")
    result = run("connect", *_mode(mode), V4, PORT, MOSNHOOK_POLICY=policy, MOSNHOOK_WHEN_AWAY=text)
    assert result.number("connect") == errno.ECONNREFUSED
    assert seconds * 1000 <= result.number("ms") < seconds * 1000 + SLACK_MS


def test_a_program_may_start_before_its_sidecar(
    run: Runner, tmp_path: Path, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    policy = str(tmp_path / "hook.policy")
    extra = {"MOSNHOOK_POLICY": policy, "MOSNHOOK_WHEN_AWAY": "wait:10"}
    with Interactive(run, "-e", sidecar=None, **extra) as program:
        program.send()
        time.sleep(0.2)  # so that it does wait; sooner would be another, easier case
        make_sidecar(fallback=upstream.address)
        result = program.result()
    assert (result["connect"], result["echo"]) == ("0", "hello")
    assert result.number("ms") < SLACK_MS


@pytest.mark.parametrize("mode", MODES)
def test_an_interface_of_the_sidecar_on_loopback_is_waited_for(
    run: Runner, tmp_path: Path, make_sidecar: MakeSidecar, upstream: EchoServer, mode: str
) -> None:
    """Then connected to directly, as loopback is excluded."""
    host, port = upstream.address
    extra = {
        "MOSNHOOK_POLICY": str(tmp_path / "hook.policy"),
        "MOSNHOOK_WHEN_AWAY": "wait:10",
        "MOSNHOOK_AWAIT": f"1,{port}",
    }
    with Interactive(run, *_mode(mode), "-e", sidecar=None, **extra) as program:
        program.send(host, port)
        time.sleep(0.2)  # so that it does wait
        assert upstream.accepted == 0
        sidecar = make_sidecar()
        result = program.result()
    assert result["echo"] == "hello"
    assert not sidecar.requests

    def connect() -> Result:
        words = [*_mode(mode), "-e", host, port]
        return run("connect", *words, sidecar=sidecar, MOSNHOOK_AWAIT=extra["MOSNHOOK_AWAIT"])

    # One that drains still listens; one that is gone does not.
    sidecar.state = DRAINING
    sidecar.publish()
    assert connect()["echo"] == "hello"
    sidecar.state = GONE
    sidecar.publish()
    _assert_refused(connect())


@pytest.mark.parametrize("ports", ["0", "x", "1,2,3,4,{port}", "65536,{port}", "", "1;{port}"])
def test_nothing_else_on_loopback_is_waited_for(
    run: Runner, tmp_path: Path, upstream: EchoServer, ports: str
) -> None:
    result = run(
        *("connect", "-e", *upstream.address),
        MOSNHOOK_POLICY=str(tmp_path / "none"),
        MOSNHOOK_AWAIT=ports.format(port=upstream.address[1]),
    )
    assert result["echo"] == "hello"


def test_send_timeout_shortens_the_wait(run: Runner, tmp_path: Path) -> None:
    policy = str(tmp_path / "none")
    result = run(
        "connect",
        *["-t", "200", V4, PORT],
        MOSNHOOK_POLICY=policy,
        MOSNHOOK_WHEN_AWAY="wait:10",
    )
    assert result.number("connect") == errno.ETIMEDOUT
    assert 200 <= result.number("ms") < 200 + SLACK_MS


def test_send_timeout_is_nothing_to_a_nonblocking_socket(run: Runner, tmp_path: Path) -> None:
    policy = str(tmp_path / "none")
    result = run(
        "connect",
        *["-n", "-t", "100", V4, PORT],
        MOSNHOOK_POLICY=policy,
        MOSNHOOK_WHEN_AWAY="wait:0.4",
    )
    assert result.number("connect") == errno.ECONNREFUSED
    assert result.number("ms") >= 400


# ---- The page decides ----


@pytest.mark.parametrize("state", [STARTING, DRAINING, GONE])
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_a_sidecar_that_does_not_serve_is_away(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, transport: int, state: int
) -> None:
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    sidecar.state = state
    sidecar.publish()
    _assert_refused(run("connect", V4, PORT, sidecar=sidecar))
    assert sidecar.requests == []


@pytest.fixture(params=["killed", "killed long ago", "stopped"])
def leave(request: pytest.FixtureRequest) -> Callable[[Sidecar], None]:
    """Ways for a sidecar not to be there."""

    def go(sidecar: Sidecar) -> None:
        if request.param == "stopped":
            sidecar.freeze()
        else:
            sidecar.kill()
            sidecar.beat(seconds_ago=0 if request.param == "killed" else 10)

    return go


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_away_refuses(
    run: Runner,
    make_sidecar: MakeSidecar,
    leave: Callable[[Sidecar], None],
    transport: int,
    mode: str,
) -> None:
    sidecar = make_sidecar(transport=transport, when_away=REFUSE, fallback="hold")
    leave(sidecar)
    _assert_refused(run("connect", *_mode(mode), V4, PORT, sidecar=sidecar))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_away_connects_directly(
    run: Runner,
    make_sidecar: MakeSidecar,
    leave: Callable[[Sidecar], None],
    upstream: EchoServer,
    transport: int,
    mode: str,
) -> None:
    sidecar = make_sidecar(excluded=[], transport=transport, when_away=DIRECT, fallback="hold")
    leave(sidecar)
    result = run("connect", "-e", *_mode(mode), *upstream.address, sidecar=sidecar)
    assert result["echo"] == "hello"
    assert sidecar.requests == []
    if mode == "nonblocking":
        assert (result["ready"], result["so_error"]) == ("1", "0")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_away_waits_and_then_refuses(
    run: Runner,
    make_sidecar: MakeSidecar,
    leave: Callable[[Sidecar], None],
    transport: int,
    mode: str,
) -> None:
    sidecar = make_sidecar(transport=transport, when_away=WAIT, wait_ms=400, fallback="hold")
    leave(sidecar)
    result = run("connect", *_mode(mode), V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.ECONNREFUSED
    assert 400 <= result.number("ms") < 400 + SLACK_MS


@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_a_sidecar_that_is_restarted_is_found(
    run: Runner, libc: str, make_sidecar: MakeSidecar, upstream: EchoServer, transport: int
) -> None:
    """In a process that still maps the page of the one that was killed."""
    run.libc = libc
    first = make_sidecar(transport=transport, fallback=upstream.address)
    with Interactive(run, "-e", sidecar=first) as program:
        assert program.connect()["echo"] == "hello"
        first.kill()
        _assert_refused(program.connect())
        second = make_sidecar(transport=transport, fallback=upstream.address)
        assert program.connect()["echo"] == "hello"
    assert len(second.wait_for_requests()) == 1


def test_a_wait_ends_when_the_sidecar_is_back(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    first = make_sidecar(when_away=WAIT, wait_ms=10000)
    first.kill()
    with Interactive(run, "-e", sidecar=first) as program:
        program.send()
        time.sleep(0.2)  # so that it does wait
        make_sidecar(fallback=upstream.address)
        result = program.result()
    assert result["echo"] == "hello"
    assert result.number("ms") < SLACK_MS


# ---- It goes away while a connect waits ----


def test_a_death_while_a_connect_waits_is_noticed(
    run: Runner, libc: str, make_sidecar: MakeSidecar
) -> None:
    run.libc = libc
    sidecar = make_sidecar(fallback="hold")
    with Interactive(run, sidecar=sidecar) as program:
        program.send()
        sidecar.wait_for_requests(1)
        sidecar.kill()
        _assert_refused(program.result())


def test_a_stop_while_a_connect_waits_is_noticed(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    sidecar = make_sidecar(excluded=[], when_away=DIRECT, fallback="hold")
    with Interactive(run, "-e", sidecar=sidecar) as program:
        program.send(*upstream.address)
        sidecar.wait_for_requests(1)
        sidecar.freeze()
        result = program.result()
    assert (result["connect"], result["echo"]) == ("0", "hello")
    assert result["peer"] == "{} {}".format(*upstream.address)


def test_a_sidecar_that_hangs_up_without_an_answer_is_away(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    sidecar = make_sidecar(excluded=[], when_away=DIRECT, fallback="hang up")
    result = run("connect", "-e", *upstream.address, sidecar=sidecar)
    assert (result["connect"], result["echo"]) == ("0", "hello")
    assert len(sidecar.requests) == 1


# ---- Out of descriptors ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", [UNIX, HEADER])
@pytest.mark.parametrize("when_away", [REFUSE, DIRECT, WAIT])
def test_a_sidecar_that_is_full_is_as_good_as_away(
    run: Runner,
    make_sidecar: MakeSidecar,
    upstream: EchoServer,
    when_away: int,
    transport: int,
    mode: str,
) -> None:
    sidecar = make_sidecar(
        excluded=[], transport=transport, when_away=when_away, wait_ms=400, fallback="hold"
    )
    sidecar.full = True
    sidecar.publish()
    result = run("connect", "-e", *_mode(mode), *upstream.address, sidecar=sidecar)
    assert sidecar.requests == []
    if when_away == DIRECT:
        assert result["echo"] == "hello"
    else:
        assert result.number("connect") == errno.ECONNREFUSED
    # One that would be refused gives it a second to get room; an event loop is not held up.
    patient = when_away == REFUSE and mode == "blocking"
    least = 400 if when_away == WAIT else 1000 if patient else 0
    assert least <= result.number("ms") < (least + SLACK_MS if least else 1000)


@pytest.mark.parametrize("when_away", [REFUSE, WAIT])
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_a_full_sidecar_that_gets_room_is_used(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, transport: int, when_away: int
) -> None:
    sidecar = make_sidecar(
        transport=transport, when_away=when_away, wait_ms=10000, fallback=upstream.address
    )
    sidecar.full = True
    sidecar.publish()
    with Interactive(run, "-e", sidecar=sidecar) as program:
        program.send()
        time.sleep(0.2)  # so that it meets the full one
        assert sidecar.requests == []
        sidecar.full = False
        sidecar.publish()
        result = program.result()
    assert (result["connect"], result["echo"]) == ("0", "hello")


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("when_away", [REFUSE, DIRECT, WAIT])
def test_a_caller_that_the_sidecar_has_no_room_for_does_as_if_it_were_away(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, when_away: int, asked: bool
) -> None:
    """The page said otherwise when it asked."""
    sidecar = make_sidecar(
        excluded=[],
        asked=["0.0.0.0/0"] if asked else [],
        when_away=when_away,
        wait_ms=400,
        fallback="away",
    )
    result = run("connect", "-e", *upstream.address, sidecar=sidecar)
    if when_away == DIRECT:
        assert (result["connect"], result["echo"]) == ("0", "hello")
    else:
        assert result.number("connect") == errno.ECONNREFUSED
    assert len(sidecar.requests) > (when_away == WAIT), "asks again while it waits"


def test_a_nonblocking_caller_that_there_is_no_room_for_is_refused(
    run: Runner, make_sidecar: MakeSidecar
) -> None:
    result = run("connect", "-n", V4, PORT, sidecar=make_sidecar(fallback="away"))
    assert result.number("connect") == errno.EINPROGRESS
    assert result.number("so_error") == errno.ECONNREFUSED


# ---- Full queues ----


@contextlib.contextmanager
def _fill(sidecar: Sidecar) -> Iterator[None]:
    """Connects until nobody gets in any more."""
    with contextlib.ExitStack() as stack:
        for listener in [sidecar.control, *sidecar.listeners]:
            for _ in range(8):
                client = stack.enter_context(socket.socket(listener.family, listener.type))
                client.settimeout(0.05)
                try:
                    client.connect(listener.getsockname())
                except (TimeoutError, BlockingIOError):
                    break
            else:
                pytest.fail("the queue does not fill")
        yield


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_full_queues_are_no_hang(
    run: Runner, make_sidecar: MakeSidecar, transport: int, mode: str
) -> None:
    sidecar = make_sidecar(
        transport=transport, listeners=["127.0.0.1", "127.0.0.2"], backlog=1, accepting=False
    )
    with _fill(sidecar):
        result = run("connect", *_mode(mode), V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.ECONNREFUSED
    budget = 1000 if mode == "blocking" else 100
    assert result.number("ms") >= budget, "it gave the sidecar no time"
    assert result.number("ms") < (budget + SLACK_MS if mode == "blocking" else 1000)


@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_send_timeout_shortens_the_wait_for_a_full_queue(
    run: Runner, make_sidecar: MakeSidecar, transport: int
) -> None:
    sidecar = make_sidecar(
        transport=transport, listeners=["127.0.0.1", "127.0.0.2"], backlog=1, accepting=False
    )
    with _fill(sidecar):
        result = run("connect", "-t", "200", V4, PORT, sidecar=sidecar)
    assert result.number("connect") == errno.ECONNREFUSED
    assert 200 <= result.number("ms") < 1000, "what it would have without"


def test_a_queue_that_empties_is_used(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer
) -> None:
    sidecar = make_sidecar(backlog=1, accepting=False, fallback=upstream.address)
    with Interactive(run, "-e", sidecar=sidecar) as program, _fill(sidecar):
        program.send()
        time.sleep(0.2)  # so that it meets the full queue
        threading.Thread(target=sidecar.accept_all).start()
        result = program.result()
    assert (result["connect"], result["echo"]) == ("0", "hello")


# ---- A full system ----


@pytest.mark.parametrize("transport", [UNIX, HEADER])
@pytest.mark.parametrize("when_away", [REFUSE, DIRECT])
def test_a_system_without_files_is_a_full_sidecar(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, when_away: int, transport: int
) -> None:
    """It could not accept the connection either."""
    sidecar = make_sidecar(
        excluded=[], transport=transport, when_away=when_away, fallback=upstream.address
    )
    began = time.monotonic()
    result = run("sandbox", "no-files", *upstream.address, sidecar=sidecar)
    assert result.number("connect") == (0 if when_away == DIRECT else errno.ECONNREFUSED)
    assert 1 <= time.monotonic() - began < 5
    assert sidecar.requests == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs capabilities to give up")
def test_descriptors_on_their_way_are_waited_for(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    """Of one user only so many may be at once as RLIMIT_NOFILE says: ETOOMANYREFS."""
    sidecar.fallback = upstream.address
    run.through = ["setpriv", "--bounding-set=-sys_admin,-sys_resource"]
    result = run("flight", V4, PORT, sidecar=sidecar)
    assert result.number("sent") == errno.ETOOMANYREFS
    assert result.number("connect") == 0


# ---- Another library's idea of the time ----

FAKETIME = Path(f"/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1")


@needs_plain_hook
@pytest.mark.parametrize("moment", ["1990-01-01 00:00:00", "+30y", "+0 x1000", "+0 x0.001"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_the_sign_of_life_is_judged_by_the_kernels_clock(
    run: Runner,
    make_sidecar: MakeSidecar,
    upstream: EchoServer,
    transport: int,
    before: bool,
    moment: str,
) -> None:
    (run.preload_before if before else run.preload_after).append(FAKETIME)
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    for mode in MODES:
        result = run("connect", "-e", *_mode(mode), V4, PORT, sidecar=sidecar, FAKETIME=moment)
        assert result["echo"] == "hello"
    assert len(sidecar.wait_for_requests(2)) == 2


@needs_plain_hook
@pytest.mark.parametrize("speed", ["x1000", "x0.001"])
@pytest.mark.parametrize("before", [True, False])
def test_a_sidecar_that_stops_is_away_by_the_kernels_clock(
    run: Runner, make_sidecar: MakeSidecar, before: bool, speed: str
) -> None:
    (run.preload_before if before else run.preload_after).append(FAKETIME)
    sidecar = make_sidecar(when_away=WAIT, wait_ms=3000, fallback="hold")
    with run.start("connect", V4, PORT, sidecar=sidecar, FAKETIME=f"+0 {speed}") as process:
        sidecar.wait_for_requests(1)
        began = time.monotonic()
        sidecar.freeze()
        output, _ = process.communicate(timeout=20)
    assert f"connect={errno.ECONNREFUSED}\n" in output
    # Of the three seconds since connect() began. By their clocks it would be three milliseconds, or
    # fifty minutes.
    assert time.monotonic() - began >= 1
