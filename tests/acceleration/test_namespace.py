"""A pod's network namespace has its own /proc/sys/net, without what is the machine's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pysidecar.interception.rules.namespace import inside
from tests.acceleration.support import CLIENT_FIRST, V4, Server, check, mesh, records, some_slots
from tests.namespaces import namespace

_UPLOAD = 2 << 30  # for some seconds: memory is looked at now and then


@pytest.fixture
def netns() -> Iterator[str]:
    with namespace("accelerated") as name:
        yield name


@pytest.mark.exclusive  # looks at the traffic of some seconds
def test_in_another_network_namespace_bytes_are_redirected(
    traffic: Path, tmp_path: Path, netns: str
) -> None:
    slots = some_slots()

    def redirected() -> int:
        with (
            Server(traffic, tmp_path / "server") as server,
            mesh(server, tmp_path, connections=slots) as made,
        ):
            sizes = {"exactly": 1, "ends_last": 1, "up": _UPLOAD, "down": 100}
            assert check(made.run(f"{V4},{CLIENT_FIRST}", way="edge", **sizes)) == {"complete": 1}
            (logged,) = made.log(1)
            assert logged["path"] == "full"
            return sum(record["redirected"][0] for record in records(slots))

    assert inside(netns, redirected) > 0.5 * _UPLOAD
