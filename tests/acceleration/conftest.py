from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.acceleration.support import Mesh, Server, compile_program, mesh


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
