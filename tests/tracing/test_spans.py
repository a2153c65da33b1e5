"""Spans between the workers that write them and the thread that sends them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import pytest
import yaml

from pysidecar.address import Address
from pysidecar.config import Config, parse
from pysidecar.config import Tracing as Settings
from pysidecar.dataplane import SpanRecord
from pysidecar.tracing import Tracing, TracingCounters
from tests.interop.servers import closed_port
from tests.requests.support import RequestPlane
from tests.waiting import eventually

_KEPT = 2047  # by a worker
_REQUEST = b"GET /a HTTP/1.1\r\nHost: orders.test\r\n\r\n"


@pytest.fixture(scope="module")
def plane() -> Iterator[RequestPlane]:
    """Its endpoint refuses: nothing answers as quickly."""
    with closed_port() as port, RequestPlane("http", [Address("127.0.0.1", port)]) as plane:
        yield plane


def _ask(plane: RequestPlane, count: int) -> None:
    """So many requests, until the last one is answered."""
    client = plane.client()
    sender = threading.Thread(target=client.sendall, args=(_REQUEST * count,))
    sender.start()
    answers = b""
    found = 0
    while found < count:
        answers = answers[-20:] + client.recv(1 << 16)
        found += answers.count(b"HTTP/1.1 502", 0)
        answers = answers[answers.rfind(b"HTTP/1.1 502") + 12 :] if b" 502" in answers else answers
    sender.join()
    client.close()


def _take_all(plane: RequestPlane) -> tuple[list[SpanRecord], int]:
    spans: list[SpanRecord] = []
    missed = 0
    while True:
        taken, lost = plane.data.take_spans()
        missed += lost
        if not taken:
            return spans, missed
        spans += taken


def test_a_span_is_what_the_request_was(plane: RequestPlane) -> None:
    plane.data.set_tracing(["w3c"], Fraction(1))
    _ask(plane, 1)
    ((span,), missed) = _take_all(plane)
    assert missed == 0
    assert span.request.status == 502
    assert span.request.method == "GET"
    assert span.authority == "orders.test"
    assert span.parent_id is None
    assert span.request.trace_id is not None
    assert len(span.request.trace_id) == 32
    assert span.request.span_id is not None
    assert len(span.request.span_id) == 16
    assert span.duration_ns > 0
    assert next(plane.data.recent_requests())[0] == span.request


def test_the_oldest_are_dropped_and_counted(plane: RequestPlane) -> None:
    plane.data.set_tracing(["w3c"], Fraction(1))
    _ask(plane, _KEPT + 100)
    spans, missed = _take_all(plane)
    assert (len(spans), missed) == (_KEPT, 100)
    assert len({span.request.trace_id for span in spans}) == _KEPT


def test_nothing_is_written_while_nothing_is_traced(plane: RequestPlane) -> None:
    plane.data.set_tracing([], Fraction(1))
    _ask(plane, 10)
    assert _take_all(plane) == ([], 0)
    assert next(plane.data.recent_requests())[0].trace_id is None


class _Collector:
    """Stands for OpenTelemetry's exporter: takes what comes, as long as ``takes`` says so."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.takes: Callable[[], bool] = lambda: True
        self.made: list[Settings] = []
        self.closed = 0

    def make(self, settings: Settings, query: bool) -> _Collector:
        self.made.append(settings)
        if settings.service_name == "broken":
            raise OSError("no such file")
        return self

    def send(self, records: Sequence[SpanRecord]) -> bool:
        self.batches.append(len(records))
        return self.takes()

    def close(self) -> None:
        self.closed += 1


def _config(**tracing: object) -> Config:
    return parse(yaml.safe_dump({"tracing": {"otlp": "http://127.0.0.1:1", **tracing}}))


class _Spans:
    """Gives what a test has put here."""

    def __init__(self, plane: RequestPlane) -> None:
        plane.data.set_tracing(["w3c"], Fraction(1))
        _ask(plane, 1)
        self._span = _take_all(plane)[0][0]
        self.waiting = 0
        self.missed = 0

    def take(self) -> tuple[list[SpanRecord], int]:
        count, missed = min(self.waiting, 512), self.missed
        self.waiting -= count
        self.missed = 0
        return [self._span] * count, missed


def test_what_is_sent_and_what_is_not_is_counted(plane: RequestPlane) -> None:
    spans, collector = _Spans(plane), _Collector()
    spans.waiting, spans.missed = 600, 7
    tracing = Tracing(spans.take, make=collector.make)
    assert tracing.counters is None
    tracing.apply(_config())
    eventually(
        lambda: tracing.counters == TracingCounters(600, 7, 0), lambda: str(tracing.counters)
    )
    collector.takes = lambda: False
    spans.waiting = 3
    eventually(lambda: tracing.counters == TracingCounters(600, 7, 3))
    tracing.close()
    assert collector.batches == [512, 88, 3]


def test_an_exporter_that_fails_ends_nothing(
    plane: RequestPlane, caplog: pytest.LogCaptureFixture
) -> None:
    spans, collector = _Spans(plane), _Collector()

    def fail() -> bool:
        raise RuntimeError("of the exporter")

    collector.takes = fail
    spans.waiting = 1
    tracing = Tracing(spans.take, make=collector.make)
    tracing.apply(_config())
    eventually(lambda: tracing.counters == TracingCounters(0, 0, 1))
    tracing.apply(_config(service_name="broken"))
    spans.waiting = 1
    eventually(lambda: tracing.counters == TracingCounters(0, 0, 2))
    collector.takes = lambda: True
    tracing.apply(_config(service_name="mended"))
    spans.waiting = 1
    eventually(lambda: tracing.counters == TracingCounters(1, 0, 2))
    tracing.close()
    assert collector.closed == 1
    assert "takes spans again: 2 were dropped" in caplog.text


def test_no_more_are_sent_than_configured(plane: RequestPlane) -> None:
    spans, collector = _Spans(plane), _Collector()
    spans.waiting = 3 * 512
    tracing = Tracing(spans.take, make=collector.make)
    began = time.monotonic()
    tracing.apply(_config(spans_per_second=1024))
    eventually(lambda: collector.batches == [512] * 3)
    took = time.monotonic() - began
    spans.waiting = 2 * 512
    tracing.close()  # at the end there is no time for that
    assert took > 0.95
    assert collector.batches == [512] * 5


def test_nothing_is_taken_after_the_end(
    plane: RequestPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pysidecar.tracing._FLUSH_LIMIT", 0.05)
    spans, collector = _Spans(plane), _Collector()
    released = threading.Event()

    def hold() -> bool:
        released.wait(20)
        return True

    collector.takes = hold
    spans.waiting = 1
    tracing = Tracing(spans.take, make=collector.make)
    tracing.apply(_config())
    eventually(lambda: collector.batches == [1])
    tracing.close()
    spans.waiting = 1
    released.set()
    assert tracing._thread is not None
    tracing._thread.join(20)
    assert not tracing._thread.is_alive()
    assert spans.waiting == 1
    assert collector.closed == 1
