"""``/services``, ``pysidecar services`` and the metrics of requests: sums, and how they change."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pysidecar.address import Address
from pysidecar.admin import lately, request_metrics
from pysidecar.admin.lately import Lately, by_duration, quantile
from pysidecar.cli.services import SERVICES
from pysidecar.dataplane import (
    REQUEST_BOUNDS,
    Bound,
    EndpointSums,
    Flag,
    Protocol,
    RequestTally,
    ServiceSums,
)
from tests.control.observed import Shown, answers, tally

ONE, OTHER = Address("10.0.0.1", 80), Address("fd00::1", 80)


def orders(sums: RequestTally, number: int = 1, name: str = "orders") -> ServiceSums:
    return ServiceSums(number, name, Protocol.HTTP, sums)


def endpoint(address: Address, sums: RequestTally, service: int = 1) -> EndpointSums:
    return EndpointSums(service, address, 1, False, sums)


SHOWN = Shown(
    service_sums=[
        orders(
            tally(
                {"2xx": 90, "5xx": 10},
                flags={Flag.TIMEOUT: 4, Flag.RETRIED: 2},
                active=3,
                pending=1,
                connections=5,
            )
        )._replace(retries=2, reached=(Bound.PENDING, Bound.RATE)),
        orders(tally(), number=2, name='pay"ments\\'),
    ],
    endpoint_sums=[
        EndpointSums(1, ONE, 2, False, tally({"2xx": 90}, active=3, connections=5)),
        EndpointSums(1, OTHER, 1, True, tally({"5xx": 6})),
    ],
)

# ---- the page ----


def test_services_with_their_endpoints() -> None:
    [(_, body)] = answers(SHOWN, "/services")
    first, second = json.loads(body)
    assert first.pop("rate") > 0
    assert first.pop("p50_ms") == pytest.approx(1.75)
    assert first.pop("p99_ms") == pytest.approx(2.485)
    one, other = first.pop("endpoints")
    assert first == {
        "service": "orders",
        "protocol": "http",
        "role": "configured",
        "available": 0,
        "panic": False,
        "active": 3,
        "pending": 1,
        "retrying": 2,
        "at_limit": ["pending", "rate"],
        "connections": 5,
        "requests": 100,
        "failures": 10,
        "attempts": 100,
        "bytes_sent": 10000,
        "bytes_received": 100000,
        "statuses": {"2xx": 90, "5xx": 10},
        "flags": {"timeout": 4, "retried": 2},
    }
    assert (one["address"], one["weight"], one["ejected"]) == ("10.0.0.1:80", 2, False)
    assert (one["active"], one["connections"], one["requests"]) == (3, 5, 90)
    assert (other["address"], other["ejected"], other["failures"]) == ("[fd00::1]:80", True, 6)
    assert second["service"] == 'pay"ments\\'
    assert (second["rate"], second["p50_ms"], second["endpoints"]) == (0, None, [])


def test_requests_without_a_service_are_there_when_there_are_some() -> None:
    shown = Shown(unserved_tally=tally({"4xx": 3}, flags={Flag.NO_ROUTE: 3}))
    [(_, body), (_, of_none)] = answers(shown, "/services", "/services?service=orders")
    [entry] = json.loads(body)
    assert (entry["service"], entry["requests"], entry["flags"]) == (None, 3, {"no_route": 3})
    assert json.loads(of_none) == []


def test_one_can_be_asked_for() -> None:
    [(_, body), (status, text)] = answers(
        SHOWN, "/services?service=orders&service=nobody&format=ndjson", "/services?name=orders"
    )
    assert [json.loads(line)["service"] for line in body.splitlines()] == ["orders"]
    assert (status, text) == (400, "name: unknown key: expected service or format\n")


def test_many_are_shown_in_pieces() -> None:
    shown = Shown(
        service_sums=[orders(tally({"2xx": n}), number=n, name=f"s{n}") for n in range(200)],
        endpoint_sums=[endpoint(ONE, tally({"2xx": n}), service=n) for n in range(200)],
    )
    for path in ("/services", "/metrics"):
        shown.asked.clear()
        answers(shown, path, path)
        assert len(set(shown.asked)) == len(shown.asked) == 80


# ---- the last minute ----


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def look(found: Lately) -> None:
    for _ in found.look():
        pass


def test_the_pace_is_that_of_the_last_minute() -> None:
    shown, clock = Shown(), Clock()
    found = Lately(shown, clock)
    for second in range(0, 300, 10):
        clock.now = 1000.0 + second
        count = (
            1000 if second < 100 else 1000 + 5 * (second - 100)
        )  # none at first, then 5 a second
        shown.service_sums = [orders(tally({"2xx": count}))]
        shown.endpoint_sums = [endpoint(ONE, tally({"2xx": count // 2}))]
        look(found)
    pace = found.pace(1, shown.service_sums[0].tally)
    assert pace.rate == pytest.approx(5)
    assert pace.p50 == pytest.approx(0.00175)
    assert found.pace((1, ONE), shown.endpoint_sums[0].tally).rate == pytest.approx(2.5, rel=0.01)
    clock.now += 30
    assert found.pace(1, shown.service_sums[0].tally).rate == pytest.approx(5 * 60 / 90)


def test_before_a_minute_is_over_it_is_that_since_the_start() -> None:
    clock = Clock()
    found = Lately(Shown(), clock)
    clock.now += 4
    assert found.pace(1, tally({"2xx": 20})).rate == pytest.approx(5)
    assert found.pace(1, tally()) == (0, None, None)


def test_an_endpoint_that_comes_again_begins_anew() -> None:
    shown, clock = Shown(endpoint_sums=[endpoint(ONE, tally({"2xx": 1000}))]), Clock()
    found = Lately(shown, clock)
    look(found)
    clock.now += lately.WINDOW
    look(found)
    clock.now += 10
    assert found.pace((1, ONE), tally({"2xx": 7})).rate == pytest.approx(0.1)


def test_no_more_looks_are_kept_than_needed() -> None:
    clock = Clock()
    found = Lately(Shown(), clock)
    for _ in range(100):
        clock.now += lately.PERIOD
        look(found)
    assert len(found._looks) <= lately.WINDOW / lately.PERIOD + 1


durations = st.lists(st.floats(0, 59), min_size=1, max_size=200)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(durations, st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_between_the_bounds_that_are_true(seconds: list[float], share: float) -> None:
    bounds = (0.0, *REQUEST_BOUNDS)
    counts = [0] * (len(REQUEST_BOUNDS) + 1)
    for each in seconds:
        counts[sum(each > bound for bound in REQUEST_BOUNDS)] += 1
    true = sorted(seconds)[math.ceil(share * len(seconds)) - 1]
    at = sum(true > bound for bound in REQUEST_BOUNDS)
    found = quantile(counts, share)
    assert found is not None
    assert bounds[at] <= found <= bounds[at + 1] * (1 + 1e-9)


def test_quantiles_at_the_edges() -> None:
    nothing = [0] * (len(REQUEST_BOUNDS) + 1)
    assert quantile(nothing, 0.5) is None
    assert quantile([*nothing[:-1], 3], 0.5) == REQUEST_BOUNDS[-1]
    assert by_duration(tally({"2xx": 2, "5xx": 1})) == [*nothing[:4], 3, *nothing[5:]]


# ---- metrics ----


def samples(shown: Shown) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = "".join(request_metrics.metrics_of_requests(shown))
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(shown: Shown, name: str, **labels: str) -> float | None:
    if labels.get("service"):
        labels = {"protocol": "http", "role": "configured", **labels}
    return samples(shown).get((f"pysidecar_{name}", tuple(sorted(labels.items()))))


def test_metrics_of_services() -> None:
    assert value(SHOWN, "requests_total", service="orders", status="2xx") == 90
    assert value(SHOWN, "requests_total", service="orders", status="5xx") == 10
    assert value(SHOWN, "requests_total", service="orders", status="4xx") is None
    assert value(SHOWN, "request_failures_total", service="orders") == 10
    assert value(SHOWN, "request_failures_total", service='pay"ments\\') == 0
    assert value(SHOWN, "request_flags_total", service="orders", flag="timeout") == 4
    assert value(SHOWN, "request_attempts_total", service="orders") == 100
    assert value(SHOWN, "request_sent_bytes_total", service="orders") == 10000
    assert value(SHOWN, "request_received_bytes_total", service="orders") == 100000
    assert value(SHOWN, "requests_active", service="orders") == 3
    assert value(SHOWN, "requests_pending", service="orders") == 1
    assert value(SHOWN, "upstream_connections", service="orders") == 5
    assert value(SHOWN, "requests_retrying", service="orders") == 2
    assert value(SHOWN, "service_at_limit", service="orders", limit="rate") == 1
    assert value(SHOWN, "service_at_limit", service="orders", limit="requests") is None


def test_histograms_are_by_service_endpoint_and_status_class() -> None:
    def bucket(bound: str, **labels: str) -> float | None:
        name = "endpoint_request" if "endpoint" in labels else "request"
        return value(SHOWN, f"{name}_duration_seconds_bucket", le=bound, **labels)

    good: dict[str, str] = {"service": "orders", "status": "2xx"}
    assert [bucket(bound, **good) for bound in ("0.001", "0.0025", "60.0", "+Inf")] == [
        *(0, 90, 90, 90)
    ]
    assert bucket("+Inf", service="orders", status="5xx") == 10
    assert value(SHOWN, "request_duration_seconds_count", **good) == 90
    assert value(SHOWN, "request_duration_seconds_sum", **good) == pytest.approx(0.18)
    assert bucket("+Inf", endpoint="10.0.0.1:80", **good) == 90
    assert bucket("+Inf", endpoint="[fd00::1]:80", service="orders", status="5xx") == 6
    assert bucket("+Inf", endpoint="[fd00::1]:80", **good) is None


def test_metrics_of_endpoints() -> None:
    labels = {"service": "orders", "endpoint": "10.0.0.1:80"}
    assert value(SHOWN, "endpoint_requests_total", status="2xx", **labels) == 90
    assert value(SHOWN, "endpoint_requests_active", **labels) == 3
    assert value(SHOWN, "endpoint_upstream_connections", **labels) == 5
    assert value(SHOWN, "service_endpoint_ejected", **labels) is None
    labels["endpoint"] = "[fd00::1]:80"
    assert value(SHOWN, "service_endpoint_ejected", **labels) == 1
    assert value(SHOWN, "endpoint_request_failures_total", **labels) == 6


def test_requests_without_a_service_have_no_name() -> None:
    shown = Shown(unserved_tally=tally({"4xx": 3}, flags={Flag.NO_ROUTE: 3}))
    assert value(shown, "request_flags_total", service="", flag="no_route") == 3
    assert samples(Shown()) == {}


def test_endpoints_beyond_a_limit_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_metrics, "MOST_ENDPOINTS", 3)
    shown = Shown(
        service_sums=[orders(tally()), orders(tally(), 2, "payments")],
        endpoint_sums=[
            *(endpoint(Address(f"10.0.0.{n}", 80), tally({"2xx": 1})) for n in range(2)),
            *(
                endpoint(Address(f"10.0.0.{n}", 80), tally({"2xx": 10, "5xx": 1}, active=1), 2)
                for n in range(4)
            ),
        ],
    )
    total = "endpoint_requests_total"
    ours = {"service": "payments", "status": "2xx"}
    assert value(shown, total, service="orders", endpoint="10.0.0.1:80", status="2xx") == 1
    assert value(shown, total, endpoint="10.0.0.0:80", **ours) == 10
    assert value(shown, total, endpoint="10.0.0.1:80", **ours) is None
    assert value(shown, total, endpoint="other", **ours) == 30
    assert value(shown, "endpoint_requests_active", endpoint="other", service="payments") == 3
    name = "endpoint_request_duration_seconds"
    assert value(shown, f"{name}_count", endpoint="other", **ours) == 30
    assert value(shown, f"{name}_sum", endpoint="other", **ours) == pytest.approx(0.06)
    names = {dict(labels).get("endpoint") for _, labels in samples(shown)}
    assert names == {None, "10.0.0.0:80", "10.0.0.1:80", "other"}


def test_what_a_reload_puts_elsewhere_is_not_there_twice() -> None:
    """Prometheus takes nothing of what has a sample twice."""
    shown = Shown(
        service_sums=[orders(tally({"2xx": 1})), orders(tally({"2xx": 1}))],
        endpoint_sums=[endpoint(ONE, tally({"2xx": 1}))] * 2 + [endpoint(ONE, tally(), 9)],
    )
    assert value(shown, "requests_total", service="orders", status="2xx") == 1
    [(_, body)] = answers(shown, "/services")
    assert len(json.loads(body)) == 1


def test_a_thousand_services_are_read_in_a_moment() -> None:
    busy = tally({"2xx": 100, "5xx": 3}, flags={Flag.TIMEOUT: 3})
    shown = Shown(
        service_sums=[orders(busy, number=n, name=f"service-{n}") for n in range(1000)],
        endpoint_sums=[endpoint(ONE, busy, service=n) for n in range(1000)],
    )
    start = time.process_time()
    text = "".join(request_metrics.metrics_of_requests(shown))
    assert time.process_time() - start < 1
    assert text.count("\n") > 80_000


# ---- the table ----


def rows(entries: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    for cells, _ in SERVICES.rows(entries):
        yield dict(zip(SERVICES.columns, cells, strict=True))


def test_a_row_for_each_service_and_endpoint() -> None:
    [(_, body)] = answers(SHOWN, "/services")
    entries = json.loads(body)
    for entry in entries:
        entry["rate"] = 12345.6
    service, one, other, empty = rows(entries)
    assert (service["service"], service["endpoint"], service["state"]) == (
        *("orders", "-", "1 of 2 healthy, at limit: pending rate"),
    )
    assert (service["retrying"], one["retrying"], empty["retrying"]) == ("2", "-", "0")
    assert (service["requests"], service["failures"], service["rate"]) == ("100", "10", "12,346")
    assert (service["p50"], service["active"], service["pending"]) == ("1.8ms", "3", "1")
    assert (one["endpoint"], one["weight"], one["state"]) == ("10.0.0.1:80", "2", "-")
    assert (other["requests"], other["pending"]) == ("6", "-")
    assert other["state"] == "unreachable: it could not be connected"
    assert (empty["state"], empty["p99"]) == ("no endpoint", "-")
    assert SERVICES.title(entries) == "2 services"


def test_what_reached_no_service_has_a_row() -> None:
    [(_, body)] = answers(Shown(unserved_tally=tally({"4xx": 3})), "/services")
    [row] = rows(json.loads(body))
    assert (row["service"], row["requests"], row["rate"]) == ("(no service)", "3", "-")
