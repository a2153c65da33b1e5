"""The ``sidecar`` fixture: routes from within a test, and what it remembers."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pysidecar.testing import Hooked, Sidecar, SidecarError

ANYWHERE = "10.7.7.7:777"
CLIENT = """
import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
print(socket.create_connection((host, int(port))).makefile().read(), end="")
"""


def reading(target: str) -> list[str]:
    """A command that connects and prints what it is told."""
    return [sys.executable, "-c", CLIENT, target]


READ = reading(ANYWHERE)


@pytest.fixture
def greeter() -> Iterator[Callable[[bytes], socket.socket]]:
    """Starts servers that say one thing and close."""
    listeners = []

    def start(greeting: bytes) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:  # shut down
                    return
                with peer:
                    peer.sendall(greeting)

        threading.Thread(target=serve, daemon=True).start()
        return listener

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_route_takes_effect_for_the_next_connection(
    sidecar: Sidecar, hooked: Hooked, greeter: Callable[[bytes], socket.socket]
) -> None:
    one, two = greeter(b"one"), greeter(b"two")
    for listener, greeting in ((one, "one"), (two, "two"), (one, "one")):
        sidecar.route(ANYWHERE, listener)
        assert hooked.run(READ).stdout == greeting


def test_a_later_route_overrides_and_reset_takes_back(
    sidecar_factory: Callable[..., Sidecar], greeter: Callable[[bytes], socket.socket]
) -> None:
    one = greeter(b"one")
    port = one.getsockname()[1]
    sidecar = sidecar_factory({"outbound": {"routes": [{"endpoints": [f"127.0.0.1:{port}"]}]}})
    assert sidecar.hooked.run(READ).stdout == "one"
    sidecar.route("10.0.0.0/8", action="refuse")
    assert sidecar.hooked.run(READ).returncode != 0
    sidecar.reset_routes()
    assert sidecar.hooked.run(READ).stdout == "one"


def test_an_endpoint_is_a_text_a_pair_a_socket_or_a_list(
    sidecar: Sidecar, hooked: Hooked, greeter: Callable[[bytes], socket.socket]
) -> None:
    one = greeter(b"one")
    port: int = one.getsockname()[1]
    for endpoints in (one, ("127.0.0.1", port), f"127.0.0.1:{port}", [one], [("127.0.0.1", port)]):
        sidecar.route(ANYWHERE, endpoints)
        assert hooked.run(READ).connection.upstream == f"127.0.0.1:{port}"
        sidecar.reset_routes()


def test_a_wrong_route_raises_and_changes_nothing(
    sidecar: Sidecar, hooked: Hooked, greeter: Callable[[bytes], socket.socket]
) -> None:
    sidecar.route(ANYWHERE, greeter(b"one"))
    with pytest.raises(SidecarError, match="70000"):
        sidecar.route("10.7.7.7", action="refuse", ports=70000)
    assert hooked.run(READ).stdout == "one"
    sidecar.route(ANYWHERE, greeter(b"two"))
    assert hooked.run(READ).stdout == "two"


def test_loopback_is_captured(hooked: Hooked, greeter: Callable[[bytes], socket.socket]) -> None:
    port: int = greeter(b"one").getsockname()[1]
    connection = hooked.run(reading(f"127.0.0.1:{port}"), check=True).connection
    assert connection.original_destination == connection.upstream == f"127.0.0.1:{port}"
    assert connection.bytes_received == 3


def test_waiting_for_a_connection_that_never_comes_lists_those_that_came(
    sidecar: Sidecar, hooked: Hooked
) -> None:
    sidecar.route(ANYWHERE, action="refuse")
    hooked.run(READ)
    with pytest.raises(TimeoutError, match=ANYWHERE):
        sidecar.wait_for_connection("10.9.9.9:1", timeout=0.1)


def test_nothing_is_left_when_it_stops() -> None:
    with Sidecar() as sidecar:
        pid, directory = sidecar.pid, sidecar.directory
        assert sidecar.page.exists()
        assert sidecar.control_socket.is_socket()
    assert not Path(f"/proc/{pid}").exists()
    assert not directory.exists()
    assert sidecar.log  # still there for the report


def test_it_starts_again_after_a_kill(greeter: Callable[[bytes], socket.socket]) -> None:
    with Sidecar() as sidecar:
        sidecar.route(ANYWHERE, greeter(b"one"))
        sidecar.kill()
        sidecar.start()
        assert sidecar.hooked.run(READ).stdout == "one"


def test_without_an_access_log(greeter: Callable[[bytes], socket.socket]) -> None:
    with Sidecar({"access_log": "off"}) as sidecar:
        sidecar.route(ANYWHERE, greeter(b"one"))
        assert sidecar.hooked.run(READ).stdout == "one"
        assert sidecar.wait_for_connection(ANYWHERE, closed=True)
        assert sidecar.access_log == ""
    assert sidecar.access_log == ""


def test_a_sidecar_does_not_outlive_its_tests_even_if_they_are_killed() -> None:
    script = """
import signal
from pysidecar.testing import Sidecar
with Sidecar() as sidecar:
    print(sidecar.pid, sidecar.control_socket, flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as tests:
        assert tests.stdout
        pid, control_socket = tests.stdout.readline().decode().split()
        sidecar = psutil.Process(int(pid))
        tests.kill()
    sidecar.wait(10)
    assert not Path(control_socket).exists()
