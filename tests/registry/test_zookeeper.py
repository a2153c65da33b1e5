"""ZooKeeper, with the real server: what the layout says, and what befalls sessions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socketserver
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kazoo.client import KazooClient

from pysidecar.address import Address
from pysidecar.config import RegistryEntry
from pysidecar.errors import StartError
from pysidecar.registry import RegistryError, make_registry
from pysidecar.registry.service import Instance, Registration, ServiceKey
from pysidecar.registry.zookeeper.applications import read_instance, read_mapping, read_services
from pysidecar.registry.zookeeper.layout import directory, node_name, read_node, variant
from tests.registry.contract import Contract, Served, instance
from tests.registry.servers import ZooKeeperServer, ZooKeeperWithTls
from tests.registry.sessions import Told, check_tls, session_at, until
from tests.registry.sides import Side, SideProcess
from tests.serving import serving
from tests.waiting import PATIENCE, eventually


class ServedZooKeeper(ZooKeeperServer, Served):
    kind = "zookeeper"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedZooKeeper]:
    with ServedZooKeeper(tmp_path_factory.mktemp("zookeeper")) as server:
        yield server


class TestContract(Contract):
    pass


# ---- names of nodes ----

DUBBO = ServiceKey("dubbo", "org.example.Echo", version="1.0", group="blue")
BOLT = ServiceKey("bolt", "org.example.Echo:1.0:u1")


def test_dubbo_finds_what_it_needs_in_what_is_written() -> None:
    known = Instance(
        Address("10.0.0.7", 20881),
        started=1764144000.0,
        metadata=(("application", "prov"), ("methods", "hello,bye"), ("release", "3.3.6")),
    )
    assert directory(DUBBO) == "/dubbo/org.example.Echo/providers"
    assert node_name(Registration(DUBBO, known)) == quote_plus(
        "dubbo://10.0.0.7:20881/org.example.Echo?application=prov&dubbo=2.0.2&dynamic=true"
        "&group=blue&interface=org.example.Echo&methods=hello,bye&registered-by=pysidecar"
        "&release=3.3.6&side=provider&timestamp=1764144000000&version=1.0&warmup=0"
    )
    warm = replace(known, weight=50, warmup=120.0)
    assert "weight%3D50" in node_name(Registration(DUBBO, warm))
    assert "warmup%3D120000" in node_name(Registration(DUBBO, warm))


def test_sofarpc_finds_what_it_needs_in_what_is_written() -> None:
    assert directory(BOLT) == "/sofa-rpc/org.example.Echo/providers"
    written = node_name(Registration(BOLT, Instance(Address("10.0.0.7", 12200))))
    assert written == quote_plus(
        "bolt://10.0.0.7:12200?interface=org.example.Echo&registered-by=pysidecar&uniqueId=u1"
        "&version=1.0&weight=100"
    )
    plain = ServiceKey("bolt", "org.example.Echo:1.0")
    # SOFARPC compares the unique id with its own, which is empty and not null.
    assert "uniqueId%3D%26" in node_name(Registration(plain, Instance(Address("10.0.0.7", 1))))


# Written by Dubbo 3.3.6 and SOFARPC 5.13.2.
FROM_DUBBO = (
    "dubbo://10.77.0.7:20880/org.example.Echo?application=prov&deprecated=false&dubbo=2.0.2"
    "&dynamic=true&generic=false&group=blue&interface=org.example.Echo&methods=hello&"
    "prefer.serialization=hessian2,fastjson2&release=3.3.6&revision=1.0&service-name-mapping=true"
    "&side=provider&timestamp=1764144000123&version=1.0"
)
FROM_SOFARPC = (
    "bolt://10.77.0.7:12200?version=1.0&accepts=100000&appName=prov&weight=30&language=java&pid=1"
    "&interface=org.example.Echo&timeout=0&serialization=hessian2&protocol=bolt&delay=-1"
    "&dynamic=true&startTime=1764144000123&id=rpc-cfg-0&uniqueId=u1&rpcVer=51302"
)


def test_what_dubbo_and_sofarpc_wrote_is_understood() -> None:
    found = read_node("dubbo", quote_plus(FROM_DUBBO))
    assert found
    assert found.variant == variant(DUBBO)
    assert found.instance.address == Address("10.77.0.7", 20880)
    assert found.instance.started == 1764144000.123
    assert found.instance.warmup == 600.0  # Dubbo's own default
    assert dict(found.instance.metadata)["prefer.serialization"] == "hessian2,fastjson2"
    assert not found.ours
    found = read_node("bolt", quote_plus(FROM_SOFARPC))
    assert found
    assert found.variant == variant(BOLT)
    assert (found.instance.weight, found.instance.warmup) == (30, 0.0)


@pytest.mark.parametrize(
    "url",
    [
        "empty://10.0.0.7/org.example.Echo?category=providers",
        "override://0.0.0.0/org.example.Echo?category=configurators&weight=1",
        "route://0.0.0.0/org.example.Echo?rule=true",
        "tri://10.0.0.7:50051/org.example.Echo",
        "rest://10.0.0.7:80/org.example.Echo",
        "injvm://127.0.0.1/org.example.Echo",
        "dubbo://10.0.0.7:20880/org.example.Echo?disabled=true",
        "dubbo://10.0.0.7:20880/org.example.Echo?enabled=false",
    ],
)
def test_who_cannot_be_called_is_left_out(url: str) -> None:
    assert read_node("dubbo", quote_plus(url)) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("dubbo://10.0.0.7:1/x", Instance(Address("10.0.0.7", 1), warmup=600.0)),
        ("dubbo://u:p@10.0.0.7:1/x?warmup=0", Instance(Address("10.0.0.7", 1))),
        ("dubbo://[::1]:1/x?warmup=0&weight=0", Instance(Address("::1", 1), weight=0)),
        ("dubbo://10.0.0.7:1/x?warmup=0&dynamic=false", Instance(Address("10.0.0.7", 1))),
        ("DUBBO://10.0.0.7:1?warmup=0&weight=-5", Instance(Address("10.0.0.7", 1))),
        ("dubbo://10.0.0.7:1/x?warmup=0&weight=1e9&&=&", Instance(Address("10.0.0.7", 1))),
    ],
)
def test_unusual_urls_are_understood(url: str, expected: Instance) -> None:
    found = read_node("dubbo", quote_plus(url))
    assert found
    assert found.instance == expected


@pytest.mark.parametrize(
    "name",
    [
        *("", "%", "dubbo", "dubbo://", "dubbo://host.example:1/x", "dubbo://10.0.0.7/x"),
        *("%ff://x", "dubbo://10.0.0.7:99999/x", "dubbo%3A%2F%2F10.0.0.7%3A1%2F" + "x" * 20_000),
    ],
)
def test_malformed_names_are_errors(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each says another thing
        read_node("dubbo", name)


@settings(max_examples=50)
@given(st.sampled_from(["dubbo", "bolt", "http"]), st.text())
def test_no_name_of_a_node_is_a_crash(protocol: str, name: str) -> None:
    for each in (name, quote_plus(name), f"{protocol}%3A%2F%2F10.0.0.1%3A1%3F{name}"):
        with contextlib.suppress(ValueError):
            read_node(protocol, each)


_names = st.text(st.characters(codec="utf-8"), max_size=20)
_registrations = st.builds(
    Registration,
    st.builds(ServiceKey, st.sampled_from(["dubbo", "bolt", "http"]), _names, _names, _names),
    st.builds(
        Instance,
        st.sampled_from([Address("10.0.0.1", 20881), Address("2001:db8::1", 1)]),
        weight=st.integers(0, 10_000),
        started=st.integers(0, 1 << 40).map(lambda ms: ms / 1000),
        warmup=st.integers(0, 1 << 30).map(lambda ms: ms / 1000),
        zone=_names,
        metadata=st.dictionaries(st.sampled_from(["application", "a.b-c_d"]), _names).map(
            lambda found: tuple(sorted(found.items()))
        ),
    ),
)


@given(_registrations)
def test_what_is_written_is_read_or_refused(registration: Registration) -> None:
    service = registration.service
    if service.protocol != "dubbo":
        service = replace(service, version="")
    registration = replace(registration, service=service)
    try:
        directory(service)
        name = node_name(registration)
    except ValueError:
        return
    found = read_node(service.protocol, name)
    assert found
    assert found.instance == registration.instance
    assert found.variant == variant(service)
    assert found.ours


_keys = st.sampled_from(
    ["payload", "metadata", "address", "dubbo.endpoints", "services", "protocol", "port", "params"]
)
_values = st.recursive(
    st.none() | st.text() | st.integers() | st.just("dubbo") | st.just('[{"protocol":"dubbo"}]'),
    lambda inner: st.lists(inner) | st.dictionaries(_keys, inner),
)


@settings(max_examples=50)
@given(st.binary() | _values.map(lambda value: json.dumps(value).encode()))
def test_no_application_is_a_crash(data: bytes) -> None:
    read_mapping(data)
    for read in (read_instance, read_services):
        with contextlib.suppress(ValueError):
            read(data)


# ---- sessions ----


@pytest.fixture
def keeper(served: ServedZooKeeper) -> Iterator[KazooClient]:
    """Somebody else at the same server."""
    client = KazooClient(hosts=str(served.address), timeout=4)
    client.start()
    yield client
    client.stop()
    client.close()


def service_named(name: str, **more: str) -> ServiceKey:
    return ServiceKey("dubbo", f"org.example.{name}", **more)


def test_a_registration_outlives_the_session_of_a_client_that_was_killed(
    served: ServedZooKeeper, keeper: KazooClient
) -> None:
    service, other = service_named("Killed"), service_named("KilledToo")
    wanted = Registration(service, instance(1))
    with Side(served.entry()) as consumer, Side(served.entry()) as provider:
        consumer.subscribe(service, other)
        with SideProcess(served.entry(), wanted, Registration(other, instance(1))) as process:
            eventually(lambda: consumer.sees(other) and consumer.sees(service))
            process.kill()
            provider.register(wanted)
            eventually(lambda: provider.has_registered(wanted))
        told = len(consumer.told(service)) - 1
        eventually(lambda: consumer.sees(other) == {}, "the end of the killed client's session")
        assert keeper.get_children(directory(service)) == [node_name(wanted)]
        assert all(instance(1).address in seen for seen in consumer.told(service)[told:])


def test_what_a_killed_client_said_is_replaced_by_what_is_said_now(
    served: ServedZooKeeper, keeper: KazooClient
) -> None:
    service, sibling = service_named("Changed"), service_named("Changed", version="2.0")
    now = Registration(service, replace(instance(1), weight=7, started=2.0))
    theirs = quote_plus("dubbo://10.0.0.1:20881/org.example.Changed?timestamp=1")
    with (
        Side(served.entry()) as provider,
        SideProcess(
            served.entry(), Registration(service, instance(1)), Registration(sibling, instance(1))
        ) as process,
    ):
        process.kill()
        keeper.create(f"{directory(service)}/{theirs}")
        provider.register(now)
        eventually(lambda: provider.has_registered(now))
        names = keeper.get_children(directory(service))
        # The sibling goes away with the killed client's session, and what is not ours stays.
        assert set(names) - {node_name(Registration(sibling, instance(1)))} == {
            node_name(now),
            theirs,
        }
        provider.unregistered([now], PATIENCE)
        assert node_name(now) not in keeper.get_children(directory(service))


def test_a_lost_connection_costs_no_registration(
    served: ServedZooKeeper, keeper: KazooClient
) -> None:
    service = service_named("Moved")
    wanted = Registration(service, instance(1))
    patient = served.entry().model_copy(update={"session_timeout": 9.0})
    with Side(patient) as provider:
        provider.register(wanted)
        eventually(lambda: provider.has_registered(wanted))
        path = f"{directory(service)}/{node_name(wanted)}"
        before = keeper.exists(path)
        served.kill()
        eventually(lambda: provider.state != "connected")
        served.start()
        eventually(lambda: provider.has_registered(wanted))
        eventually(lambda: keeper.connected)
        assert keeper.exists(path) == before  # by the same session still


def test_what_dubbo_registered_by_application_is_found(
    served: ServedZooKeeper, keeper: KazooClient
) -> None:
    blue = service_named("Apps", version="1.0", group="blue")
    plain = service_named("Apps")

    def register(application: str, host: str, revision: str, storage: str) -> None:
        payload = {
            "@class": "org.apache.dubbo.registry.zookeeper.ZookeeperInstance",
            "id": f"{host}:20880",
            "name": application,
            "metadata": {
                "dubbo.endpoints": '[{"port":20880,"protocol":"dubbo"},'
                '{"port":50051,"protocol":"tri"}]',
                "dubbo.metadata.revision": revision,
                "dubbo.metadata.storage-type": storage,
            },
        }
        fields = {
            "name": application,
            "id": f"{host}:20880",
            "address": host,
            "port": 20880,
            "payload": payload,
            "registrationTimeUTC": 1764144000123,
            "serviceType": "DYNAMIC",
        }
        path = f"/services/{application}/{host}:20880"
        with contextlib.suppress(Exception):
            keeper.delete(path)
        keeper.create(path, json.dumps(fields).encode(), ephemeral=True, makepath=True)

    def publish(revision: str, **entry: Any) -> None:
        services = {"blue/org.example.Apps:1.0:dubbo": {"name": "org.example.Apps", **entry}}
        keeper.create(
            f"/dubbo/metadata/far/{revision}",
            json.dumps({"app": "far", "revision": revision, "services": services}).encode(),
            makepath=True,
        )

    async def main() -> None:
        async with session_at(served.entry()) as (session, told):

            def hosts(service: ServiceKey) -> list[str]:
                return sorted(each.address.host for each in told.last[service])

            await session.subscribe(blue)
            await session.subscribe(plain)
            assert told.last == {blue: [], plain: []}
            register("near", "10.0.1.1", "r1", "local")
            keeper.create("/dubbo/mapping/org.example.Apps", b"near", makepath=True)
            await until(lambda: hosts(blue) == hosts(plain) == ["10.0.1.1"])
            triple = replace(plain, protocol="tri")
            await session.subscribe(triple)
            places = [Address("10.0.1.1", 50051)]
            await until(lambda: [each.address for each in told.last[triple]] == places)
            await session.unsubscribe(triple)
            # Its own word for the one is one against the other.
            keeper.create("/dubbo/metadata/org.example.Apps/1.0/blue/provider/near", makepath=True)
            await until(lambda: hosts(plain) == [])
            assert hosts(blue) == ["10.0.1.1"]
            keeper.create("/dubbo/metadata/org.example.Apps/provider/near", makepath=True)
            await until(lambda: hosts(plain) == ["10.0.1.1"])
            publish("r2", group="blue", version="1.0", protocol="dubbo", params={"weight": "7"})
            register("far", "10.0.1.2", "r2", "remote")
            keeper.set("/dubbo/mapping/org.example.Apps", b"near, far,gone,../bad")
            await until(lambda: hosts(blue) == ["10.0.1.1", "10.0.1.2"])
            assert hosts(plain) == ["10.0.1.1"]
            assert {each.weight for each in told.last[blue]} == {100, 7}
            # One that is registered by interface, too, is what that says.
            by_url = quote_plus("dubbo://10.0.1.1:20880/org.example.Apps?version=1.0&group=blue")
            keeper.create(f"{directory(blue)}/{by_url}", makepath=True)
            await until(lambda: hosts(plain) == [])
            assert hosts(blue) == ["10.0.1.1", "10.0.1.2"]
            # And one that takes that back does not provide it any more, while it lives on.
            keeper.delete(f"{directory(blue)}/{by_url}")
            await until(lambda: hosts(blue) == ["10.0.1.2"])
            register("near", "10.0.1.1", "r4", "local")
            register("near", "10.0.1.3", "r4", "local")
            await until(lambda: hosts(blue) == ["10.0.1.2", "10.0.1.3"])
            keeper.delete("/services/near/10.0.1.3:20880")
            keeper.create(f"{directory(blue)}/{by_url}", makepath=True)
            await until(lambda: hosts(blue) == ["10.0.1.1", "10.0.1.2"])
            # Another revision without that service, in a node of the same name.
            publish("r3", group="green", version="1.0", protocol="dubbo")
            register("far", "10.0.1.2", "r3", "remote")
            await until(lambda: hosts(blue) == ["10.0.1.1"])
            register("far", "10.0.1.2", "r2", "remote")
            await until(lambda: hosts(blue) == ["10.0.1.1", "10.0.1.2"])
            keeper.set("/dubbo/mapping/org.example.Apps", b"\xff not json [")
            await until(lambda: hosts(blue) == ["10.0.1.1"])
            keeper.delete("/dubbo/mapping/org.example.Apps")
            await session.unsubscribe(blue)
            keeper.delete(f"{directory(blue)}/{by_url}")
            await session.subscribe(blue)
            await until(lambda: hosts(blue) == [])

    asyncio.run(main())


def test_a_directory_that_is_removed_is_watched_on(
    served: ServedZooKeeper, keeper: KazooClient
) -> None:
    service = service_named("Removed")

    async def main() -> None:
        async with session_at(served.entry()) as (session, told):
            await session.subscribe(service)
            for host in ("10.0.0.1", "10.0.0.2"):
                name = quote_plus(f"dubbo://{host}:1/x")
                keeper.create(f"{directory(service)}/{name}", makepath=True)
                await until(lambda: told.last[service])
                assert [each.address.host for each in told.last[service]] == [host]
                keeper.delete("/dubbo/org.example.Removed", recursive=True)
                await until(lambda: not told.last[service])

    asyncio.run(main())


def test_malformed_nodes_cost_one_warning(
    served: ServedZooKeeper, keeper: KazooClient, caplog: pytest.LogCaptureFixture
) -> None:
    service = service_named("Malformed")
    keeper.ensure_path(directory(service))
    for number in range(300):
        keeper.create_async(f"{directory(service)}/dubbo%1b{number}")
    keeper.create(f"{directory(service)}/{quote_plus('dubbo://10.0.0.1:1/x')}")

    async def main() -> None:
        async with session_at(served.entry()) as (session, told):
            await session.subscribe(service)
            assert [each.address.host for each in told.last[service]] == ["10.0.0.1"]
            for name in ("dubbo%1bmore", quote_plus("dubbo://10.0.0.2:1/x")):
                keeper.create(f"{directory(service)}/{name}")
            await until(lambda: len(told.last[service]) == 2)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert len(caplog.records) == 1
    assert "a node that is left out" in caplog.text


@pytest.mark.parametrize(
    "service",
    [
        ServiceKey("dubbo", ""),
        ServiceKey("dubbo", ".."),
        ServiceKey("dubbo", "a&b=c"),
        ServiceKey("dubbo", "x", group="a&weight=1000000"),
        ServiceKey("bolt", "x" * 20_000),
        ServiceKey("thrift", "x"),
    ],
)
def test_what_has_no_place_there_costs_only_that_call(
    served: ServedZooKeeper, service: ServiceKey
) -> None:
    async def main() -> None:
        async with session_at(served.entry()) as (session, told):
            with pytest.raises(RegistryError):
                await session.register(Registration(service, instance(1)))
            await session.subscribe(service_named("Echo"))
            assert told.last

    asyncio.run(main())


def test_with_credentials_only_they_change_what_is_theirs(
    served: ServedZooKeeper, keeper: KazooClient, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    credentials = {"username": "dubbo", "password_file": str(password)}
    entry = RegistryEntry.model_validate(
        served.entry().model_dump(mode="json") | {"credentials": credentials}
    )
    service = service_named("Guarded")

    async def main() -> None:
        async with session_at(entry) as (guarded, told), session_at(served.entry()) as (other, _):
            await guarded.register(Registration(service, instance(1)))
            await guarded.subscribe(service)
            assert told.last[service]
            path = f"{directory(service)}/{node_name(Registration(service, instance(1)))}"
            acl = await asyncio.to_thread(_acl_seen_by_its_owner, served.address, path)
            assert [(each.id.scheme, each.perms) for each in acl] == [("digest", 31)]
            with pytest.raises(RegistryError, match=r"NoAuth: .*registry\.credentials"):
                await other.subscribe(service)
            with pytest.raises(RegistryError, match=r"NoAuth: .*registry\.credentials"):
                await other.register(Registration(service, instance(2)))
            await other.subscribe(service_named("Open"))

    asyncio.run(main())
    password.chmod(0o644)
    with pytest.raises(StartError, match="others than its owner"):
        make_registry(entry)


def _acl_seen_by_its_owner(address: Address, path: str) -> Any:
    client = KazooClient(hosts=str(address), auth_data=[("digest", "dubbo:secret")])
    client.start()
    try:
        return client.get_acls(path)[0]
    finally:
        client.stop()
        client.close()


def test_tls_is_verified_in_both_directions(tmp_path: Path) -> None:
    registration = Registration(service_named("Tls"), instance(1))
    with ZooKeeperWithTls(tmp_path) as server:
        check_tls("zookeeper", server, registration, "certificate verify failed")


class EndlessReply(socketserver.BaseRequestHandler):
    """Says that two gigabytes follow."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.request.sendall(b"\x7f" * 65536)


def test_a_reply_of_any_size_is_not_read() -> None:
    with serving(EndlessReply) as address:
        entry = RegistryEntry.model_validate({"type": "zookeeper", "address": str(address)})

        async def main() -> None:
            with pytest.raises(RegistryError, match="a reply of 2139062143 bytes"):
                await make_registry(entry).open(Told())

        asyncio.run(main())


def test_the_next_server_is_asked_when_one_is_away(served: ServedZooKeeper) -> None:
    entry = RegistryEntry.model_validate(
        {"type": "zookeeper", "address": f"127.0.0.1:1,{served.address},[::1]:1"}
    )

    async def main() -> None:
        for _ in range(3):
            async with session_at(entry) as (session, _):
                await session.subscribe(service_named("Next"))

    asyncio.run(main())
