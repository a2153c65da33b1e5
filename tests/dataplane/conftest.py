from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dataplane.support import MakePlane, Plane, Server


@pytest.fixture
def plane() -> Iterator[Plane]:
    """A running data plane without routes."""
    with Plane() as running:
        yield running


@pytest.fixture
def make_plane() -> Iterator[MakePlane]:
    """Makes data planes with other settings; see ``Plane``."""
    made: list[Plane] = []

    def make(**settings: object) -> Plane:
        plane = Plane(**settings)  # type: ignore[arg-type]
        made.append(plane)
        return plane

    yield make
    for plane in made:
        plane.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """A listening socket for the upstream's side."""
    with Server() as listening:
        yield listening
