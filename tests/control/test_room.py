"""Running out of file descriptors: told before, said once, and no connect hangs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysidecar import hook_path
from pysidecar.dataplane import Counters
from pysidecar.room import Room
from tests.control.conftest import RunningSidecar
from tests.launching import PYSIDECAR
from tests.serving import Echo, serving
from tests.talking import Talking
from tests.waiting import PATIENCE, eventually

LIMIT = 360

RESET: dict[str, tuple[str, ...]] = {"unix": (), "header": ("ECONNRESET", "EPIPE")}
"""What else a connect may end with, or what it is used for first: by transport header it is over
before the sidecar has accepted it."""

# "N": connects N more sockets, which it keeps; "-": closes all; "nonblocking": connects one without
# waiting; "ask": is answered by the last one. Prints how many are connected, or the errno.
CLIENT = """
import errno, os, select, socket, sys

kept = []
address = (sys.argv[1], int(sys.argv[2]))

def connect(blocking):
    sock = socket.socket()
    if blocking:
        sock.connect(address)
    else:
        sock.setblocking(False)
        error = sock.connect_ex(address)
        if error == errno.EINPROGRESS:
            select.select([], [sock], [], 20)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "")
    kept.append(sock)

for line in sys.stdin:
    try:
        if line.strip() == "-":
            for sock in kept:
                sock.close()
            kept.clear()
        elif line.strip() == "nonblocking":
            connect(False)
        elif line.strip() == "ask":
            kept[-1].settimeout(20)
            kept[-1].sendall(b"x")
            if not kept[-1].recv(1):
                raise ConnectionResetError(errno.ECONNRESET, "")
        else:
            for _ in range(int(line)):
                connect(True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
    else:
        print(len(kept), flush=True)
"""


class SmallSidecar(RunningSidecar):
    """One with few descriptors, and no right to more."""

    prefix = (
        *("prlimit", f"--nofile={LIMIT}:{LIMIT}"),
        *(("setpriv", "--bounding-set=-sys_resource") if os.geteuid() == 0 else ()),
    )


@pytest.fixture
def upstream() -> Iterator[tuple[str, int]]:
    """Keeps connections until the other side closes them."""
    with serving(Echo) as address:
        yield address.host, address.port


def _client(sidecar: RunningSidecar, upstream: tuple[str, int]) -> Talking:
    policy = sidecar.control_socket.with_suffix(".policy")
    environment = {**os.environ, "LD_PRELOAD": str(hook_path()), "MOSNHOOK_POLICY": str(policy)}
    return Talking(
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, *map(str, upstream)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )


def _ask(client: Talking, line: str) -> str:
    client.write(line)
    return client.read().strip()


@pytest.mark.parametrize("transport", ["unix", "header"])
@pytest.mark.parametrize("when_away", ["refuse", "direct", "wait:300ms"])
def test_out_of_descriptors_it_says_so_and_connects_do_what_when_away_says(
    tmp_path: Path, upstream: tuple[str, int], when_away: str, transport: str
) -> None:
    sidecar = SmallSidecar(tmp_path, config=f"when_away: {when_away}\ntransport: {transport}")
    try:
        _check_full(sidecar, upstream, when_away)
    finally:
        sidecar.kill()


def _check_full(sidecar: RunningSidecar, upstream: tuple[str, int], when_away: str) -> None:
    ready = sidecar.get_json("/ready")
    assert (ready["state"], ready["descriptors"]["state"]) == ("serving", "enough")
    assert "warning" not in ready["descriptors"]
    room = ready["descriptors"]["available"] / 2
    with _client(sidecar, upstream) as client:
        some = str(int(room * 0.85))
        assert _ask(client, some) == some
        # (With transport header connects end before the sidecar has accepted them.)
        eventually(lambda: sidecar.get_json("/ready")["descriptors"]["state"] == "scarce")
        ready = sidecar.get_json("/ready")
        assert ready["state"] == "serving"
        assert f"limit is {LIMIT}" in ready["descriptors"]["warning"]
        assert "pysidecar_descriptors_full 0.0" in sidecar.get("/metrics")[1]

        before = len(sidecar.get_json("/connections"))
        answer = _ask(client, "200" if when_away == "direct" else "1000")
        status, body = sidecar.get("/ready")
        assert (status, '"state": "full"' in body, "ulimit -n" in body) == (503, True, True), body
        if when_away == "direct":
            assert answer.isdecimal()
            assert before < len(sidecar.get_json("/connections")) <= room, "the others went past it"
            assert _ask(client, "nonblocking").isdecimal()
        else:
            assert answer == "ECONNREFUSED"
            assert _ask(client, "nonblocking") == "ECONNREFUSED"
        metrics = sidecar.get("/metrics")[1]
        assert "pysidecar_descriptors_full 1.0" in metrics
        assert f"pysidecar_descriptors_available {2.0 * room}" in metrics
        said = [line for line in sidecar.log.splitlines() if "out of file descriptors" in line]
        assert len(said) == 1
        assert f"limit is {LIMIT}" in said[0]

        assert _ask(client, "-") == "0"
        eventually(lambda: sidecar.get("/ready")[0] == 200)
        eventually(lambda: "accepted again" in sidecar.log)
        assert _ask(client, "1") == "1"
        eventually(lambda: sidecar.get_json("/connections"))


class Clock:
    """Stands still unless told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _counters(used: int, *, full: bool = False) -> Counters:
    values = dict.fromkeys(Counters.__slots__, 0)
    return Counters(
        **values | {"fds_used": used, "fds_budget": 100, "fds_limit": 300, "full": full}
    )


def test_the_limit_is_named_once_a_minute_however_often_it_is_reached(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "pysidecar")
    clock = Clock()
    now = _counters(10)
    room = Room(lambda: now, clock=clock)
    for _ in range(100):
        now = _counters(99, full=True)
        room.look()
        now = _counters(50)
        room.look()
        clock.now += 0.1
    assert len(caplog.messages) == 2, caplog.messages
    clock.now += 60
    now = _counters(99, full=True)
    room.look()
    room.look()
    assert len(caplog.messages) == 3, caplog.messages
    assert "99 of 100" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("used", "full", "state"),
    [(0, False, "enough"), (79, False, "enough"), (80, False, "scarce"), (99, True, "full")],
)
def test_what_is_left_is_described(used: int, full: bool, state: str) -> None:
    described = Room(lambda: _counters(used, full=full)).describe()
    assert described["state"] == state
    assert ("warning" in described) == (state != "enough")
    assert (described["used"], described["available"], described["limit"]) == (used, 100, 300)


