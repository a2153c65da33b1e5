"""SOFARPC for Java with its registry ``mesh`` on both sides of two sidecars, in pods of their own,
since its ports are fixed. One test after the other takes a part away and gives it back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mesh.support import Pod, pods
from tests.requests import programs
from tests.requests.programs import Answer, Program, running
from tests.takeover.pods import (
    API,
    CONSUMER,
    PROVIDER,
    REGISTRY,
    Capture,
    Site,
    embedded_registry,
    peers,
    sites,
)
from tests.waiting import PATIENCE, eventually

_MESH = {"library": "sofarpc", "registry": "mesh", "at": f"http://127.0.0.1:{API}"}
_APPLICATION = 12200  # the port of the provider itself, as `takeover.application_ports` has it
_ANTHUNDER = Path(__file__).with_name("anthunder_program.py")

each_serialization = pytest.mark.parametrize(
    ("serialization", "service"), [("hessian2", "h"), ("protobuf", "p")]
)


@dataclass
class Mesh:
    """The provider's and the consumer's pod, and the program in each."""

    directory: Path
    registry_pod: Pod
    registry: contextlib.ExitStack
    provider: Site
    consumer: Site
    early: Site
    provider_program: Program
    consumer_program: Program

    def call(self, service: str = "h", **values: str | int) -> Answer:
        call = {"service": service, "method": "echo", "text": "hi", "timeout": 5000, **values}
        return self.consumer_program.call(**_MESH, **call)

    def settled(self, service: str = "h", **values: str | int) -> None:
        """Until calls are answered."""
        eventually(
            lambda: "value" in self.call(service, **values),
            lambda: f"{self.call(service, **values)}: {self.consumer.sidecar.log}",
            3 * PATIENCE,
        )

    def answered_by(self, name: str, service: str) -> None:
        """Sooner or later."""
        eventually(lambda: self.call(service).get("value") == f"{name}/{service} hi", name)

    def start_burst(self, **values: str | int) -> Future[Answer]:
        burst = {"service": "h", "concurrency": 4, "jitter": 5, "timeout": 5000, **values}
        return self.consumer_program.start("burst", **_MESH, **burst)

    def start_registry(self) -> None:
        self.registry.enter_context(embedded_registry(self.registry_pod, self.directory))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Services ``h`` in Hessian and ``p`` in Protocol Buffers."""
    directory = tmp_path_factory.mktemp("sofarpc")
    with (
        pods("registry", "provider", "consumer", "early") as made,
        contextlib.ExitStack() as registry,
        contextlib.ExitStack() as stack,
    ):
        registry.enter_context(embedded_registry(made[0], directory))
        section = f'type: embedded, address: "{made[0].ipv4}:{REGISTRY}"'
        provider, consumer, early = stack.enter_context(
            sites(made[1:], directory, section, started=(0, 1))
        )
        provider_program = stack.enter_context(programs.sofa(prefix=provider.prefix))
        consumer_program = stack.enter_context(programs.sofa(prefix=consumer.prefix))
        serve: dict[str, str | int] = {**_MESH, "port": _APPLICATION, "name": "provider"}
        provider_program.ask("serve", **serve, services="h,h2,first")
        provider_program.ask("serve", **serve, services="p", serialization="protobuf")
        here = Mesh(
            *(directory, made[0], registry, provider, consumer, early),
            *(provider_program, consumer_program),
        )
        here.settled()
        here.settled("p", serialization="protobuf")
        yield here


@each_serialization
@pytest.mark.parametrize("kind", ["sync", "future", "callback"])
def test_a_call_gets_its_answer(mesh: Mesh, serialization: str, service: str, kind: str) -> None:
    mesh.settled(service, serialization=serialization, kind=kind)
    answer = mesh.call(service, serialization=serialization, kind=kind)
    assert answer == {"value": f"provider/{service} hi"}


@each_serialization
def test_a_oneway_call_arrives_once(mesh: Mesh, serialization: str, service: str) -> None:
    how = {"serialization": serialization, "text": f"noted {serialization}"}
    sent = mesh.call(service, **how, method="note", kind="oneway")
    assert sent == {"value": "sent"}
    eventually(lambda: mesh.call(service, **how, method="noted")["value"] != "0")
    assert mesh.call(service, **how, method="noted") == {"value": "1"}


