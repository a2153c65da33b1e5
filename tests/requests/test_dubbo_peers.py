"""Dubbo on both ends of a sidecar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pysidecar.testing import Sidecar
from tests.interop.servers import HAS_IPV6, closed_port, free_port
from tests.requests import programs
from tests.requests.fronts import front
from tests.requests.programs import Answer, Program
from tests.waiting import PATIENCE, eventually

pytestmark = [
    pytest.mark.skipif(
        not HAS_IPV6, reason="a Dubbo consumer connects to no IPv4 loopback address"
    ),
]

each_kind = pytest.mark.parametrize("kind", ["sync", "future"])

_INTERFACE = "peer.Echo"
_REQUESTS: list[dict[str, Any]] = [
    {"match": {"service": _INTERFACE, "version": "1.0", "group": "blue"}, "services": "one"},
    {"match": {"service": _INTERFACE, "version": "2.0", "group": "blue"}, "services": "two"},
    {"match": {"service": f"{_INTERFACE}:1.0", "group": "green"}, "services": "two"},
    {"match": {"service": f"{_INTERFACE}:3.0", "method": "echo"}, "services": "one"},
    {"match": {"service": f"{_INTERFACE}:3.0"}, "services": "two"},
    {"match": {"service": f"{_INTERFACE}:refusing"}, "services": "refusing"},
    {"match": {"service": f"{_INTERFACE}:empty"}, "services": "empty"},
    {"match": {"service": f"{_INTERFACE}:hasty"}, "services": "one", "timeout": "300ms"},
    {"match": {"service": f"{_INTERFACE}:unknown"}, "services": "one"},
    {"match": {"service": f"{_INTERFACE}:1.0"}, "services": "one"},
]
# "VERSION GROUP": what both servers offer.
_OFFERED = "1.0 blue,2.0 blue,1.0 green,3.0 ,hasty ,1.0 ,unruled "


@dataclass(frozen=True)
class Peers:
    """A consumer, and where it finds everything."""

    client: Program
    address: str
    sidecar: Sidecar

    def call(self, service: str, **values: str | int) -> Answer:
        return self.client.call(
            address=self.address, service=service, **{"text": "hi", "method": "echo", **values}
        )

    def burst(self, service: str, **values: str | int) -> Answer:
        return self.client.ask("burst", address=self.address, service=service, **values)


@pytest.fixture(scope="module")
def services() -> Iterator[dict[str, Any]]:
    """Two providers that offer the same, and say in their answers which they are."""
    with programs.dubbo() as server, closed_port() as closed:
        ports = {name: free_port() for name in ("one", "two")}
        for name, port in ports.items():
            server.ask("serve", port=port, name=name, services=_OFFERED)
        yield {
            **{name: {"endpoints": [f"127.0.0.1:{port}"]} for name, port in ports.items()},
            "refusing": {"endpoints": [f"127.0.0.1:{closed}"]},
            "empty": {"endpoints": []},
        }


@pytest.fixture(scope="module")
def through_listener(services: dict[str, Any]) -> Iterator[Peers]:
    with front("dubbo", services, _REQUESTS, host="[::1]") as mesh, programs.dubbo() as client:
        yield Peers(client, f"[::1]:{mesh.port()}", mesh.sidecar)


@pytest.fixture(scope="module")
def through_hook(services: dict[str, Any]) -> Iterator[Peers]:
    """As an application that knows the address of server one."""
    port = services["one"]["endpoints"][0].partition(":")[2]
    route = {"match": {"destination": "::1", "ports": int(port)}, "action": "requests"}
    settings = {
        "services": {name: {"protocol": "dubbo", **service} for name, service in services.items()},
        "requests": _REQUESTS,
        "outbound": {"routes": [{**route, "protocol": "dubbo"}]},
    }
    with Sidecar(settings) as sidecar, programs.dubbo(sidecar.environment) as client:
        yield Peers(client, f"[::1]:{port}", sidecar)


@pytest.fixture(params=["listener", "hook"])
def peers(request: pytest.FixtureRequest) -> Peers:
    found: Peers = request.getfixturevalue(f"through_{request.param}")
    return found


@each_kind
@pytest.mark.parametrize(
    ("service", "server"),
    [
        ("1.0 blue", "one"),
        ("2.0 blue", "two"),
        ("1.0 green", "two"),
        ("3.0 ", "one"),
        ("1.0 ", "one"),
    ],
)
def test_service_version_and_group_decide_where_a_call_goes(
    peers: Peers, service: str, server: str, kind: str
) -> None:
    assert peers.call(service, kind=kind) == {"value": f"{server}/{service} hi"}


def test_an_exception_of_the_service_reaches_the_caller_and_another_method_goes_elsewhere(
    peers: Peers,
) -> None:
    answer = peers.call("3.0 ", method="fail")
    assert answer == {"error": "EchoException", "message": "two/3.0  hi"}


def test_a_oneway_call_arrives_once(peers: Peers, request: pytest.FixtureRequest) -> None:
    text = f"noted by {request.node.name}"
    answer = peers.call("1.0 blue", kind="oneway", method="note", text=text)
    assert answer == {"value": "sent"}
    # It may be on its way while others overtake it.
    eventually(lambda: peers.call("1.0 blue", method="noted", text=text)["value"] != "0")
    assert peers.call("1.0 blue", method="noted", text=text) == {"value": "1"}


def test_answers_out_of_order_each_reach_their_call(peers: Peers) -> None:
    bursts = [
        peers.client.start(
            "burst",
            address=peers.address,
            service=service,
            count=500,
            concurrency=16,
            jitter=5,
        )
        for service in ("1.0 blue", "2.0 blue", "1.0 ")
    ]
    assert [burst.result(PATIENCE) for burst in bursts] == [{"right": "500"}] * 3


@each_kind
def test_answers_of_a_mebibyte_each_reach_their_call(peers: Peers, kind: str) -> None:
    answer = peers.burst("1.0 blue", kind=kind, count=8, concurrency=4, size=1 << 20)
    assert answer == {"right": "8"}


# ---- What a caller makes of our errors ----

_TIMEOUT, _NETWORK = "2", "1"  # codes of RpcException


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ("refusing ", "connect_failed"),
        ("empty ", "no_endpoint"),
        ("unknown ", "Fail to decode request"),  # the provider's own answer
    ],
)
def test_a_service_that_is_not_there_is_an_error_at_once(
    peers: Peers, service: str, reason: str
) -> None:
    answer = peers.call(service)
    assert (answer["error"], answer["code"]) == ("RpcException", _NETWORK)
    assert reason in answer["message"]
    # The consumer keeps the connection.
    assert peers.burst("1.0 blue", count=50, concurrency=8) == {"right": "50"}


def test_without_a_rule_a_call_is_refused(through_listener: Peers) -> None:
    answer = through_listener.call("unruled ")
    assert (answer["error"], answer["code"]) == ("RpcException", _NETWORK)
    assert "no_route" in answer["message"]


def test_without_a_rule_a_call_goes_where_the_application_wanted(through_hook: Peers) -> None:
    assert through_hook.call("unruled ") == {"value": "one/unruled  hi"}


def test_our_timeout_is_one_of_the_caller(peers: Peers) -> None:
    answer = peers.client.ask(
        "call",
        address=peers.address,
        service="hasty ",
        text="late",
        method="later",
        delay=2000,
    )
    assert (answer["error"], answer["code"]) == ("RpcException", _TIMEOUT)
    assert 250 <= int(answer["ms"]) < 2000
    assert peers.burst("hasty ", count=100, concurrency=8) == {"right": "100"}


def test_the_callers_own_timeout_holds(peers: Peers) -> None:
    answer = peers.call("1.0 blue", method="later", delay=1500, timeout=300)
    assert (answer["error"], answer["code"]) == ("RpcException", _TIMEOUT)
    # The late answer comes while others are under way.
    assert peers.burst("1.0 blue", count=200, concurrency=4, jitter=30) == {"right": "200"}
