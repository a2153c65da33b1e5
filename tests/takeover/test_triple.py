"""Dubbo 3 with its triple, which is gRPC, and ZooKeeper: unmodified consumers and providers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.mesh.support import pods
from tests.requests import programs
from tests.requests.programs import Answer, Program
from tests.takeover.pods import CONSUMER, PROVIDER, Capture, Site, peers, sites
from tests.takeover.test_dubbo import CLIENTS, zookeeper
from tests.waiting import PATIENCE, eventually

_APPLICATION = 50051  # Dubbo's own default
_DUBBO = 20880  # of its other protocol

pytestmark = pytest.mark.timeout(180)  # until three JVMs are ready

each_service = pytest.mark.parametrize("service", ["1.0 ", "1.0 blue"])  # "VERSION GROUP"


@dataclass
class Mesh:
    registry: str
    provider: Site
    consumer: Site
    served: Program
    caller: Program

    def call(self, service: str, **values: str | int) -> Answer:
        return self.caller.call(
            service=service, **{"method": "echo", "text": "hi", "timeout": 5000, **values}
        )

    def settled(self, service: str, **values: str | int) -> None:
        eventually(
            lambda: "value" in self.call(service, **values),
            lambda: f"{self.call(service, **values)} {self.consumer.sidecar.log}",
            2 * PATIENCE,
        )


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    directory = tmp_path_factory.mktemp("triple")
    with (
        pods("zookeeper", "provider", "consumer") as made,
        zookeeper(made[0], directory),
        contextlib.ExitStack() as stack,
    ):
        address = f"{made[0].ipv4}:{CLIENTS}"
        provider, consumer = stack.enter_context(
            sites(made[1:], directory, f'type: zookeeper, address: "{address}"')
        )
        registry = f"zookeeper://{address}"
        served = stack.enter_context(programs.registered_dubbo(3, provider.hooked))
        caller = stack.enter_context(programs.registered_dubbo(3, consumer.prefix))
        ports = {"triple": _APPLICATION, "port": _DUBBO}
        served.ask("begin", application="provider", registry=registry, **ports)
        serving = served.start("serve", name="triple", services="1.0 ,1.0 blue", protocol="tri")
        caller.ask("begin", application="consumer", registry=registry)
        assert "error" not in serving.result(3 * PATIENCE)
        for services, protocol in (("3.0 ,4.0 ", "dubbo"), ("4.0 ", "tri")):
            assert served.ask("serve", name=protocol, services=services, protocol=protocol) == {}
        yield Mesh(registry, provider, consumer, served, caller)


@each_service
def test_a_consumer_calls_a_provider_through_the_providers_sidecar(
    mesh: Mesh, service: str
) -> None:
    mesh.settled(service)
    assert mesh.call(service) == {"value": f"triple/{service} hi"}
    record = mesh.provider.latest_request()
    assert (record["protocol"], record["direction"]) == ("grpc", "inbound")
    assert record["method"] == "echo"
    assert record["upstream"] == f"127.0.0.1:{_APPLICATION}"
    assert record["source"].startswith(f"{mesh.consumer.pod.ipv4}:")
    assert peers(mesh.provider.pod, _APPLICATION) <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_a_consumer_asks_for_the_providers_metadata_at_its_sidecar(mesh: Mesh) -> None:
    mesh.settled("1.0 ")
    path = "/org.apache.dubbo.metadata.MetadataServiceV2"
    found = mesh.provider.sidecar.get_json(f"/requests?path={path}")
    assert found
    assert {record["status"] for record in found} == {0}


def subscribe(mesh: Mesh, service: str) -> dict[str, str | int]:
    """At the consumer's sidecar; how to call it there."""
    version, group = service.split(" ")
    said = mesh.consumer.say(
        *("/services/subscribe",),
        serviceName=f"peer.Echo:{version}",
        protocolType="tri",
        group=group,
    )
    assert said["success"], said
    assert said["datas"] == [f"[::1]:{CONSUMER}?p=tri&v=4.0"]
    return {"url": f"tri://[::1]:{CONSUMER}", "protocol": "tri"}


