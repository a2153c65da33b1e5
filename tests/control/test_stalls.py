"""What nobody reads, or who does not go on, stops nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.interception.policy_page import page_path, read_page
from tests.control.conftest import RunningSidecar, exchange
from tests.launching import PYSIDECAR, launch
from tests.waiting import PATIENCE, eventually

_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
_WALL = 0x40000000  # of wait(2): threads, too


def _full_pipe() -> tuple[int, Callable[[], str]]:
    """Its writing end, and what empties it."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"\n" * 4096)

    def drain() -> str:
        os.set_blocking(reader, False)
        text = b""
        try:
            while data := os.read(reader, 65536):
                text += data
        except BlockingIOError:
            pass
        return text.decode()

    return writer, drain


def _stopped_terminal() -> tuple[int, Callable[[], str]]:
    """As with ^S; what resumes it is ^Q."""
    controller, terminal = pty.openpty()
    termios.tcflow(terminal, termios.TCOOFF)
    os.set_blocking(controller, False)

    def drain() -> str:
        termios.tcflow(terminal, termios.TCOON)
        try:
            return os.read(controller, 65536).decode()
        except BlockingIOError:
            return ""

    return terminal, drain


@pytest.mark.parametrize("stalled", [_full_pipe, _stopped_terminal])
def test_a_log_that_nobody_reads_stops_nothing(
    tmp_path: Path, echo: Address, stalled: Callable[[], tuple[int, Callable[[], str]]]
) -> None:
    error, drain = stalled()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        admin = Address(*probe.getsockname())
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        f"admin: {{listen: '{admin}'}}\n"
        f"access_log: {{path: {tmp_path}/log}}\n"
        f"outbound: {{listen: [127.0.0.1:0], control_socket: {tmp_path}/hook.sock, exclude: []}}\n"
    )
    process = launch(config, stderr=error)
    try:

        def ready() -> bool:
            assert process.poll() is None
            try:
                with socket.create_connection((admin.host, admin.port), PATIENCE) as client:
                    client.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
                    return b"200 OK" in client.recv(100)
            except ConnectionRefusedError:
                return False

        eventually(ready)
        process.send_signal(signal.SIGHUP)
        for _ in range(20):
            assert ready()
        text = ""

        def said() -> bool:
            nonlocal text
            text += drain()
            return "reloaded" in text

        eventually(said)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_an_exit_does_not_wait_for_a_reader(sidecar: RunningSidecar, tmp_path: Path) -> None:
    error, _ = _full_pipe()
    config = tmp_path / "second.yaml"
    config.write_text(
        "admin: {listen: 127.0.0.1:0}\n"
        f"outbound: {{listen: [127.0.0.1:0], control_socket: {tmp_path}/second.sock}}\n"
    )
    with launch(config, stderr=error) as process:
        eventually((tmp_path / "second.sock").exists)
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_fifo_that_nobody_reads_is_refused(sidecar: RunningSidecar, echo: Address) -> None:
    before = sidecar.config_file.read_text()
    fifo = sidecar.directory / "fifo"
    os.mkfifo(fifo)
    sidecar.config_file.write_text(before.replace(str(sidecar.access_log_file), str(fifo)))
    log = sidecar.reload()
    assert f"access_log.path: {fifo}: it is a FIFO that nobody reads" in log
    with sidecar.connect(echo) as client:
        assert exchange(client, b"still") == b"still"
    assert sidecar.stop() == 0
    sidecar.access_log(1)
    done = subprocess.run(
        [*PYSIDECAR, "run", "-c", sidecar.config_file],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert "(access_log.path): it is a FIFO that nobody reads" in done.stderr


def test_a_stalled_access_log_can_be_replaced(sidecar: RunningSidecar, echo: Address) -> None:
    before = sidecar.config_file.read_text()
    fifo = sidecar.directory / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sidecar.config_file.write_text(before.replace(str(sidecar.access_log_file), str(fifo)))
    assert "reloaded" in sidecar.reload()
    filler = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    while True:
        try:
            os.write(filler, b"\n" * 4096)
        except BlockingIOError:
            break
    with sidecar.connect(echo) as client:
        exchange(client, b"1")
    sidecar.config_file.write_text(before)
    assert "reloaded" in sidecar.reload()
    with sidecar.connect(echo) as client:
        exchange(client, b"22")
    assert [record["bytes_sent"] for record in sidecar.access_log(2)] == [1, 2]
    os.close(reader)
    os.close(filler)


# ---- Threads that do not go on ----


def _ptrace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(ctypes.c_long(request), thread, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


@contextmanager
def stuck(thread: int) -> Iterator[None]:
    """A thread that stands still, with the others of its process going on."""
    _ptrace(_PTRACE_ATTACH, thread)
    os.waitpid(thread, _WALL)
    try:
        yield
    finally:
        _ptrace(_PTRACE_DETACH, thread)


def _threads(pid: int) -> dict[str, int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {(task / "comm").read_text().strip(): int(task.name) for task in tasks}


def _silent_for(sidecar: RunningSidecar) -> float:
    status = read_page(page_path(sidecar.control_socket))
    assert status is not None
    return status.silent_for


def _signs_of_life(sidecar: RunningSidecar, count: int) -> None:
    """Waits for so many. Each makes the silence shorter than it was."""
    before = _silent_for(sidecar)
    for _ in range(count):

        def grew_shorter() -> bool:
            nonlocal before
            now, then = _silent_for(sidecar), before
            before = now
            return now < then

        eventually(grew_shorter)


def test_traffic_goes_on_while_the_control_thread_is_stuck(
    sidecar: RunningSidecar, echo: Address
) -> None:
    with stuck(sidecar.process.pid):
        for _ in range(100):
            with sidecar.connect(echo) as client:
                assert exchange(client, b"x") == b"x"
        _signs_of_life(sidecar, 5)
    assert len(sidecar.access_log(100)) == 100


@pytest.mark.parametrize("worker", [0, 1])
def test_one_stuck_worker_is_no_dead_sidecar(tmp_path: Path, echo: Address, worker: int) -> None:
    running = RunningSidecar(tmp_path)
    try:
        running.write_config(top="workers: 2")
        assert running.stop() == 0
        running.start()
        threads = _threads(running.process.pid)
        with stuck(threads[f"worker-{worker}"]):
            _signs_of_life(running, 5)
            with running.connect(echo) as client:
                assert exchange(client, b"x") == b"x"
    finally:
        running.kill()


@pytest.mark.parametrize("worker", [0, 1])
def test_what_was_handed_to_a_stuck_worker_is_served_by_another(
    tmp_path: Path, echo: Address, worker: int
) -> None:
    """It has the fewest connections, so that it would get every second one."""
    running = RunningSidecar(tmp_path)
    try:
        running.write_config(top="workers: 2")
        assert running.stop() == 0
        running.start()
        threads = _threads(running.process.pid)
        with contextlib.ExitStack() as clients:
            with stuck(threads[f"worker-{worker}"]):
                for _ in range(4):
                    client = clients.enter_context(running.connect(echo))
                    assert exchange(client, b"x") == b"x"
            for _ in range(4):
                client = clients.enter_context(running.connect(echo))
                assert exchange(client, b"x") == b"x"
    finally:
        running.kill()


# ---- Strangers at the admin interface ----

_CROWD = """
import os, resource, socket, sys
count = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
clients = []
for _ in range(count):
    client = socket.socket()
    client.connect((sys.argv[1], int(sys.argv[2])))
    try:
        client.sendall(bytes.fromhex(sys.argv[4]))
    except ConnectionError:
        pass
    clients.append(client)
print("there", flush=True)
sys.stdin.read()
"""


@contextmanager
def crowd(address: Address, count: int, sent: bytes) -> Iterator[None]:
    """So many connections of another user, each with the beginning of a request."""
    command = [
        sys.executable,
        "-c",
        _CROWD,
        address.host,
        str(address.port),
        str(count),
        sent.hex(),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            yield
        finally:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\n", b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)
def test_a_crowd_of_another_user_stops_neither_admin_nor_traffic(
    tmp_path: Path, echo: Address, sent: bytes
) -> None:
    running = RunningSidecar(tmp_path)
    try:
        before = len(os.listdir(f"/proc/{running.process.pid}/fd"))
        with crowd(running.admin, 3000, sent):
            assert running.get("/ready")[0] == 200
            with running.connect(echo) as client:
                assert exchange(client, b"x") == b"x"
            after = len(os.listdir(f"/proc/{running.process.pid}/fd"))
            assert after - before < 64
            metrics = running.get("/metrics")[1]
            open_now = re.search(r"^pysidecar_admin_connections (\S+)$", metrics, re.M)
            assert open_now is not None
            assert 1 <= float(open_now[1]) <= 33
        assert running.log.count("admin:") <= 2
    finally:
        running.kill()


def test_bad_requests_are_a_line_now_and_then(sidecar: RunningSidecar) -> None:
    before = len(sidecar.log)
    for number in range(200):
        with socket.create_connection((sidecar.admin.host, sidecar.admin.port)) as client:
            client.sendall(b"\x1b[2J\xff\0" * (number + 1) + b"\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    added = sidecar.log[before:]
    assert added.isascii()
    assert added.isprintable() or added.count("\n") <= 2
    assert 1 <= added.count("a request is not HTTP") <= 2
    assert f"uid {os.geteuid()}" in added
    metrics = sidecar.get("/metrics")[1]
    assert "pysidecar_admin_bad_requests_total 200.0" in metrics
