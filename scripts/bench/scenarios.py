"""The scenarios of the benchmark: what is loaded, and which numbers come of it.

One entry of `SCENARIOS` is one scenario. The load is the C program of ``load/``; nothing here is in
the measured path.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.bench import paired
from scripts.bench.h2load import h2load
from scripts.bench.processes import (
    BenchError,
    cpu_seconds,
    kernel_memory,
    plain_environment,
    private_memory,
    wrapped,
)
from scripts.bench.request_proxies import (
    HTTP2_BETWEEN,
    LISTENER,
    MECHANISMS,
    TRACES,
    TWO_SIDECARS,
)
from scripts.bench.side import Load, Side, Way
from scripts.bench.sides import DIRECT, NOT_CAPTURED

__all__ = [
    "CONNECTIONS",
    "HOOK_COST",
    "HTTP2",
    "HTTP_IDLE",
    "IDLE",
    "REQUESTS",
    "SCENARIOS",
    "Metric",
    "Scenario",
    "Settings",
    "Values",
]

Values = dict[str, float]
"""By the names of the scenario's metrics; without those that make no sense for the side."""

_STARTUP = 20.0  # seconds that a client may take beside what it is asked to do
_IDLE_PATIENCE = 120.0
# Sides that are there for one scenario's sake.
_FOR_ONE_SCENARIO = (NOT_CAPTURED, MECHANISMS, TRACES, HTTP2_BETWEEN)


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how much."""

    rounds: int
    seconds: float
    """Of measuring, for each side in each round."""
    warm_up: float
    """Seconds before that."""
    idle_connections: int
    connect_batches: int
    """Of the scenario that compares a connect with and without the hook."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a scenario yields."""

    name: str
    unit: str
    higher_is_better: bool = False
    digits: int = 0
    compared: bool = True
    """Whether it is shown with ratios."""

    def times_better(self, value: float, base: float) -> float:
        """How many times as good as `base` a value is."""
        better, worse = (value, base) if self.higher_is_better else (base, value)
        return better / worse if worse else float("inf")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario. `measure` measures a side, or, where `together`, all of them in turns."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    measure: Callable[[Path, Way, Settings], Values] | None = None
    measure_together: Callable[[Path, Mapping[str, Way], Settings], dict[str, Values]] | None = None
    fresh: bool = False
    """Whether sides are started anew for each round, since memory depends on what was before."""
    load: Load = Load.BYTES
    sides: Callable[[Side], bool] = lambda side: side.name not in _FOR_ONE_SCENARIO
    variations: bool = False
    """Whether sides take part that differ from another one in a setting only."""

    def takes(self, side: Side) -> bool:
        """Whether a side is measured with it."""
        return (
            self.load in side.loads and self.sides(side) and (self.variations or not side.variation)
        )

    def metric(self, name: str) -> Metric:
        """One of its metrics."""
        return next(metric for metric in self.metrics if metric.name == name)


# ---- The client ----


def _command(
    load: Path, way: Way, mode: str, *words: object, of: Load = Load.BYTES
) -> list[str | Path]:
    address = way.address(of)
    command = [*way.wrapper, load, mode, address.host, str(address.port), *map(str, words)]
    return wrapped(command, netns=way.netns)


def _result(output: str, errors: str, status: int) -> dict[str, Any]:
    """What the client printed; any failed connection or request makes it an error."""
    lines = output.splitlines()
    try:
        result: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        result = {}
    failures = {name: count for name, count in result.get("failures", {}).items() if count}
    if status != 0 or not result or failures:
        counted = ", ".join(f"{count} {name}" for name, count in failures.items())
        said = "; ".join(part for part in (counted, errors.strip()[-300:]) if part)
        raise BenchError(f"the client ended with status {status}: {said or 'without a word'}")
    return result


