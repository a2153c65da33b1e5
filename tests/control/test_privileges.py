"""What a sidecar keeps of being root."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pysidecar.config import parse
from pysidecar.privileges import Capability, needed_capabilities
from tests.control.conftest import RunningSidecar
from tests.launching import PYSIDECAR
from tests.waiting import PATIENCE, eventually

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _mask(capabilities: set[Capability]) -> int:
    return sum(1 << capability for capability in capabilities)


def _status(task: Path) -> dict[str, str]:
    lines = (task / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("acceleration: off", set()),
        ("acceleration: auto", set()),
        (
            "acceleration: {receive: true}",
            {Capability.NET_ADMIN, Capability.BPF, Capability.PERFMON},
        ),
        ("acceleration: {mode: off, receive: true}", set()),
        ("{acceleration: off, inbound: {}}", {Capability.NET_ADMIN}),
        (
            "{acceleration: off, outbound: {redirect: true}, manage_rules: true}",
            {Capability.NET_ADMIN, Capability.NET_RAW},
        ),
        ("{acceleration: off, admin: {listen: 127.0.0.1:80}}", set()),
    ],
)
def test_the_configuration_says_what_is_needed(text: str, needed: set[Capability]) -> None:
    assert needed_capabilities(parse(text)) == needed | {Capability.SYS_RESOURCE}


@needs_root
@pytest.mark.parametrize("acceleration", ["auto", "{receive: true}"])
def test_every_thread_has_what_is_needed_and_gets_no_more(
    tmp_path: Path, acceleration: str
) -> None:
    running = RunningSidecar(tmp_path)
    try:
        running.write_config(top=f"acceleration: {acceleration}\nworkers: 2")
        assert running.stop() == 0
        running.start()
        config = parse(running.config_file.read_text())
        had = int(_status(Path("/proc/self"))["CapEff"], 16)
        kept = _mask(needed_capabilities(config)) & had
        tasks = list(Path(f"/proc/{running.process.pid}/task").iterdir())
        assert len(tasks) >= 5, "main, two workers, two logs"
        for task in tasks:
            status = _status(task)
            sets = {name: int(status[f"Cap{name}"], 16) for name in ("Eff", "Prm", "Inh", "Amb")}
            assert sets == {"Eff": kept, "Prm": kept, "Inh": 0, "Amb": 0}, status["Name"]
            assert int(status["CapBnd"], 16) & ~_mask(needed_capabilities(config)) == 0
            assert status["NoNewPrivs"] == "1"
    finally:
        running.kill()


@needs_root
def test_a_listener_may_have_a_low_port(tmp_path: Path) -> None:
    running = RunningSidecar(tmp_path)
    try:
        assert running.stop() == 0
        with socket.socket() as probe:
            port = 600 + os.getpid() % 400
            probe.bind(("127.0.0.77", port))
        text = running.config_file.read_text().replace("127.0.0.1:0}", f"127.0.0.77:{port}}}", 1)
        running.config_file.write_text(text)
        running.start()
        assert running.admin.port == port
        assert running.get("/ready")[0] == 200
        assert "reloaded" in running.reload()
    finally:
        running.kill()


@needs_root
def test_an_access_log_in_another_users_directory_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, 65534, 65534)
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        "admin: {listen: 127.0.0.1:0}\n"
        f"access_log: {{path: {theirs}/log}}\n"
        f"outbound: {{control_socket: {tmp_path}/hook.sock}}\n"
    )
    done = subprocess.run(
        [*PYSIDECAR, "run", "-c", config], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert "(access_log.path): Permission denied: as root the sidecar keeps no right" in done.stderr


_AS_ANOTHER_USER = """
import os
from pysidecar.privileges import keep_only
os.setgid(65534)
os.setuid(65534)
before = open("/proc/self/status").read()
keep_only(set())
after = open("/proc/self/status").read()
names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
pick = lambda text: [line for line in text.splitlines() if line.startswith(names)]
assert len(pick(before)) == 6
assert pick(before) == pick(after)
"""


@needs_root
def test_nothing_changes_for_other_users() -> None:
    subprocess.run([sys.executable, "-c", _AS_ANOTHER_USER], check=True)


@pytest.mark.skipif(
    Path("/proc/sys/kernel/core_pattern").read_text() != "core\n"
    or (
        resource.getrlimit(resource.RLIMIT_CORE)[1] < 1 << 30
        and resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY
    ),
    reason="needs core files in the current directory",
)
@pytest.mark.parametrize("wanted", [False, True])
def test_a_crash_leaves_a_core_only_where_it_is_wanted(tmp_path: Path, wanted: bool) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        "admin: {listen: 127.0.0.1:0}\n"
        f"core_dumps: {str(wanted).lower()}\n"
        f"outbound: {{control_socket: {tmp_path}/hook.sock}}\n"
    )
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prlimit", f"--core={limit}", *PYSIDECAR, "run", "-c", config],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: "admin: http" in (tmp_path / "log").read_text())
        process.send_signal(signal.SIGABRT)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    cores = list(tmp_path.glob("core*"))
    for core in cores:
        core.unlink()  # they are large
    assert bool(cores) is wanted
