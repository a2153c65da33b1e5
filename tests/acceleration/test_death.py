"""The sidecar dies or stands still: no connection ends with less data than it seems."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.acceleration.support import (
    CLIENT_FIRST,
    EACH_TRANSPORT_AND_PATH,
    MAPPED,
    SERVER_FIRST,
    V4,
    V6,
    Mesh,
    Running,
    Server,
    check,
    kernel_objects,
    mesh,
    some_slots,
)
from tests.waiting import eventually

_TARGETS = [f"{ip},{port}" for ip in (V4, V6, MAPPED) for port in (CLIENT_FIRST, SERVER_FIRST)]
_WAYS = ["edge", "level", "blocking"]
# Bytes. What was not accelerated yet ends in order when the sidecar dies.
_YOUNG = 256 * 1024


def _start_traffic(mesh: Mesh) -> list[Running]:
    seed = random.getrandbits(48)
    print(f"seed {seed}")
    return [
        mesh.start(
            *_TARGETS,
            way=way,
            count=100_000,
            window=6,
            seed=seed + number,
            young=_YOUNG,
            up=4 << 20,
            down=4 << 20,
            lockstep=20,
            pause=1,
        )
        for number, way in enumerate(_WAYS)
    ]


def _kill(traffic: Path, directory: Path, rounds: int, **settings: Any) -> None:
    slots = some_slots()
    with (
        Server(traffic, directory / "server", (f"young={_YOUNG}",)) as server,
        mesh(server, directory, connections=slots, **settings) as running,
    ):
        broken = 0
        for _ in range(rounds):
            clients = _start_traffic(running)
            time.sleep(random.uniform(0.02, 0.3))
            running.sidecar.kill()
            for client in clients:
                broken += check(client.wait())["broken"]
            check(server.running.lines)
            eventually(lambda: not kernel_objects(slots), "nothing is left in the kernel")
            running.sidecar.start()
        assert broken > rounds


@pytest.mark.exclusive  # many processes that all want to run
@EACH_TRANSPORT_AND_PATH
def test_killed_sidecar_breaks_connections_and_truncates_none(
    traffic: Path, tmp_path: Path, transport: str, path: str
) -> None:
    _kill(traffic, tmp_path, 1, transport=transport, path=path)


@pytest.mark.soak
@pytest.mark.exclusive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", ["full", "local"])
@pytest.mark.parametrize("transport", ["unix", "header"])
def test_sidecar_killed_hundreds_of_times(
    traffic: Path, tmp_path: Path, transport: str, path: str
) -> None:
    _kill(traffic, tmp_path, 75, transport=transport, path=path)


@pytest.mark.exclusive  # many processes that all want to run
@pytest.mark.parametrize("path", ["full", "local"])
def test_traffic_goes_on_after_the_sidecar_stood_still(
    make_mesh: Callable[..., AbstractContextManager[Mesh]], path: str
) -> None:
    slots = some_slots()
    with make_mesh(path=path, connections=slots) as running:
        clients = [
            running.start(*_TARGETS, way=way, count=40, window=6, up=8 << 20, down=8 << 20, seed=7)
            for way in _WAYS
        ]
        for _ in range(3):
            time.sleep(0.1)
            running.sidecar.pause()
            time.sleep(0.4)  # less than what the hook takes for a death
            running.sidecar.resume()
        for client in clients:
            ends = check(client.wait())
            assert ends["complete"] + ends["reset"] == 40
        assert kernel_objects(slots)
    eventually(lambda: not kernel_objects(slots), "nothing is left in the kernel")
