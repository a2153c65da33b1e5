"""How services that were found are treated: which policy counts, and what the table has of it."""

from __future__ import annotations

from typing import Any

import pytest

from pysidecar.address import Address
from pysidecar.config import Config, ConfigError, FoundPolicy, parse
from pysidecar.dataplane import Balance
from pysidecar.registry.service import ServiceKey
from pysidecar.routing.found import FoundService, FoundServices, Role
from pysidecar.routing.policies import Policies
from pysidecar.routing.services import ServiceNumbers, checked_services, pack_services

ORDERS = ServiceKey("dubbo", "com.acme.Orders", "1.0", "blue")
THERE = Address("10.0.0.7", 20881)


def configured(policies: str) -> Config:
    return parse(f"takeover: {{services: {{{policies}}}}}")


def found(*keys: ServiceKey, role: Role = Role.SUBSCRIBED) -> FoundServices:
    return FoundServices(tuple(FoundService(key, role, ((THERE, 1),)) for key in keys))


def packed(config: Config, services: FoundServices) -> dict[str, Any]:
    """The services of the table by name, and its arrays."""
    table, arrays = pack_services(config, ServiceNumbers(), found=services).to_native()
    names = {}
    for at in range(table.service_count):
        text = arrays["texts"][table.services[at].name]
        name = b"".join(arrays["characters"][text.first : text.first + text.size]).decode()
        names[name] = table.services[at]
    return {**names, "arrays": arrays, "table": table}


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (["*"], "*"),
        (["*", "com.acme.*"], "com.acme.*"),
        (["com.acme.*", "*Orders*"], "com.acme.*"),
        (["com.acme.Orders*", "com.acme.Orders"], "com.acme.Orders"),
        (["com.acme.Orders", "blue/com.acme.Orders:1.0"], "blue/com.acme.Orders:1.0"),
        (["*:1.0"], "*:1.0"),
        (["com.acme.Order"], None),
        (["com.acme.order*", "green/*"], None),
        (["com?acme.Orders", "com.acme.[O]rders"], None),
        ([], None),
    ],
)
def test_the_policy_that_says_most_of_the_name_counts(names: list[str], counts: str | None) -> None:
    for order in (names, names[::-1]):
        assert Policies({name: FoundPolicy() for name in order}).of(ORDERS) == counts


def test_a_policy_is_in_the_table() -> None:
    config = configured(
        "'*Orders': {timeout: 3s, balance: {ring_hash: {header: x-user}}, connections: 7,"
        " retries: {attempts: 2}, rate_limit: {requests: 5}, healthy_panic_threshold: 0%,"
        " outlier_detection: {consecutive_errors: 4}, circuit_breaker: {requests: 9}}"
    )
    calls, other = ServiceKey("grpc", "shop.Orders"), ServiceKey("bolt", "Echo:1.0")
    table = packed(config, found(ORDERS, calls, other))
    arrays = table["arrays"]
    for name in ("blue/com.acme.Orders:1.0", "shop.Orders"):
        service = table[name]
        assert (service.timeout_ms, service.connections) == (3000, 7)
        assert service.balance == Balance.RING_HASH
        assert (service.policy.panic_share, service.policy.outlier_errors) == (0, 4)
        resilience = arrays["resiliences"][service.resilience - 1]
        assert (resilience.retries, resilience.rate_requests, resilience.requests) == (2, 5, 9)
    # A stream may be silent for as long as its deadline allows.
    assert table["shop.Orders"].silent_ms == 0
    assert table["blue/com.acme.Orders:1.0"].silent_ms == 60000
    assert (table["Echo:1.0"].resilience, table["Echo:1.0"].timeout_ms) == (0, 0)


def test_what_applications_here_provide_has_none() -> None:
    config = configured("'*': {rate_limit: {requests: 5}, health_check: {}}")
    services = found(ORDERS, role=Role.PUBLISHED)
    assert packed(config, services)["blue/com.acme.Orders:1.0"].resilience == 0


def test_a_reload_changes_the_policy_of_what_stays() -> None:
    numbers, services = ServiceNumbers(), found(ORDERS)
    for text, seconds in (("'*': {timeout: 3s}", 3000), ("'*': {timeout: 4s}", 4000), ("", 0)):
        table, _ = pack_services(configured(text), numbers, found=services).to_native()
        assert table.services[0].timeout_ms == seconds


@pytest.mark.parametrize(
    ("protocol", "check", "kind"),
    [
        ("http", "{}", "tcp"),
        ("tri", "{}", "tcp"),
        ("bolt", "{}", "bolt"),
        ("dubbo", "{}", "dubbo"),
        ("grpc", "{}", "grpc"),
        ("grpc", "{type: tcp}", "tcp"),
        ("http", "{type: http, path: /health}", "http"),
    ],
)
def test_endpoints_are_asked_in_a_way_that_fits(protocol: str, check: str, kind: str) -> None:
    config, numbers = configured(f"'*': {{health_check: {check}}}"), ServiceNumbers()
    services = found(ServiceKey(protocol, "orders"))
    pack_services(config, numbers, found=services)
    [checked] = checked_services(config, numbers, services)
    assert (checked.name, checked.endpoints) == ("orders", (THERE,))
    assert checked.settings.kind(checked.protocol) == kind
    pack_services(configured(""), numbers, found=services)
    assert checked_services(configured(""), numbers, services) == []


def test_a_zone_may_be_preferred() -> None:
    service = FoundService(
        ORDERS, Role.SUBSCRIBED, ((THERE, 1), (Address("10.0.0.8", 1), 1)), zones=("a", "b")
    )
    table = packed(configured("'*': {locality: {prefer: b}}"), FoundServices((service,)))
    levels = [table["table"].endpoints[at].level for at in range(2)]
    assert levels == [0, 1]
    first = table["table"].endpoints[0].address
    assert Address.from_native(first) == Address("10.0.0.8", 1)


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        (
            "'*': {retries: {attempts: 0}}",
            "f.yaml:1: takeover.services.*.retries.attempts: 0: expected",
        ),
        ("'*': {retry: {}}", "f.yaml:1: takeover.services.*.retry: unknown key; did you mean"),
        ("'*': {protocol: http}", "takeover.services.*.protocol: unknown key"),
        ("'a b': {}", "takeover.services"),
        ("'*': {health_check: {path: /health}}", "expected a type beside path in health_check"),
        ("'*': 3", "takeover.services.*: 3: expected keys below it"),
    ],
)
def test_errors_say_what_was_expected(policies: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"takeover: {{services: {{{policies}}}}}", source="f.yaml")
    assert message in str(caught.value)


def test_names_of_hosts_are_without_regard_to_case() -> None:
    for name in ("Shop.Example", "Shop.*", "*.EXAMPLE"):
        policies = Policies({name: FoundPolicy()})
        assert policies.of(ServiceKey.named("http", "shop.Example")) == name
        assert policies.of(ServiceKey("bolt", "shop.example")) is None


@pytest.mark.parametrize(
    ("pattern", "name", "is_like"),
    [
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*ab*ab*", "ab", False),
        ("*ab*ab*", "xabab", True),
        ("a**b", "ab", True),
        ("*a" * 200 + "*", "a" * 199 + "b" * 313, False),  # for a regular expression, without end
    ],
)
def test_a_star_stands_for_any_characters(pattern: str, name: str, is_like: bool) -> None:
    assert (Policies({pattern: FoundPolicy()}).of(ServiceKey("bolt", name)) is not None) == is_like
