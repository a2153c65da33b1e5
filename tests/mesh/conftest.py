"""Two pods and a client, each a real network namespace, on one wire."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pysidecar.interception.rules.namespace import inside
from tests.mesh.support import Pod, pods
from tests.namespaces import skip_without_root


@dataclass(frozen=True)
class Mesh:
    """``caller`` and ``server`` have a firewall and may have a sidecar; ``client`` has neither."""

    client: Pod
    caller: Pod
    server: Pod


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_root(items, "mesh")


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with pods("client", "caller", "server") as made:
        firewall = (Path(__file__).parent / "firewall.nft").read_text()
        for pod in made[1:]:
            inside(
                pod.name,
                lambda: subprocess.run(["nft", "-f", "-"], input=firewall, text=True, check=True),
            )
        yield Mesh(*made)
