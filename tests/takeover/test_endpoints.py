"""What becomes of what a registry tells."""

from __future__ import annotations

import pytest

from pysidecar.address import Address
from pysidecar.registry.refusal import refusal
from pysidecar.registry.service import Instance
from pysidecar.takeover.advertised import advertised, expand
from pysidecar.takeover.endpoints import Endpoints

PROVIDER = Address("10.0.0.7", 20881)
NOW = 1_700_000_000.0


def _at(host: str, **what: object) -> Instance:
    return Instance(Address(host, 20881), **what)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "169.254.169.254", "224.0.0.1"),
        *("255.255.255.255", "240.0.0.1", "::", "::1", "fe80::1", "fe80::1%2", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0", "example.com", ""),
    ],
)
def test_a_registry_cannot_make_us_call_what_only_we_reach(host: str) -> None:
    assert refusal(Address(host, 80), loopback=False)
    selection = Endpoints().select([_at(host), _at("10.0.0.8")], [], NOW)
    assert [str(address) for address, _ in selection.endpoints] == ["10.0.0.8:20881"]
    assert [address.host for address, _ in selection.refused] == [host]


@pytest.mark.parametrize("host", ["10.0.0.8", "192.168.1.1", "8.8.8.8", "fd00::7", "2001:db8::1"])
def test_hosts_are_called(host: str) -> None:
    assert refusal(Address(host, 80), loopback=False) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_called_where_all_is_on_this_host(host: str) -> None:
    assert refusal(Address(host, 80), loopback=True) is None


def test_we_call_the_application_and_not_ourselves() -> None:
    endpoints = Endpoints(provider=PROVIDER, own={Address("10.0.0.7", 12220): "takeover.consumer"})
    told = [
        Instance(PROVIDER, weight=50),
        Instance(Address("10.0.0.7", 12220)),
        _at("10.0.0.8"),
    ]
    local = Address("127.0.0.1", 12200)
    selection = endpoints.select(told, [local], NOW)
    assert selection.endpoints == ((local, 50), (Address("10.0.0.8", 20881), 100))
    assert "takeover.consumer" in selection.refused[0][1]
    assert endpoints.select(told, [], NOW).endpoints == ((Address("10.0.0.8", 20881), 100),)


@pytest.mark.parametrize(
    "address",
    [
        Address("127.0.0.1", 12220),
        Address("127.0.0.2", 12220),
        Address("::ffff:127.0.0.2", 12220),
        Address("::ffff:10.0.0.7", 12221),
        Address("0:0:0:0:0:0:0:1", 12222),
    ],
    ids=str,
)
def test_we_are_not_called_by_another_spelling(address: Address) -> None:
    own = (Address("0.0.0.0", 12220), Address("10.0.0.7", 12221), Address("::1", 12222))
    endpoints = Endpoints(loopback=True, own=dict.fromkeys(own, "takeover.consumer"))
    selection = endpoints.select([Instance(address)], (), NOW)
    assert not selection.endpoints
    assert selection.refused == ((address, "it is the sidecar's own listener, takeover.consumer"),)


def test_we_are_told_of_ourselves_by_another_spelling() -> None:
    local = Address("127.0.0.1", 8080)
    endpoints = Endpoints(provider=Address("10.0.0.7", 20881))
    told = Instance(Address("::ffff:10.0.0.7", 20881))
    assert endpoints.select([told], [local], NOW).endpoints == ((local, 100),)


def test_it_is_known_where_they_are_and_whether_they_warm_up() -> None:
    near, far = _at("10.0.0.8", zone="a"), _at("10.0.0.9", started=NOW, warmup=10.0)
    selection = Endpoints().select([near, far], [], NOW)
    assert selection.endpoints == ((near.address, 100), (far.address, 1))
    assert selection.zones == ("a", "")
    assert selection.warming == {far.address}
    selection = Endpoints().select([far], [], NOW + 10)
    assert (selection.zones, selection.warming) == ((), frozenset())


def test_a_weight_grows_with_the_time_since_the_start() -> None:
    warming = _at("10.0.0.8", started=NOW, warmup=600.0)

    def weight_at(age: float) -> int:
        return Endpoints().select([warming], [], NOW + age).endpoints[0][1]

    assert [weight_at(age) for age in (0, 29, 30, 300, 599, 600, 6000)] == [
        *(1, 1, 5, 50, 95, 100, 100)
    ]
    assert Endpoints().select([warming], [], NOW + 31).changes == NOW + 60
    assert Endpoints().select([warming], [], NOW + 600).changes == float("inf")
    # A clock that is behind, or no start at all, keeps nobody cold for ever.
    assert weight_at(-10) == 100


def test_weights_are_bounded_and_none_is_none() -> None:
    selection = Endpoints().select(
        [_at("10.0.0.8", weight=10**9), _at("10.0.0.9", weight=0), _at("10.0.0.9", weight=-1)],
        [],
        NOW,
    )
    assert [weight for _, weight in selection.endpoints] == [10_000]


def test_what_is_advertised() -> None:
    everywhere = Address("0.0.0.0", 20881)
    assert advertised("10.1.2.3", everywhere, []) == Address("10.1.2.3", 20881)
    assert advertised(None, Address("10.1.2.3", 1), []) == Address("10.1.2.3", 1)
    found = advertised(None, everywhere, [Address("127.0.0.1", 2181)])
    assert found.host != "0.0.0.0"
    assert found.port == 20881


def test_every_address_means_those_of_the_same_family() -> None:
    hosts = ["127.0.0.1", "10.0.0.7", "::1"]
    assert expand(Address("0.0.0.0", 1), hosts) == [
        Address("127.0.0.1", 1),
        Address("10.0.0.7", 1),
    ]
    assert expand(Address("::", 1), hosts) == [Address("::1", 1)]
    assert expand(Address("10.0.0.9", 1), hosts) == [Address("10.0.0.9", 1)]
