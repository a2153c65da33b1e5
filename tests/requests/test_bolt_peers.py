"""SOFARPC and bare SOFABolt on both ends of a sidecar."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pysidecar.testing import Sidecar
from tests.interop.servers import closed_port, free_port
from tests.requests import programs
from tests.requests.fronts import front
from tests.requests.programs import Answer, Program
from tests.waiting import PATIENCE, eventually

Library = dict[str, str]
SOFARPC = {"library": "sofarpc", "service": "a"}
BOLT1 = {"library": "bolt", "protocol": "1", "service": "raw"}
BOLT2 = {"library": "bolt", "protocol": "2", "service": "raw"}
each_library = pytest.mark.parametrize(
    "library", [SOFARPC, BOLT1, BOLT2], ids=["sofarpc", "bolt1", "bolt2"]
)
each_kind = pytest.mark.parametrize("kind", ["sync", "future", "callback"])

_ANTHUNDER = Path(__file__).with_name("anthunder_peer.py")
_INTERFACE = "peer.Echo:1.0"
_REQUESTS: list[dict[str, Any]] = [
    {"match": {"service": "raw"}, "services": "raw"},
    {"match": {"service": f"{_INTERFACE}:a"}, "services": "one"},
    {"match": {"service": f"{_INTERFACE}:b"}, "services": "two"},
    {"match": {"service": f"{_INTERFACE}:method", "method": "echo"}, "services": "one"},
    {"match": {"service": f"{_INTERFACE}:method"}, "services": "two"},
    {"match": {"service": f"{_INTERFACE}:weights"}, "services": {"one": 1, "two": 1}},
    {"match": {"service": f"{_INTERFACE}:refusing"}, "services": "refusing"},
    {"match": {"service": f"{_INTERFACE}:empty"}, "services": "empty"},
    {"match": {"service": f"{_INTERFACE}:hasty"}, "services": "one", "timeout": "300ms"},
]
_IDS = "a,b,method,weights,refusing,empty,hasty,unknown"


@dataclass(frozen=True)
class Peers:
    """A client, and where it finds everything."""

    client: Program
    address: str
    sidecar: Sidecar

    def call(self, library: Library, **values: str | int) -> Answer:
        return self.client.call(address=self.address, **{**library, "text": "hi", **values})

    def burst(self, library: Library, **values: str | int) -> Answer:
        return self.client.ask("burst", address=self.address, **{**library, **values})


@pytest.fixture(scope="module")
def services() -> Iterator[dict[str, Any]]:
    """SOFARPC twice, which offers all services and says in its answers which server it is; a bare
    SOFABolt; and some that are not there."""
    with programs.sofa() as server, closed_port() as closed:
        ports = {name: free_port() for name in ("one", "two", "raw")}
        for name, port in ports.items():
            library = "bolt" if name == "raw" else "sofarpc"
            server.ask("serve", library=library, port=port, name=name, services=_IDS)
        yield {
            **{name: {"endpoints": [f"127.0.0.1:{port}"]} for name, port in ports.items()},
            "refusing": {"endpoints": [f"127.0.0.1:{closed}"]},
            "empty": {"endpoints": []},
        }


@pytest.fixture(scope="module")
def through_listener(services: dict[str, Any]) -> Iterator[Peers]:
    with front("bolt", services, _REQUESTS) as mesh, programs.sofa() as client:
        yield Peers(client, mesh.address(), mesh.sidecar)


@pytest.fixture(scope="module")
def through_hook(services: dict[str, Any]) -> Iterator[Peers]:
    """As an application that knows the address of server one."""
    [address] = services["one"]["endpoints"]
    host, _, port = address.partition(":")
    route = {"match": {"destination": host, "ports": int(port)}, "action": "requests"}
    settings = {
        "services": {name: {"protocol": "bolt", **service} for name, service in services.items()},
        "requests": _REQUESTS,
        "outbound": {"routes": [{**route, "protocol": "bolt"}]},
    }
    with Sidecar(settings) as sidecar, programs.sofa(sidecar.environment) as client:
        yield Peers(client, address, sidecar)


@pytest.fixture(params=["listener", "hook"])
def peers(request: pytest.FixtureRequest) -> Peers:
    found: Peers = request.getfixturevalue(f"through_{request.param}")
    return found


def _name(library: Library) -> str:
    """What the server calls itself in its answers."""
    return "one/a" if library == SOFARPC else "raw"


@each_library
@each_kind
def test_a_call_gets_its_answer(peers: Peers, library: Library, kind: str) -> None:
    answer = peers.call(library, kind=kind, method="echo")
    assert answer == {"value": f"{_name(library)} hi"}


@each_library
def test_an_exception_of_the_service_reaches_the_caller(peers: Peers, library: Library) -> None:
    answer = peers.call(library, method="fail")
    if library == SOFARPC:
        assert answer == {"error": "EchoException", "message": "one/a hi"}
    else:
        assert answer["error"] == "InvokeServerException"


@each_library
def test_a_oneway_call_arrives_once(
    peers: Peers, library: Library, request: pytest.FixtureRequest
) -> None:
    text = f"noted by {request.node.name}"
    assert peers.call(library, kind="oneway", method="note", text=text) == {"value": "sent"}
    # It may be on its way while others overtake it.
    eventually(lambda: peers.call(library, method="noted", text=text)["value"] != "0")
    assert peers.call(library, method="noted", text=text) == {"value": "1"}


@each_library
def test_answers_out_of_order_each_reach_their_call(peers: Peers, library: Library) -> None:
    assert peers.burst(library, count=1000, concurrency=32, jitter=5) == {"right": "1000"}


@each_library
def test_answers_of_a_mebibyte_each_reach_their_call(peers: Peers, library: Library) -> None:
    assert peers.burst(library, count=8, concurrency=4, size=1 << 20) == {"right": "8"}


def test_calls_of_one_connection_go_to_different_services(peers: Peers) -> None:
    bursts = [
        peers.client.start(
            "burst", address=peers.address, **library, count=300, concurrency=8, jitter=5
        )
        for library in (SOFARPC, {**SOFARPC, "service": "b"}, BOLT1, BOLT2)
    ]
    assert [burst.result(PATIENCE) for burst in bursts] == [{"right": "300"}] * 4


@pytest.mark.parametrize(
    ("service", "method", "server"),
    [("a", "echo", "one"), ("b", "echo", "two"), ("method", "echo", "one")],
)
def test_service_and_method_decide_where_a_call_goes(
    peers: Peers, service: str, method: str, server: str
) -> None:
    answer = peers.call({**SOFARPC, "service": service}, method=method)
    assert answer == {"value": f"{server}/{service} hi"}


def test_another_method_goes_elsewhere(peers: Peers) -> None:
    answer = peers.call({**SOFARPC, "service": "method"}, method="fail")
    assert answer == {"error": "EchoException", "message": "two/method hi"}


def test_weights_share_the_calls(peers: Peers) -> None:
    answers = {
        peers.call({**SOFARPC, "service": "weights"}, method="echo")["value"] for _ in range(50)
    }
    assert answers == {"one/weights hi", "two/weights hi"}


# ---- What a caller makes of our errors ----


@pytest.mark.parametrize("service", ["refusing", "empty"])
@each_kind
def test_a_service_that_cannot_be_reached_is_a_closed_connection(
    peers: Peers, service: str, kind: str
) -> None:
    answer = peers.call({**SOFARPC, "service": service}, kind=kind, method="echo")
    assert "Connection closed" in answer["message"]
    if kind == "sync":
        assert answer["code"] == "250"


def test_an_unknown_service_has_no_processor(through_listener: Peers) -> None:
    answer = through_listener.call({**SOFARPC, "service": "unknown"}, method="echo")
    assert answer["code"] == "299"
    assert "NO_PROCESSOR" in answer["message"]


def test_without_a_rule_a_call_goes_where_the_application_wanted(through_hook: Peers) -> None:
    answer = through_hook.call({**SOFARPC, "service": "unknown"}, method="echo")
    assert answer == {"value": "one/unknown hi"}


def test_our_timeout_is_one_of_the_caller(peers: Peers) -> None:
    hasty = {**SOFARPC, "service": "hasty"}
    answer = peers.client.ask(
        "call", address=peers.address, **hasty, method="later", delay=2000, text="late"
    )
    assert (answer["error"], answer["code"]) == ("SofaTimeOutException", "200")
    assert 250 <= int(answer["ms"]) < 2000
    assert peers.burst(hasty, count=100, concurrency=8) == {"right": "100"}


def test_the_callers_own_timeout_holds(peers: Peers) -> None:
    answer = peers.call(SOFARPC, method="later", delay=1500, timeout=300)
    assert answer["error"] == "SofaTimeOutException"
    # The late answer comes while others are under way.
    assert peers.burst(SOFARPC, count=200, concurrency=4, jitter=30) == {"right": "200"}


# ---- Python ----


def test_anthunder_gets_its_own_answers() -> None:
    port = free_port()
    services = {"python": {"endpoints": [f"127.0.0.1:{port}"]}}
    rules = [{"match": {"service": "peer.Echo:1.0"}, "services": "python"}]
    with front("bolt", services, rules) as mesh:
        result = subprocess.run(
            [sys.executable, _ANTHUNDER, str(port), str(mesh.port())],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )
    statuses = ["3, UNKNOWN", "6, NO_PROCESSOR"]
    errors = [f"ServerError: ServerError: RESPSTATUS={status}" for status in statuses]
    expected = ["100", "KeyError", "KeyError", "100", *errors, "True"]
    assert result.stdout.splitlines() == expected, result.stderr