@contextmanager
def _no_descriptor_left(sidecar: RunningSidecar, but: int) -> Iterator[None]:
    """But for so many, of which its budget knows nothing."""
    pid = sidecar.process.pid
    taken = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    free = [n for n in range(len(taken) + but + 1) if n not in taken]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[but], before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


# Each two of the three; the combinations that are left are for `make soak`.
@pytest.mark.parametrize(
    ("transport", "free", "line"),
    [
        pytest.param(transport, free, line, marks=[pytest.mark.soak] if (i + free + j) % 2 else [])
        for i, transport in enumerate(["unix", "header"])
        for free in range(3)
        for j, line in enumerate(["1", "nonblocking"])
    ],
)
def test_no_connect_hangs_where_the_process_has_fewer_descriptors_than_its_budget_says(
    tmp_path: Path, upstream: tuple[str, int], transport: str, free: int, line: str
) -> None:
    """Those that wait are refused within about a second. With one or two, the request is accepted,
    or even the application's socket taken, before there is no other."""
    sidecar = RunningSidecar(tmp_path, config=f"when_away: refuse\ntransport: {transport}")
    clients = [_client(sidecar, upstream) for _ in range(3)]
    try:
        assert [_ask(client, "1") for client in clients] == ["1"] * 3
        with _no_descriptor_left(sidecar, free):
            start = time.monotonic()
            for client in clients:
                client.write(line)
            answers = [client.read().strip() for client in clients]
            assert set(answers) <= {"2", "ECONNREFUSED", *RESET[transport]}, answers
            connected = [client for client in clients if _ask(client, "0") == "2"]
            asked = [_ask(client, "ask") for client in connected]
            assert set(asked) <= {"2", *RESET[transport]}, asked
            assert time.monotonic() - start < PATIENCE / 2
            if free == 0:
                assert {*answers, *asked} - {"2"}
        eventually(lambda: _ask(clients[0], "1") in {"2", "3"}, "some room")
        assert _ask(clients[0], "ask") in {"2", "3"}
    finally:
        for client in clients:
            client.__exit__()
        sidecar.kill()


def test_a_limit_that_leaves_none_for_connections_is_named(tmp_path: Path) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        f"outbound: {{control_socket: {tmp_path}/s}}\n"
        "workers: 1\nadmin: {listen: '127.0.0.1:0'}\n"
        "takeover: {api: '127.0.0.1:0', consumer: '127.0.0.1:0', provider: '127.0.0.1:0'}\n"
    )
    done = subprocess.run(
        ["prlimit", "--nofile=300:300", *PYSIDECAR, "run", "-c", config],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "the limit of 300 file descriptors leaves none for connections" in done.stderr
    assert "ulimit -n" in done.stderr
    assert "Traceback" not in done.stderr