@each_service
def test_a_consumer_calls_through_its_own_sidecar(mesh: Mesh, service: str) -> None:
    """And hears of nobody but that one."""
    url = subscribe(mesh, service)
    here, there = mesh.consumer.pod, mesh.provider.pod
    with Capture(here, "lo") as inside, Capture(here, "eth0") as outside:
        mesh.settled(service, **url)
        assert mesh.call(service, **url) == {"value": f"triple/{service} hi"}
        eventually(lambda: any(b"hi" in packet.payload for packet in outside.packets))
        told = b"".join(each.payload for each in inside.packets if each.source[1] == CONSUMER)
        spoken_with = {each.destination for each in outside.packets if each.source[0] == here.ipv4}
    assert f"triple/{service} hi".encode() in told
    assert there.ipv4.encode() not in told
    assert {port for host, port in spoken_with if host == there.ipv4} == {PROVIDER}
    record = mesh.consumer.latest_request()
    assert (record["protocol"], record["upstream"]) == ("grpc", f"{there.ipv4}:{PROVIDER}")


def test_another_variant_is_another_service(mesh: Mesh) -> None:
    url = subscribe(mesh, "1.0 ")
    mesh.settled("1.0 ", **url)
    answer = mesh.call("1.0 green", **url)
    assert "error" in answer
    record = mesh.consumer.latest_request()
    assert (record["status"], record["flags"]) == (12, ["no_route"])


def test_an_exception_of_the_service_reaches_the_caller(mesh: Mesh) -> None:
    url = subscribe(mesh, "1.0 ")
    mesh.settled("1.0 ", **url)
    answer = mesh.call("1.0 ", method="fail", **url)
    assert answer["error"] == "EchoException"
    assert "triple/1.0  hi" in answer["message"]


def test_many_at_once_each_get_their_own_answer(mesh: Mesh) -> None:
    url = subscribe(mesh, "1.0 ")
    mesh.settled("1.0 ", **url)
    many: dict[str, str | int] = {"count": 200, "concurrency": 16, "jitter": 5, **url}
    burst = mesh.caller.ask("burst", service="1.0 ", timeout=5000, **many)
    assert burst == {"right": "200"}


@pytest.mark.parametrize(
    ("version", "protocol"), [("3.0", "dubbo"), ("4.0", "dubbo"), ("4.0", "tri")]
)
def test_an_application_provides_by_both_protocols(mesh: Mesh, version: str, protocol: str) -> None:
    """Another service by each, and one by both."""
    ways: list[dict[str, str | int]] = [{"protocol": protocol}]
    name: dict[str, Any] = {"serviceName": f"peer.Echo:{version}", "protocolType": protocol}
    said = mesh.consumer.say("/services/subscribe", **name)
    assert said["success"], said
    ways.append({"url": f"{protocol}://[::1]:{CONSUMER}", "protocol": protocol})
    for way in ways:  # by the provider's sidecar, and by both
        mesh.settled(f"{version} ", **way)
        assert mesh.call(f"{version} ", **way) == {"value": f"{protocol}/{version}  hi"}
        port = _DUBBO if protocol == "dubbo" else _APPLICATION
        assert mesh.provider.latest_request()["upstream"] == f"127.0.0.1:{port}"


def test_what_the_sidecar_registers_is_found_by_consumers(mesh: Mesh) -> None:
    """The last one: from here on only what is published passes."""
    served = mesh.served.ask("serve", name="api", services="2.0 ", protocol="tri", registry="N/A")
    assert "error" not in served
    said = mesh.provider.say(
        *("/services/publish",), serviceName="peer.Echo:2.0", protocolType="tri"
    )
    assert said["success"], said
    mesh.settled("2.0 ")
    assert mesh.call("2.0 ") == {"value": "api/2.0  hi"}
    record = mesh.provider.latest_request()
    assert (record["service"], record["upstream"]) == ("peer.Echo:2.0", f"127.0.0.1:{_APPLICATION}")
    url = subscribe(mesh, "2.0 ")
    mesh.settled("2.0 ", **url)
    assert mesh.consumer.latest_request()["upstream"].endswith(f":{PROVIDER}")
