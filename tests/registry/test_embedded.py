"""The embedded registry, as ``pysidecar registry`` serves it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from typing_extensions import override

from pysidecar.address import Address
from tests.registry.contract import Contract, Served
from tests.waiting import eventually


class ServedEmbedded(Served):
    kind = "embedded"
    session_timeout = 1.0

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = Address(*free.getsockname())
        self.state_file = directory / "state.sqlite"
        self.log_file = directory / "log"
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @override
    def start(self) -> None:
        before = self.log.count("listens on")
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pysidecar", "registry"),
                    *("--listen", str(self.address), "--state", self.state_file),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(lambda: self.log.count("listens on") > before, lambda: self.log)

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    @override
    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @override
    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    @override
    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    @override
    def forget(self) -> None:
        for file in self.state_file.parent.glob(f"{self.state_file.name}*"):
            file.unlink()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEmbedded]:
    with ServedEmbedded(tmp_path_factory.mktemp("registry")) as served:
        yield served


@pytest.fixture
def served(running: ServedEmbedded) -> ServedEmbedded:
    if running.process.poll() is not None:  # a test that failed left it so
        running.start()
    return running


class TestEmbedded(Contract):
    """All of it."""