def test_an_exception_of_the_service_reaches_the_caller(mesh: Mesh) -> None:
    assert mesh.call(method="fail") == {"error": "EchoException", "message": "provider/h hi"}


@each_serialization
def test_many_at_once_each_get_their_own_answer(
    mesh: Mesh, serialization: str, service: str
) -> None:
    burst = mesh.start_burst(
        service=service, serialization=serialization, count=1000, concurrency=32
    )
    assert burst.result(2 * PATIENCE) == {"right": "1000"}


def test_the_first_call_after_subscribing_finds_its_provider(mesh: Mesh) -> None:
    answer = mesh.call("first")
    assert answer == {"value": "provider/first hi"}


def test_a_service_that_nobody_provides_is_an_error_at_once(mesh: Mesh) -> None:
    answer = mesh.call("nobody")
    assert answer["error"] == "SofaRpcException"
    assert "closed" in answer["message"].lower()  # Bolt's status for no endpoint


def test_the_consumer_never_learns_the_providers_address(mesh: Mesh) -> None:
    """Of all that the application in the consumer's pod hears, nothing names the other host; and
    only the sidecars speak with each other, at the provider port."""
    here, there = mesh.consumer.pod, mesh.provider.pod
    with Capture(here, "lo") as inside, Capture(here, "eth0") as outside:
        mesh.call("h", kind="future", timeout=4000)  # a consumer of its own: it subscribes anew
        assert mesh.call() == {"value": "provider/h hi"}
        eventually(lambda: any(b"hi" in packet.payload for packet in outside.packets))
        told = b"".join(
            packet.payload for packet in inside.packets if packet.source[1] in (API, CONSUMER)
        )
        spoken_with = {
            packet.destination for packet in outside.packets if packet.source[0] == here.ipv4
        }
    assert b"peer.Echo:1.0:h" in told  # the subscription's answer
    assert b"provider/h hi" in told  # the call's
    assert there.ipv4.encode() not in told
    assert spoken_with == {(there.ipv4, PROVIDER)} | {
        address for address in spoken_with if address[0] == mesh.registry_pod.ipv4
    }
    process = mesh.consumer_program.process
    sockets = [
        line for line in here.output("ss", "-Htnp").splitlines() if f"pid={process.pid}," in line
    ]
    assert {line.split()[4] for line in sockets} == {f"[::ffff:127.0.0.1]:{CONSUMER}"}
    assert peers(there, _APPLICATION) == {"::ffff:127.0.0.1"}


def test_each_hop_is_in_the_access_logs(mesh: Mesh) -> None:
    mesh.call(text="logged")
    sent, received = mesh.consumer.latest_request(), mesh.provider.latest_request()
    assert (sent["direction"], received["direction"]) == ("outbound", "inbound")
    assert sent["upstream"] == f"{mesh.provider.pod.ipv4}:{PROVIDER}"
    assert received["upstream"] == f"127.0.0.1:{_APPLICATION}"
    for record in (sent, received):
        assert record["path"] == "peer.Echo:1.0:h"
        assert (record["method"], record["status"]) == ("echo", 0)


# ---- With anthunder, in Protocol Buffers ----


@pytest.fixture(scope="module")
def anthunder(mesh: Mesh) -> Iterator[dict[str, Program]]:
    """In each pod: the provider's has a port of its own, which anthunder tells the sidecar."""
    with contextlib.ExitStack() as stack:
        found = {
            name: stack.enter_context(running([sys.executable, _ANTHUNDER], prefix=site.prefix))
            for name, site in (("provider", mesh.provider), ("consumer", mesh.consumer))
        }
        found["provider"].ask(
            "serve", port=12300, name="anthunder", services="peer.PbEcho:1.0:python"
        )
        for kind in ("threads", "asyncio"):
            found["consumer"].ask(
                "subscribe", services="peer.PbEcho:1.0:p,peer.PbEcho:1.0:python", client=kind
            )
        yield found


