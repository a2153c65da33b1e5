"""Endpoints on their way into the table: where they are, and which are asked how they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pysidecar.address import Address
from pysidecar.config import parse
from pysidecar.dataplane import DataPlane, EndpointSums, Timeouts
from pysidecar.registry.service import ServiceKey
from pysidecar.routing.found import NOTHING_FOUND, FoundService, FoundServices, Role
from pysidecar.routing.services import ServiceNumbers, checked_services, pack_services

NEAR, FAR, OTHER = (Address(f"10.0.0.{number}", 80) for number in (7, 8, 9))


class Table:
    """A data plane, and what is in its table."""

    def __init__(self) -> None:
        self.data = DataPlane(workers=1, timeouts=Timeouts())
        self.numbers = ServiceNumbers()

    def use(self, text: str, found: FoundServices = NOTHING_FOUND) -> None:
        self.data.set_services(pack_services(parse(text), self.numbers, found=found))

    def endpoints(self) -> list[EndpointSums]:
        return [each for piece in self.data.endpoints() for each in piece]

    def zones(self) -> list[tuple[Address, int, bool]]:
        return [(each.address, each.weight, each.other_zone) for each in self.endpoints()]


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    yield made
    made.data.stop()
    made.data.close()


def told(*zones: str) -> FoundServices:
    """A service at several addresses, as a registry tells of it."""
    addresses = (FAR, NEAR, OTHER)[: len(zones)]
    key = ServiceKey("bolt", "Echo:1.0")
    endpoints = tuple((address, 100) for address in addresses)
    return FoundServices((FoundService(key, Role.SUBSCRIBED, endpoints, zones=zones),))


ORDERS = """\
services:
  orders:
    protocol: http
    endpoints:
      - {address: 10.0.0.8:80, weight: 3, zone: b}
      - {address: 10.0.0.7:80, weight: 2, zone: a}
      - {address: 10.0.0.9:80, weight: 4}
"""


def test_the_preferred_zone_comes_first(table: Table) -> None:
    table.use(ORDERS)
    assert table.zones() == [(FAR, 3, False), (NEAR, 2, False), (OTHER, 4, False)]
    table.use(f"{ORDERS}    locality: {{prefer: a}}\n")
    assert [(address, other) for address, _, other in table.zones()] == [
        *((NEAR, False), (FAR, True), (OTHER, True)),
    ]
    table.use(f"{ORDERS}    locality: {{prefer: nowhere}}\n")
    assert not any(other for _, _, other in table.zones())


def test_what_a_registry_tells_has_the_zone_of_the_registry(table: Table) -> None:
    table.use("takeover: {}\nregistry: {zone: a}", told("b", "a", ""))
    assert [(address, other) for address, _, other in table.zones()] == [
        *((NEAR, False), (FAR, True), (OTHER, True)),
    ]
    table.use("takeover: {}", told("b", "a", ""))
    assert [address for address, _, _ in table.zones()] == [FAR, NEAR, OTHER]


@pytest.mark.parametrize(
    ("settings", "first"), [("", NEAR), (", locality: {prefer: b}", FAR)], ids=["registry", "own"]
)
def test_a_service_that_subscribes_may_prefer_another_zone(
    table: Table, settings: str, first: Address
) -> None:
    service = f"{{protocol: bolt, subscribe: 'Echo:1.0'{settings}}}"
    config = f"takeover: {{}}\nregistry: {{zone: a}}\nservices: {{echo: {service}}}"
    table.use(config, told("b", "a"))
    number = table.numbers.of("echo", "bolt")
    own = [each for each in table.endpoints() if each.service == number]
    assert [(each.address == first, each.other_zone) for each in own] == [
        *((True, False), (False, True)),
    ]


def test_endpoints_of_a_registry_are_asked_too(table: Table) -> None:
    text = (
        "takeover: {}\nservices:\n"
        "  echo: {protocol: bolt, subscribe: 'Echo:1.0', health_check: {}}\n"
        "  orders: {protocol: http, endpoints: [10.0.0.7:80], health_check: {path: /health}}\n"
        "  unasked: {protocol: http, endpoints: [10.0.0.8:80]}\n"
    )
    config = parse(text)
    assert [(each.name, each.endpoints) for each in checked_services(config, table.numbers)] == [
        *(("echo", ()), ("orders", (NEAR,))),
    ]
    found = told("b", "a")
    [echo, _] = checked_services(config, table.numbers, found)
    assert echo.endpoints == (FAR, NEAR)
    assert echo.settings.kind(echo.protocol) == "bolt"
    table.use(text, found)
    assert echo.number in {each.service for each in table.endpoints()}


def test_health_counts_at_once_and_outlives_the_table(table: Table) -> None:
    table.use(ORDERS)
    number = table.numbers.of("orders", "http")
    table.data.set_health([(number, NEAR, False), (number, Address("10.9.9.9", 80), False)])
    table.data.set_health([(number + 1, FAR, False)])  # nobody's
    assert [each.unhealthy for each in table.endpoints()] == [False, True, False]
    [outage] = table.data.outages()
    assert (outage.name, outage.endpoints, outage.available) == ("orders", 3, 2)
    assert (outage.panic, outage.percent) == (False, 50)
    table.use(f"{ORDERS}    locality: {{prefer: b}}\n    healthy_panic_threshold: 12.5%\n")
    assert {each.address for each in table.endpoints() if each.unhealthy} == {NEAR}
    assert table.data.outages()[0].percent == 12.5
    table.data.set_health([(number, FAR, False), (number, OTHER, False)])
    [outage] = table.data.outages()
    assert (outage.available, outage.panic) == (0, True)
    table.data.set_health([(number, each, True) for each in (NEAR, FAR, OTHER)])
    assert table.data.outages() == []
    table.use("services: {}")
    table.data.set_health([(number, NEAR, False)])
    table.use(ORDERS)
    assert not any(each.unhealthy for each in table.endpoints())


def test_a_service_may_be_subscribed_that_speaks_triple(table: Table) -> None:
    text = (
        "takeover: {}\n"
        "services: {greeter: {protocol: tri, subscribe: 'blue/a.Greeter:1.0', health_check: {}}}\n"
        "requests: [{match: {service: a.Greeter, version: '1.0', group: blue}, services: greeter}]"
    )
    key = ServiceKey("tri", "a.Greeter", "1.0", "blue")
    found = FoundServices((FoundService(key, Role.SUBSCRIBED, ((NEAR, 1),)),))
    table.use(text, found)
    number = table.numbers.of("greeter", "tri")
    assert NEAR in {each.address for each in table.endpoints() if each.service == number}
    [checked] = checked_services(parse(text), table.numbers, found)
    assert (checked.endpoints, checked.settings.kind(checked.protocol)) == ((NEAR,), "tcp")
