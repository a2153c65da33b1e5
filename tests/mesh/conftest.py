"""Two pods and a client, each a real network namespace, on one wire."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pysidecar.interception.rules.namespace import inside
from tests.mesh.support import Pod
from tests.namespaces import add_addresses, ip, namespace, skip_without_root


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
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(namespace("wire"))
        ip("-n", wire, "link", "add", "wire", "type", "bridge")
        ip("-n", wire, "link", "set", "wire", "up")
        pods = [
            Pod(stack.enter_context(namespace(role)), f"10.79.0.{n}", f"fd79::{n}")
            for n, role in enumerate(("client", "caller", "server"), 1)
        ]
        for number, pod in enumerate(pods):
            port = f"port{number}"
            ip("link", "add", "eth0", "netns", pod.name,
                "type", "veth", "peer", port, "netns", wire)  # fmt: skip
            ip("-n", wire, "link", "set", port, "master", "wire", "up")
            add_addresses(pod.name, f"{pod.ipv4}/24", f"{pod.ipv6}/64")
        firewall = (Path(__file__).parent / "firewall.nft").read_text()
        for pod in pods[1:]:
            inside(
                pod.name,
                lambda: subprocess.run(["nft", "-f", "-"], input=firewall, text=True, check=True),
            )
        yield Mesh(*pods)
