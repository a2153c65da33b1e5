"""Sidecars that are restarted, one after the other, while their applications call each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.servers import free_port
from tests.takeover.load import applications, load, subscribe
from tests.takeover.test_flow import Pod, _registry
from tests.waiting import eventually


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[list[Pod]]:
    """A consumer, and two that provide the same."""
    address = f"127.0.0.1:{free_port()}"
    with _registry(address, tmp_path / "registry.db"), ExitStack() as stack:
        made = [Pod(address) for _ in range(3)]
        for pod in made:
            stack.enter_context(pod.sidecar)
        for pod in made[1:]:
            stack.enter_context(applications(pod))
        subscribe(made[0])
        eventually(lambda: _known(made[0]) == {2})
        yield made


def _known(pod: Pod) -> set[int]:
    """How many endpoints the services have that it subscribed."""
    services = pod.sidecar.admin_json("/services")
    return {len(each["endpoints"]) for each in services if each["role"] == "subscribed"}


def _is_written(pod: Pod) -> bool:
    state = pod.sidecar.directory / "takeover.json"
    return state.exists() and all(name in state.read_text() for name in ("orders", "any"))


rounds = pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(1, id="short"),
        pytest.param(10, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)


@rounds
def test_providers_sidecars_that_restart_in_order_lose_no_request(
    pods: list[Pod], rounds: int
) -> None:
    consumer, *providers = pods
    with load(consumer) as calls:
        calls.goes_on()
        for _ in range(rounds):
            for pod in providers:
                pod.sidecar.stop(timeout=40)
                calls.goes_on()
                pod.sidecar.start()
                eventually(lambda: _known(consumer) == {2})
                calls.goes_on()
    assert not calls.lost
    assert not any(each.refused for each in calls.outcomes.values())


@rounds
def test_a_consumers_sidecar_that_restarts_in_order_lets_requests_finish(
    pods: list[Pod], rounds: int
) -> None:
    """HTTP says that a connection ends. Bolt and Dubbo cannot: theirs ends with an answer after
    which no request is under way, although the client is never quiet."""
    consumer = pods[0]
    eventually(lambda: _is_written(consumer))
    with load(consumer) as calls:
        calls.goes_on()
        for _ in range(rounds):
            consumer.sidecar.stop(timeout=40)
            consumer.sidecar.start()
            calls.goes_on()
    assert not calls.lost


@rounds
def test_sidecars_that_are_killed_lose_what_was_under_way_at_most(
    pods: list[Pod], rounds: int
) -> None:
    clients = 2
    for pod in pods:
        eventually(lambda: _is_written(pod))  # noqa: B023
    with load(pods[0], clients) as calls:
        for _ in range(rounds):
            for pod in pods:
                calls.goes_on()
                before = {name: len(each.lost) for name, each in calls.outcomes.items()}
                pod.sidecar.kill()
                if pod is not pods[0]:  # the other one's serves
                    calls.goes_on()
                pod.sidecar.start()
                calls.goes_on()
                # A client of a sidecar that dies may connect anew while its port is there yet.
                most = clients if pod is not pods[0] else 2 * clients
                for name, each in calls.outcomes.items():
                    assert len(each.lost) - before[name] <= most, each.lost
