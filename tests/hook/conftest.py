from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hook.build import build
from tests.hook.reference import Sidecar
from tests.hook.support import SANITIZED, EchoServer, Programs, Runner


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hook, compiled from its sources as they are."""
    path = tmp_path_factory.mktemp("hook") / "libmosnhook.so"
    build(path, sanitize=SANITIZED)
    return path


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(params=["glibc"] if SANITIZED else ["glibc", "musl"])
def libc(request: pytest.FixtureRequest) -> str:
    """Which libc the test's programs are linked with; the hook is the same file."""
    return str(request.param)


@pytest.fixture
def run(library: Path, programs: Programs) -> Runner:
    return Runner(library, programs)


@pytest.fixture
def make_sidecar(tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    """Makes sidecars with other settings, all in the same place; see ``reference.Sidecar``."""
    with contextlib.ExitStack() as stack:
        made: list[Sidecar] = []

        def make(**settings: object) -> Sidecar:
            sidecar = Sidecar(tmp_path, **settings)  # type: ignore[arg-type]
            made.append(sidecar)
            stack.callback(sidecar.kill)
            return sidecar

        yield make
    assert [error for sidecar in made for error in sidecar.errors] == []


@pytest.fixture
def sidecar(make_sidecar: Callable[..., Sidecar]) -> Sidecar:
    """One with the usual settings."""
    return make_sidecar()


@pytest.fixture
def upstream() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server
