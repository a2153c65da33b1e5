"""Traces of HTTP: a client and a server with OpenTelemetry's SDK, two sidecars between them, and a
collector that shows what became of it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.propagators.b3 import B3MultiFormat, B3SingleFormat
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, TraceIdRatioBased
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pysidecar.testing import Sidecar
from tests.interop.servers import free_port
from tests.tracing.collector import Collector, Span, collecting
from tests.tracing.otelcol import OTELCOL, collecting_really
from tests.waiting import eventually

_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
_PARENT = "00f067aa0ba902b7"


class Server:
    """Answers with the headers that it got; with a tracer, it makes a span of each request."""

    def __init__(self) -> None:
        self.requests: list[dict[str, str]] = []
        self.traced: Callable[[Mapping[str, str]], contextlib.AbstractContextManager[Any]] = (
            lambda headers: contextlib.nullcontext()
        )
        self.status = 200
        self.address = ""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.requests.append(headers)
            with server.traced(headers):
                body = json.dumps(headers).encode()
                self.send_response(server.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        server.address = f"127.0.0.1:{listening.server_port}"
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


def settings(
    collector: str, port: int, upstream: str, *, inbound: bool = False, **tracing: Any
) -> dict[str, Any]:
    """Of a sidecar in front of one service."""
    listener = {"listen": f"127.0.0.1:{port}", "service": "orders"}
    return {
        "services": {"orders": {"protocol": "http", "endpoints": [upstream]}},
        "listeners": [{**listener, "direction": "inbound"} if inbound else listener],
        "tracing": {"otlp": collector, "service_name": "sidecar", **tracing},
    }


@contextlib.contextmanager
def chain(server: str, collector: Collector, **tracing: Any) -> Iterator[tuple[Sidecar, Sidecar]]:
    """The client's sidecar, whose listener is that of the chain, and the server's."""
    first, second = free_port(), free_port()
    near = settings(
        collector.url, first, f"127.0.0.1:{second}", **{"service_name": "client's", **tracing}
    )
    far = settings(
        collector.url, second, server, inbound=True, **{"service_name": "server's", **tracing}
    )
    with Sidecar(far) as last, Sidecar(near) as beginning:
        yield beginning, last


def address_of(sidecar: Sidecar) -> str:
    return str(sidecar._settings["listeners"][0]["listen"])


def logged(sidecar: Sidecar, count: int) -> list[dict[str, Any]]:
    """The lines of requests in the access log, when there are so many."""

    def lines() -> list[dict[str, Any]] | None:
        found = sidecar._logged("request")
        return found if len(found) >= count else None

    return eventually(lines, f"{count} requests in the access log")


def get(sidecar: Sidecar, path: str = "/", **headers: str) -> dict[str, str]:
    """What the server got."""
    request = urllib.request.Request(f"http://{address_of(sidecar)}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        got: dict[str, str] = json.load(answer)
        return got


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def traced(server: Server) -> Iterator[tuple[Collector, Sidecar, Sidecar]]:
    """A chain that samples everything."""
    with (
        collecting() as collector,
        chain(
            server.address,
            collector,
            sample="100%",
            resource={"deployment.environment.name": "test"},
        ) as (near, far),
    ):
        yield collector, near, far


def spans_of(collector: Collector, got: Mapping[str, str]) -> list[Span]:
    """Both sidecars', of the request that the server got."""
    return collector.wait_for(2, trace=got["traceparent"].split("-")[1])


