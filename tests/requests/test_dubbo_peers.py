"""Dubbo on both ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.servers import HAS_IPV6, free_port
from tests.requests import java
from tests.requests.java import Java

pytestmark = [
    pytest.mark.xdist_group("dubbo-peers"),
    pytest.mark.skipif(
        not HAS_IPV6, reason="a Dubbo consumer connects to no IPv4 loopback address"
    ),
]

# "VERSION GROUP"
SERVICES = ("1.0 blue", "2.0 blue", "1.0 ", " ")
each_kind = pytest.mark.parametrize("kind", ["sync", "future"])
each_service = pytest.mark.parametrize("service", SERVICES)


class Peers:
    """A consumer, and where it finds the provider."""

    def __init__(self, client: Java, address: str) -> None:
        self.client = client
        self._address = address

    def call(self, **values: str | int) -> dict[str, str]:
        return self.client.call(**{"address": self._address, "text": "hi", **values})

    def burst(self, **values: str | int) -> dict[str, str]:
        return self.client.ask("burst", address=self._address, **values)


@pytest.fixture(scope="module")
def peers(dubbo_server: Java) -> Iterator[Peers]:
    port = free_port()
    dubbo_server.ask("serve", port=port, name="one", services=",".join(SERVICES))
    with java.dubbo() as client:
        yield Peers(client, f"[::1]:{port}")


@each_service
@each_kind
def test_a_call_gets_its_answer(peers: Peers, service: str, kind: str) -> None:
    answer = peers.call(service=service, kind=kind, method="echo")
    assert answer == {"value": f"one/{service} hi"}


@each_service
def test_an_exception_of_the_service_reaches_the_caller(peers: Peers, service: str) -> None:
    answer = peers.call(service=service, method="fail")
    assert answer == {"error": "EchoException", "message": f"one/{service} hi"}


def test_a_oneway_call_arrives_once(peers: Peers) -> None:
    here = {"service": "1.0 blue", "text": "noted once"}
    assert peers.call(**here, kind="oneway", method="note") == {"value": "sent"}
    answers = [peers.call(**here, method="noted")["value"] for _ in range(20)]
    assert answers[-1] == "1"


def test_answers_out_of_order_each_reach_their_call(peers: Peers) -> None:
    answer = peers.burst(service="1.0 blue", count=1000, concurrency=32, jitter=5)
    assert answer == {"right": "1000"}


@each_kind
def test_answers_of_a_mebibyte_each_reach_their_call(peers: Peers, kind: str) -> None:
    answer = peers.burst(service="1.0 blue", kind=kind, count=8, concurrency=4, size=1 << 20)
    assert answer == {"right": "8"}
