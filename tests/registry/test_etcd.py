"""etcd, with the real server: what the layout says, and what befalls sessions."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from aetcd import rpc
from hypothesis import given
from hypothesis import strategies as st

from pysidecar.address import Address
from pysidecar.config import RegistryEntry
from pysidecar.registry import RegistryError, make_registry
from pysidecar.registry.etcd import directory, key_of, read_instance, value_of
from pysidecar.registry.service import Instance, Registration, ServiceKey
from tests.registry.contract import Contract, Served, instance
from tests.registry.servers import EtcdServer, make_certificate
from tests.registry.sessions import Told, check_tls, session_at, until
from tests.registry.sides import Side
from tests.waiting import PATIENCE, eventually


class ServedEtcd(EtcdServer, Served):
    kind = "etcd"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEtcd]:
    with ServedEtcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


class TestContract(Contract):
    pass


# ---- the layout ----


def test_keys_are_where_the_documentation_says() -> None:
    dubbo = ServiceKey("dubbo", "org.example.Echo", version="1.0", group="a/b")
    assert directory(dubbo) == "/pysidecar/services/dubbo/a%2Fb/org.example.Echo:1.0/"
    bolt = Registration(ServiceKey("bolt", "Echo:1.0"), Instance(Address("::1", 12200)))
    assert key_of(bolt) == "/pysidecar/services/bolt//Echo%3A1.0/%5B%3A%3A1%5D%3A12200"
    assert json.loads(value_of(replace(bolt.instance, metadata=(("a", "b"),)))) == {
        "weight": 100,
        "started": 0.0,
        "warmup": 0.0,
        "zone": "",
        "metadata": {"a": "b"},
    }


_texts = st.text(st.characters(codec="utf-8"), max_size=20)
_services = st.builds(ServiceKey, st.sampled_from(["dubbo", "bolt", "http"]), *[_texts] * 3)


@given(_services, _services)
def test_no_two_services_have_keys_in_common(one: ServiceKey, other: ServiceKey) -> None:
    assert (directory(one) == directory(other)) == (one == other)
    assert directory(one).count("/") == 6


@given(
    st.builds(
        Instance,
        st.sampled_from([Address("10.0.0.1", 1), Address("2001:db8::1", 65535)]),
        weight=st.integers(0, 10_000),
        started=st.floats(0, 1 << 40),
        warmup=st.floats(0, 1e6),
        zone=_texts,
        metadata=st.dictionaries(_texts, _texts).map(lambda found: tuple(sorted(found.items()))),
    )
)
def test_what_is_written_is_read(written: Instance) -> None:
    key = key_of(Registration(ServiceKey("http", "x"), written))
    assert read_instance(key.rpartition("/")[2], value_of(written)) == written


_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["weight", "started", "zone", "metadata"]), inner)
    ),
)


@given(st.text(), st.binary() | _values.map(lambda value: json.dumps(value).encode()))
def test_no_value_is_a_crash(address: str, value: bytes) -> None:
    for each in (address, "10.0.0.1:1"):
        with contextlib.suppress(ValueError):
            read_instance(each, value)


def test_a_value_may_say_little() -> None:
    assert read_instance("10.0.0.1:1", b"{}") == Instance(Address("10.0.0.1", 1))
    with pytest.raises(ValueError, match="nested"):
        read_instance("10.0.0.1:1", b"[" * 100_000)


# ---- sessions ----


@contextlib.asynccontextmanager
async def channel_to(served: EtcdServer) -> AsyncIterator[Any]:
    """For somebody else at the same server."""
    async with grpc.aio.insecure_channel(f"ipv4:{served.address}") as channel:
        yield channel


async def revoke_all(channel: Any) -> None:
    leases = rpc.LeaseStub(channel)
    for lease in (await leases.LeaseLeases(rpc.LeaseLeasesRequest())).leases:
        await leases.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease.ID))


def service_named(name: str) -> ServiceKey:
    return ServiceKey("http", f"{name}.example")


def test_a_lease_that_is_lost_costs_a_moment(served: ServedEtcd) -> None:
    service = service_named("revoked")
    wanted = Registration(service, instance(1))

    async def revoke() -> None:
        async with channel_to(served) as channel:
            await revoke_all(channel)

    with Side(served.entry()) as provider, Side(served.entry()) as consumer:
        consumer.subscribe(service)
        provider.register(wanted)
        eventually(lambda: consumer.sees(service))
        count = len(consumer.told(service))
        asyncio.run(revoke())
        eventually(lambda: len(consumer.told(service)) > count or None)
        eventually(lambda: consumer.sees(service), patience=10.0)
        eventually(lambda: provider.has_registered(wanted))


def test_what_was_compacted_before_it_was_watched_is_read(
    served: ServedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_named("compacted")

    async def main() -> None:
        async with channel_to(served) as channel, session_at(served.entry()) as (session, told):
            kv = rpc.KVStub(channel)
            await session.register(Registration(service, instance(1)))
            read_all = session._read_all  # type: ignore[attr-defined]

            async def meanwhile(watched: Any) -> int:
                revision: int = await read_all(watched)
                monkeypatch.undo()
                await session.unregister(Registration(service, instance(1)))
                await session.register(Registration(service, instance(2)))
                latest = await kv.Range(rpc.RangeRequest(key=b"x"))
                await kv.Compact(rpc.CompactionRequest(revision=latest.header.revision))
                return revision

            monkeypatch.setattr(session, "_read_all", meanwhile)
            await session.subscribe(service)
            assert told.last[service] == [instance(1)]
            await until(lambda: told.last[service] == [instance(2)])
            await session.register(Registration(service, instance(3)))
            await until(lambda: told.last[service] == [instance(2), instance(3)])

    asyncio.run(main())


def test_many_instances_are_read_in_pages_and_no_more_than_allowed(
    served: ServedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_named("many")
    monkeypatch.setattr("pysidecar.registry.etcd.MAX_INSTANCES", 2_500)

    async def main() -> None:
        async with channel_to(served) as channel, session_at(served.entry()) as (session, told):
            kv = rpc.KVStub(channel)
            for first in range(0, 2_600, 100):
                puts = [
                    rpc.RequestOp(
                        request_put=rpc.PutRequest(
                            key=f"{directory(service)}10.0.{n >> 8}.{n & 255}:1".encode(),
                            value=b"{}",
                        )
                    )
                    for n in range(first, first + 100)
                ]
                await kv.Txn(rpc.TxnRequest(success=puts))
            await session.subscribe(service)
            assert 2_500 <= len(told.last[service]) <= 3_000
            assert len({each.address for each in told.last[service]}) == len(told.last[service])

    asyncio.run(main())


def test_malformed_values_are_left_out(
    served: ServedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    service = service_named("malformed")

    async def main() -> None:
        async with channel_to(served) as channel, session_at(served.entry()) as (session, told):
            kv = rpc.KVStub(channel)
            await session.register(Registration(service, instance(1)))
            for name, value in [("x", b"{}"), ("10.0.0.2:1", b"\xff"), ("10.0.0.3:1", b"[]")]:
                key = (directory(service) + name).encode()
                await kv.Put(rpc.PutRequest(key=key, value=value))
            await session.subscribe(service)
            assert told.last[service] == [instance(1)]
            key = (directory(service) + "10.0.0.2:1").encode()
            await kv.Put(rpc.PutRequest(key=key, value=b"{}"))
            await until(lambda: len(told.last[service]) == 2)

    asyncio.run(main())
    # grpcio may complain about the loops of other tests in this process.
    ours = [record for record in caplog.records if record.name.startswith("pysidecar")]
    assert len(ours) == 1


class EtcdWithTls(EtcdServer):
    """Whose clients need a certificate, too."""

    scheme = "https"

    def command(self) -> Sequence[str | Path]:
        self.certificate, self.key = make_certificate(self.directory)
        options = (
            *("--cert-file", self.certificate, "--key-file", self.key),
            *("--client-cert-auth", "--trusted-ca-file", self.certificate),
        )
        return (*super().command(), *options)


def test_tls_is_verified_in_both_directions(tmp_path: Path) -> None:
    registration = Registration(service_named("tls"), instance(1))
    with EtcdWithTls(tmp_path) as server:
        check_tls("etcd", server, registration, None)


def test_with_authentication_credentials_are_needed(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    service = service_named("guarded")
    (tmp_path / "etcd").mkdir()
    with EtcdServer(tmp_path / "etcd") as server:

        def entry(name: str) -> RegistryEntry:
            credentials = {"username": name, "password_file": str(password)}
            return RegistryEntry.model_validate(
                {"type": "etcd", "address": str(server.address), "credentials": credentials}
            )

        async def main() -> None:
            async with channel_to(server) as channel:
                auth = rpc.AuthStub(channel)
                await auth.UserAdd(rpc.AuthUserAddRequest(name="root", password="secret"))
                await auth.RoleAdd(rpc.AuthRoleAddRequest(name="root"))
                await auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user="root", role="root"))
                await auth.AuthEnable(rpc.AuthEnableRequest())
            async with session_at(entry("root")) as (session, told):
                await session.register(Registration(service, instance(1)))
                await session.subscribe(service)
                assert told.last[service] == [instance(1)]
                session._metadata = (("token", "expired"),)  # type: ignore[attr-defined]
                await session.register(Registration(service, instance(2)))
                await until(lambda: len(told.last[service]) == 2)
            with pytest.raises(RegistryError, match="authentication failed"):
                await make_registry(entry("mallory")).open(Told())

        asyncio.run(main())


def test_the_next_server_is_asked_when_one_is_away(served: ServedEtcd) -> None:
    entry = RegistryEntry.model_validate(
        {"type": "etcd", "address": f"127.0.0.1:1,{served.address},[::1]:1"}
    )

    async def main() -> None:
        registry = make_registry(entry)
        for _ in range(3):
            async with asyncio.timeout(PATIENCE):
                session = await registry.open(Told())
                await session.close()

    asyncio.run(main())
