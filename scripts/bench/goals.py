"""What the sidecar has to reach beside its peers, and whether it did."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from scripts.bench.paired import OF_RATE
from scripts.bench.request_proxies import (
    ACCELERATED,
    ENVOY,
    HOOKED,
    HTTP2_BETWEEN,
    LISTENER,
    LOGGED,
    MECHANISMS,
    RELAYING_LISTENER,
    TRACES,
    TWO_SIDECARS,
)
from scripts.bench.results import Results
from scripts.bench.scenarios import HOOK_COST, HTTP_IDLE, IDLE, SCENARIOS, Metric, Scenario
from scripts.bench.sides import DIRECT, NOT_CAPTURED, RELAY

__all__ = ["Outcome", "of_connections", "of_http2", "of_requests"]

_UNPRIVILEGED = (RELAY, "relay header")
_MAX_IDLE_BYTES = 1024
_MAX_HOOK_COST = 1.02
_MAX_ADDED_LATENCY = 2.5
_IDLE_MEMORY = "user memory for an idle connection"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal, and what came of it; `measured` is empty where it was not."""

    goal: str
    wanted: str
    measured: str = ""
    reached: bool | None = None


_Base = Callable[[Results, str, Metric], tuple[str, float] | None]


def _side(side: str, results: Results, scenario: str, metric: Metric) -> tuple[str, float] | None:
    spread = results.spread(scenario, side, metric.name)
    return (side, spread.median) if spread else None


_direct = functools.partial(_side, DIRECT)


def _best_peer(results: Results, scenario: str, metric: Metric) -> tuple[str, float] | None:
    return results.best_peer(scenario, metric)


def _best_behind_hook(results: Results, scenario: str, metric: Metric) -> tuple[str, float] | None:
    return results.best_peer(scenario, metric, behind_hook=True)


@dataclass(frozen=True, slots=True)
class _Goal:
    """A side is to be at least so many times as good as its base."""

    sides: tuple[str, ...]
    scenarios: tuple[str, ...]
    metrics: tuple[str, ...]
    factor: float
    base: _Base
    base_name: str


_BULK = ("bulk-upload", "bulk-download")
_GOALS = (
    _Goal(_UNPRIVILEGED, _BULK, ("rate",), 1.3, _best_peer, "the best peer"),
    _Goal(
        _UNPRIVILEGED,
        ("requests-64-32", "requests-64-512", "requests-4096-32", "requests-4096-512"),
        ("rate", "p99"),
        1.15,
        _best_behind_hook,
        "the best peer behind our hook",
    ),
    _Goal(
        _UNPRIVILEGED,
        ("connect-1", "connect-64"),
        ("rate",),
        1.2,
        _best_behind_hook,
        "the best peer behind our hook",
    ),
    _Goal(("full",), _BULK, ("rate",), 0.9, _direct, "direct"),
    _Goal(
        ("full",),
        ("requests-64-32", "requests-4096-32"),
        ("rate",),
        1.3,
        _best_peer,
        "the best peer",
    ),
    _Goal(
        ("action direct",),
        (*_BULK, *(each.name for each in SCENARIOS if each.name.startswith("requests-"))),
        ("rate",),
        0.98,
        _direct,
        "direct",
    ),
)


_HTTP_AT_32 = ("http-100-32", "http-1024-32")
_HTTP = (*_HTTP_AT_32, "http-100-256", "http-1024-256")
_LONG = ("http-upload", "http-download")
_NO_PRIVILEGE = (LISTENER, HOOKED)


def _calls(in_flight: int, *protocols: str) -> tuple[str, ...]:
    return tuple(f"{each}-{size}-32-{in_flight}" for each in protocols for size in (100, 1024))


_REQUEST_GOALS = (
    _Goal(_NO_PRIVILEGE, _HTTP, ("rate",), 1.05, _best_peer, "the best peer"),
    _Goal(_NO_PRIVILEGE, _HTTP, ("rate",), 2, functools.partial(_side, ENVOY), "Envoy"),
    _Goal((ACCELERATED,), _HTTP, ("rate",), 1.25, _best_peer, "the best peer"),
    _Goal(_NO_PRIVILEGE, _calls(1, "bolt", "dubbo"), ("rate",), 0.5, _direct, "direct"),
    _Goal(_NO_PRIVILEGE, _calls(8, "bolt", "dubbo"), ("rate",), 0.3, _direct, "direct"),
    _Goal(
        _NO_PRIVILEGE,
        (*_HTTP_AT_32, *_calls(1, "dubbo"), *_calls(8, "dubbo")),
        ("p99",),
        1,
        _best_peer,
        "the best peer",
    ),
    _Goal(
        (TWO_SIDECARS,),
        ("http-100-32", "bolt-100-32-1", "dubbo-100-32-1"),
        ("rate",),
        0.3,
        _direct,
        "direct",
    ),
    _Goal((TWO_SIDECARS,), ("bolt-100-32-8", "dubbo-100-32-8"), ("rate",), 0.2, _direct, "direct"),
    # At most 0.8 of the CPU.
    _Goal(_NO_PRIVILEGE, _HTTP_AT_32, ("CPU proxy",), 1.25, _best_peer, "the best peer"),
    _Goal(_NO_PRIVILEGE, _LONG, ("rate",), 0.95, functools.partial(_side, RELAY), RELAY),
    # The same client, whose own socket is as the host has it: the hook's is for loopback.
    _Goal(
        (LISTENER,),
        _LONG,
        ("rate",),
        0.95,
        functools.partial(_side, RELAYING_LISTENER),
        RELAYING_LISTENER,
    ),
    _Goal(
        (LOGGED,),
        (*_HTTP, *_calls(1, "bolt", "dubbo"), *_calls(8, "bolt", "dubbo")),
        ("rate",),
        0.95,
        functools.partial(_side, LISTENER),
        LISTENER,
    ),
)


