"""Network namespaces, made and removed by tests."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator, Sequence

import pytest

_numbers = itertools.count()


def ip(*arguments: str) -> str:
    """What ``ip`` prints; fails where it does."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def namespace(purpose: str) -> Iterator[str]:
    """One with its loopback, and with a name that nobody else has."""
    name = f"psc-{purpose}-{os.getpid()}-{next(_numbers)}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "delete", name)


def add_addresses(name: str, ipv4: str, ipv6: str, device: str = "eth0") -> None:
    """The device's only ones, for good: none that the kernel makes later, by itself."""
    ip("-n", name, "link", "set", device, "addrgenmode", "none")
    ip("-n", name, "addr", "add", ipv4, "dev", device)
    ip("-n", name, "addr", "add", ipv6, "dev", device, "nodad")
    ip("-n", name, "link", "set", device, "up")


def skip_without_root(items: Sequence[pytest.Item], fixture: str) -> None:
    """For a ``pytest_collection_modifyitems``: the tests that have the fixture."""
    if os.geteuid() == 0:
        return
    for item in items:
        if fixture in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="makes network namespaces, which needs root"))
