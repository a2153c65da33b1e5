"""The ``hooked`` fixture: commands, what they printed, and exactly the connections they made."""

from __future__ import annotations

import signal
import sys

import pytest

from pysidecar.testing import Hooked, HookedError, Sidecar

CONNECT = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    socket.socket().connect_ex((host, int(port)))
"""


def connecting(*targets: str) -> list[str]:
    return [sys.executable, "-c", CONNECT, *targets]


@pytest.fixture(autouse=True)
def everything_refuses(sidecar: Sidecar) -> None:
    sidecar.route("0.0.0.0/0", action="refuse")


def test_output_status_input_environment_and_directory(
    hooked: Hooked, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNWANTED", "1")
    directory = tmp_path_factory.mktemp("here")
    result = hooked.run(
        ["sh", "-c", 'cat; pwd; echo "$WANTED-$UNWANTED" >&2; exit 3'],
        env={"WANTED": "yes", "UNWANTED": None},
        cwd=directory,
        input="hello ",
    )
    assert result.returncode == 3
    assert result.stdout == f"hello {directory}\n"
    assert result.stderr == "yes-\n"
    assert result.connections == ()


def test_a_command_that_fails_raises_with_its_output_where_asked(hooked: Hooked) -> None:
    with pytest.raises(HookedError, match="some words"):
        hooked.run(["sh", "-c", "echo some words; exit 1"], check=True)


def test_a_command_that_takes_too_long_is_killed(hooked: Hooked) -> None:
    process = hooked.popen(["sh", "-c", "echo begun; sleep 3600"])
    with pytest.raises(HookedError, match=r"still ran after 0.5 s\n(?s:.*)begun"):
        process.wait(timeout=0.5)
    assert process.poll() == -signal.SIGKILL


def test_connections_of_commands_side_by_side_are_kept_apart(hooked: Hooked) -> None:
    processes = {
        f"10.3.0.{number}:80": hooked.popen(connecting(*[f"10.3.0.{number}:80"] * number))
        for number in range(1, 5)
    }
    for number, (target, process) in enumerate(processes.items(), 1):
        connections = process.wait().connections
        assert [found.original_destination for found in connections] == [target] * number
        assert {found.pid for found in connections} == {process.pid}


def test_the_same_destination_is_no_matter(hooked: Hooked) -> None:
    one, two = (hooked.popen(connecting("10.3.0.1:80")) for _ in range(2))
    assert one.wait().connection.pid == one.pid
    assert two.wait().connection.pid == two.pid


def test_connections_of_children_count(sidecar: Sidecar, hooked: Hooked) -> None:
    """Short-lived ones, those whose parent ended first, those in another session, and those that
    were executed with an empty environment."""
    script = """
    "$0" -c "$1" 10.3.0.1:80
    ("$0" -c "$1" 10.3.0.2:80 & )
    setsid "$0" -c "$1" 10.3.0.3:80
    env -i "$0" -c "$1" 10.3.0.4:80
    """
    other = hooked.run(connecting("10.3.0.9:80"))
    process = hooked.popen(["sh", "-c", script, sys.executable, CONNECT])
    for number in range(1, 5):
        found = process.wait_for_connection(f"10.3.0.{number}:80", closed=True)
        assert found.pid != process.pid
    assert len(process.wait().connections) == 4
    assert other.connection.key not in {found.key for found in process.connections()}
    assert len(sidecar.connections()) == 5


def test_ipv6_destinations_are_found(sidecar: Sidecar, hooked: Hooked) -> None:
    sidecar.route("::/0", action="refuse")
    script = "import socket; socket.socket(socket.AF_INET6).connect_ex(('fd00::1:9', 80))"
    result = hooked.run([sys.executable, "-c", script])
    assert result.connection.original_destination == "[fd00::1:9]:80"
