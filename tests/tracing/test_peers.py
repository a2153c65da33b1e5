"""Traces of Bolt and Dubbo, with SOFARPC and Dubbo on both ends of two sidecars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from pysidecar.testing import Sidecar
from tests.interop.servers import HAS_IPV6, free_port
from tests.requests import programs
from tests.tracing.collector import Collector, collecting
from tests.tracing.test_traces import logged


@contextlib.contextmanager
def _chain(
    protocol: str, upstream: int, collector: Collector, host: str = "127.0.0.1", **tracing: Any
) -> Iterator[tuple[str, Sidecar]]:
    """The address of a client's sidecar, which calls that of a server; and that one."""
    ports = free_port(), free_port()

    def settings(listen: str, endpoint: str, direction: str) -> dict[str, Any]:
        return {
            "services": {"echo": {"protocol": protocol, "endpoints": [endpoint]}},
            "listeners": [{"listen": listen, "service": "echo", "direction": direction}],
            "tracing": {"otlp": collector.url, "service_name": direction, **tracing},
        }

    near, far = f"{host}:{ports[0]}", f"127.0.0.1:{ports[1]}"
    with (
        Sidecar(settings(far, f"127.0.0.1:{upstream}", "inbound")) as last,
        Sidecar(settings(near, far, "outbound")),
    ):
        yield near, last


@pytest.fixture(scope="module")
def sofa_port() -> Iterator[int]:
    with programs.sofa() as server:
        port = free_port()
        server.ask("serve", library="sofarpc", port=port, name="one", services="a")
        yield port


def test_sofas_trace_is_that_of_our_spans(sofa_port: int) -> None:
    with (
        collecting() as collector,
        programs.sofa() as client,
        _chain("bolt", sofa_port, collector, sample="100%") as (address, far),
    ):
        answer = client.call(
            address=address, library="sofarpc", service="a", method="echo", text="trace"
        )
        spans = collector.wait_for(2)
        (record,) = logged(far, 1)
    trace, rpc, _ = answer["value"].split()
    outer, inner = spans
    assert outer.trace == inner.trace == record["trace_id"] == f"{trace:0>32}"
    assert rpc.startswith("0")
    assert [span.kind for span in spans] == ["CLIENT", "SERVER"]
    assert (outer.parent, inner.parent) == ("", outer.id)
    assert outer.name == "peer.Echo:1.0:a/echo"
    assert outer.attributes["rpc.system"] == "sofa_rpc"
    assert outer.attributes["rpc.method"] == "echo"


def test_sofatracer_goes_on_with_a_trace_that_begins_here(sofa_port: int) -> None:
    with (
        collecting() as collector,
        programs.sofa(traced=False) as client,
        _chain("bolt", sofa_port, collector, sample="100%") as (address, _),
    ):
        answer = client.call(
            address=address, library="sofarpc", service="a", method="echo", text="trace"
        )
        spans = collector.wait_for(2)
    trace, _, sampled = answer["value"].split()
    assert {span.trace for span in spans} == {trace}
    assert sampled == "true"


def test_many_calls_keep_their_own_trace(sofa_port: int) -> None:
    with (
        collecting() as collector,
        programs.sofa() as client,
        _chain("bolt", sofa_port, collector, sample="50%") as (address, far),
    ):
        result = client.ask(
            "burst",
            library="sofarpc",
            service="a",
            address=address,
            count=300,
            concurrency=16,
            size=2000,
        )
        lines = logged(far, 300)
        sampled = {line["trace_id"] for line in lines if "span_id" in line}
        spans = collector.wait_for(2 * len(sampled))
    assert result == {"right": "300"}
    assert 60 < len(sampled) < 240
    assert {span.trace for span in spans} == sampled


@pytest.mark.skipif(not HAS_IPV6, reason="a Dubbo consumer connects to no IPv4 loopback address")
def test_dubbos_attachments_have_the_trace() -> None:
    with programs.dubbo() as server, programs.dubbo() as client, collecting() as collector:
        port = free_port()
        server.ask("serve", port=port, name="one", services="1.0 blue")
        with _chain("dubbo", port, collector, "[::1]", sample="100%", propagate=["w3c", "b3"]) as (
            address,
            _,
        ):

            def ask(name: str) -> str:
                return client.call(
                    address=address, service="1.0 blue", method="echo", text=f"attachment {name}"
                )["value"]

            parent = ask("traceparent")
            single = ask("b3")
            result = client.ask(
                "burst", address=address, service="1.0 blue", count=200, concurrency=16
            )
            spans = collector.wait_for(404)
    assert result == {"right": "200"}
    for value, pair in ((parent[3:], spans[:2]), (single, spans[2:4])):
        outer, inner = pair
        assert value.split("-")[:2] == [inner.trace, inner.id]
        assert (inner.trace, inner.parent) == (outer.trace, outer.id)
        assert [span.kind for span in pair] == ["CLIENT", "SERVER"]
        assert outer.name == "peer.Echo/echo"
        assert outer.attributes["rpc.system"] == "apache_dubbo"
    assert sum(span.parent == "" for span in spans) == 202
