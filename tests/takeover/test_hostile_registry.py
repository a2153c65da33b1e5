"""What a registry that is hostile, or broken, does to a sidecar: it costs errors, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import uvloop

from pysidecar.config import parse
from pysidecar.registry import MAX_ALL_INSTANCES, MAX_INSTANCES
from pysidecar.registry.room import FAIR
from pysidecar.registry.service import ServiceKey
from pysidecar.routing.found import FoundServices
from pysidecar.takeover.takeover import Takeover
from tests.interop.servers import free_port
from tests.takeover.hostile_registry import (
    HostileRegistry,
    hostile_registry,
    instances,
    push,
    told,
)
from tests.takeover.test_flow import CONSUMER, PROVIDER, Pod, _Application
from tests.takeover.watching import watching
from tests.waiting import eventually

_MIB = 1 << 20


@pytest.fixture
def registry() -> Iterator[HostileRegistry]:
    with hostile_registry() as made:
        yield made


@pytest.fixture
def orders() -> Iterator[_Application]:
    application = _Application("orders")
    yield application
    application.leave()


@pytest.fixture
def pod(registry: HostileRegistry, orders: _Application) -> Iterator[Pod]:
    """That calls a service, whatever the registry says of others."""
    registry.says["orders"] = told(f"127.0.0.1:{orders.server_port}")
    made = Pod(str(registry.address))
    with made.sidecar:
        made.subscribe("orders")
        made.gets("orders", "orders orders")
        yield made


def _get(pod: Pod, path: str) -> str:
    """Of the admin interface, with more patience than the sidecar of a fixture has."""
    address = pod.sidecar.admin
    client = http.client.HTTPConnection(address.host, address.port, timeout=60)
    with contextlib.closing(client):
        client.request("GET", path)
        return client.getresponse().read().decode()


def _registry_status(pod: Pod) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_get(pod, "/takeover"))["registry"]
    return found


def _entry(pod: Pod, service: str) -> dict[str, Any]:
    (found,) = json.loads(_get(pod, f"/services?service={service}"))
    assert isinstance(found, dict)
    return found


def _endpoints(pod: Pod, service: str) -> list[str]:
    return [each["address"] for each in _entry(pod, service)["endpoints"]]


def _has_some(pod: Pod, service: str) -> bool:
    return len(_endpoints(pod, service)) >= FAIR


@pytest.mark.parametrize(
    ("services", "rounds", "longest"),
    [
        pytest.param(2, 1, 5.0, id="short"),
        pytest.param(
            *(MAX_ALL_INSTANCES // MAX_INSTANCES + 2, 20, 5.0),
            id="long",
            marks=[pytest.mark.soak, pytest.mark.timeout(900)],
        ),
    ],
)
def test_a_million_endpoints_cost_neither_memory_nor_time(
    pod: Pod, registry: HostileRegistry, services: int, rounds: int, longest: float
) -> None:
    names = [f"large-{number}" for number in range(services)]
    for name in names:
        pod.subscribe(name)
    eventually(lambda: registry.subscribed.issuperset(names))
    variants = [instances(30_000, hosts=first) for first in (10, 11)]
    longest_line = instances(500_000)  # of almost 16 MiB, the most that is read
    with watching(pod, "orders") as seen:
        for turn in range(rounds):
            registry.say(push(name, variants[turn % 2]) for name in names)
            registry.say(push(names[0], longest_line))
            eventually(lambda: _registry_status(pod)["cut"] == services, patience=120)
            time.sleep(1 if rounds > 1 else 0)
    for name in names:
        eventually(partial(_has_some, pod, name), patience=60)
    status = _registry_status(pod)
    assert status["state"] == "connected"
    most = min(MAX_ALL_INSTANCES + services * FAIR, services * MAX_INSTANCES + 1)
    assert 0 < status["instances"] <= most
    assert not seen.failed
    assert seen.answered
    assert seen.longest_pause < longest
    assert max(seen.resident) < (250 if services == 2 else 500) * _MIB
    assert 1 <= pod.sidecar.log.count("more than can be kept") <= 2 + rounds
    lines = _get(pod, "/metrics")
    assert f"pysidecar_registry_instances {status['instances']}.0" in lines
    assert f"pysidecar_registry_services_cut {services}.0" in lines
    assert _entry(pod, names[0])["cut"]


@pytest.mark.parametrize(
    "answer",
    [
        b'{"service":{"protocol":"http","name":"%b"},"instances":[]}\n' % (b"x" * _MIB),
        push("orders", b'{"address":"10.0.0.1:1","zone":"%b"}' % (b"z" * _MIB)),
        push("orders", b'{"address":"10.0.0.1:1","metadata":{"%b":""}}' % (b"k" * _MIB)),
        push("orders", b'{"address":"%b:1"}' % (b"1" * _MIB)),
        push("orders", b'{"address":"10.0.0.1:1","weight":1%b}' % (b"0" * 60_000)),
        push("orders", b'{"address":"10.0.0.1:1","started":1e999}'),
        push("orders", b'{"address":"10.0.0.1:1","metadata":%b1}' % (b'{"a":' * 50_000)),
        push("orders", instances(2000) + b",7"),
        push("orders", instances(2000) + b" " + instances(1)),
        instances(40_000) + b"\n",
        b"[" * 5 * _MIB + b"\n",
        b'{"id":1,"ok":"%b"}\n' % (b"\\u0000" * _MIB),
        b"x" * 17 * _MIB,
    ],
    ids=itertools.count(),
)
def test_malformed_answers_cost_their_session(
    pod: Pod, registry: HostileRegistry, answer: bytes
) -> None:
    before = registry.sessions
    with watching(pod, "orders") as seen:
        registry.say(answer)
        eventually(lambda: registry.sessions > before)
        eventually(lambda: _registry_status(pod)["state"] == "connected")
    assert not seen.failed
    assert max(seen.resident) < 250 * _MIB


def test_what_only_we_reach_and_ourselves_are_not_called(
    pod: Pod, registry: HostileRegistry, orders: _Application
) -> None:
    own = [
        *(f"{pod.host}:{CONSUMER}", f"[::ffff:{pod.host}]:{CONSUMER}"),
        *(f"{pod.host}:{pod.sidecar.admin.port}", "169.254.169.254:80"),
        *("[fe80::1]:80", "[::ffff:169.254.169.254]:80", "224.0.0.1:80", "0.0.0.0:80"),
        *("255.255.255.255:80", "[::]:80", "[ff02::1]:80", "0.1.2.3:80"),
    ]
    good = f"127.0.0.1:{orders.server_port}"
    with watching(pod, "orders") as seen:
        registry.say(push("orders", told(good, *own)))
        eventually(lambda: "the sidecar's own listener" in pod.sidecar.log)
        # Our own provider port: the service is not published here, so it is nobody's.
        registry.say(push("orders", told(good, *own, f"{pod.host}:{PROVIDER}")))
        pod.subscribe("another")
        eventually(lambda: seen.answered > 20)
    assert not seen.failed
    assert _endpoints(pod, "orders") == [good]


def test_a_consumer_port_on_all_addresses_is_not_called_by_any(
    registry: HostileRegistry, orders: _Application
) -> None:
    port = free_port()
    made = Pod(str(registry.address), consumer=f"0.0.0.0:{port}")
    hosts = ("127.0.0.1", "127.0.0.2", "127.255.255.254", made.host)
    registry.says["orders"] = told(
        *(f"{host}:{port}" for host in hosts),
        *(f"[::ffff:{host}]:{port}" for host in hosts),
        f"127.0.0.1:{orders.server_port}",
    )
    with made.sidecar:
        made.subscribe("orders")
        eventually(
            lambda: _endpoints(made, "orders") == [f"127.0.0.1:{orders.server_port}"],
            lambda: str(_endpoints(made, "orders")),
        )


@pytest.mark.parametrize(
    ("seconds", "longest"),
    [
        pytest.param(2, 2.0, id="short"),
        pytest.param(60, 1.0, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
    ],
)
def test_a_thousand_changes_a_second_cost_no_request(
    pod: Pod, registry: HostileRegistry, orders: _Application, seconds: float, longest: float
) -> None:
    other = _Application("orders")
    names = ["orders", *(f"service-{number}" for number in range(100))]
    ports = [orders.server_port, other.server_port]
    for name in names[1:]:
        pod.subscribe(name)

    def change(turn: int) -> bytes:
        ports.reverse()
        few = told(*(f"127.0.0.1:{port}" for port in ports[: 1 + turn % 2]))
        return push(names[turn % 5 and turn % len(names)], few)

    with watching(pod, "orders") as seen:
        began = time.monotonic()
        for turn in range(int(seconds * 20)):
            registry.say(change(50 * turn + n) for n in range(50))
            time.sleep(max(0.0, began + (turn + 1) / 20 - time.monotonic()))
        last = f"127.0.0.1:{other.server_port}"
        registry.say(push("orders", told(last)))
        eventually(lambda: _endpoints(pod, "orders") == [last], patience=5)
    other.leave()
    assert not seen.failed
    assert seen.longest_pause < longest
    half = len(seen.resident) // 2
    assert max(seen.resident[half:]) < max(seen.resident[:half]) + 30 * _MIB


# ---- the event loop ----


class _Turns:
    """How much processor time the loop's thread took from one look to the next."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._before = time.thread_time()

    def look(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._before)
        self._before = now
        asyncio.get_running_loop().call_soon(self.look)