def provider(collector: Collector, service: str, sampler: Any = ALWAYS_ON) -> TracerProvider:
    made = TracerProvider(
        sampler=sampler,
        resource=Resource.create({"service.name": service}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(f"{collector.url}/v1/traces")
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


@contextlib.contextmanager
def instrumented(
    collector: Collector, server: Server, propagator: TextMapPropagator, sampler: Any = ALWAYS_ON
) -> Iterator[requests.Session]:
    """Both ends with OpenTelemetry's own SDK."""
    tracer = provider(collector, "server").get_tracer("test")

    @contextlib.contextmanager
    def traced(headers: Mapping[str, str]) -> Iterator[None]:
        with tracer.start_as_current_span(
            "handle", propagator.extract(headers), kind=SpanKind.SERVER
        ):
            yield

    before = get_global_textmap()
    set_global_textmap(propagator)
    instrumentor = RequestsInstrumentor()
    instrumentor.instrument(
        tracer_provider=provider(collector, "client", sampler),
        excluded_urls="/v1/traces",
    )
    server.traced = traced
    try:
        with requests.Session() as session:
            yield session
    finally:
        server.traced = lambda headers: contextlib.nullcontext()
        instrumentor.uninstrument()
        set_global_textmap(before)


_FORMS: dict[str, TextMapPropagator] = {
    "w3c": TraceContextTextMapPropagator(),
    "b3": B3SingleFormat(),
    "b3multi": B3MultiFormat(),
}


@pytest.mark.parametrize(
    ("form", "protocol"), [("w3c", "http"), ("b3", "grpc"), ("b3multi", "http")]
)
def test_one_trace_across_client_two_sidecars_and_server(
    server: Server, form: str, protocol: str
) -> None:
    with (
        collecting("http") as ends,
        collecting(protocol) as collector,
        chain(server.address, collector, protocol=protocol, propagate=form, sample="0%") as (
            near,
            far,
        ),
        instrumented(ends, server, _FORMS[form]) as session,
    ):
        answer = session.get(f"http://{address_of(near)}/v2/orders?secret=1", timeout=20)
        assert answer.status_code == 200
        spans = [*ends.wait_for(2), *collector.wait_for(2)]
    by_service = {span.service: span for span in spans}
    path = [by_service[name] for name in ("client", "client's", "server's", "server")]
    assert len({span.trace for span in path}) == 1
    assert [span.parent for span in path] == ["", *(span.id for span in path[:-1])]
    assert [span.kind for span in path] == ["CLIENT", "CLIENT", "SERVER", "SERVER"]
    for inner, outer in zip(path[2:], path[1:], strict=False):
        assert outer.began_ns <= outer.ended_ns
        assert inner.began_ns >= outer.began_ns - 1_000_000_000  # of another clock
    near_line, far_line = (sidecar.access_log for sidecar in (near, far))
    for line, span in ((near_line, path[1]), (far_line, path[2])):
        (record,) = [json.loads(each) for each in line.splitlines() if '"request"' in each]
        assert record["trace_id"] == span.trace
        assert record["span_id"] == span.id


@pytest.mark.skipif(not OTELCOL.exists(), reason="the installed Go is too old to build otelcol")
def test_opentelemetrys_collector_puts_the_trace_together(server: Server, tmp_path: Path) -> None:
    with collecting_really(tmp_path) as real:
        ends, sidecars = Collector(), Collector()
        ends.url, sidecars.url = real.url["http"], real.url["grpc"]
        with (
            chain(server.address, sidecars, protocol="grpc", sample="0%") as (near, _),
            instrumented(ends, server, TraceContextTextMapPropagator()) as session,
        ):
            answer = session.get(f"http://{address_of(near)}/v2/orders", timeout=20)
            assert answer.status_code == 200
            spans = {span.service: span for span in real.wait_for(4)}
    path = [spans[name] for name in ("client", "client's", "server's", "server")]
    assert len({span.trace for span in path}) == 1
    assert [span.parent for span in path] == ["", *(span.id for span in path[:-1])]
    assert [span.kind for span in path] == ["CLIENT", "CLIENT", "SERVER", "SERVER"]


def test_what_a_span_says(traced: tuple[Collector, Sidecar, Sidecar]) -> None:
    collector, near, far = traced
    got = get(near, "/v2/orders?secret=1", host="orders.test:8080", tracestate="a=b")
    client, provider = spans_of(collector, got)
    assert client.name == provider.name == "GET"
    assert not client.failed
    assert client.resource["deployment.environment.name"] == "test"
    expected = {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/v2/orders",
        "server.address": "orders.test",
        "server.port": 8080,
        "pysidecar.service": "orders",
        "pysidecar.attempts": 1,
    }
    assert expected.items() <= client.attributes.items()
    assert expected.items() <= provider.attributes.items()
    assert client.attributes["url.full"] == "http://orders.test:8080/v2/orders"
    host, port = address_of(far).split(":")
    assert client.attributes["network.peer.address"] == host
    assert client.attributes["network.peer.port"] == int(port)
    assert provider.attributes["client.address"] == "127.0.0.1"
    for span in (client, provider):
        assert "url.query" not in span.attributes
        assert "pysidecar.flags" not in span.attributes
        assert "error.type" not in span.attributes


def test_a_span_of_what_failed() -> None:
    port = free_port()
    with collecting() as collector, serving() as server:
        server.status = 503
        with Sidecar(settings(collector.url, port, server.address, sample="100%")) as sidecar:
            with pytest.raises(urllib.error.HTTPError):
                get(sidecar)
            (answered,) = collector.wait_for(1)
        with Sidecar(
            settings(collector.url, port, f"127.0.0.1:{free_port()}", sample="100%")
        ) as sidecar:
            with pytest.raises(urllib.error.HTTPError):
                get(sidecar)
            failed = collector.wait_for(2)[1]
    assert answered.failed
    assert failed.failed
    assert answered.attributes["error.type"] == "503"
    assert failed.attributes["error.type"] == "connect_failed"
    assert failed.attributes["pysidecar.flags"] == ["connect_failed"]
    assert failed.attributes["http.response.status_code"] == 502


def test_a_request_that_is_retried_has_one_span() -> None:
    with collecting() as collector, serving() as server:
        server.status = 503
        retried = settings(collector.url, free_port(), server.address, sample="100%")
        backoff = {"base": "1ms", "max": "2ms"}
        retried["services"]["orders"]["retries"] = {
            "attempts": 2,
            "on": ["503"],
            "backoff": backoff,
            "budget": "100%",
        }
        with Sidecar(retried) as sidecar, pytest.raises(urllib.error.HTTPError):
            get(sidecar)
        (span,) = collector.wait_for(1)
        sent = {headers["traceparent"] for headers in server.requests}
    assert span.attributes["pysidecar.attempts"] == len(server.requests) == 3
    assert "retried" in span.attributes["pysidecar.flags"]
    assert sent == {f"00-{span.trace}-{span.id}-01"}


def test_state_goes_on_and_is_told(traced: tuple[Collector, Sidecar, Sidecar]) -> None:
    collector, near, _ = traced
    got = get(near, traceparent=f"00-{_TRACE}-{_PARENT}-01", tracestate="a=1,b=2")
    client, provider = spans_of(collector, got)
    assert got["tracestate"] == "a=1,b=2"
    assert got["traceparent"] == f"00-{_TRACE}-{provider.id}-01"
    assert (client.trace, client.parent) == (_TRACE, _PARENT)
    assert client.state == provider.state == "a=1,b=2"


def test_what_is_not_sampled_passes_as_it_came(
    traced: tuple[Collector, Sidecar, Sidecar],
) -> None:
    collector, near, far = traced
    trace = _TRACE[::-1]
    sent = {
        "traceparent": f"00-{trace}-{_PARENT}-00",
        "tracestate": "a=1",
        "b3": f"{trace}-{_PARENT}-1",
    }
    got = get(near, **sent)
    spans_of(collector, get(near))  # is sampled: so the one before would have come, too
    (record,) = [each for each in logged(far, 2) if each["trace_id"] == trace]
    assert sent.items() <= got.items()
    assert all(span.trace != trace for span in collector.spans)
    assert "span_id" not in record


def test_without_tracing_nothing_is_touched(server: Server) -> None:
    port = free_port()
    without = settings("http://127.0.0.1:1", port, server.address)
    del without["tracing"]
    with Sidecar(without) as sidecar:
        got = get(sidecar, traceparent="nonsense")
        assert got["traceparent"] == "nonsense"
        assert "traceparent" not in get(sidecar)
        record = logged(sidecar, 2)[1]
    assert "trace_id" not in record


def test_a_malformed_context_begins_another_trace(
    traced: tuple[Collector, Sidecar, Sidecar],
) -> None:
    collector, near, _ = traced
    got = get(near, traceparent=f"00-{_TRACE}-{'0' * 16}-01", tracestate="a=1")
    client, _ = spans_of(collector, got)
    assert client.trace != _TRACE
    assert client.parent == ""
    assert got["traceparent"].split("-")[1] == client.trace
    assert "tracestate" not in got


def test_sidecars_agree_on_what_is_sampled_with_opentelemetrys_own(server: Server) -> None:
    """Each decides by itself: B3 can leave it to whoever comes next."""
    count = 200
    sampler = TraceIdRatioBased(0.25)
    ids = [
        f"{index * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"
        for index in range(1, count)
    ]
    with (
        collecting() as collector,
        chain(server.address, collector, sample="25%", propagate="b3") as (near, far),
    ):
        for trace in ids:
            get(near, b3=f"{trace}-{_PARENT}")
        sampled = Decision.RECORD_AND_SAMPLE
        expected = {
            trace
            for trace in ids
            if sampler.should_sample(None, int(trace, 16), "").decision is sampled
        }
        collector.wait_for(2 * len(expected))
        near.stop()
        far.stop()  # which sends what is left
    assert 25 < len(expected) < 75
    assert {span.trace for span in collector.spans} == expected
    assert len(collector.spans) == 2 * len(expected)


def test_traces_that_begin_here_are_whole(server: Server) -> None:
    """What the first sidecar decides holds for the second, though that has another share."""
    with collecting() as collector, contextlib.ExitStack() as stack:
        near_port, far_port = free_port(), free_port()
        far = stack.enter_context(
            Sidecar(settings(collector.url, far_port, server.address, sample="100%", inbound=True))
        )
        near = stack.enter_context(
            Sidecar(settings(collector.url, near_port, f"127.0.0.1:{far_port}", sample="50%"))
        )
        for _ in range(100):
            get(near)
        lines = logged(near, 100)
        sampled = {line["trace_id"] for line in lines if "span_id" in line}
        collector.wait_for(2 * len(sampled))
        assert {line["trace_id"] for line in lines} == {
            line["trace_id"] for line in far._logged("request")
        }
    assert 20 < len(sampled) < 80
    spans: dict[str, list[Span]] = {}
    for span in collector.spans:
        spans.setdefault(span.trace, []).append(span)
    assert spans.keys() == sampled
    assert all(len(both) == 2 for both in spans.values())


def metric(sidecar: Sidecar, name: str) -> float:
    text = sidecar._request("/metrics").body.decode()
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name)))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_collector_that_is_away_is_missed_by_nobody(server: Server, protocol: str) -> None:
    away, port = free_port(), free_port()
    failed = 'pysidecar_spans_dropped_total{reason="failed"}'
    with Sidecar(
        settings(f"http://127.0.0.1:{away}", port, server.address, protocol=protocol, sample="100%")
    ) as sidecar:
        began = time.monotonic()
        for _ in range(5):
            get(sidecar)
        took = time.monotonic() - began
        eventually(lambda: metric(sidecar, failed) == 5, "spans to be counted as dropped")
        with collecting(protocol, away) as collector:
            get(sidecar)
            assert len(collector.wait_for(1)) == 1
            eventually(lambda: metric(sidecar, "pysidecar_spans_exported_total") == 1)
        log = sidecar.log
    assert took < 15, took  # for each request the exporter tries for five seconds
    assert log.count("the collector takes no spans") == 1
    assert log.count("takes spans again: 5 were dropped") == 1
    assert "Traceback" not in log


