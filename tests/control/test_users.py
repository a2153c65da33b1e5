"""What other users of this host may do, and that what they do is known to be theirs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pysidecar
from pysidecar.address import Address
from pysidecar.interception.policy_page import page_path
from tests.control.conftest import RunningSidecar
from tests.users import USERS, needs_root, open_directory, start_program, start_script
from tests.waiting import PATIENCE, eventually

pytestmark = needs_root

DESTINATION = Address("192.0.2.7", 4321)  # there is no way there but through a sidecar
SIDECARS_GROUP = 0  # of a sidecar that root runs
COULD_NOT_CONNECT = 7  # curl's exit status

Start = Callable[..., "Sidecar"]


class Sidecar(RunningSidecar):
    """One that everybody can look for, with a hook that everybody can load."""

    def __init__(self, directory: Path, echo: Address, outbound: str) -> None:
        self.hook = directory / "libmosnhook.so"
        shutil.copy(Path(pysidecar.__file__).with_name("libmosnhook.so"), self.hook)
        route = f"routes: [{{match: {{destination: {DESTINATION.host}}}, endpoints: ['{echo}']}}]"
        super().__init__(directory, config=f"{outbound}\n{route}")

    @contextmanager
    def caller(self, user: int, *groups: int) -> Iterator[subprocess.Popen[str]]:
        """A hooked curl that connects and stays until it is left."""
        environment = (
            f"LD_PRELOAD={self.hook}",
            f"MOSNHOOK_POLICY={page_path(self.control_socket)}",
        )
        curl = ("curl", "--silent", "--max-time", PATIENCE, f"telnet://{DESTINATION}")
        with start_program(user, "env", *environment, *curl, groups=groups) as process:
            try:
                yield process
            finally:
                process.kill()
                process.communicate()

    def refuses(self, user: int, *groups: int) -> bool:
        with self.caller(user, *groups) as process:
            process.communicate()
        return process.returncode == COULD_NOT_CONNECT


@pytest.fixture
def start(echo: Address) -> Iterator[Start]:
    with open_directory() as directory:
        made: list[Sidecar] = []

        def make(outbound: str) -> Sidecar:
            made.append(Sidecar(directory, echo, outbound))
            return made[0]

        yield make
        made[0].kill()


@pytest.mark.parametrize("transport", ["unix", "header"])
def test_a_connection_is_listed_and_logged_as_its_users(start: Start, transport: str) -> None:
    sidecar = start(f"control_socket_mode: '0666'\ntransport: {transport}")
    expected: dict[str, object] = {
        "transport": transport,
        "process": "curl",
        "original_destination": str(DESTINATION),
    }
    for number, user in enumerate(USERS, 1):
        with sidecar.caller(user) as process:
            expected |= {"pid": process.pid, "uid": user}
            live = eventually(lambda: known(sidecar))
            assert {name: live[name] for name in expected} == expected
        logged = sidecar.access_log(number)[-1]
        assert {name: logged[name] for name in expected} == expected
        eventually(lambda: sidecar.get_json("/connections") == [])


def known(sidecar: Sidecar) -> dict[str, Any] | None:
    """The only connection, when it has said where it wants to go."""
    live: list[dict[str, Any]] = sidecar.get_json("/connections")
    assert len(live) <= 1
    return live[0] if live and live[0]["original_destination"] else None


@pytest.mark.parametrize(
    ("mode", "strangers", "group"),
    [("0600", False, False), ("0660", False, True), ("0666", True, True)],
)
def test_the_control_sockets_mode_says_who_is_served(
    start: Start, mode: str, strangers: bool, group: bool
) -> None:
    sidecar = start(f"control_socket_mode: '{mode}'")
    served: list[int] = []
    for user in USERS:
        for groups, allowed in (((), strangers), ((SIDECARS_GROUP,), group)):
            if not allowed:
                assert sidecar.refuses(user, *groups)
                continue
            with sidecar.caller(user, *groups):
                eventually(lambda: sidecar.get_json("/connections"))
            served.append(user)
            sidecar.access_log(len(served))
    assert sidecar.stop() == 0
    logged = sidecar.access_log_file.read_text().splitlines()
    assert [json.loads(line)["uid"] for line in logged] == served


@pytest.mark.parametrize(("mode", "readable"), [("0600", False), ("0660", False), ("0666", True)])
def test_nobody_else_writes_the_page(start: Start, mode: str, readable: bool) -> None:
    sidecar = start(f"control_socket_mode: '{mode}'")
    script = """
for flags in os.O_RDONLY, os.O_RDWR, os.O_WRONLY:
    try:
        os.close(os.open(sys.argv[1], flags))
        print("yes")
    except PermissionError:
        print("no")
"""
    for user in USERS:
        with start_script(user, script, page_path(sidecar.control_socket)) as process:
            output, errors = process.communicate()
        assert output.split() == ["yes" if readable else "no", "no", "no"], errors


def test_who_takes_a_killed_sidecars_port_is_sent_nothing(start: Start) -> None:
    sidecar = start("control_socket_mode: '0666'\ntransport: header")
    listener, squatting = (
        sidecar.listener,
        """
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listens", flush=True)
with listener.accept()[0] as client:
    print(client.recv(4096))
""",
    )
    squatter, caller = USERS
    sidecar.kill()
    with start_script(squatter, squatting, listener.host, listener.port) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        assert sidecar.refuses(caller)
        output, errors = process.communicate(timeout=PATIENCE)
    # Reset before anything was sent, or (where that is seen sooner) not even accepted.
    assert "QUIT" not in output
    assert "ConnectionResetError" in errors or output == "b''\n"


def test_requests_are_shown_to_no_other_user(start: Start) -> None:
    sidecar = start("control_socket_mode: '0666'")
    page = f"http://{sidecar.admin}/requests"
    status = ("curl", "--silent", "--max-time", PATIENCE, "--output", "/dev/null", "--write-out")
    for user, expected in ((USERS[0], "403"), (0, "200")):
        with start_program(user, *status, "%{http_code}", page) as process:
            assert process.communicate()[0] == expected
    with start_program(USERS[0], *status, "%{http_code}", f"http://{sidecar.admin}/ready") as ready:
        assert ready.communicate()[0] == "200"
