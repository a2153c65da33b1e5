"""SOFARPC and bare SOFABolt on both ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.servers import free_port
from tests.requests import java
from tests.requests.java import Java

pytestmark = pytest.mark.xdist_group("bolt-peers")

SOFARPC = {"library": "sofarpc", "service": "a"}
BOLT1 = {"library": "bolt", "protocol": "1", "service": "raw"}
BOLT2 = {"library": "bolt", "protocol": "2", "service": "raw"}
each_library = pytest.mark.parametrize(
    "library", [SOFARPC, BOLT1, BOLT2], ids=["sofarpc", "bolt1", "bolt2"]
)
each_kind = pytest.mark.parametrize("kind", ["sync", "future", "callback"])


class Peers:
    """A client, and where it finds the server of each library."""

    def __init__(self, client: Java, addresses: dict[str, str]) -> None:
        self.client = client
        self._addresses = addresses

    def call(self, library: dict[str, str], **values: str | int) -> dict[str, str]:
        address = self._addresses[library["library"]]
        return self.client.call(address=address, **{**library, "text": "hi", **values})

    def burst(self, library: dict[str, str], **values: str | int) -> dict[str, str]:
        address = self._addresses[library["library"]]
        return self.client.ask("burst", address=address, **{**library, **values})


@pytest.fixture(scope="module")
def peers(sofa_server: Java) -> Iterator[Peers]:
    ports = {"sofarpc": free_port(), "bolt": free_port()}
    for library, port in ports.items():
        sofa_server.ask("serve", library=library, port=port, name=library, services="a,b")
    with java.sofa() as client:
        yield Peers(client, {name: f"127.0.0.1:{port}" for name, port in ports.items()})


def _name(library: dict[str, str]) -> str:
    """What the server calls itself in its answers."""
    return "sofarpc/a" if library == SOFARPC else "bolt"


@each_library
@each_kind
def test_a_call_gets_its_answer(peers: Peers, library: dict[str, str], kind: str) -> None:
    answer = peers.call(library, kind=kind, method="echo")
    assert answer == {"value": f"{_name(library)} hi"}


@each_library
def test_an_exception_of_the_service_reaches_the_caller(
    peers: Peers, library: dict[str, str]
) -> None:
    answer = peers.call(library, method="fail")
    if library == SOFARPC:
        assert answer == {"error": "EchoException", "message": "sofarpc/a hi"}
    else:
        assert answer["error"] == "InvokeServerException"


@each_library
def test_a_oneway_call_arrives_once(peers: Peers, library: dict[str, str]) -> None:
    text = f"noted by {library}"
    assert peers.call(library, kind="oneway", method="note", text=text) == {"value": "sent"}
    answers = [peers.call(library, method="noted", text=text)["value"] for _ in range(20)]
    assert answers[-1] == "1"


@each_library
def test_answers_out_of_order_each_reach_their_call(peers: Peers, library: dict[str, str]) -> None:
    assert peers.burst(library, count=1000, concurrency=32, jitter=5) == {"right": "1000"}


@each_library
def test_answers_of_a_mebibyte_each_reach_their_call(peers: Peers, library: dict[str, str]) -> None:
    assert peers.burst(library, count=8, concurrency=4, size=1 << 20) == {"right": "8"}
