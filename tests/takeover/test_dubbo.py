"""Dubbo 2.7 and 3 with ZooKeeper: consumers that know nothing of us call the sidecar of a provider
that knows as little.

A provider with Dubbo 3 registers the sidecar's address by itself. One with 2.7.23, whose
DUBBO_PORT_TO_REGISTRY is also where it listens, registers nothing; its sidecar is told to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.servers import program
from tests.mesh.support import Pod, pods
from tests.requests import programs
from tests.requests.programs import Answer, Program
from tests.takeover.pods import CONSUMER, DUBBO_API, PROVIDER, Site, peers, sites
from tests.waiting import PATIENCE, eventually

_APPLICATION = 20880
CLIENTS = 2181
_PUBLISHED = "publish: [{}, {}]".format(
    *(
        f'{{service: peer.Echo, protocol: dubbo, version: "2.0", group: "{group}", '
        f"port: {_APPLICATION}}}"
        for group in ("", "blue")
    )
)
_SERVICES = {3: "3.0 ,3.0 blue", 2: "2.0 ,2.0 blue"}  # "VERSION GROUP" by Dubbo's own version

each_version = pytest.mark.parametrize("version", [2, 3])
each_service = pytest.mark.parametrize("service", ["2.0 ", "2.0 blue", "3.0 ", "3.0 blue"])


@contextlib.contextmanager
def zookeeper(pod: Pod, directory: Path) -> Iterator[None]:
    config = directory / "zoo.cfg"
    config.write_text(
        f"tickTime=500\ndataDir={directory}/zookeeper\nclientPort={CLIENTS}\n"
        f"clientPortAddress={pod.ipv4}\nadmin.enableServer=false\n"
    )
    jars = ":".join(f"/usr/share/java/{name}.jar" for name in ("zookeeper", "slf4j-simple"))
    command = (program("java"), "-Xmx64m", "-XX:TieredStopAtLevel=1", "-cp", jars)
    main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
    with pod.running(*command, main, config, log=directory / "zookeeper.log"):
        eventually(lambda: pod.output("ss", "-Hltn", f"sport = :{CLIENTS}"))
        yield


@dataclass
class Mesh:
    registry: str
    providers: dict[int, Site]
    consumer: Site
    provider_programs: dict[int, Program]
    consumers: dict[int, Program]

    def call(self, version: int, service: str, **values: str | int) -> Answer:
        return self.consumers[version].call(
            service=service, **{"method": "echo", "text": "hi", "timeout": 5000, **values}
        )

    def settled(self, version: int, service: str, **values: str | int) -> None:
        eventually(
            lambda: "value" in self.call(version, service, **values),
            lambda: f"{self.call(version, service, **values)} {self.consumer.sidecar.log}",
            2 * PATIENCE,
        )


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Providers of both versions in pods of their own, as unmodified as their consumers."""
    directory = tmp_path_factory.mktemp("dubbo")
    with (
        pods("zookeeper", "two", "three", "consumer") as made,
        zookeeper(made[0], directory),
        contextlib.ExitStack() as stack,
    ):
        address = f"{made[0].ipv4}:{CLIENTS}"
        two, three, consumer = stack.enter_context(
            sites(
                *(made[1:], directory, f'type: zookeeper, address: "{address}"'),
                takeover={0: _PUBLISHED},
            )
        )
        registry = f"zookeeper://{address}"
        here = Mesh(registry, {2: two, 3: three}, consumer, {}, {})
        for version, site in here.providers.items():
            here.provider_programs[version] = stack.enter_context(
                programs.registered_dubbo(version, site.prefix if version == 2 else site.hooked)
            )
            here.consumers[version] = stack.enter_context(
                programs.registered_dubbo(version, consumer.prefix)
            )
        for version, provider in here.provider_programs.items():
            provider.ask(
                "begin",
                application=f"provider{version}",
                registry=registry,
                port=_APPLICATION,
                register="false" if version == 2 else "true",
            )
        served = [
            provider.start("serve", name=f"dubbo{version}", services=_SERVICES[version])
            for version, provider in here.provider_programs.items()
        ]
        for version, caller in here.consumers.items():
            caller.ask("begin", application=f"consumer{version}", registry=registry)
        for each in served:
            assert "error" not in each.result(3 * PATIENCE)
        yield here


