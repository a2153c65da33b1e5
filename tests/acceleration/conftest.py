from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pysidecar.testing import Sidecar
from tests.acceleration.support import (
    AT_ONCE,
    PORT,
    V4,
    HookedApplication,
    Mesh,
    Server,
    compile_program,
    mesh,
)
from tests.waiting import eventually

_TCP_LIMITS = Path("/proc/sys/net/ipv4/tcp_mem")  # in pages: normal, short, all


@pytest.fixture(scope="session")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("acceleration")
    return compile_program(Path(__file__).with_name("traffic.c"), directory)


@pytest.fixture
def server(traffic: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(traffic, tmp_path / "server") as running:
        yield running


@pytest.fixture
def make_mesh(server: Server, tmp_path: Path) -> Callable[..., AbstractContextManager[Mesh]]:
    """Starts a sidecar that accelerates; see ``support.mesh``."""
    return partial(mesh, server, tmp_path)


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture(scope="module")
def sidecar_with() -> Iterator[Callable[[dict[str, Any]], Sidecar]]:
    """The sidecar with these settings: a start takes longer than most of what is tested."""
    with ExitStack() as stack:
        made: dict[str, Sidecar] = {}

        def find(settings: dict[str, Any]) -> Sidecar:
            key = json.dumps(settings, sort_keys=True)
            if key not in made:
                made[key] = stack.enter_context(Sidecar(settings))
            return made[key]

        yield find


@pytest.fixture
def start(
    sidecar_with: Callable[[dict[str, Any]], Sidecar], listener: socket.socket
) -> Iterator[Callable[..., HookedApplication]]:
    started: list[HookedApplication] = []

    def run(path: str, ip: str = V4, **acceleration: object) -> HookedApplication:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        match = {"destination": V4, "ports": [PORT]}
        settings: dict[str, Any] = {
            "outbound": {
                "routes": [{"match": match, "endpoints": [endpoint]}],
                "idle_timeout": acceleration.pop("idle_timeout", "1h"),
            },
            "acceleration": {
                "mode": "require",
                "path": path,
                "receive": True,
                "blocking_sockets": True,
                **AT_ONCE,
                **acceleration,
            },
        }
        if path == "relay":
            settings["acceleration"] = "off"
        started.append(HookedApplication(sidecar_with(settings), listener, ip))
        return started[-1]

    yield run
    for application in started:
        application.close()


def _tcp_memory_is_short() -> bool:
    lines = Path("/proc/net/protocols").read_text().splitlines()
    (line,) = [line.split() for line in lines if line.startswith("TCP ")]
    return line[4] == "yes"


@pytest.fixture
def say_whether_memory_is_short() -> Iterator[Callable[[bool], None]]:
    """Makes the kernel call TCP's memory short, or no longer; nobody is refused any."""
    before = _TCP_LIMITS.read_text()
    short = "1 2 " + before.split()[2]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def exchange() -> None:
            """The kernel looks when a socket needs more."""
            with (
                socket.create_connection(listener.getsockname()) as one,
                listener.accept()[0] as other,
            ):
                one.setblocking(False)
                one.send(bytes(1 << 20))
                other.recv(1 << 20)

        def say(wanted: bool) -> None:
            _TCP_LIMITS.write_text(short if wanted else before)

            def said() -> bool:
                exchange()
                return _tcp_memory_is_short() == wanted

            eventually(said, lambda: f"TCP's memory is {'' if wanted else 'not '}short")

        try:
            yield say
        finally:
            say(False)