_HTTP2 = ("http2-1-32", "http2-32-8", "grpc-1-32", "grpc-32-8")
_HTTP2_GOALS = (_Goal((LISTENER,), _HTTP2, ("rate",), 1.1, _best_peer, "the best peer"),)
# What is left of the rate, by turns that follow each other closely.
_COSTS = tuple(
    (side, scenario, least, LISTENER)
    for side, least in ((MECHANISMS, 0.95), (TRACES, 0.97))
    for scenario in ("cost-http-32-1", "cost-http2-32-8")
)
_BETWEEN = ((HTTP2_BETWEEN, "between-http-32-1", 0.3, DIRECT),)


def of_connections(results: Results) -> Iterator[Outcome]:
    """The goals of connections, those included that the run has no numbers for."""
    yield from _all_compared(results, _GOALS)
    yield _hook_cost(results)
    yield from _idle_memory(results)


def of_requests(results: Results) -> Iterator[Outcome]:
    """The goals of requests, likewise."""
    yield from _all_compared(results, _REQUEST_GOALS)
    for scenario in ("http-100-1", "bolt-100-1-1", "dubbo-100-1-1"):
        yield _added_latency(results, scenario)
    yield _at_most_idle_bytes(results, LISTENER, HTTP_IDLE)


def of_http2(results: Results) -> Iterator[Outcome]:
    """The goals of HTTP/2 and gRPC, and of what features cost, likewise."""
    yield from _all_compared(results, _HTTP2_GOALS)
    for side, scenario, least, base in (*_COSTS, *_BETWEEN):
        what, wanted = f"{side}: {scenario}, rate", f"≥ {least:g} × {base}"
        own = results.spread(scenario, side, OF_RATE)
        if own is None:
            yield Outcome(what, wanted)
        else:
            yield Outcome(what, wanted, f"{own.median:.3f} ×", own.median >= least)


def _added_latency(results: Results, scenario: str) -> Outcome:
    """What two sidecars that read requests add to one, by what one relay of bytes adds."""
    what = f"{TWO_SIDECARS}: {scenario}, p50 above direct"
    wanted = f"≤ {_MAX_ADDED_LATENCY:g} × that of {RELAY}"
    spreads = [results.spread(scenario, side, "p50") for side in (TWO_SIDECARS, RELAY, DIRECT)]
    medians = [spread.median for spread in spreads if spread]
    if len(medians) < len(spreads) or medians[1] <= medians[2]:
        return Outcome(what, wanted)
    ratio = (medians[0] - medians[2]) / (medians[1] - medians[2])
    return Outcome(what, wanted, f"{ratio:.2f} × {RELAY}", ratio <= _MAX_ADDED_LATENCY)


def _all_compared(results: Results, goals: Sequence[_Goal]) -> Iterator[Outcome]:
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    for goal in goals:
        for side in goal.sides:
            for name in goal.scenarios:
                for metric in goal.metrics:
                    yield _compared(results, goal, side, scenarios[name], metric)


def _compared(
    results: Results, goal: _Goal, side: str, scenario: Scenario, metric_name: str
) -> Outcome:
    metric = scenario.metric(metric_name)
    what = f"{side}: {scenario.name}, {metric.name}"
    wanted = f"≥ {goal.factor:g} × {goal.base_name}"
    own = results.spread(scenario.name, side, metric.name)
    base = goal.base(results, scenario.name, metric)
    if own is None or base is None:
        return Outcome(what, wanted)
    ratio = metric.times_better(own.median, base[1])
    return Outcome(what, wanted, f"{ratio:.2f} × {base[0]}", ratio >= goal.factor)


def _hook_cost(results: Results) -> Outcome:
    what, wanted = "hook, destination not captured: connect", f"≤ {_MAX_HOOK_COST:g} × direct"
    ratio = results.spread(HOOK_COST.name, NOT_CAPTURED, "ratio")
    if ratio is None:
        return Outcome(what, wanted)
    return Outcome(what, wanted, f"{ratio.median:.3f} ×", ratio.median <= _MAX_HOOK_COST)


def _idle_memory(results: Results) -> Iterator[Outcome]:
    metric = IDLE.metric("user")
    for side in _UNPRIVILEGED:
        yield _at_most_idle_bytes(results, side, IDLE)
        what = f"{side}: {_IDLE_MEMORY}"
        own = results.spread(IDLE.name, side, metric.name)
        peer = results.best_peer(IDLE.name, metric)
        if own is None or peer is None:
            yield Outcome(what, "below every peer")
        else:
            measured = f"{own.median:,.0f} B, {peer[0]} {peer[1]:,.0f} B"
            yield Outcome(what, "below every peer", measured, own.median < peer[1])


def _at_most_idle_bytes(results: Results, side: str, scenario: Scenario) -> Outcome:
    what, wanted = f"{side}: {_IDLE_MEMORY}", f"≤ {_MAX_IDLE_BYTES:,} B"
    own = results.spread(scenario.name, side, scenario.metric("user").name)
    if own is None:
        return Outcome(what, wanted)
    return Outcome(what, wanted, f"{own.median:,.0f} B", own.median <= _MAX_IDLE_BYTES)
