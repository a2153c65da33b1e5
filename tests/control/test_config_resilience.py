"""Retries, limits, mirrors, faults and hedging: what a configuration means, and what its errors
say."""

from __future__ import annotations

import pytest
import yaml

from pysidecar.config import ConfigError, parse
from pysidecar.config.resilience import (
    CircuitBreaker,
    Fault,
    FaultAbort,
    Hedge,
    Mirror,
    RateLimit,
    Retries,
)
from tests.control.configurations import EVERYTHING

SERVICES = """\
services:
  web: {protocol: http}
  bolt: {protocol: bolt}
"""


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, source="f.yaml")
    return str(caught.value).splitlines()


def service_error(keys: str) -> str:
    [line] = errors(f"services:\n  bolt: {{protocol: bolt}}\n  a: {{protocol: http, {keys}}}\n")
    return line


def test_every_key_is_read() -> None:
    config = parse(EVERYTHING)
    service = config.services["orders-v2"]
    assert service.circuit_breaker == CircuitBreaker(requests=10000, retries=5)
    assert service.rate_limit == RateLimit.model_validate(
        {"requests": 1000, "per": "500ms", "burst": 200}
    )
    assert service.mirror == Mirror(to="orders", percent=0.5)
    assert service.retries == Retries.model_validate(
        {
            "attempts": 2,
            "on": [
                *("connect_failure", "reset_before_request", "reset_before_response", "503"),
                *("429", "gateway_error"),
            ],
            "per_try_timeout": "500ms",
            "backoff": {"base": "10ms", "max": "250ms"},
            "budget": "25%",
        }
    )
    rule = config.requests[1]
    assert rule.idempotent
    assert rule.hedge == Hedge.model_validate({"after": "50ms"})
    assert rule.fault == Fault.model_validate(
        {
            "delay": {"fixed": "200ms", "percent": 10},
            "abort": {"status": 503, "percent": 0.25},
        }
    )


def test_what_is_left_out_is_as_documented() -> None:
    config = parse(
        "services: {a: {protocol: http, retries: {}, circuit_breaker: {}, mirror: {to: b},"
        " rate_limit: {requests: 5}}, b: {protocol: http}}\n"
    )
    service = config.services["a"]
    assert service.retries is not None
    assert service.retries.on == ("connect_failure", "refused_stream", "reset_before_response")
    assert (service.retries.attempts, service.retries.budget) == (1, 20.0)
    assert (service.retries.backoff.base, service.retries.backoff.longest) == (0.025, 0.25)
    assert service.circuit_breaker == CircuitBreaker(retries=3)
    assert service.rate_limit is not None
    assert (service.rate_limit.per, service.rate_limit.most_at_once) == (1.0, 5)
    assert service.mirror == Mirror(to="b", percent=100)
    assert (config.services["b"].retries, config.services["b"].rate_limit) == (None, None)


def test_limits_of_the_circuit_breaker_are_the_services() -> None:
    text = "services: {a: {protocol: http, circuit_breaker: {connections: 7, pending: 0}}}"
    config = parse(text)
    assert (config.services["a"].connections, config.services["a"].pending) == (7, 0)
    again = parse(yaml.safe_dump(config.to_plain()))
    assert again.services["a"] == config.services["a"]


