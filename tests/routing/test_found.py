"""What takeover found in the table of services: which requests go there, from where."""

from __future__ import annotations

from dataclasses import replace

from pysidecar.address import Address
from pysidecar.config import Config, parse
from pysidecar.dataplane import DataPlane, Protocol, Scope, ServiceRole, Timeouts
from pysidecar.registry.service import ServiceKey
from pysidecar.routing.found import FoundService, FoundServices, Role
from pysidecar.routing.services import (
    ServiceNumbers,
    consumer_entrance,
    pack_services,
    provider_entrance,
)
from tests.routing.conftest import Request, Router

HERE, THERE = Address("127.0.0.1", 12200), Address("10.0.0.2", 20881)
OUTBOUND, INBOUND, PROVIDER = Scope
CONFIG = parse("takeover: {}")


def bolt(name: str, role: Role = Role.SUBSCRIBED, *endpoints: Address) -> FoundService:
    return FoundService(ServiceKey("bolt", name), role, tuple((each, 1) for each in endpoints))


def dubbo(version: str = "", group: str = "", role: Role = Role.SUBSCRIBED) -> FoundService:
    return FoundService(ServiceKey("dubbo", "a.Orders", version, group), role, ((THERE, 1),))


def http(name: str) -> FoundService:
    return FoundService(ServiceKey("http", name), Role.SUBSCRIBED, ((THERE, 1),))


def use(router: Router, *services: FoundService, config: Config = CONFIG) -> None:
    router.use(config, FoundServices(services))


def where(router: Router, request: Request, scope: Scope = OUTBOUND) -> FoundService | int | None:
    """The service that gets the request, or if that was not found its number."""
    number = router.route(request, scope).service
    found = (part.source for part in router.numbers.found.values() if part.number == number)
    return next((each for each in found if isinstance(each, FoundService)), number)


def call(service: str, version: str = "", group: str = "") -> Request:
    return Request(Protocol.DUBBO, service=service, version=version, group=group)


def test_bolt_services_are_named_as_a_whole(router: Router) -> None:
    plain, unique = bolt("Echo:1.0"), bolt("Echo:1.0:u1")
    use(router, plain, unique)
    assert where(router, Request(Protocol.BOLT, service="Echo:1.0")) is plain
    assert where(router, Request(Protocol.BOLT, service="Echo:1.0:u1")) is unique
    for other in ("Echo:1.1", "Echo", "Echo:1.0:u2", "echo:1.0", "Echo:1.0:", ""):
        assert where(router, Request(Protocol.BOLT, service=other)) is None
    assert where(router, Request(Protocol.HTTP, service="Echo:1.0")) is None
    assert where(router, call("Echo:1.0")) is None


def test_a_group_that_calls_of_bolt_do_not_say_takes_none_from_who_has_no_group(
    router: Router,
) -> None:
    grouped, another, plain = (
        FoundService(ServiceKey("bolt", "Echo:1.0", group=group), Role.SUBSCRIBED, ((THERE, 1),))
        for group in ("evil", "blue", "")
    )
    echo = Request(Protocol.BOLT, service="Echo:1.0")
    use(router, grouped, another, plain)
    assert where(router, echo) is plain
    use(router, grouped, another)
    assert where(router, echo) is grouped


def test_dubbo_services_have_exactly_that_version_and_group(router: Router) -> None:
    neither, versioned, grouped = dubbo(), dubbo("1.0"), dubbo("1.0", "blue")
    use(router, neither, versioned, grouped)
    assert where(router, call("a.Orders")) is neither
    assert where(router, call("a.Orders", "0.0.0")) is neither
    assert where(router, call("a.Orders", "1.0")) is versioned
    assert where(router, call("a.Orders", "1.0", "blue")) is grouped
    for version, group in (("1.1", ""), ("1.0", "red"), ("", "blue"), ("*", "")):
        assert where(router, call("a.Orders", version, group)) is None


def test_a_star_that_was_subscribed_stands_for_any_but_comes_last(router: Router) -> None:
    any_version, any_of_both, exact = dubbo("*"), dubbo("*", "*"), dubbo("1.0")
    use(router, any_version, any_of_both, exact)
    assert where(router, call("a.Orders", "1.0")) is exact
    assert where(router, call("a.Orders", "2.0")) is any_version
    assert where(router, call("a.Orders", "2.0", "blue")) is any_of_both
    published = dubbo("*", role=Role.PUBLISHED)
    use(router, published)
    assert where(router, call("a.Orders", "2.0"), PROVIDER) is None
    assert where(router, call("a.Orders", "*"), PROVIDER) is published


def test_http_services_are_named_by_the_host_or_another_header(router: Router) -> None:
    one, other = http("Orders.example.com"), http("*")
    use(router, one, other)
    assert where(router, Request(service="orders.EXAMPLE.com")) is one
    assert where(router, Request(service="*")) is other
    assert where(router, Request(service="x")) is None
    by_header = parse("takeover: {host_header: X-Service}")
    use(router, one, other, config=by_header)  # though the services are the same
    for name in ("Orders.example.com", "ORDERS.example.com"):  # without regard to case, like hosts
        named = (("x-service", name),)
        assert where(router, Request(service="x", headers=named)) is one
    assert where(router, Request(service="x", headers=(("x-service", "orders"),))) is None
    assert where(router, Request(service="orders.example.com")) is None


