"""Pods: real network namespaces joined by veth, made and removed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interception.support import CLIENT, POD, Pair, output
from tests.namespaces import add_addresses, ip, namespace, skip_without_root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_root(items, "pair")


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A client and a pod. The pod has a stateful firewall, so conntrack is on, and what conntrack
    does not understand is dropped."""
    with namespace("client") as client, namespace("pod") as pod:
        ip("link", "add", "eth0", "netns", client, "type", "veth", "peer", "eth0", "netns", pod)
        for name, addresses in ((client, CLIENT), (pod, POD)):
            add_addresses(name, f"{addresses[4]}/24", f"{addresses[6]}/64")
        # A second network behind the client, for destinations that are not neighbours.
        ip("-n", client, "addr", "add", "10.78.0.1/32", "dev", "lo")
        ip("-n", client, "addr", "add", "fd78::1/128", "dev", "lo", "nodad")
        ip("-n", pod, "route", "add", "default", "via", CLIENT[4])
        ip("-n", pod, "-6", "route", "add", "default", "via", CLIENT[6])
        firewall = (Path(__file__).parent / "firewall.nft").read_text()
        output(pod, "nft", "-f", "-", stdin=firewall)
        yield Pair(client, pod)