@each_version
@each_service
def test_a_consumer_calls_a_provider_through_the_providers_sidecar(
    mesh: Mesh, version: int, service: str
) -> None:
    mesh.settled(version, service)
    theirs = int(service[0])
    assert mesh.call(version, service) == {"value": f"dubbo{theirs}/{service} hi"}
    site = mesh.providers[theirs]
    record = site.latest_request()
    assert (record["direction"], record["method"]) == ("inbound", "echo")
    assert record["upstream"] == f"127.0.0.1:{_APPLICATION}"
    assert record["source"].startswith(f"{mesh.consumer.pod.ipv4}:")
    # The provider has met nobody but its sidecar.
    assert peers(site.pod, _APPLICATION) <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert mesh.consumer.pod.ipv4 in peers(site.pod, PROVIDER)


def test_dubbo_3_asks_for_the_providers_metadata_at_the_sidecar(mesh: Mesh) -> None:
    mesh.settled(3, "3.0 ")
    found = mesh.providers[3].sidecar.get_json(
        "/requests?path=org.apache.dubbo.metadata.MetadataService"
    )
    assert found
    assert {record["status"] for record in found} == {20}


@each_version
@each_service
def test_a_consumer_calls_through_its_own_sidecar(mesh: Mesh, version: int, service: str) -> None:
    """As a consumer that is told a URL; and what it calls was subscribed in MOSN's form."""
    name, group = service.split(" ")
    interface: dict[str, Any] = {"interface": "peer.Echo", "group": group, "version": name}
    said = mesh.consumer.say(
        "/sub",
        api=DUBBO_API,
        registry={"type": "zookeeper", "addr": "ignored:2181"},
        service=interface,
    )
    assert said["err_no"] == 0, said
    url = {"url": f"dubbo://[::1]:{CONSUMER}"}
    mesh.settled(version, service, **url)
    theirs = int(name[0])
    assert mesh.call(version, service, **url) == {"value": f"dubbo{theirs}/{service} hi"}
    record = mesh.consumer.latest_request()
    assert record["upstream"] == f"{mesh.providers[theirs].pod.ipv4}:{PROVIDER}"
    [connection] = mesh.consumer.pod.output(
        "ss", "-Htnp", "state", "established", f"dport = :{CONSUMER}"
    ).splitlines()[:1]
    assert f"[::1]:{CONSUMER}" in connection


@each_version
def test_an_exception_of_the_service_reaches_the_caller(mesh: Mesh, version: int) -> None:
    mesh.settled(version, "3.0 ")
    answer = mesh.call(version, "3.0 ", method="fail")
    assert answer["error"] == "EchoException"
    assert answer["message"] == "dubbo3/3.0  hi"


@each_version
def test_many_at_once_each_get_their_own_answer(mesh: Mesh, version: int) -> None:
    mesh.settled(version, "2.0 ")
    burst = mesh.consumers[version].ask(
        "burst", service="2.0 ", count=500, concurrency=16, jitter=5, timeout=5000
    )
    assert burst == {"right": "500"}


def test_a_provider_that_registers_itself_is_called_through_the_consumers_sidecar(
    mesh: Mesh,
) -> None:
    """With its own address: its pod's sidecar has nothing to do with it."""
    pod = mesh.providers[2].pod
    own: dict[str, str | int] = {"name": "itself", "services": "2.7 own", "registry": mesh.registry}
    assert "error" not in mesh.provider_programs[2].ask("serve", **own)
    subscribed = {"interface": "peer.Echo", "group": "own", "version": "2.7"}
    said = mesh.consumer.say("/sub", api=DUBBO_API, registry={}, service=subscribed)
    assert said["err_no"] == 0, said
    url = {"url": f"dubbo://[::1]:{CONSUMER}"}
    mesh.settled(3, "2.7 own", **url)
    assert mesh.call(3, "2.7 own", **url) == {"value": "itself/2.7 own hi"}
    record = mesh.consumer.latest_request()
    assert record["upstream"] == f"{pod.ipv4}:{_APPLICATION}"
    assert mesh.consumer.pod.ipv4 in {each.rpartition(":")[2] for each in peers(pod, _APPLICATION)}


def test_a_provider_that_is_killed_is_no_longer_found(mesh: Mesh) -> None:
    mesh.settled(2, "2.0 ")
    mesh.provider_programs[2].process.kill()
    eventually(
        lambda: "No provider available" in mesh.call(2, "2.0 ").get("message", ""),
        patience=2 * PATIENCE,
    )
