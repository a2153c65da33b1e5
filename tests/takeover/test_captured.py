"""Applications without an SDK that know nothing of a sidecar: calls that rules or the hook bring
are for the services that are published and subscribed, as those at takeover's ports are."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pysidecar.address import Address
from tests.interception.support import Server, connect, listen
from tests.launching import PYSIDECAR
from tests.mesh.support import Pod, PodSidecar, pods
from tests.takeover.calling import CALLED, GOOD, call, serve
from tests.takeover.pods import PROVIDER, REGISTRY, embedded_registry
from tests.waiting import eventually

PORTS = {"http": 8080, "bolt": 12200, "dubbo": 20880}
SERVICES = {"http": "orders", "bolt": "any", "dubbo": "any:1.0"}
SERVED = """
takeover:
  publish:
    - {service: orders, protocol: http, port: 8080}
    - {service: any, protocol: bolt, port: 12200}
    - {service: any, protocol: dubbo, version: "1.0", port: 20880}
"""
CAPTURED = f"""{SERVED}
registry: {{type: embedded}}
inbound:
  mode: MODE
  ports: [8080, 12200, 20880]
  routes: [{{action: requests}}]
manage_rules: true
"""
# Nobody has an address of that network, and there is no way to it.
VIRTUAL = "10.96.0.1"
CALLING = """
takeover: {{await_timeout: 20s}}
registry: {{type: embedded, address: "{registry}"}}
outbound:
  routes: [{{match: {{destination: 10.96.0.0/16}}, action: requests}}]
services:
  shop: {{protocol: http, subscribe: Orders}}
  calls: {{protocol: bolt, subscribe: any}}
  calls-2: {{protocol: dubbo, subscribe: "any:1.0"}}
requests:
  - match: {{host: [shop.example, {virtual}]}}
    services: shop
    rewrite: {{host: orders}}
  - {{match: {{service: any}}, services: calls}}
  - {{match: {{service: any, version: "1.0"}}, services: calls-2}}
"""


@contextlib.contextmanager
def applications(pod: Pod) -> Iterator[None]:
    """On loopback only."""

    def answer(client: socket.socket, protocol: str) -> None:
        with contextlib.suppress(ConnectionError):
            serve(client, protocol)

    server = Server(answer)
    for protocol, port in PORTS.items():
        server.add(listen(pod.name, Address("127.0.0.1", port)), protocol)
    with server:
        yield


def latest(sidecar: PodSidecar, protocol: str) -> dict[str, Any]:
    """The request of that protocol that ended last."""
    found: dict[str, Any] = eventually(
        lambda: sidecar.get_json(f"/requests?limit=1&protocol={protocol}")
    )[0]
    return found


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_inbound_rules_hand_calls_to_the_applications_that_published_them(
    tmp_path: Path, mode: str
) -> None:
    with (
        pods("client", "provider") as (client, provider),
        applications(provider),
        PodSidecar(provider, tmp_path, CAPTURED.replace("MODE", mode)) as sidecar,
    ):

        def called(protocol: str, port: int) -> tuple[int, str]:
            with connect(client.name, provider.address(4, port)) as connection:
                return call(connection, protocol)

        # Once the sidecar has seen that somebody listens.
        eventually(lambda: sidecar.get_json("/takeover")["registered"] == 3)
        for protocol, port in PORTS.items():
            assert called(protocol, port) == (GOOD[protocol], CALLED)
            record = latest(sidecar, protocol)
            assert (record["direction"], record["service"]) == ("inbound", SERVICES[protocol])
            assert record["upstream"] == f"127.0.0.1:{port}"
            assert record["flags"] == []
            # What the registry is told is not captured: it is the sidecar's own.
            assert called(protocol, PROVIDER) == (GOOD[protocol], CALLED)
        [connection] = [
            each
            for each in sidecar.access_log(6)
            if each["type"] == "connection"
            and each["original_destination"] == str(provider.address(4, PORTS["http"]))
        ]
        assert (connection["transport"], connection["action"]) == (mode, "requests")


def test_a_hooked_consumer_calls_by_a_virtual_address_and_by_name(tmp_path: Path) -> None:
    with (
        pods("registry", "provider", "consumer") as (registry, provider, consumer),
        embedded_registry(registry, tmp_path),
        applications(provider),
    ):
        address = f"{registry.ipv4}:{REGISTRY}"
        served = f'{SERVED}registry: {{type: embedded, address: "{address}"}}\n'
        calling = CALLING.format(registry=address, virtual=VIRTUAL)
        with (
            PodSidecar(provider, tmp_path, served) as behind,
            PodSidecar(consumer, tmp_path, calling) as before,
        ):

            def output(*command: str | Path) -> str:
                hooked = (*PYSIDECAR, "exec", "-c", before.config_file, "--")
                return consumer.output(*hooked, *command)

            def seen(service: str, protocol: str) -> None:
                sent, received = latest(before, protocol), latest(behind, protocol)
                assert (sent["service"], received["service"]) == (service, SERVICES[protocol])
                assert sent["upstream"] == f"{provider.ipv4}:{PROVIDER}"
                assert received["upstream"] == f"127.0.0.1:{PORTS[protocol]}"

            curl: Sequence[str] = ("curl", "-sS", "--noproxy", "*", "--max-time", "30")
            by_name = ("--resolve", f"shop.example:80:{VIRTUAL}", f"http://shop.example/{CALLED}")
            # The first call comes before or after the registry told of the provider: both are well.
            assert output(*curl, *by_name) == CALLED
            seen("shop", "http")
            assert output(*curl, f"http://{VIRTUAL}:8080/{CALLED}") == CALLED
            for protocol, service in (("bolt", "calls"), ("dubbo", "calls-2")):
                program = (sys.executable, "-m", "tests.takeover.calling")
                answer = output(*program, protocol, f"{VIRTUAL}:{PORTS[protocol]}")
                assert answer.split() == [str(GOOD[protocol]), CALLED]
                seen(service, protocol)
