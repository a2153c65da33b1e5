"""Pods: real network namespaces joined by veth, made and removed here."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interception.support import CLIENT, POD, Pair, ip, output

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if "pair" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="makes network namespaces, which needs root"))


@contextlib.contextmanager
def _namespace(name: str) -> Iterator[str]:
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "del", name)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A client and a pod. The pod has a stateful firewall, so conntrack is on, and what conntrack
    does not understand is dropped."""
    suffix = f"{os.getpid()}-{next(_numbers)}"
    with _namespace(f"psc-c{suffix}") as client, _namespace(f"psc-p{suffix}") as pod:
        ip("link", "add", "eth0", "netns", client, "type", "veth", "peer", "eth0", "netns", pod)
        for namespace, addresses in ((client, CLIENT), (pod, POD)):
            # No address that the kernel makes later, by itself.
            ip("-n", namespace, "link", "set", "eth0", "addrgenmode", "none")
            ip("-n", namespace, "addr", "add", f"{addresses[4]}/24", "dev", "eth0")
            ip("-n", namespace, "addr", "add", f"{addresses[6]}/64", "dev", "eth0", "nodad")
            ip("-n", namespace, "link", "set", "eth0", "up")
        # A second network behind the client, for destinations that are not neighbours.
        ip("-n", client, "addr", "add", "10.78.0.1/32", "dev", "lo")
        ip("-n", client, "addr", "add", "fd78::1/128", "dev", "lo", "nodad")
        ip("-n", pod, "route", "add", "default", "via", CLIENT[4])
        ip("-n", pod, "-6", "route", "add", "default", "via", CLIENT[6])
        firewall = (Path(__file__).parent / "firewall.nft").read_text()
        output(pod, "nft", "-f", "-", stdin=firewall)
        yield Pair(client, pod)
