"""What services and rules say about failures, in the data plane's form."""

from __future__ import annotations

from typing import Any

import pytest

from pysidecar.config import parse
from pysidecar.dataplane import lib
from pysidecar.routing.services import ServiceNumbers, pack_services


def packed(text: str) -> tuple[Any, Any]:
    """The table, and its arrays."""
    return pack_services(parse(text), ServiceNumbers()).to_native()


def statuses(resilience: Any) -> list[int]:
    bits = int.from_bytes(bytes(resilience.statuses), "little")
    return [status for status in range(lib.DP_STATUSES) if bits >> status & 1]


def reasons(resilience: Any) -> set[int]:
    return {reason for reason in range(lib.DP_RETRIES) if resilience.retry_on >> reason & 1}


def test_what_says_nothing_has_nothing() -> None:
    table, arrays = packed(
        "services: {web: {protocol: http, circuit_breaker: {connections: 7}}}\n"
        "requests: [{services: web}]\n"
    )
    assert (table.services[0].resilience, table.rules[0].handling) == (0, 0)
    assert (len(arrays["resiliences"]), len(arrays["handlings"])) == (0, 0)
    assert table.services[0].connections == 7


def test_each_value_is_where_it_belongs() -> None:
    table, arrays = packed(
        "services:\n"
        "  web:\n"
        "    protocol: http\n"
        "    circuit_breaker: {requests: 70, retries: 4}\n"
        "    rate_limit: {requests: 10, per: 2s, burst: 3}\n"
        "    mirror: {to: shadow, percent: 0.5}\n"
        "    retries: {attempts: 2, per_try_timeout: 300ms, backoff: {base: 5ms}, budget: 12.5%}\n"
        "  shadow: {protocol: http}\n"
        "requests:\n"
        "  - services: shadow\n"
        "    idempotent: true\n"
        "    hedge: {after: 40ms}\n"
        "    fault: {delay: {fixed: 1s, percent: 10}, abort: {status: 500, percent: 0.0001}}\n"
    )
    assert [service.resilience for service in table.services[0:2]] == [1, 2]
    web, hedged = arrays["resiliences"]
    assert (hedged.retries, hedged.budget, hedged.least_retries) == (0, 200000, 3)
    assert (web.retries, web.attempt_ms, web.budget, web.least_retries) == (2, 300, 125000, 4)
    assert (web.backoff_ms, web.longest_backoff_ms) == (5, 50)
    assert (web.requests, web.rate_requests, web.rate_ms, web.rate_burst) == (70, 10, 2000, 3)
    assert (web.mirror_share, web.mirror) == (5000, 1)
    assert table.rules[0].handling == 1
    [handling] = arrays["handlings"]
    assert (handling.delay_ms, handling.delay_share) == (1000, 100000)
    assert (handling.abort_status, handling.abort_share) == (500, 1)
    assert (handling.hedge_ms, handling.idempotent) == (40, 1)


def test_what_several_share_is_there_once() -> None:
    table, arrays = packed(
        "services: {a: {protocol: http, retries: {}}, b: {protocol: bolt, retries: {}}}\n"
        "requests: [{services: a, idempotent: true}, {services: b, idempotent: true}]\n"
    )
    assert [service.resilience for service in table.services[0:2]] == [1, 1]
    assert [rule.handling for rule in table.rules[0:2]] == [1, 1]
    assert (len(arrays["resiliences"]), len(arrays["handlings"])) == (1, 1)


RESET = {lib.DP_RETRY_RESET_UNSENT, lib.DP_RETRY_RESET, lib.DP_RETRY_ATTEMPT_TIMEOUT}
ANY = {lib.DP_RETRY_CONNECT_FAILURE, lib.DP_RETRY_REFUSED} | RESET


@pytest.mark.parametrize(
    ("condition", "expected", "answers"),
    [
        ("connect_failure", {lib.DP_RETRY_CONNECT_FAILURE}, []),
        ("refused_stream", {lib.DP_RETRY_REFUSED}, []),
        ("reset_before_request", {lib.DP_RETRY_RESET_UNSENT}, []),
        ("reset_before_response", RESET, []),
        ("gateway_error", ANY, [502, 503, 504]),
        ("5xx", ANY, list(range(500, 600))),
        ("retriable_4xx", set(), [409]),
        ("503", set(), [503]),
        ("[7, '4', connect_failure]", {lib.DP_RETRY_CONNECT_FAILURE}, [4, 7]),
    ],
)
def test_reasons(condition: str, expected: set[int], answers: list[int]) -> None:
    _, arrays = packed(f"services: {{web: {{protocol: http, retries: {{on: {condition}}}}}}}")
    assert reasons(arrays["resiliences"][0]) == expected
    assert statuses(arrays["resiliences"][0]) == answers
