"""Two pods and a client, each a real network namespace, on one wire."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pysidecar.interception.rules.namespace import inside
from tests.mesh.support import Pod

_numbers = itertools.count()


@dataclass(frozen=True)
class Mesh:
    """``caller`` and ``server`` have a firewall and may have a sidecar; ``client`` has neither."""

    client: Pod
    caller: Pod
    server: Pod


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if "mesh" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="makes network namespaces, which needs root"))


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@contextlib.contextmanager
def _namespace(name: str) -> Iterator[str]:
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        _ip("netns", "del", name)


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    suffix = f"{os.getpid()}-{next(_numbers)}"
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(_namespace(f"psm-w{suffix}"))
        _ip("-n", wire, "link", "add", "wire", "type", "bridge")
        _ip("-n", wire, "link", "set", "wire", "up")
        pods = [
            Pod(
                stack.enter_context(_namespace(f"psm-{role}{suffix}")), f"10.79.0.{n}", f"fd79::{n}"
            )
            for n, role in enumerate(("client", "caller", "server"), 1)
        ]
        for number, pod in enumerate(pods):
            port = f"port{number}"
            _ip("link", "add", "eth0", "netns", pod.name,
                "type", "veth", "peer", port, "netns", wire)  # fmt: skip
            _ip("-n", wire, "link", "set", port, "master", "wire", "up")
            # No link-local addresses, which would appear some time later.
            _ip("-n", pod.name, "link", "set", "eth0", "addrgenmode", "none")
            _ip("-n", pod.name, "addr", "add", f"{pod.ipv4}/24", "dev", "eth0")
            _ip("-n", pod.name, "addr", "add", f"{pod.ipv6}/64", "dev", "eth0", "nodad")
            _ip("-n", pod.name, "link", "set", "eth0", "up")
        firewall = (Path(__file__).parent / "firewall.nft").read_text()
        for pod in pods[1:]:
            inside(
                pod.name,
                lambda: subprocess.run(["nft", "-f", "-"], input=firewall, text=True, check=True),
            )
        yield Mesh(*pods)