def test_each_scope_asks_its_rules(router: Router) -> None:
    config = parse(
        "takeover: {}\nservices: {mine: {protocol: bolt}}\n"
        "requests: [{match: {service: 'Mine:1.0'}, services: mine}]"
    )
    ours = [bolt(name, role) for name in ("Mine:1.0", "Echo:1.0") for role in Role]
    use(router, *ours, config=config)
    mine, echo = (Request(Protocol.BOLT, service=name) for name in ("Mine:1.0", "Echo:1.0"))
    configured = router.numbers.of("mine", "bolt")
    assert [where(router, mine, scope) for scope in Scope] == [configured, configured, ours[1]]
    assert [where(router, echo, scope) for scope in Scope] == [ours[2], ours[3], ours[3]]


def test_what_is_passed_counts_at_the_provider_port_only(router: Router) -> None:
    published = dubbo(role=Role.PUBLISHED)
    passed = tuple(
        (protocol, name, HERE)
        for protocol in ("dubbo", "bolt", "http")
        for name in ("a.Meta", "b.*", "b.*")
    )
    router.use(CONFIG, FoundServices((published,), passed))
    for scope in (OUTBOUND, INBOUND):
        assert where(router, call("a.Meta"), scope) is None
    meta = where(router, call("a.Meta", "1.0", "any"), PROVIDER)
    assert isinstance(meta, int)
    assert where(router, call("b.Other"), PROVIDER) not in (None, meta)
    assert where(router, call("a.Orders"), PROVIDER) is published
    assert where(router, call("c"), PROVIDER) is None
    assert where(router, Request(Protocol.BOLT, service="a.Meta:1.0"), PROVIDER) is not None
    assert where(router, Request(service="A.meta"), PROVIDER) is not None


def test_the_ports_are_behind_the_listeners(router: Router) -> None:
    config = parse("takeover: {}\nlisteners: [{listen: '127.0.0.1:0'}, {listen: '127.0.0.1:0'}]")
    router.use(config)
    consumer, provider = (of(config.listeners) for of in (consumer_entrance, provider_entrance))
    assert router.entrance(consumer) == (Protocol.AUTO, None, OUTBOUND)
    assert router.entrance(provider) == (Protocol.AUTO, None, PROVIDER)
    router.load("listeners: [{listen: '127.0.0.1:0'}, {listen: '127.0.0.1:0'}]")
    assert router.entrance(consumer) == (Protocol.TCP, None, OUTBOUND)


def test_a_found_service_keeps_its_number_as_long_as_it_is_there(router: Router) -> None:
    one, other = bolt("Echo:1.0"), bolt("Other:1.0")
    use(router, one, other)
    number = router.numbers.of_found(one)
    use(router, replace(one, endpoints=((THERE, 3),)))
    assert router.numbers.of_found(one) == number
    names = 50
    for name in range(names):
        use(router, one, bolt(f"Service{name}:1.0"))
        assert len(router.numbers) == 2
    use(router, one, other)
    assert router.numbers.of_found(one) == number
    assert router.numbers.of_found(other) > names  # none is used for another name


def test_names_that_are_configured_and_found_are_apart() -> None:
    numbers = ServiceNumbers()
    config = parse("takeover: {}\nservices: {'Echo:1.0': {protocol: bolt}}")
    found = [bolt("Echo:1.0", role, HERE) for role in Role]
    bytes_of_name = FoundService(ServiceKey("dubbo", "Echo", "1.0"), Role.SUBSCRIBED, ((HERE, 7),))
    data_plane = DataPlane(workers=1, timeouts=Timeouts())
    data_plane.set_services(
        pack_services(config, numbers, found=FoundServices((*found, bytes_of_name)))
    )
    services = [each for piece in data_plane.services() for each in piece]
    endpoints = [each for piece in data_plane.endpoints() for each in piece]
    data_plane.stop()
    data_plane.close()
    assert [(each.name, each.protocol, each.role) for each in services] == [
        ("Echo:1.0", Protocol.BOLT, ServiceRole.CONFIGURED),
        ("Echo:1.0", Protocol.BOLT, ServiceRole.SUBSCRIBED),
        ("Echo:1.0", Protocol.BOLT, ServiceRole.PUBLISHED),
        ("Echo:1.0", Protocol.DUBBO, ServiceRole.SUBSCRIBED),
    ]
    assert len({each.number for each in services}) == 4
    assert [each.address for each in endpoints] == [HERE] * 3


def test_what_has_not_changed_is_not_packed_again() -> None:
    numbers = ServiceNumbers()
    one, other = bolt("Echo:1.0", Role.SUBSCRIBED, HERE), bolt("Other:1.0", Role.SUBSCRIBED, HERE)
    pack_services(CONFIG, numbers, found=FoundServices((one, other)))
    configured, parts = numbers.configured, dict(numbers.found)
    changed = replace(one, endpoints=((THERE, 1),))
    packed = pack_services(CONFIG, numbers, found=FoundServices((changed, other)))
    assert numbers.configured is configured
    assert numbers.found[id(other)] is parts[id(other)]
    assert packed == pack_services(CONFIG, numbers, found=FoundServices((changed, other)))
    assert packed != pack_services(CONFIG, numbers, found=FoundServices((one, other)))
