"""Whose connection it is: not everybody is who runs the tests."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from pysidecar.dataplane import ConnectionRecord, Transport, lib
from tests.dataplane.support import Plane, Server, hook_request
from tests.users import USERS, needs_root, start_script
from tests.waiting import eventually

# What the connect hook does, in a process of its own. Says when the socket is connected, and ends
# when it is told to.
CALLER = """
host, port, control_path, request = sys.argv[1:]
application = socket.socket()
application.setblocking(False)
application.connect_ex((host, int(port)))
control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
control.connect(control_path)
rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [application.fileno()]))
control.sendmsg([bytes.fromhex(request)], [rights])
assert len(control.recv(100)) > 0
print("connected", flush=True)
sys.stdin.readline()
"""


def let_everybody_in(plane: Plane) -> None:
    control = Path(plane.control_path)
    control.chmod(0o666)
    control.parent.chmod(0o711)


@needs_root
def test_each_callers_user_and_process_are_what_the_kernel_says(
    plane: Plane, server: Server
) -> None:
    let_everybody_in(plane)
    park = plane.parks["127.0.0.1"]
    flags = lib.MOSNHOOK_PARKED | lib.MOSNHOOK_WAITS
    expected = set()
    with contextlib.ExitStack() as callers:
        for user in (*USERS, os.getuid()):
            request = hook_request(server.address, flags, f"user-{user}".encode()).hex()
            arguments = (park.host, park.port, plane.control_path, request)
            process = callers.enter_context(start_script(user, CALLER, *arguments))
            assert process.stdout
            assert process.stdout.readline() == "connected\n"
            server.accept()
            expected.add((process.pid, user, f"user-{user}", Transport.UNIX))
            callers.callback(process.communicate, "end\n")
        assert set(map(who, plane.data.snapshot())) == expected
    server.close()
    eventually(lambda: len(plane.closed()) == len(expected), "all to be closed")
    assert set(map(who, plane.closed())) == expected


def who(record: ConnectionRecord) -> tuple[int | None, int | None, str | None, Transport]:
    return record.pid, record.uid, record.process, record.transport


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_control_socket_keeps_others_out(plane: Plane, server: Server, mode: int) -> None:
    let_everybody_in(plane)
    Path(plane.control_path).chmod(mode)
    park = plane.parks["127.0.0.1"]
    request = hook_request(server.address, lib.MOSNHOOK_PARKED).hex()
    arguments = [park.host, park.port, plane.control_path, request]
    for user in USERS:
        with start_script(user, CALLER, *arguments) as process:
            _, errors = process.communicate()
        assert "PermissionError" in errors
    assert server.accepts_nothing()
    assert plane.data.counters().accepted == 0