def test_a_collector_that_does_not_answer_delays_no_end(server: Server) -> None:
    with collecting() as collector:
        collector.holding.set()
        sidecar = Sidecar(settings(collector.url, free_port(), server.address, sample="100%"))
        with sidecar:
            get(sidecar)
            collector.wait_for(1)
            get(sidecar)
            began = time.monotonic()
            sidecar.stop()
            took = time.monotonic() - began
        assert took < 8, took
        assert "does not take the last spans in time" in sidecar.log


def test_the_last_spans_are_sent_when_it_ends(server: Server) -> None:
    with collecting() as collector:
        sidecar = Sidecar(settings(collector.url, free_port(), server.address, sample="100%"))
        with sidecar:
            for _ in range(20):
                get(sidecar)
        assert len(collector.spans) == 20


def test_a_reload_follows_the_configuration(server: Server) -> None:
    with collecting() as one, collecting("grpc") as other:
        port = free_port()
        with Sidecar(settings(one.url, port, server.address, sample="100%")) as sidecar:
            get(sidecar)
            one.wait_for(1)
            elsewhere = {"otlp": other.url, "protocol": "grpc"}
            sidecar._settings["tracing"] = {**elsewhere, "sample": "100%"}
            sidecar.reload()
            get(sidecar)
            other.wait_for(1)
            sidecar._settings["tracing"] = {**elsewhere, "sample": "0%"}
            sidecar.reload()
            assert "traceparent" not in get(sidecar)


def test_what_is_sent_to_the_collector_is_secret(server: Server) -> None:
    with collecting() as collector:
        headers = {"Authorization": "Bearer s3cret"}
        with Sidecar(
            settings(collector.url, free_port(), server.address, sample="100%", headers=headers)
        ) as sidecar:
            get(sidecar)
            collector.wait_for(1)
            shown = json.dumps(sidecar.admin_json("/config"))
        assert collector.headers[0]["authorization"] == "Bearer s3cret"
        assert "authorization" in shown
        assert "s3cret" not in shown
        assert "s3cret" not in sidecar.log