@pytest.mark.parametrize(("text", "share"), [("5", 5), ("0.0001", 0.0001), ("'100%'", 100)])
def test_percentages(text: str, share: float) -> None:
    config = parse(
        f"services: {{a: {{protocol: http, mirror: {{to: b, percent: {text}}}}},"
        " b: {protocol: http}}"
    )
    mirror = config.services["a"].mirror
    assert mirror is not None
    assert mirror.percent == share
    again = parse(yaml.safe_dump(config.to_plain()))
    assert again.services["a"].mirror == mirror


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ("retries: {attempts: 0}", "f.yaml:3: services.a.retries.attempts: 0: expected greater"),
        ("retries: {attempts: 11}", "services.a.retries.attempts: 11: expected less than or equal"),
        ("retries: {on: [connect]}", "services.a.retries.on[0]: 'connect': expected connect_fail"),
        (
            "retries: {on: [503, unavailable]}",
            "a: expected no unavailable, a status of gRPC, in retries.on with protocol http",
        ),
        ("retries: {on: []}", "services.a.retries.on: []: expected at least one"),
        ("retries: {on: 1000}", "or the status of an answer such as 503"),
        ("retries: {try: 1}", "services.a.retries.try: unknown key"),
        ("retries: {budget: 20 %}", "'20 %': expected a share from 0% to 100%, such as 20%"),
        ("retries: {budget: 101}", "101: expected a share from 0% to 100%"),
        ("retries: {per_try_timeout: 1}", "services.a.retries.per_try_timeout: 1: expected a dur"),
        ("retries: {backoff: {base: 2s, max: 1s}}", "retries.backoff: expected a max of at least"),
        ("circuit_breaker: {requests: 0}", "services.a.circuit_breaker.requests: 0: expected"),
        ("circuit_breaker: {request: 1}", "unknown key; did you mean requests?"),
        (
            "pending: 1, circuit_breaker: {pending: 2}",
            "services.a: expected pending once: it is in circuit_breaker, too",
        ),
        ("rate_limit: {}", "services.a.rate_limit.requests: expected this key, which has no def"),
        ("rate_limit: {requests: 0}", "services.a.rate_limit.requests: 0: expected greater"),
        ("rate_limit: {requests: 100, burst: 0}", "services.a.rate_limit.burst: 0: expected"),
        (
            "rate_limit: {requests: 20000, per: 1ms}",
            "services.a.rate_limit: expected at most 10,000,000 requests a second",
        ),
        (
            "rate_limit: {requests: 1, per: 49d, burst: 100}",
            "services.a.rate_limit: expected a burst that comes back within a year",
        ),
        ("mirror: {percent: 5}", "services.a.mirror.to: expected this key, which has no default"),
        (
            "mirror: {to: blot}",
            "'blot': expected a service that is defined under services; did you mean bolt?",
        ),
        ("mirror: {to: a}", "'a': expected another service than the one whose requests it copies"),
        ("mirror: {to: bolt}", "'bolt': expected a service of http, not of bolt"),
        ("mirror: {to: bolt, percent: -1}", "-1: expected a share from 0% to 100%"),
        ("mirror: {to: bolt, percent: true}", "True: expected a share from 0% to 100%"),
    ],
)
def test_a_wrong_service(keys: str, error: str) -> None:
    assert error in service_error(keys)


@pytest.mark.parametrize("keys", ["retries: {}", "rate_limit: {requests: 1}", "mirror: {to: a}"])
def test_what_is_about_requests_is_not_for_bytes(keys: str) -> None:
    [line] = errors(f"services: {{a: {{protocol: tcp, {keys}}}}}")
    name = keys.partition(":")[0]
    assert f"services.a: expected no {name} with protocol tcp" in line


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ("services: web, idempotent: 1", "requests[0].idempotent: 1: expected true or false"),
        ("services: web, hedge: {}", "requests[0].hedge.after: expected this key, which has no"),
        ("services: web, fault: {delay: 1s}", "requests[0].fault.delay: '1s': expected keys below"),
        (
            "services: web, fault: {abort: {status: 99}}",
            "f.yaml:5: requests[0].fault.abort.status: 99: expected a status of HTTP from 200",
        ),
        ("services: web, fault: {abort: {status: 304}}", "304: expected a status of HTTP from 200"),
        ("services: bolt, fault: {abort: {status: 600}}", "600: expected less than or equal to 5"),
    ],
)
def test_a_wrong_rule(keys: str, error: str) -> None:
    [line] = errors(f"{SERVICES}requests:\n  - {{{keys}}}\n")
    assert error in line


def test_bolt_and_dubbo_have_statuses_of_their_own() -> None:
    config = parse(f"{SERVICES}requests: [{{services: bolt, fault: {{abort: {{status: 6}}}}}}]")
    assert config.requests[0].fault == Fault(abort=FaultAbort(status=6))
