"""Prometheus metrics of requests, by service and by endpoint.

The text is our own: a thousand services have tens of thousands of samples, for which
prometheus_client takes half a second, in which nothing else happens. Here it is made in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from pysidecar.admin.lately import LookedAt
from pysidecar.admin.services import HealthResults, Services
from pysidecar.dataplane import (
    REQUEST_BOUNDS,
    STATUS_CLASSES,
    EndpointSums,
    RequestTally,
    ServiceSums,
)

__all__ = ["MOST_ENDPOINTS", "OTHER", "metrics_of_requests"]

MOST_ENDPOINTS = 1000
"""That have samples of their own: the first ones that are used, in the configuration's order."""
OTHER = "other"
"""Stands for all further endpoints of a service together."""

_COUNTERS = {
    "requests": "Requests that ended, by the class of the status that the client got.",
    "request_failures": "Requests that failed by the fault of the service or of the way to it.",
    "request_flags": "What happened to requests.",
    "request_attempts": "Upstreams that requests were sent to, or tried to.",
    "request_sent_bytes": "Bytes of requests.",
    "request_received_bytes": "Bytes of answers.",
}
_GAUGES = {
    "requests_active": "Requests that are under way.",
    "requests_pending": "Requests that wait for an upstream connection.",
    "upstream_connections": "Upstream connections that are open.",
}
_HISTOGRAM = "request_duration_seconds"
_RETRYING = "requests_retrying"
_AT_LIMIT = "service_at_limit"
_ENDPOINT_EJECTED = "service_endpoint_ejected"
_ENDPOINT_UNHEALTHY = "service_endpoint_unhealthy"
_ENDPOINTS, _AVAILABLE, _PANIC = "service_endpoints", "service_endpoints_available", "service_panic"
_CHECKS = "health_checks_total"
_OF_CHECKS = {
    "health_checks_late_total": ("counter", "Checks that had to wait for a connection."),
    "health_check_connections": ("gauge", "Connections of health checks that are open."),
}
_BUCKETS = [f',le="{bound}"}} ' for bound in (*map(str, REQUEST_BOUNDS), "+Inf")]


class _Families:
    """Samples, of which those of a family have to stand together."""

    def __init__(self) -> None:
        self._heads: dict[str, str] = {}
        self._samples: dict[str, list[str]] = {}
        self._services: set[str] = set()
        for prefix, whose in (("", ""), ("endpoint_", " Of an endpoint.")):
            for name, text in _COUNTERS.items():
                self._begin(f"{prefix}{name}_total", "counter", f"{text}{whose}")
            for name, text in _GAUGES.items():
                self._begin(f"{prefix}{name}", "gauge", f"{text}{whose}")
            self._begin(f"{prefix}{_HISTOGRAM}", "histogram", f"How long requests took.{whose}")
        self._begin(_RETRYING, "gauge", "Requests that are sent again, or wait for that.")
        self._begin(_AT_LIMIT, "gauge", "Limits of services that are reached now.")
        self._begin(_ENDPOINT_EJECTED, "gauge", "Endpoints that get no requests for now.")
        self._begin(_ENDPOINT_UNHEALTHY, "gauge", "Endpoints that health checks found unhealthy.")
        self._begin(_ENDPOINTS, "gauge", "Endpoints that a service has.")
        self._begin(_AVAILABLE, "gauge", "Of these, the ones neither unhealthy nor ejected.")
        self._begin(_PANIC, "gauge", "Services that send requests to all their endpoints.")
        self._begin(_CHECKS, "counter", "Health checks, by what came of them.")
        for name, (kind, text) in _OF_CHECKS.items():
            self._begin(name, kind, text)

    def _begin(self, name: str, kind: str, text: str) -> None:
        self._heads[name] = f"# HELP pysidecar_{name} {text}\n# TYPE pysidecar_{name} {kind}\n"
        self._samples[name] = []

    def is_new(self, service: str) -> bool:
        """Whether its labels come for the first time."""
        if service in self._services:
            return False
        self._services.add(service)
        return True

    def add(self, name: str, labels: str, value: float) -> None:
        """One sample; its labels as they are written."""
        self._samples[name].append(f"pysidecar_{name}{{{labels}}} {value}\n")

    def add_health(self, results: HealthResults) -> None:
        """What health checks add up to, if there are any."""
        for name, protocol, passed, failed in results.of_services:
            labels = f'service="{_escaped(name)}",protocol="{protocol}"'
            self.add(_CHECKS, f'{labels},result="passed"', passed)
            self.add(_CHECKS, f'{labels},result="failed"', failed)
        if results.of_services:
            for name, value in zip(_OF_CHECKS, results[1:], strict=True):
                self._samples[name].append(f"pysidecar_{name} {value}\n")

    def add_all(self, prefix: str, labels: str, tally: RequestTally) -> None:
        """All of a service, or of an endpoint; what there was none of is left out."""
        for status, count in zip(STATUS_CLASSES, tally.statuses, strict=True):
            if count:
                self.add(f"{prefix}requests_total", f'{labels},status="{status}"', count)
        for flag, count in tally.flags.items():
            self.add(f"{prefix}request_flags_total", f'{labels},flag="{flag.name.lower()}"', count)
        self.add(f"{prefix}request_failures_total", labels, tally.failures)
        self.add(f"{prefix}request_attempts_total", labels, tally.attempts)
        self.add(f"{prefix}request_sent_bytes_total", labels, tally.bytes_sent)
        self.add(f"{prefix}request_received_bytes_total", labels, tally.bytes_received)
        self.add(f"{prefix}requests_active", labels, tally.active)
        self.add(f"{prefix}requests_pending", labels, tally.pending)
        self.add(f"{prefix}upstream_connections", labels, tally.connections)
        for status, counts, seconds in zip(
            STATUS_CLASSES, tally.durations, tally.duration, strict=True
        ):
            if any(counts):
                self._add_histogram(
                    f"{prefix}{_HISTOGRAM}", f'{labels},status="{status}"', counts, seconds
                )

    def _add_histogram(self, name: str, labels: str, counts: Sequence[int], seconds: float) -> None:
        head = f"pysidecar_{name}_bucket{{{labels}"
        upto = list(accumulate(counts))
        samples = [f"{head}{bucket}{n}\n" for bucket, n in zip(_BUCKETS, upto, strict=True)]
        samples.append(f"pysidecar_{name}_count{{{labels}}} {upto[-1]}\n")
        samples.append(f"pysidecar_{name}_sum{{{labels}}} {seconds}\n")
        self._samples[name].append("".join(samples))

    def texts(self) -> Iterator[str]:
        """Of each family that has a sample."""
        for name, samples in self._samples.items():
            if samples:
                yield self._heads[name] + "".join(samples)


