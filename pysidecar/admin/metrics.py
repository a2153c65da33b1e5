"""Prometheus metrics: sums of the data plane, and what the closed connections add up to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pysidecar.admin.process import OwnProcess
from pysidecar.dataplane import (
    DURATION_BOUNDS,
    Counters,
    EjectedEndpoint,
    End,
    Kind,
    Tallies,
)
from pysidecar.interception.rules import Conntrack
from pysidecar.tracing import TracingCounters

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "OwnCounters", "RuleCounters"]

RuleCounters = dict[str, Mapping[str, tuple[int, int]]]
"""Packets and bytes, by direction and purpose."""


@dataclass(frozen=True, slots=True)
class OwnCounters:
    """What the control plane counts of itself, since the start but for ``admin_connections`` and
    ``trace_readers``."""

    access_log_lost_records: int
    log_lost_lines: int
    admin_connections: int
    admin_connections_refused: int
    admin_bad_requests: int
    trace_readers: int


_LABELS = ("direction", "transport", "action")


def _labels(kind: Kind) -> list[str]:
    return [value.name.lower() for value in kind]


class Metrics:
    """Asks for everything but the reloads when it is scraped, at a cost that does not depend on the
    number of connections."""

    def __init__(
        self,
        *,
        version: str,
        counters: Callable[[], Counters],
        tallies: Callable[[], Tallies],
        ejected: Callable[[], Sequence[EjectedEndpoint]],
        own: Callable[[], OwnCounters],
        rule_counters: Callable[[], RuleCounters],
        conntrack: Callable[[], Conntrack | None],
        takeover: Callable[[], Mapping[str, Any] | None],
        tracing: Callable[[], TracingCounters | None],
    ) -> None:
        self._registry = CollectorRegistry()
        self._reloads = Counter(
            "pysidecar_reloads",
            "Reloads of the configuration.",
            ["result"],
            registry=self._registry,
        )
        self._registry.register(OwnProcess())
        self._registry.register(_ConnectionCollector(tallies))
        self._registry.register(_DataPlaneCollector(version, counters, ejected))
        self._registry.register(_OwnCollector(own))
        self._registry.register(_KernelCollector(rule_counters, conntrack))
        self._registry.register(_TakeoverCollector(takeover))
        self._registry.register(_TracingCollector(tracing))

    def count_reload(self, *, applied: bool) -> None:
        """Adds a reload that was applied or rejected."""
        self._reloads.labels("applied" if applied else "rejected").inc()

    def render(self) -> bytes:
        """The exposition format of CONTENT_TYPE_LATEST."""
        return generate_latest(self._registry)


class _ConnectionCollector(Collector):
    """What connections add up to."""

    def __init__(self, tallies: Callable[[], Tallies]) -> None:
        self._tallies = tallies
        self._created = time.time()

    def describe(self) -> Iterable[Metric]:
        return ()  # registering asks for nothing: there may be no data plane yet

    def collect(self) -> Iterator[Metric]:
        tallies = self._tallies()
        active = GaugeMetricFamily(
            "pysidecar_connections_active", "Connections that are open.", labels=_LABELS
        )
        for kind, count in tallies.open.items():
            active.add_metric(_labels(kind), count)
        yield active
        closed = CounterMetricFamily(
            "pysidecar_connections_closed", "Connections that ended.", labels=_LABELS
        )
        for kind, count in tallies.closed.items():
            closed.add_metric(_labels(kind), count, self._created)
        yield closed
        errors = CounterMetricFamily(
            "pysidecar_connection_errors",
            "Connections that ended otherwise than by both sides closing them, by reason.",
            labels=["reason"],
        )
        for end, count in tallies.ends.items():
            if end not in (End.NONE, End.EOF):
                errors.add_metric([end.name.lower()], count, self._created)
        yield errors
        yield CounterMetricFamily(
            "pysidecar_reports_dropped",
            "Connections and requests that ended while the control plane was stuck: not in the "
            "access log, but counted.",
            value=tallies.lines_dropped,
            created=self._created,
        )
        bounds = [*(str(bound) for bound in DURATION_BOUNDS), "+Inf"]
        yield HistogramMetricFamily(
            "pysidecar_connection_duration_seconds",
            "How long connections were open.",
            buckets=list(zip(bounds, accumulate(tallies.durations), strict=True)),
            sum_value=tallies.duration,
        )


class _DataPlaneCollector(Collector):
    def __init__(
        self,
        version: str,
        counters: Callable[[], Counters],
        ejected: Callable[[], Sequence[EjectedEndpoint]],
    ) -> None:
        self._version = version
        self._counters = counters
        self._ejected = ejected

    def describe(self) -> Iterable[Metric]:
        return ()  # registering asks for nothing: there may be no data plane yet

    def collect(self) -> Iterator[Metric]:
        counters = self._counters()
        for name, text, value in (
            ("connections_opened", "Connections that were accepted.", counters.accepted),
            ("sent_bytes", "Bytes from applications to upstreams.", counters.bytes_sent),
            ("received_bytes", "Bytes from upstreams to applications.", counters.bytes_received),
            ("spliced_bytes", "Part of both that was spliced.", counters.bytes_spliced),
            (
                "endpoint_connect_failures",
                "Endpoints that could not be connected.",
                counters.connect_failures,
            ),
            (
                "accept_pauses",
                "Times that accepting paused for lack of file descriptors.",
                counters.accept_pauses,
            ),
            (
                "http2_streams_refused",
                "Streams that were refused since clients had too many.",
                counters.streams_refused,
            ),
            (
                "http2_streams_not_taken",
                "Streams that were reset since their clients did not take the answers.",
                counters.streams_not_taken,
            ),
        ):
            yield CounterMetricFamily(f"pysidecar_{name}", text, value=value)
        for name, text, value in (
            ("relay_buffers", "Relay buffers and pipes in use.", counters.buffers),
            (
                "descriptors_used",
                "File descriptors that connections and pipes hold or reserve.",
                counters.fds_used,
            ),
            (
                "descriptors_available",
                "How many there are for them, under the limit of the process.",
                counters.fds_budget,
            ),
            (
                "descriptors_full",
                "1 while there are none left: new connections fail.",
                counters.full,
            ),
            (
                "idle_connection_bytes",
                "User memory of one idle connection.",
                counters.connection_bytes,
            ),
        ):
            yield GaugeMetricFamily(f"pysidecar_{name}", text, value=value)
        ejected = GaugeMetricFamily(
            "pysidecar_endpoint_ejected",
            "Endpoints that get no connections for now, since a connect failed.",
            labels=("direction", "route", "endpoint"),
        )
        for each in set(self._ejected()):  # a route may name an endpoint twice
            labels = (each.direction.name.lower(), str(each.route), str(each.endpoint))
            ejected.add_metric(labels, 1)
        yield ejected
        yield InfoMetricFamily("pysidecar_build", "This build.", value={"version": self._version})


class _OwnCollector(Collector):
    def __init__(self, own: Callable[[], OwnCounters]) -> None:
        self._own = own

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        own = self._own()
        for name, text, value in (
            (
                "access_log_lost_records",
                "Records that the access log could not write.",
                own.access_log_lost_records,
            ),
            (
                "log_lost_lines",
                "Lines of the log that standard error did not take.",
                own.log_lost_lines,
            ),
            (
                "admin_connections_refused",
                "Connections to the admin interface that were too many.",
                own.admin_connections_refused,
            ),
            (
                "admin_bad_requests",
                "Requests to the admin interface that asked for nothing that it has.",
                own.admin_bad_requests,
            ),
        ):
            yield CounterMetricFamily(f"pysidecar_{name}", text, value=value)
        yield GaugeMetricFamily(
            "pysidecar_admin_connections",
            "Connections to the admin interface.",
            value=own.admin_connections,
        )
        yield GaugeMetricFamily(
            "pysidecar_trace_readers",
            "Readers of /debug/trace, for whom workers note what happens to connections.",
            value=own.trace_readers,
        )


class _KernelCollector(Collector):
    """What the ways of interception cost in the kernel."""

    def __init__(
        self,
        rule_counters: Callable[[], RuleCounters],
        conntrack: Callable[[], Conntrack | None],
    ) -> None:
        self._rule_counters = rule_counters
        self._conntrack = conntrack

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        labels = ("direction", "purpose")
        packets = CounterMetricFamily(
            "pysidecar_rule_packets",
            "Packets that our rules matched, by their purpose; connections, refused, own and "
            "excluded count first packets only.",
            labels=labels,
        )
        octets = CounterMetricFamily(
            "pysidecar_rule_bytes", "Bytes of the packets that our rules matched.", labels=labels
        )
        for direction, counters in self._rule_counters().items():
            for purpose, (packet_count, byte_count) in counters.items():
                packets.add_metric((direction, purpose), packet_count)
                octets.add_metric((direction, purpose), byte_count)
        yield packets
        yield octets
        if (conntrack := self._conntrack()) is not None:
            for name, text, value in (
                ("entries", "Connections that this network namespace tracks.", conntrack.entries),
                ("limit", "Most connections that can be tracked.", conntrack.limit),
            ):
                yield GaugeMetricFamily(f"pysidecar_conntrack_{name}", text, value=value)


class _TracingCollector(Collector):
    def __init__(self, counters: Callable[[], TracingCounters | None]) -> None:
        self._counters = counters

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        counters = self._counters()
        if counters is None:
            return
        yield CounterMetricFamily(
            "pysidecar_spans_exported",
            "Spans of sampled requests that the collector has taken.",
            value=counters.exported,
        )
        dropped = CounterMetricFamily(
            "pysidecar_spans_dropped",
            "Spans that were not sent, since more ended than are sent (overrun), or that the "
            "collector has not taken (failed).",
            labels=["reason"],
        )
        dropped.add_metric(["overrun"], counters.overrun)
        dropped.add_metric(["failed"], counters.failed)
        yield dropped


class _TakeoverCollector(Collector):
    def __init__(self, status: Callable[[], Mapping[str, Any] | None]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        if status is None:
            return
        connected = GaugeMetricFamily(
            "pysidecar_registry_connected",
            "1 while there is a session with the registry.",
            labels=["type"],
        )
        registry = status["registry"]
        connected.add_metric([registry["type"]], float(registry["state"] == "connected"))
        yield connected
        yield GaugeMetricFamily(
            "pysidecar_registry_instances",
            "Instances of services here that the registry told of.",
            value=registry["instances"],
        )
        yield GaugeMetricFamily(
            "pysidecar_registry_services_cut",
            "Services of which the registry tells of more instances than are kept.",
            value=registry["cut"],
        )
        for name, text in (
            ("published", "Services that applications here provide."),
            ("registered", "Those of them that the registry has."),
            ("subscribed", "Services that applications here call."),
        ):
            yield GaugeMetricFamily(f"pysidecar_services_{name}", text, value=status[name])
