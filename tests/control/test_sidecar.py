"""The life of a sidecar: start, traffic, reload, drain, kill, conflicts."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.interception.policy_page import State, page_path, read_page
from tests.control.conftest import RunningSidecar, exchange
from tests.launching import PYSIDECAR, launch
from tests.waiting import PATIENCE, eventually

PRINT_ENVIRONMENT = (
    sys.executable,
    "-c",
    "import json, os; print(json.dumps(dict(os.environ)))",
)
FIELDS = [
    *("time", "type", "direction", "transport", "source", "original_destination", "upstream"),
    *("action", "path", "bytes_sent", "bytes_received", "rtt_ms", "duration_ms", "pid", "uid"),
    *("process", "error"),
]


def test_a_connection_is_relayed_shown_and_logged(sidecar: RunningSidecar, echo: Address) -> None:
    with sidecar.connect(echo) as client:
        assert exchange(client, b"hello") == b"hello"
        # Bytes are counted when they have been sent, which may be after they have arrived.
        eventually(lambda: sidecar.get_json("/connections")[0]["bytes_received"])
        [live] = sidecar.get_json("/connections")
        assert live["state"] == "open"
        assert live["original_destination"] == str(echo)
        assert (live["bytes_sent"], live["bytes_received"]) == (5, 5)
        source = Address(*client.getsockname())
    [record] = sidecar.access_log(1)
    assert list(record) == FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    assert record.pop("duration_ms") > 0
    assert record == {
        "type": "connection",
        "direction": "outbound",
        "transport": "header",
        "source": str(source),
        "original_destination": str(echo),
        "upstream": str(echo),
        "action": "relay",
        "path": "relay",
        "bytes_sent": 5,
        "bytes_received": 5,
        "rtt_ms": None,
        "pid": None,
        "uid": os.geteuid(),
        "process": None,
        "error": None,
    }
    assert sidecar.get_json("/connections") == []
    [closed] = sidecar.get_json("/connections?closed=5")
    assert closed["state"] == "closed"
    assert closed["id"] == live["id"]


def test_a_hooked_command_goes_through(sidecar: RunningSidecar, echo: Address) -> None:
    script = (
        "import socket, sys\n"
        f"s = socket.create_connection(({echo.host!r}, {echo.port}), 10)\n"
        "s.sendall(b'ping'); print(s.recv(4).decode(), s.getpeername()[1]); sys.exit(7)\n"
    )
    done = subprocess.run(
        [*PYSIDECAR, "exec", "-c", sidecar.config_file, "--", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (7, f"ping {echo.port}\n"), done.stderr
    assert done.stderr == ""
    [record] = sidecar.access_log(1)
    assert record["transport"] == "unix"
    assert record["original_destination"] == str(echo)
    assert record["pid"] > 0
    assert record["process"].startswith("python")


def test_a_reload_changes_routes_and_keeps_connections(
    sidecar: RunningSidecar, echo: Address
) -> None:
    destination = Address("192.0.2.1", 9)
    with sidecar.connect(echo) as before:
        assert exchange(before, b"a") == b"a"
        sidecar.write_config(
            f"transport: header\nwhen_away: wait:7s\nroutes: [{{match: {{destination: "
            f"192.0.2.0/24}}, endpoints: ['{echo}']}}]"
        )
        assert "reloaded" in sidecar.reload()
        with sidecar.connect(destination) as client:
            assert exchange(client, b"routed") == b"routed"
            upstreams = {
                c["original_destination"]: c["upstream"] for c in sidecar.get_json("/connections")
            }
        assert upstreams[str(destination)] == str(echo)
        assert exchange(before, b"b") == b"b"
    status = read_page(page_path(sidecar.control_socket))
    assert status is not None
    assert (status.transport, str(status.when_away)) == ("header", "wait:7s")
    assert sidecar.get_json("/config")["outbound"]["when_away"] == "wait:7s"


def test_a_bad_file_leaves_the_running_configuration(
    sidecar: RunningSidecar, echo: Address
) -> None:
    before = sidecar.get_json("/config")
    sidecar.write_config("transprot: unix")
    log = sidecar.reload()
    assert (
        f"{sidecar.config_file}:8: outbound.transprot: unknown key; did you mean transport?" in log
    )
    assert sidecar.get_json("/config") == before
    with sidecar.connect(echo) as client:
        assert exchange(client, b"still") == b"still"
    assert 'pysidecar_reloads_total{result="rejected"} 1.0' in sidecar.get("/metrics")[1]


def test_a_reload_that_needs_a_restart_is_rejected_as_a_whole(sidecar: RunningSidecar) -> None:
    sidecar.write_config("connect_timeout: 9s", top="workers: 3")
    log = sidecar.reload()
    assert "workers: expected no change" in log
    assert sidecar.get_json("/config")["outbound"]["connect_timeout"] == "5s"


def test_a_reload_reopens_the_access_log(sidecar: RunningSidecar, echo: Address) -> None:
    with sidecar.connect(echo) as client:
        exchange(client, b"1")
    sidecar.access_log(1)
    rotated = sidecar.access_log_file.with_suffix(".1")
    sidecar.access_log_file.rename(rotated)
    sidecar.reload()
    with sidecar.connect(echo) as client:
        exchange(client, b"22")
    [record] = sidecar.access_log(1)
    assert record["bytes_sent"] == 2
    assert len(rotated.read_text().splitlines()) == 1
    assert stat.S_IMODE(sidecar.access_log_file.stat().st_mode) & ~0o640 == 0


@pytest.mark.parametrize("key", ["mode", "connections"])
def test_the_access_log_can_be_turned_off(sidecar: RunningSidecar, echo: Address, key: str) -> None:
    def connect(data: bytes) -> None:
        with sidecar.connect(echo) as client:
            exchange(client, data)

        def closed() -> int:
            found = sidecar.get_json("/connections?closed=5")
            return sum(one["bytes_sent"] == len(data) for one in found)

        eventually(closed)

    written = sidecar.config_file.read_text()
    connect(b"1")
    sidecar.access_log(1)
    sidecar.config_file.write_text(written.replace("access_log: {", f"access_log: {{{key}: off, "))
    sidecar.reload()
    connect(b"22")
    sidecar.config_file.write_text(written)
    sidecar.reload()
    connect(b"333")
    assert [record["bytes_sent"] for record in sidecar.access_log(2)] == [1, 3]


def refuses(address: Address) -> bool:
    try:
        socket.create_connection((address.host, address.port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_drains(sidecar: RunningSidecar, echo: Address) -> None:
    page = page_path(sidecar.control_socket)
    with sidecar.connect(echo) as client:
        exchange(client, b"before")
        sidecar.process.send_signal(signal.SIGTERM)
        eventually(lambda: sidecar.get("/ready")[0] == 503)
        status = read_page(page)
        assert status is not None
        assert status.state is State.DRAINING
        eventually(lambda: refuses(sidecar.listener))
        assert exchange(client, b"during") == b"during"
    assert sidecar.process.wait(PATIENCE) == 0
    assert list(sidecar.control_socket.parent.iterdir()) == []
    # Besides what `refuses` connected, until it was.
    [record] = [each for each in sidecar.access_log(1) if each["original_destination"]]
    assert (record["bytes_sent"], record["error"]) == (12, None)


def test_a_runtime_directory_that_became_read_only_is_a_message(sidecar: RunningSidecar) -> None:
    directory = sidecar.control_socket.parent
    directory.chmod(0o500)
    try:
        assert sidecar.stop() == 0
    finally:
        directory.chmod(0o700)
    for name in ("hook.sock", "hook.sock.lock", "hook.policy"):
        assert f"cannot remove {directory}/{name}: Permission denied" in sidecar.log
    assert "Traceback" not in sidecar.log
    sidecar.start()
    assert sidecar.stop() == 0


def test_an_interrupt_ends_it_too(sidecar: RunningSidecar) -> None:
    sidecar.process.send_signal(signal.SIGINT)
    assert sidecar.process.wait(PATIENCE) == 0
    assert list(sidecar.control_socket.parent.iterdir()) == []


def test_it_can_end_with_its_standard_input(tmp_path: Path) -> None:
    """So it does not outlive who started it, even if that was killed."""
    control_socket = tmp_path / "hook.sock"
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        "admin: {listen: 127.0.0.1:0}\n"
        f"outbound: {{listen: [127.0.0.1:0], control_socket: {control_socket}}}\n"
    )
    with launch(
        config, "--until-stdin-ends", stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin
        eventually(control_socket.exists)
        process.stdin.write(b"what it says does not matter")
        process.stdin.flush()
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    assert not control_socket.exists()


def test_the_drain_limit_aborts(sidecar: RunningSidecar, echo: Address) -> None:
    sidecar.write_config(top="drain_timeout: 100ms")
    sidecar.reload()
    with sidecar.connect(echo) as client:
        exchange(client, b"stays")
        assert sidecar.stop() == 0
    [record] = sidecar.access_log(1)
    assert record["error"] == "closed at the drain limit"


def test_a_second_signal_aborts_at_once(sidecar: RunningSidecar, echo: Address) -> None:
    with sidecar.connect(echo) as client:
        exchange(client, b"stays")
        sidecar.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in sidecar.log)
        sidecar.process.send_signal(signal.SIGTERM)
        assert sidecar.process.wait(PATIENCE / 2) == 0
    assert list(sidecar.control_socket.parent.iterdir()) == []


def test_after_a_kill_a_new_start_just_works(sidecar: RunningSidecar, echo: Address) -> None:
    page = page_path(sidecar.control_socket)
    inode = page.stat().st_ino
    sidecar.kill()
    assert sidecar.control_socket.exists()
    sidecar.start()
    status = read_page(page)
    assert status is not None
    assert status.serving
    assert page.stat().st_ino == inode, "hooked processes have the old file mapped"
    with sidecar.connect(echo) as client:
        assert exchange(client, b"again") == b"again"
    assert sidecar.stop() == 0


ASK = """
import socket, sys
for line in sys.stdin:
    try:
        with socket.create_connection(("127.0.0.1", int(line)), 10) as s:
            s.sendall(b"ping")
            print(s.recv(4).decode(), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


def test_a_running_process_follows_a_restart(sidecar: RunningSidecar, echo: Address) -> None:
    """Its connections go through the sidecar, through nothing while that is dead, and through the
    next one."""
    with subprocess.Popen(
        [*PYSIDECAR, "exec", "-c", sidecar.config_file, "--", sys.executable, "-c", ASK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as hooked:

        def ask() -> str:
            assert hooked.stdin is not None
            assert hooked.stdout is not None
            hooked.stdin.write(f"{echo.port}\n")
            hooked.stdin.flush()
            return hooked.stdout.readline().strip()

        assert ask() == "ping"
        sidecar.access_log(1)
        sidecar.kill()
        assert ask() == "ConnectionRefusedError"
        sidecar.start()
        assert ask() == "ping"
        assert len(sidecar.access_log(2)) == 2
        assert hooked.stdin is not None
        hooked.stdin.close()
        assert hooked.wait(PATIENCE) == 0


def start_second(config: Path) -> str:
    done = subprocess.run(
        [*PYSIDECAR, "run", "-c", config],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_second_sidecar_names_the_first(sidecar: RunningSidecar, tmp_path: Path) -> None:
    error = start_second(sidecar.config_file)
    assert (
        f"{sidecar.control_socket} (outbound.control_socket) is in use by another pysidecar"
        in error
    )
    assert f"pid {sidecar.process.pid} " in error
    assert sidecar.get("/ready")[0] == 200

    other = tmp_path / "other.yaml"
    for key, section in (("outbound.listen", sidecar.listener), ("admin.listen", sidecar.admin)):
        settings = {"outbound.listen": "127.0.0.1:0", "admin.listen": "127.0.0.1:0", key: section}
        other.write_text(
            f"admin: {{listen: '{settings['admin.listen']}'}}\n"
            f"outbound: {{listen: ['{settings['outbound.listen']}'], "
            f"control_socket: {tmp_path}/other/hook.sock}}\n"
        )
        error = start_second(other)
        assert f"cannot listen on {section} ({key}): in use by another pysidecar, pid" in error
        assert f"pid {sidecar.process.pid} " in error
        assert list((tmp_path / "other").iterdir()) == []


def test_files_are_private_by_default(sidecar: RunningSidecar) -> None:
    directory = sidecar.control_socket.parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for entry in directory.iterdir():
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600, entry


def test_a_failed_record_is_logged_once_and_counted(tmp_path: Path, echo: Address) -> None:
    running = RunningSidecar(tmp_path)
    try:
        running.access_log_file = Path("/dev/full")
        running.write_config()
        running.reload()
        for _ in range(2):
            with running.connect(echo) as client:
                assert exchange(client, b"x") == b"x"
        eventually(
            lambda: "pysidecar_access_log_lost_records_total 2.0" in running.get("/metrics")[1]
        )
        complaint = "No space left on device"
        eventually(lambda: complaint in running.log)  # another thread writes it
        assert running.log.count(complaint) == 1
    finally:
        running.kill()


def test_the_process_gets_all_the_file_descriptors_it_may(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        running = RunningSidecar(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        limits = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
        assert limits[0] == limits[1] >= hard
    finally:
        running.kill()


def test_a_sidecar_does_not_hook_itself(sidecar: RunningSidecar, echo: Address) -> None:
    """Started from a hooked shell it would send its upstream connections to itself."""
    environment = subprocess.run(
        [*PYSIDECAR, "exec", "-c", sidecar.config_file, "--", *PRINT_ENVIRONMENT],
        capture_output=True,
        check=True,
    ).stdout
    directory = sidecar.directory / "second"
    directory.mkdir()
    before = dict(os.environ)
    os.environ.update(json.loads(environment))
    try:
        second = RunningSidecar(directory)
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        with second.connect(echo) as client:
            assert exchange(client, b"once") == b"once"
            assert len(second.get_json("/connections")) == 1
            assert sidecar.get_json("/connections") == []
    finally:
        second.kill()