def metrics_of_requests(services: Services) -> Iterator[str]:
    """The exposition format, in pieces, of which some are empty."""
    families = _Families()
    families.add_health(services.health_results())
    labels: dict[int, str] = {}
    for found in services.services(only_used=True):
        _add_services(families, found, labels)
        yield ""
    unserved = services.unserved()
    if unserved.requests:
        families.add_all("", 'service=""', unserved)
    for _ in _add_endpoints(families, services, labels):
        yield ""
    yield from families.texts()


def _add_services(
    families: _Families, services: Iterable[ServiceSums], labels: dict[int, str]
) -> None:
    for each in services:
        label = (
            f'service="{_escaped(each.name)}",protocol="{each.protocol.name.lower()}"'
            f',role="{each.role.name.lower()}"'
        )
        # A reload meanwhile may have put it elsewhere, or made another one of it.
        if families.is_new(label):
            labels[each.number] = label
            families.add_all("", label, each.tally)
            if each.retries:
                families.add(_RETRYING, label, each.retries)
            for bound in each.reached:
                families.add(_AT_LIMIT, f'{label},limit="{bound.name.lower()}"', 1)
            families.add(_ENDPOINTS, label, each.endpoints)
            families.add(_AVAILABLE, label, each.available)
            if each.panic:
                families.add(_PANIC, label, 1)


def _add_endpoints(
    families: _Families, looked_at: LookedAt, labels: Mapping[int, str]
) -> Iterator[None]:
    seen: set[tuple[int, str]] = set()
    others: dict[int, RequestTally] = {}
    for found in looked_at.endpoints(only_used=True):
        for each in found:
            key = (each.service, str(each.address))
            if key in seen or each.service not in labels:
                continue
            seen.add(key)
            _add_endpoint(families, labels[each.service], each, len(seen), others)
        yield
    for number, tally in others.items():
        families.add_all("endpoint_", f'{labels[number]},endpoint="{OTHER}"', tally)


def _add_endpoint(
    families: _Families,
    service: str,
    endpoint: EndpointSums,
    number: int,
    others: dict[int, RequestTally],
) -> None:
    labels = f'{service},endpoint="{endpoint.address}"'
    if endpoint.ejected or endpoint.ejected_for:
        families.add(_ENDPOINT_EJECTED, labels, 1)
    if endpoint.unhealthy:
        families.add(_ENDPOINT_UNHEALTHY, labels, 1)
    if number <= MOST_ENDPOINTS:
        families.add_all("endpoint_", labels, endpoint.tally)
        return
    before = others.get(endpoint.service)
    others[endpoint.service] = before.plus(endpoint.tally) if before else endpoint.tally


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
