"""What is written to ZooKeeper, found by Dubbo as it is; and what Dubbo writes, found by us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_plus

from kazoo.client import KazooClient

from pysidecar.address import Address
from pysidecar.config import RegistryEntry
from pysidecar.registry.service import Instance, Registration, ServiceKey
from tests.ports import free_port
from tests.registry.servers import ZooKeeperServer
from tests.registry.sides import Side
from tests.requests import programs
from tests.waiting import PATIENCE, eventually

# With the metadata where it is by default: in the provider alone.
_BY_INSTANCE = ("env", "JDK_JAVA_OPTIONS=-Ddubbo.application.register-mode=instance")
PLAIN = ServiceKey("dubbo", "peer.Echo", version="1.0")
BLUE = ServiceKey("dubbo", "peer.Echo", version="1.0", group="blue")
GREEN = ServiceKey("dubbo", "peer.Echo", version="1.0", group="green")


def answer(consumer: programs.Program, service: str) -> programs.Answer:
    """The first one that is no error."""

    def ask() -> programs.Answer:
        return consumer.call(service=service, method="echo", text="hi", timeout=3000)

    eventually(lambda: "value" in ask(), lambda: str(ask()), 2 * PATIENCE)
    return ask()


def _answers(consumer: programs.Program) -> set[str]:
    """Who answers some calls."""
    call: dict[str, str | int] = {
        "service": "1.0 blue",
        "method": "echo",
        "text": "hi",
        "timeout": 3000,
    }
    return {consumer.call(**call).get("value", "").partition("/")[0] for _ in range(16)}


def _weights(side: Side, service: ServiceKey) -> list[int]:
    return sorted(each.weight for each in (side.sees(service) or {}).values())


def _address(side: Side, service: ServiceKey, other: Instance) -> Address:
    """Of the one beside that other."""
    [found] = {each for each in side.sees(service) or {} if each != other.address}
    return found


@contextlib.contextmanager
def _configurator(server: ZooKeeperServer, url: str) -> Iterator[None]:
    path = f"/dubbo/peer.Echo/configurators/{quote_plus(url)}"
    client = KazooClient(str(server.address))
    client.start()
    try:
        client.create(path, makepath=True)
        yield
        client.delete(path)
    finally:
        client.stop()
        client.close()


def test_dubbo_finds_us_and_we_find_dubbo(tmp_path: Path) -> None:
    port = free_port()
    with (
        ZooKeeperServer(tmp_path) as server,
        programs.registered_dubbo(3) as served,
        programs.registered_dubbo(3) as three,
        programs.registered_dubbo(2) as two,
        programs.registered_dubbo(3) as itself,
        Side(
            RegistryEntry.model_validate({"type": "zookeeper", "address": str(server.address)})
        ) as side,
    ):
        # A provider that registers nowhere, and which only the sidecar tells of.
        served.ask("begin", application="served", registry="N/A", port=port)
        served.ask("serve", name="by the sidecar", services="1.0 ,1.0 blue")
        # Dubbo never connects to 127.x, but to [::1].
        at = Instance(Address("::1", port), metadata=(("application", "served"),))
        side.register(*(Registration(service, at) for service in (PLAIN, BLUE)))
        registry = f"zookeeper://{server.address}"
        for version, consumer in ((3, three), (2, two)):
            consumer.ask("begin", application=f"app{version}", registry=registry)
            for service in ("1.0 ", "1.0 blue"):
                assert answer(consumer, service) == {"value": f"by the sidecar/{service} hi"}
        # One that registers itself, in both of Dubbo's forms, and takes it back while it lives on.
        side.subscribe(PLAIN, BLUE, GREEN)
        itself.ask("begin", application="itself", registry=registry, port=free_port())
        itself.ask("serve", name="by itself", services="1.0 blue")
        eventually(lambda: len(side.sees(BLUE) or ()) == 2, lambda: str(side.sees(BLUE)))
        assert side.sees(PLAIN) == {at.address: at}
        # Dubbo Admin's rules: who looks for providers by interface obeys them, as 2.7 does.
        rule = f"override://{_address(side, BLUE, at)}/peer.Echo?category=configurators"
        rule += "&dynamic=false&enabled=true&group=blue&version=1.0"
        with _configurator(server, f"{rule}&weight=7"):
            eventually(lambda: 7 in _weights(side, BLUE), lambda: str(side.sees(BLUE)))
            with _configurator(server, f"{rule}&disabled=true"):
                eventually(
                    lambda: side.sees(BLUE) == {at.address: at}, lambda: str(side.sees(BLUE))
                )
                eventually(lambda: _answers(two) == {"by the sidecar"}, lambda: str(_answers(two)))
        eventually(lambda: _weights(side, BLUE) == [100, 100], lambda: str(side.sees(BLUE)))
        eventually(lambda: len(_answers(two)) == 2, lambda: str(_answers(two)))
        itself.ask("stop")
        eventually(lambda: side.sees(BLUE) == {at.address: at}, lambda: str(side.sees(BLUE)))
    assert not any(side.told(GREEN))


def test_a_provider_that_registers_its_instance_only_tells_what_it_provides(
    tmp_path: Path,
) -> None:
    """Of each protocol what it has of that one, whatever else ZooKeeper says of it."""
    plain, triple, other = ("1.0", "2.0", "3.0")
    with (
        ZooKeeperServer(tmp_path) as server,
        programs.registered_dubbo(3, _BY_INSTANCE) as provider,
        Side(
            RegistryEntry.model_validate({"type": "zookeeper", "address": str(server.address)})
        ) as side,
    ):
        keys = {
            (protocol, version): ServiceKey(protocol, "peer.Echo", version)
            for protocol in ("dubbo", "tri")
            for version in (plain, triple, other)
        }
        side.subscribe(*keys.values())
        ports = {"dubbo": free_port(), "tri": free_port()}
        provider.ask(
            *("begin",),
            application="both",
            registry=f"zookeeper://{server.address}",
            port=ports["dubbo"],
            triple=ports["tri"],
        )
        provider.ask("serve", name="dubbo", services=f"{plain} ,{other} ", protocol="dubbo")
        provider.ask("serve", name="tri", services=f"{triple} ,{other} ", protocol="tri")

        def seen() -> dict[tuple[str, str], list[int]]:
            return {
                which: sorted(address.port for address in side.sees(key) or {})
                for which, key in keys.items()
            }

        wanted = {
            ("dubbo", plain): [ports["dubbo"]],
            ("dubbo", triple): [],
            ("dubbo", other): [ports["dubbo"]],
            ("tri", plain): [],
            ("tri", triple): [ports["tri"]],
            ("tri", other): [ports["tri"]],
        }
        eventually(lambda: seen() == wanted, lambda: str(seen()), 3 * PATIENCE)


def test_sofarpc_finds_us_and_we_find_sofarpc(tmp_path: Path) -> None:
    """With its registry ``zookeeper``."""
    own, other = (ServiceKey("bolt", f"peer.Echo:1.0:{name}") for name in ("own", "other"))
    ports = {"own": free_port(), "other": free_port()}
    with (
        ZooKeeperServer(tmp_path) as server,
        programs.sofa(traced=False, zookeeper=True) as program,
        Side(
            RegistryEntry.model_validate({"type": "zookeeper", "address": str(server.address)})
        ) as side,
    ):
        registry = {"registry": "zookeeper", "at": str(server.address)}
        serve = {"library": "sofarpc", "host": "0.0.0.0", "application": "app"}
        side.subscribe(own)
        program.ask("serve", **serve, **registry, port=ports["own"], name="itself", services="own")
        eventually(lambda: {each.port for each in side.sees(own) or {}} == {ports["own"]})
        # A provider that registers nowhere, and which only the sidecar tells of.
        program.ask("serve", **serve, port=ports["other"], name="by the sidecar", services="other")
        here = Instance(Address("127.0.0.1", ports["other"]))
        side.register(Registration(other, here))
        eventually(lambda: side.has_registered(Registration(other, here)))

        def ask() -> programs.Answer:
            call = {"library": "sofarpc", "kind": "sync", "method": "echo", "text": "hi"}
            return program.call(**call, **registry, service="other", timeout=5000)

        eventually(lambda: ask() == {"value": "by the sidecar/other hi"}, lambda: str(ask()))
        program.ask("stop", name="itself")
        eventually(lambda: side.sees(own) == {})