def test_sofarpc_calls_anthunder(mesh: Mesh, anthunder: dict[str, Program]) -> None:
    mesh.settled("python", serialization="protobuf")
    answer = mesh.call("python", serialization="protobuf")
    assert answer == {"value": "anthunder hi"}


@pytest.mark.parametrize("client", ["threads", "asyncio"])
@pytest.mark.parametrize(("service", "name"), [("p", "provider/p"), ("python", "anthunder")])
def test_anthunder_calls(
    anthunder: dict[str, Program], service: str, name: str, client: str
) -> None:
    call = {"service": f"peer.PbEcho:1.0:{service}", "client": client, "text": "hi"}
    ask = anthunder["consumer"].call
    kinds = ["sync", "future", "callback"] if client == "asyncio" else ["sync"]
    for kind in kinds:
        eventually(lambda: "value" in ask(**call, method="echo"))
        assert ask(**call, method="echo", kind=kind) == {"value": f"{name} hi"}
    text = f"noted by {client}"
    note = {**call, "text": text}
    assert ask(**note, method="note", kind="oneway") == {"value": "sent"}
    eventually(lambda: ask(**note, method="noted") == {"value": "1"})


# ---- When something is away ----


def test_calls_go_on_while_the_registry_is_away(mesh: Mesh) -> None:
    mesh.settled()
    mesh.registry.close()
    burst = mesh.start_burst(count=400)
    assert burst.result(PATIENCE) == {"right": "400"}
    (mesh.directory / "registry.db").unlink()
    mesh.start_registry()
    # It knows nothing any more; what is said to it anew, one that subscribes now finds.
    mesh.settled("h2")


def test_a_killed_consumers_sidecar_comes_back_with_its_subscriptions(mesh: Mesh) -> None:
    mesh.settled()
    mesh.consumer.sidecar.kill()
    assert "error" in mesh.call()
    mesh.consumer.sidecar.start()
    mesh.settled()  # the application has not subscribed again: nor would it ever
    assert mesh.start_burst(count=100).result(PATIENCE) == {"right": "100"}


def test_a_killed_providers_sidecar_comes_back_with_its_publications(mesh: Mesh) -> None:
    mesh.settled()
    mesh.provider.sidecar.kill()
    assert "error" in mesh.call()
    mesh.provider.sidecar.start()
    mesh.settled()
    assert mesh.start_burst(count=100).result(PATIENCE) == {"right": "100"}


# ---- A second provider, which starts before its sidecar ----


@pytest.fixture(scope="module")
def early(mesh: Mesh) -> Iterator[Program]:
    """Under the hook with ``when_away: wait``; its sidecar is started when it listens."""
    with programs.sofa(prefix=mesh.early.hooked) as program:
        served = program.start(
            "serve", **_MESH, port=_APPLICATION, name="early", services="early,left"
        )
        mesh.early.wait_for_port(_APPLICATION)
        assert not served.done()
        mesh.early.sidecar.start()
        assert "error" not in served.result(2 * PATIENCE)
        yield program


def test_a_provider_that_starts_before_its_sidecar_waits_for_it(mesh: Mesh, early: Program) -> None:
    mesh.settled("early")
    assert mesh.call("early") == {"value": "early/early hi"}


def test_a_provider_that_leaves_in_order_loses_no_request(mesh: Mesh, early: Program) -> None:
    mesh.provider_program.ask("serve", **_MESH, port=_APPLICATION, name="leaving", services="left")
    for name in ("leaving", "early"):
        mesh.answered_by(name, "left")
    burst = mesh.start_burst(service="left", count=4000, jitter=10)
    eventually(lambda: mesh.consumer_program.ask("progress").get("right"))
    mesh.provider_program.ask("stop", name="leaving")
    assert not burst.done()  # else it has shown nothing
    assert burst.result(2 * PATIENCE) == {"right": "4000"}
    assert {mesh.call("left")["value"] for _ in range(20)} == {"early/left hi"}


def test_a_killed_application_is_unpublished(mesh: Mesh, early: Program) -> None:
    mesh.settled("early")
    early.process.kill()

    def no_endpoint() -> bool:
        assert "error" in mesh.call("early")
        return "no_endpoint" in mesh.consumer.latest_request()["flags"]

    eventually(no_endpoint)
