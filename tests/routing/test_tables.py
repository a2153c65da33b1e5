"""From the configuration to the data plane's table, and from one table to the next."""

from __future__ import annotations

import dataclasses

import pytest

from pysidecar.address import Address
from pysidecar.config import parse
from pysidecar.dataplane import (
    DataPlane,
    PackedServices,
    Protocol,
    RequestLimits,
    Scope,
    Timeouts,
)
from pysidecar.routing.services import ServiceNumbers, pack_services
from tests.control.configurations import EVERYTHING
from tests.routing.conftest import Request, Router, numbers_of

WEB = "  web: {protocol: http, timeout: 2s, endpoints: [10.0.0.1:80]}\n"
OTHER = "  other: {protocol: http, timeout: 0s}\n"
RULES = "requests:\n  - {match: {host: other}, services: other}\n  - {services: web, timeout: 1s}\n"


def test_rules_have_their_services(router: Router) -> None:
    router.load(f"services:\n{WEB}{OTHER}{RULES}")
    numbers = numbers_of(router)
    routed = router.route(Request(service="other"))
    assert (routed.rule, routed.service, routed.timeout_ms) == (0, numbers["other"], 0)
    routed = router.route(Request(service="web"))
    assert (routed.rule, routed.service, routed.timeout_ms) == (1, numbers["web"], 1000)


def test_a_service_keeps_its_number_wherever_it_stands(router: Router) -> None:
    router.load(f"services:\n{WEB}{OTHER}{RULES}")
    before = dict(numbers_of(router))
    router.load(f"services:\n  new: {{protocol: bolt}}\n{OTHER}{WEB}{RULES}")
    after = numbers_of(router)
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == 3
    assert router.generation == 2
    assert router.route(Request(service="web")).service == before["web"]


def test_a_service_of_another_protocol_is_another_one() -> None:
    """Nothing of its connections may be used on."""
    numbers = ServiceNumbers()
    assert numbers.of("a", "http") != numbers.of("a", "bolt")
    assert numbers.of("a", "http") == numbers.of("a", "http")


def test_a_weight_of_zero_gets_nothing(router: Router) -> None:
    router.load(f"services:\n{WEB}{OTHER}requests:\n  - services: {{web: 0, other: 1}}\n")
    service = numbers_of(router)["other"]
    assert {router.route(Request()).service for _ in range(100)} == {service}


def test_weights_are_shares(router: Router) -> None:
    router.load(f"services:\n{WEB}{OTHER}requests:\n  - services: {{web: 3, other: 1}}\n")
    service = numbers_of(router)["other"]
    count = sum(router.route(Request()).service == service for _ in range(2000))
    assert 400 < count < 600  # five standard deviations are 97


def test_a_header_says_the_hash(router: Router) -> None:
    router.load(
        "services: {web: {protocol: http, balance: {ring_hash: {header: X-User}}}}\n"
        "requests: [{services: web}]"
    )
    ann, bob = (Request(headers=(("x-USER", name),)) for name in ("ann", "bob"))
    assert router.route(ann).hash == router.route(ann).hash != router.route(bob).hash


def test_listeners_are_known_by_the_numbers_of_the_start(router: Router) -> None:
    text = (
        f"services:\n{WEB}  bolt: {{protocol: bolt}}\nlisteners:\n"
        "  - {listen: '127.0.0.1:1', service: web}\n"
        "  - {listen: '127.0.0.1:2'}\n"
    )
    at_start = [listener.listen for listener in parse(text).listeners]
    config = parse(
        f"services:\n{WEB}  bolt: {{protocol: bolt}}\nlisteners:\n"
        "  - {listen: '127.0.0.1:2', protocol: http}\n"
        "  - {listen: '127.0.0.1:1', service: bolt}\n"
    )
    router.load(text)
    numbers = numbers_of(router)
    assert router.entrance(0) == (Protocol.HTTP, numbers["web"], Scope.OUTBOUND)
    assert router.entrance(1) == (Protocol.AUTO, None, Scope.OUTBOUND)
    router.set(pack_services(config, router.numbers, at_start))
    assert router.entrance(0) == (Protocol.BOLT, numbers["bolt"], Scope.OUTBOUND)
    assert router.entrance(1) == (Protocol.HTTP, None, Scope.OUTBOUND)
    assert at_start == [Address("127.0.0.1", 1), Address("127.0.0.1", 2)]


def test_the_data_plane_takes_everything_and_refuses_what_is_broken() -> None:
    data_plane = DataPlane(workers=2, timeouts=Timeouts())
    packed = pack_services(parse(EVERYTHING), ServiceNumbers())
    data_plane.set_services(PackedServices())
    data_plane.set_services(packed)
    with pytest.raises(OSError, match="cannot set the services: Invalid argument"):
        data_plane.set_services(dataclasses.replace(packed, services=b""))
    data_plane.set_request_limits(RequestLimits(fields=128))
    with pytest.raises(OSError, match="Invalid argument"):
        data_plane.set_request_limits(RequestLimits(fields=129))
    data_plane.start()
    data_plane.set_services(packed)
    data_plane.set_services(PackedServices())
    data_plane.stop()
    data_plane.close()