# Seconds of a turn. By itself it is less than a tenth; beside busy processes all takes longer.
LONGEST = 0.3


def _in_a_loop(registry: HostileRegistry, act: Callable[[Takeover], None], service: str) -> float:
    """The longest turn while a takeover follows what is said, until that service has endpoints."""

    async def main() -> float:
        tables: list[FoundServices] = []

        async def applied() -> None:
            pass

        def found(table: FoundServices) -> asyncio.Task[None]:
            tables.append(table)
            return asyncio.get_running_loop().create_task(applied())

        config = parse(
            "takeover: {api: '127.0.0.1:0', state: /proc/nowhere}\n"
            f"registry: {{type: embedded, address: '{registry.address}'}}"
        )
        takeover = Takeover(config, {}, found)
        takeover.open()
        takeover.restore()
        await takeover.start()
        takeover.table.subscribe(ServiceKey("http", service), 0)
        turns = _Turns()
        turns.look()
        act(takeover)
        async with asyncio.timeout(60):
            while not (
                tables and any(e.key.name == service and e.endpoints for e in tables[-1].services)
            ):
                await asyncio.sleep(0.01)
        await takeover.stop()
        takeover.close()
        return turns.longest

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def test_the_loop_goes_on_while_very_much_is_pushed(registry: HostileRegistry) -> None:
    names = [f"large-{number}" for number in range(8)]
    registry.says |= dict.fromkeys(names, instances(30_000, metadata={"application": "large"}))

    def subscribe(takeover: Takeover) -> None:
        for name in names:
            takeover.table.subscribe(ServiceKey("http", name), 0)

    longest = _in_a_loop(registry, subscribe, names[-1])
    assert longest < LONGEST, f"{longest * 1000:.0f} ms"


def test_the_loop_goes_on_while_very_many_services_are_pushed(registry: HostileRegistry) -> None:
    names = [f"service-{number}" for number in range(1000)]
    registry.says |= dict.fromkeys(names, instances(100, metadata={"application": "small"}))

    def subscribe(takeover: Takeover) -> None:
        for name in names:
            takeover.table.subscribe(ServiceKey("http", name), 0)

    longest = _in_a_loop(registry, subscribe, names[-1])
    assert longest < LONGEST, f"{longest * 1000:.0f} ms"