def _loaded(
    load: Path, way: Way, settings: Settings, mode: str, *words: object, of: Load = Load.BYTES
) -> tuple[dict[str, Any], float, float]:
    """Runs the client; its result, and the CPU seconds of the proxies and of all."""
    command = _command(load, way, mode, settings.warm_up, settings.seconds, *words, of=of)
    before = cpu_seconds(way.proxies), cpu_seconds([way.server]), _children_cpu()
    try:
        done = subprocess.run(
            command,
            env=plain_environment(way.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=settings.warm_up + settings.seconds + _STARTUP,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise BenchError("the client did not end in time") from None
    result = _result(done.stdout, done.stderr, done.returncode)
    proxies = cpu_seconds(way.proxies) - before[0]
    server = cpu_seconds([way.server]) - before[1]
    return result, proxies, proxies + server + _children_cpu() - before[2]


def _children_cpu() -> float:
    """Of the children that ended: between two calls, of the client."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# ---- Bulk, requests and connections ----

_GIB = float(1 << 30)
_LONG_BODY = 100_000_000
_NAMES = {Load.HTTP: "HTTP/1.1", Load.BOLT: "Bolt", Load.DUBBO: "Dubbo"}
_CPU_BULK = (
    Metric("CPU proxy", "s/GiB", digits=2, compared=False),
    Metric("CPU all", "s/GiB", digits=2, compared=False),
)
_CPU_REQUESTS = (
    Metric("CPU proxy", "ms/1000", digits=1, compared=False),
    Metric("CPU all", "ms/1000", digits=1, compared=False),
)
_LATENCIES = (Metric("p50", "µs", compared=False), Metric("p99", "µs"))


def _with_cpu(values: Values, way: Way, proxies: float, everything: float) -> Values:
    return {**values, **({"CPU proxy": proxies} if way.proxies else {}), "CPU all": everything}


def _bulk(mode: str, name: str, title: str, *words: object, of: Load = Load.BYTES) -> Scenario:
    def measure(load: Path, way: Way, settings: Settings) -> Values:
        result, proxies, everything = _loaded(load, way, settings, mode, *words, of=of)
        gib = result["amount_with_warm_up"] / _GIB
        rate = result["amount"] * 8 / 1e9 / result["seconds"]
        return _with_cpu({"rate": rate}, way, proxies / gib, everything / gib)

    rate = Metric("rate", "Gbit/s", higher_is_better=True, digits=1)
    return Scenario(name, title, (rate, *_CPU_BULK), measure, load=of)


def _rate(
    mode: str, unit: str, name: str, title: str, *words: object, of: Load = Load.BYTES
) -> Scenario:
    def measure(load: Path, way: Way, settings: Settings) -> Values:
        result, proxies, everything = _loaded(load, way, settings, mode, *words, of=of)
        if not result["amount"]:
            raise BenchError("nothing was done in the time measured")
        done = result["amount_with_warm_up"]
        values = {
            "rate": result["amount"] / result["seconds"],
            "p50": result["p50_us"],
            "p99": result["p99_us"],
        }
        return _with_cpu(values, way, 1e6 * proxies / done, 1e6 * everything / done)

    rate = Metric("rate", unit, higher_is_better=True)
    return Scenario(name, title, (rate, *_LATENCIES, *_CPU_REQUESTS), measure, load=of)


def _requests(size: int, connections: int) -> Scenario:
    return _rate(
        "requests",
        "requests/s",
        f"requests-{size}-{connections}",
        f"Requests and responses of {size:,} B, {_counted(connections, 'connection')}",
        connections,
        size,
    )


def _connects(clients: int) -> Scenario:
    title = f"Connect, one request of 64 B, close: {_counted(clients, 'client')}"
    return _rate("connects", "connections/s", f"connect-{clients}", title, clients, 64)


def _calls(protocol: Load, size: int, connections: int, in_flight: int = 1) -> Scenario:
    each = "" if protocol is Load.HTTP else f"-{in_flight}"
    many = "" if protocol is Load.HTTP else f", {in_flight} in flight on each"
    what = "answers" if protocol is Load.HTTP else "bodies both ways"
    scenario = _rate(
        str(protocol),
        "requests/s",
        f"{protocol}-{size}-{connections}{each}",
        f"{_NAMES[protocol]}, {what} of {size:,} B, {_counted(connections, 'connection')}{many}",
        *(connections, in_flight, size),
        of=protocol,
    )
    return replace(scenario, variations=connections > 1 and in_flight <= 8)


def _long_bodies(mode: str) -> Scenario:
    title = f"HTTP/1.1, bodies of 100 MB, {mode}, one connection"
    scenario = _bulk(f"http-{mode}", f"http-{mode}", title, _LONG_BODY, of=Load.HTTP)
    return replace(scenario, variations=True)


# ---- HTTP/2 ----

_TITLES = {
    Load.HTTP2: "HTTP/2",
    Load.GRPC: "gRPC, unary calls",
    Load.HTTP2_TO_HTTP: "HTTP/2 of the client, HTTP/1.1 to the server",
}
_PATHS = {
    Load.HTTP2: "/orders/1",
    Load.GRPC: "/com.example.Orders/Get",
    Load.HTTP2_TO_HTTP: "/0123456789abcdef?bytes=100",
}


def _http2(of: Load, connections: int, streams: int) -> Scenario:
    def measure(load: Path, way: Way, settings: Settings) -> Values:
        before = cpu_seconds(way.proxies), cpu_seconds([way.server]), _children_cpu()
        counted = h2load(way.address(of), connections, streams, settings.seconds, _PATHS[of])
        proxies = cpu_seconds(way.proxies) - before[0]
        server, client = cpu_seconds([way.server]) - before[1], _children_cpu() - before[2]
        each = 1e6 / counted.requests
        values = {"rate": counted.requests / counted.seconds}
        return _with_cpu(values, way, proxies * each, (proxies + server + client) * each)

    title = f"{_TITLES[of]}, answers of 100 B, {_counted(connections, 'connection')}"
    rate = Metric("rate", "requests/s", higher_is_better=True)
    return Scenario(
        f"{of}-{connections}-{streams}",
        f"{title} × {streams} streams",
        (rate, *_CPU_REQUESTS),
        measure,
        load=of,
    )


# ---- Small differences, by turns that follow each other closely ----


def _in_turns(
    name: str, title: str, of: Load, connections: int, in_flight: int, sides: tuple[str, ...]
) -> Scenario:
    """Compares sides with the first of them."""
    base = sides[0]

    def turn(load: Path, way: Way, seconds: float) -> tuple[int, float]:
        if of is not Load.HTTP:
            counted = h2load(way.address(of), connections, in_flight, seconds, _PATHS[of])
            return counted.requests, counted.seconds
        command = _command(load, way, "http", 0, seconds, connections, in_flight, 100, of=of)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + _STARTUP, check=False
        )
        result = _result(done.stdout, done.stderr, done.returncode)
        if not result["amount"]:
            raise BenchError("nothing was done in the time measured")
        return int(result["amount"]), float(result["seconds"])

    def together(load: Path, ways: Mapping[str, Way], settings: Settings) -> dict[str, Values]:
        if base not in ways:
            raise BenchError(f"needs {base}, which the others are compared with")
        return paired.measure(ways, base, functools.partial(turn, load), settings.seconds)

    return Scenario(
        f"{name}-{of}-{connections}-{in_flight}",
        f"{title}, {_counted(connections, 'connection')}",
        (
            Metric("rate", "requests/s", higher_is_better=True),
            Metric("CPU proxy", "µs", digits=2, compared=False),
            Metric(paired.OF_RATE, f"× {base}", higher_is_better=True, digits=3, compared=False),
            Metric(paired.OF_CPU, f"× {base}", digits=3, compared=False),
        ),
        measure_together=together,
        load=of,
        sides=lambda side: side.name in sides,
        variations=True,
    )


_FEATURES = (LISTENER, MECHANISMS, TRACES)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


# ---- Idle connections ----


def _idle(mode: str, of: Load, load: Path, way: Way, settings: Settings) -> Values:
    count = settings.idle_connections
    with _client(_command(load, way, mode, 100, of=of), way) as warming:  # what is allocated once
        _read_open(warming)
        _finish(warming)
    user, kernel = private_memory(way.proxies), kernel_memory()
    with _client(_command(load, way, mode, count, of=of), way) as client:
        _read_open(client)
        user_after, kernel_after = private_memory(way.proxies), kernel_memory()
        _finish(client)
    values = {"kernel": (kernel_after.total - kernel.total) / count}
    return {**values, **({"user": (user_after - user) / count} if way.proxies else {})}


def _read_open(client: subprocess.Popen[str]) -> None:
    assert client.stdout is not None
    line = client.stdout.readline()
    if line != "open\n":
        _, errors = client.communicate(timeout=_STARTUP)
        raise BenchError(str(_result(line, errors, client.returncode or 1)))


def _finish(client: subprocess.Popen[str]) -> None:
    output, errors = client.communicate("close\n", timeout=_IDLE_PATIENCE)
    _result(output, errors, client.returncode)


@contextlib.contextmanager
def _client(command: list[str | Path], way: Way) -> Iterator[subprocess.Popen[str]]:
    client = subprocess.Popen(
        command,
        env=plain_environment(way.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with client:
        try:
            yield client
        except subprocess.TimeoutExpired:
            raise BenchError("the client did not end in time") from None
        finally:
            client.kill()


# ---- A connect that the hook leaves alone ----

_CONNECTS_IN_BATCH = 50


def _connect_cost(load: Path, ways: Mapping[str, Way], settings: Settings) -> dict[str, Values]:
    """Batches of half a millisecond in turns, by processes that are there all the time."""
    with contextlib.ExitStack() as stack:
        clients = {
            name: stack.enter_context(_client(wrapped([load, "connect-cost"]), way))
            for name, way in ways.items()
        }
        cpu = {min(os.sched_getaffinity(0))}
        for client in clients.values():
            os.sched_setaffinity(client.pid, cpu)  # the same one, which may be busier than others
        times: dict[str, list[float]] = {name: [] for name in clients}
        for batch in range(settings.connect_batches + 2):
            order = list(clients) if batch % 2 else list(reversed(clients))
            for name in order:
                took = _one_batch(clients[name])
                if batch >= 2:  # the first ones warm up
                    times[name].append(took)
    values = {name: {"connect": statistics.median(took)} for name, took in times.items()}
    # Of neighbouring batches, since what else the machine does comes and goes.
    pairs = zip(times[NOT_CAPTURED], times[DIRECT], strict=True)
    values[NOT_CAPTURED]["ratio"] = statistics.median(own / direct for own, direct in pairs)
    return values


def _one_batch(client: subprocess.Popen[str]) -> float:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{_CONNECTS_IN_BATCH}\n")
    client.stdin.flush()
    line = client.stdout.readline()
    if not line:
        assert client.stderr is not None
        raise BenchError(f"the client ended: {client.stderr.read().strip()}")
    return float(line)


_MEMORY = (Metric("user", "bytes"), Metric("kernel", "bytes"))
IDLE = Scenario(
    "idle",
    "Idle connections: memory for each",
    _MEMORY,
    functools.partial(_idle, "idle", Load.BYTES),
    fresh=True,
)
HTTP_IDLE = Scenario(
    "http-idle",
    "Idle connections of HTTP/1.1, each after a request: memory for each",
    _MEMORY,
    functools.partial(_idle, "http-idle", Load.HTTP),
    fresh=True,
    load=Load.HTTP,
)
HOOK_COST = Scenario(
    "hook-cost",
    "Connect to a destination that the hook leaves alone",
    (Metric("connect", "ns"), Metric("ratio", "× direct", digits=3, compared=False)),
    measure_together=_connect_cost,
    sides=lambda side: side.name in (DIRECT, NOT_CAPTURED),
)
CONNECTIONS: tuple[Scenario, ...] = (
    _bulk("upload", "bulk-upload", "Bulk upload, one connection"),
    _bulk("download", "bulk-download", "Bulk download, one connection"),
    *(_requests(size, connections) for size in (64, 4096) for connections in (1, 32, 512)),
    _connects(1),
    _connects(64),
    HOOK_COST,
    IDLE,
)
REQUESTS: tuple[Scenario, ...] = (
    *(_calls(Load.HTTP, size, connections) for size in (100, 1024) for connections in (1, 32, 256)),
    *(
        _calls(protocol, size, connections, in_flight)
        for protocol in (Load.BOLT, Load.DUBBO)
        for size in (100, 1024)
        for connections in (1, 32)
        for in_flight in (1, 8, 32)
    ),
    _long_bodies("upload"),
    _long_bodies("download"),
    HTTP_IDLE,
)
HTTP2: tuple[Scenario, ...] = (
    *(
        _http2(of, connections, streams)
        for of in (Load.HTTP2, Load.GRPC, Load.HTTP2_TO_HTTP)
        for connections, streams in ((1, 32), (32, 8))
    ),
    _in_turns("cost", "What a feature costs: HTTP/1.1", Load.HTTP, 32, 1, _FEATURES),
    _in_turns("cost", "What a feature costs: HTTP/2, 8 streams", Load.HTTP2, 32, 8, _FEATURES),
    _in_turns(
        "between",
        "HTTP/1.1 through two sidecars",
        Load.HTTP,
        32,
        1,
        (DIRECT, TWO_SIDECARS, HTTP2_BETWEEN),
    ),
)
SCENARIOS = (*CONNECTIONS, *REQUESTS, *HTTP2)
