"""Prometheus metrics: sums of the data plane, and what the closed connections add up to."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pysidecar.dataplane import (
    Action,
    ConnectionRecord,
    Counters,
    Direction,
    Dropped,
    EjectedEndpoint,
    End,
    Transport,
)
from pysidecar.interception.rules import Conntrack

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "OwnCounters", "RuleCounters"]

RuleCounters = dict[str, Mapping[str, tuple[int, int]]]
"""Packets and bytes, by direction and purpose."""


@dataclass(frozen=True, slots=True)
class OwnCounters:
    """What the control plane counts of itself, since the start but for ``admin_connections``."""

    access_log_lost_records: int
    log_lost_lines: int
    admin_connections: int
    admin_connections_refused: int
    admin_bad_requests: int


_LABELS = ("direction", "transport", "action")
# Seconds: from a request on loopback to connections of a pool that live for a day.
_DURATIONS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0, 3600.0, 86400.0)


def _labels(record: ConnectionRecord) -> tuple[str, str, str]:
    return (
        record.direction.name.lower(),
        record.transport.name.lower(),
        record.action.name.lower(),
    )


class Metrics:
    """Counts closed connections as they are reported, and asks the rest when it is scraped."""

    def __init__(
        self,
        *,
        version: str,
        counters: Callable[[], Counters],
        live: Callable[[], Sequence[ConnectionRecord]],
        ejected: Callable[[], Sequence[EjectedEndpoint]],
        own: Callable[[], OwnCounters],
        rule_counters: Callable[[], RuleCounters],
        conntrack: Callable[[], Conntrack | None],
    ) -> None:
        self._registry = CollectorRegistry()
        self._closed = Counter(
            "pysidecar_connections_closed",
            "Connections that ended.",
            _LABELS,
            registry=self._registry,
        )
        self._errors = Counter(
            "pysidecar_connection_errors",
            "Connections that ended otherwise than by both sides closing them, by reason.",
            ["reason"],
            registry=self._registry,
        )
        self._dropped = Counter(
            "pysidecar_reports_dropped",
            "Connections that ended while the control plane was stuck: neither logged nor in "
            "/connections, but counted.",
            registry=self._registry,
        )
        self._durations = _Durations()
        self._registry.register(self._durations)
        self._reloads = Counter(
            "pysidecar_reloads",
            "Reloads of the configuration.",
            ["result"],
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(_DataPlaneCollector(version, counters, live, ejected))
        self._registry.register(_OwnCollector(own))
        self._registry.register(_KernelCollector(rule_counters, conntrack))

    def count_closed(self, records: Sequence[ConnectionRecord]) -> None:
        """Adds connections that ended."""
        self._count_ends(
            Tally((record.direction, record.transport, record.action) for record in records),
            Tally(record.end for record in records),
        )
        self._durations.add(record.duration_ms / 1000 for record in records)

    def count_dropped(self, dropped: Dropped) -> None:
        """Adds connections that ended unreported; nobody knows their durations."""
        self._dropped.inc(sum(dropped.connections.values()))
        self._count_ends(dropped.connections, dropped.ends)

    def _count_ends(
        self,
        kinds: Mapping[tuple[Direction, Transport, Action], int],
        ends: Mapping[End, int],
    ) -> None:
        for kind, count in kinds.items():
            self._closed.labels(*(value.name.lower() for value in kind)).inc(count)
        for end, count in ends.items():
            if end not in (End.NONE, End.EOF):
                self._errors.labels(end.name.lower()).inc(count)

    def count_reload(self, *, applied: bool) -> None:
        """Adds a reload that was applied or rejected."""
        self._reloads.labels("applied" if applied else "rejected").inc()

    def render(self) -> bytes:
        """The exposition format of CONTENT_TYPE_LATEST."""
        return generate_latest(self._registry)


class _Durations(Collector):
    """A histogram that takes many observations at once, without a lock and a search for each."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_DURATIONS) + 1)
        self._sum = 0.0

    def add(self, durations: Iterable[float]) -> None:
        """Seconds."""
        for duration in durations:
            self._counts[bisect_left(_DURATIONS, duration)] += 1
            self._sum += duration

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        bounds = [*(str(bound) for bound in _DURATIONS), "+Inf"]
        yield HistogramMetricFamily(
            "pysidecar_connection_duration_seconds",
            "How long connections were open.",
            buckets=list(zip(bounds, accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )


class _DataPlaneCollector(Collector):
    def __init__(
        self,
        version: str,
        counters: Callable[[], Counters],
        live: Callable[[], Sequence[ConnectionRecord]],
        ejected: Callable[[], Sequence[EjectedEndpoint]],
    ) -> None:
        self._version = version
        self._counters = counters
        self._live = live
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
        active = GaugeMetricFamily(
            "pysidecar_connections_active", "Connections that are open.", labels=_LABELS
        )
        for labels, count in Tally(_labels(record) for record in self._live()).items():
            active.add_metric(labels, count)
        yield active
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
