"""What is the same for every registry, with a registry in memory: it fails at the moments that a
test picks, as no real one can be made to. The real ones run tests/registry/contract.py."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from pysidecar.address import Address
from pysidecar.registry import MAX_INSTANCES, Pushed, Registry, RegistryError, Session
from pysidecar.registry.client import MOST_CALLS, SETTLE_TIME, RegistryClient
from pysidecar.registry.service import Instance, Registration, ServiceKey
from tests.registry.virtual_time import run

ECHO = ServiceKey("bolt", "Echo:1.0")
ORDERS = ServiceKey("bolt", "Orders:1.0")
A, B, C = (Instance(Address(f"10.0.0.{n}", 20881)) for n in (1, 2, 3))


@dataclass
class Memory:
    """What is in the registry, and how its calls end."""

    held: dict[tuple[ServiceKey, Address], Registration] = field(default_factory=dict)
    watched: set[ServiceKey] = field(default_factory=set)
    calls: list[tuple[str, object]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    opened: list[FakeSession] = field(default_factory=list)
    fails: Callable[[str, object], str] = lambda call, what: ""
    """``""``, or how: ``before`` or ``after`` it is done, ``lost`` with the session, ``never``:
    it does not answer, ``mistake``: an error that the module does not expect."""


class FakeSession(Session):
    def __init__(self, memory: Memory, pushed: Pushed) -> None:
        self.memory = memory
        self.pushed = pushed
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def lose(self, reason: str = "the connection is gone") -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    def push(self, service: ServiceKey, *instances: Instance) -> None:
        self.pushed(service, instances)

    async def call(self, name: str, what: object, do: Callable[[], None]) -> None:
        memory = self.memory
        memory.calls.append((name, what))
        memory.under_way += 1
        memory.most_under_way = max(memory.most_under_way, memory.under_way)
        try:
            failure = memory.fails(name, what)
            await asyncio.sleep(0.001)
            if self.ended.done():
                raise RegistryError("the session is lost")
            if failure == "never":
                await asyncio.get_running_loop().create_future()
            if failure == "mistake":
                raise KeyError("nobody thought of this")
            if failure != "before":
                do()
            if failure == "lost":
                self.lose()
            if failure:
                raise RegistryError(f"it failed: {failure}")
        finally:
            memory.under_way -= 1

    @override
    async def register(self, registration: Registration) -> None:
        place = (registration.service, registration.instance.address)
        await self.call(
            "register", registration, lambda: self.memory.held.update({place: registration})
        )

    @override
    async def unregister(self, registration: Registration) -> None:
        place = (registration.service, registration.instance.address)

        def do() -> None:
            self.memory.held.pop(place, None)

        await self.call("unregister", registration, do)

    @override
    async def subscribe(self, service: ServiceKey) -> None:
        await self.call("subscribe", service, lambda: self.memory.watched.add(service))

    @override
    async def unsubscribe(self, service: ServiceKey) -> None:
        await self.call("unsubscribe", service, lambda: self.memory.watched.discard(service))

    @override
    async def closed(self) -> str:
        reason = await asyncio.shield(self.ended)
        self.memory.watched.clear()
        return reason

    @override
    async def close(self) -> None:
        if not self.ended.done():  # of one that is lost, what it registered stays for a while
            self.memory.held.clear()
        self.lose("closed")
        self.memory.watched.clear()


class FakeRegistry(Registry):
    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    @property
    @override
    def description(self) -> str:
        return "the registry in memory"

    @override
    async def open(self, pushed: Pushed) -> Session:
        failure = self.memory.fails("open", None)
        if failure == "mistake":
            raise KeyError("nobody thought of this")
        if failure == "never":
            await asyncio.get_running_loop().create_future()
        if failure:
            raise RegistryError("connection refused")
        session = FakeSession(self.memory, pushed)
        self.memory.opened.append(session)
        return session


class Running:
    """A client of it, and what that tells."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = memory or Memory()
        self.told: list[tuple[ServiceKey, Sequence[Instance]]] = []
        self.client = RegistryClient(
            FakeRegistry(self.memory), lambda *pushed: self.told.append(pushed)
        )

    @property
    def session(self) -> FakeSession:
        return self.memory.opened[-1]

    async def __aenter__(self) -> Running:
        self.client.start()
        await asyncio.sleep(0.05)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.stop()

    async def lose(self, pause: float = 0.2) -> None:
        """The session; and there is the next one."""
        self.session.lose()
        await asyncio.sleep(pause)


def provides(service: ServiceKey, instance: Instance = A) -> Registration:
    return Registration(service, instance)


def test_what_is_wanted_comes_about_and_ends_in_order() -> None:
    async def main() -> None:
        async with Running() as running:
            echo = provides(ECHO)
            running.client.register(echo)
            running.client.subscribe(ORDERS)
            await asyncio.sleep(0.1)
            assert running.client.is_registered(echo)
            assert list(running.memory.held.values()) == [echo]
            assert running.memory.watched == {ORDERS}
            assert running.client.state == "connected"
            running.client.unsubscribe(ORDERS)
            await running.client.unregistered([echo], 5.0)
            assert not running.client.is_registered(echo)
            assert not running.memory.held
            await asyncio.sleep(0.1)
            assert not running.memory.watched
            running.client.register(echo)
        assert not running.memory.held
        assert running.client.state == "stopped"

    run(main())


def test_another_registration_at_the_same_address_replaces_it_without_a_gap() -> None:
    async def main() -> None:
        async with Running() as running:
            heavier = provides(ECHO, replace(A, weight=200))
            running.client.register(provides(ECHO))
            await asyncio.sleep(0.1)
            running.client.register(heavier)
            await asyncio.sleep(0.1)
            assert list(running.memory.held.values()) == [heavier]
            assert running.client.is_registered(heavier)
            assert not running.client.is_registered(provides(ECHO))
            assert [call for call, _ in running.memory.calls] == ["register", "register"]

    run(main())


def test_all_is_said_again_within_ten_seconds_of_the_registrys_return() -> None:
    async def main() -> None:
        async with Running() as running:
            wanted = [provides(ECHO, Instance(Address("10.0.0.1", n + 1))) for n in range(500)]
            for registration in wanted:
                running.client.register(registration)
            running.client.subscribe(ORDERS)
            await asyncio.sleep(1)
            running.memory.fails = lambda call, what: "before" if call == "open" else ""
            running.session.lose()
            running.memory.held.clear()
            await asyncio.sleep(60)
            assert running.client.state == "away: connection refused"
            assert not any(map(running.client.is_registered, wanted))
            running.memory.fails = lambda call, what: ""
            await asyncio.sleep(10)
            assert len(running.memory.held) == 500
            assert running.memory.watched == {ORDERS}
            assert all(map(running.client.is_registered, wanted))

    run(main())


def test_calls_are_bounded_and_one_that_fails_holds_up_no_other() -> None:
    async def main() -> None:
        bad = provides(ECHO, B)
        memory = Memory(fails=lambda call, what: "before" if what == bad else "")
        async with Running(memory) as running:
            running.client.register(bad)
            others = [provides(ECHO, Instance(Address("10.0.0.1", n + 1))) for n in range(300)]
            for registration in others:
                running.client.register(registration)
            await asyncio.sleep(0.1)
            assert all(map(running.client.is_registered, others))
            assert memory.most_under_way == MOST_CALLS
            await asyncio.sleep(60)
            tries = sum(what == bad for _, what in memory.calls)
            assert 20 < tries < 50  # each 1.5 to 3 seconds
            memory.fails = lambda call, what: ""
            await asyncio.sleep(3.1)
            assert running.client.is_registered(bad)

    run(main())


def test_a_call_that_is_never_answered_is_tried_again() -> None:
    async def main() -> None:
        memory = Memory(fails=lambda call, what: "never")
        async with Running(memory) as running:
            memory.fails = lambda call, what: "" if call == "open" else "never"
            await asyncio.sleep(20)
            running.client.register(provides(ECHO))
            await asyncio.sleep(1)
            memory.fails = lambda call, what: ""
            await asyncio.sleep(12)
            assert running.client.is_registered(provides(ECHO))

    run(main())


def test_who_changes_their_mind_while_a_registry_is_slow_leaves_nothing_behind() -> None:
    async def main() -> None:
        memory = Memory(fails=lambda call, what: "" if call == "open" else "never")
        async with Running(memory) as running:
            for number in range(MOST_CALLS):
                running.client.subscribe(ServiceKey("bolt", f"waits-{number}"))
            service, registration = ServiceKey("bolt", "Late:1.0"), provides(ORDERS)
            before = sys.getrefcount(service), sys.getrefcount(registration.service)
            for _ in range(2):
                running.client.subscribe(service)
                running.client.register(registration)
                running.client.unsubscribe(service)
                running.client.unregister(registration)
            assert (sys.getrefcount(service), sys.getrefcount(registration.service)) == before

    run(main())


def test_what_changes_during_a_call_counts() -> None:
    async def main() -> None:
        async with Running() as running:
            running.client.register(provides(ECHO))
            running.client.subscribe(ORDERS)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert running.memory.under_way == 2
            running.client.unregister(provides(ECHO))
            running.client.unsubscribe(ORDERS)
            await asyncio.sleep(1)
            assert not running.memory.held
            assert not running.memory.watched

    run(main())


def test_what_was_done_and_failed_all_the_same_is_set_right() -> None:
    async def main() -> None:
        async with Running() as running:
            running.client.register(provides(ECHO))
            running.client.subscribe(ORDERS)
            await asyncio.sleep(0.1)
            running.memory.fails = lambda call, what: "after"
            running.client.unregister(provides(ECHO))
            running.client.unsubscribe(ORDERS)
            await asyncio.sleep(0.01)
            running.memory.fails = lambda call, what: ""
            running.client.register(provides(ECHO))
            running.client.subscribe(ORDERS)
            await asyncio.sleep(1)
            assert list(running.memory.held.values()) == [provides(ECHO)]
            assert running.memory.watched == {ORDERS}

    run(main())


def test_what_a_lost_session_registered_is_removed_by_the_next_one() -> None:
    async def main() -> None:
        async with Running() as running:
            running.client.register(provides(ECHO))
            await asyncio.sleep(0.1)
            running.memory.fails = lambda call, what: "before" if call == "open" else ""
            await running.lose()
            running.client.unregister(provides(ECHO))
            running.memory.fails = lambda call, what: ""
            await running.client.unregistered([provides(ECHO)], 10.0)
            assert not running.memory.held

    run(main())


def test_nobody_waits_longer_for_a_registry_that_is_away() -> None:
    async def main() -> None:
        memory = Memory()
        async with Running(memory) as running:
            running.client.register(provides(ECHO))
            await asyncio.sleep(0.1)
            memory.fails = lambda call, what: "never"
            began = asyncio.get_running_loop().time()
            await running.client.unregistered([provides(ECHO)], 2.0)
            assert asyncio.get_running_loop().time() - began == pytest.approx(2.0)

    run(main())


def test_pushes_are_cleaned() -> None:
    async def main() -> None:
        async with Running() as running:
            running.client.subscribe(ECHO)
            await asyncio.sleep(0.1)
            odd = Instance(Address("10.0.0.9", 1), weight=-3, started=math.nan, warmup=-1.0)
            huge = replace(A, weight=1 << 40, warmup=math.inf, started=-5.0)
            running.session.push(ECHO, Instance(Address("10.0.0.9", 0)), A, odd, B, huge)
            assert running.told[-1] == (
                ECHO,
                [
                    replace(A, weight=10_000, warmup=86400.0),
                    Instance(odd.address, weight=0),
                    B,
                ],
            )
            many = [Instance(Address("10.0.0.1", 1 + n % 65535)) for n in range(MAX_INSTANCES * 3)]
            running.session.push(ECHO, *many)
            assert len(running.told[-1][1]) == MAX_INSTANCES
            told = len(running.told)
            running.session.push(ORDERS, A)  # nobody wants it
            assert len(running.told) == told

    run(main())


def test_what_is_told_of_a_push_may_fail() -> None:
    async def main() -> None:
        memory = Memory()

        def fail(service: ServiceKey, instances: Sequence[Instance]) -> None:
            raise ValueError("it cannot be used")

        client = RegistryClient(FakeRegistry(memory), fail)
        client.start()
        client.subscribe(ECHO)
        await asyncio.sleep(0.1)
        memory.opened[0].push(ECHO, A)
        assert client.state == "connected"
        await client.stop()

    run(main())


def test_what_is_known_stays_while_the_registry_is_away() -> None:
    async def main() -> None:
        async with Running() as running:
            running.client.subscribe(ECHO)
            await asyncio.sleep(0.1)
            running.session.push(ECHO, A, B)
            told = len(running.told)
            old = running.session
            running.memory.fails = lambda call, what: "before"
            await running.lose(600)
            old.push(ECHO)  # by a session that is lost
            assert len(running.told) == told

    run(main())


def test_a_registry_that_comes_back_empty_takes_nothing_away_at_first() -> None:
    async def main() -> None:
        async with Running() as running:
            running.client.subscribe(ECHO)
            await asyncio.sleep(0.1)
            running.session.push(ECHO, A, B)
            await running.lose()
            assert len(running.memory.opened) == 2
            running.session.push(ECHO)
            assert running.told[-1] == (ECHO, [A, B])
            heavier = replace(B, weight=200)
            running.session.push(ECHO, heavier, C)
            assert running.told[-1] == (ECHO, [heavier, C, A])
            running.session.push(ECHO, C)  # B was back, so that it is gone is true
            assert running.told[-1] == (ECHO, [C, A])
            await asyncio.sleep(SETTLE_TIME)
            assert running.told[-1] == (ECHO, [C])
            running.session.push(ECHO)
            assert running.told[-1] == (ECHO, [])

    run(main())


def test_a_service_that_is_pushed_late_keeps_what_is_known() -> None:
    async def main() -> None:
        async with Running() as running:
            running.client.subscribe(ECHO)
            await asyncio.sleep(0.1)
            running.session.push(ECHO, A)
            await running.lose(SETTLE_TIME * 2)
            assert running.told == [(ECHO, [A])]
            running.session.push(ECHO, B)
            assert running.told[-1] == (ECHO, [B])

    run(main())


def test_what_a_process_before_knew_is_treated_as_known() -> None:
    async def main() -> None:
        running = Running()
        running.client.subscribe(ECHO, [A, B])
        async with running:
            running.session.push(ECHO, B)
            assert running.told[-1] == (ECHO, [B, A])
            await asyncio.sleep(SETTLE_TIME)
            assert running.told[-1] == (ECHO, [B])
            running.client.subscribe(ORDERS, [C])  # too late: this session tells all
            running.session.push(ORDERS)
            assert running.told[-1] == (ORDERS, [])

    run(main())


def test_a_registry_that_comes_and_goes_leaves_no_more_than_a_service_may_have() -> None:
    async def main() -> None:
        async with Running() as running:
            running.client.subscribe(ECHO)
            for host in range(4):
                await asyncio.sleep(0.2)
                running.session.push(
                    ECHO, *(Instance(Address(f"10.0.0.{host}", n + 1)) for n in range(15_000))
                )
                await running.lose(3)
            assert len(running.told[-1][1]) == MAX_INSTANCES

    run(main())


def test_the_log_says_once_that_it_is_away_and_once_that_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        memory = Memory(fails=lambda call, what: "before" if call == "open" else "")
        async with Running(memory) as running:
            await asyncio.sleep(300)
            memory.fails = lambda call, what: ""
            await asyncio.sleep(10)
            running.client.register(provides(ECHO))
            await asyncio.sleep(1)
            memory.fails = lambda call, what: "before" if call == "open" else ""
            running.client.register(provides(ORDERS))
            await asyncio.sleep(0.0005)
            await running.lose(300)  # with a call under way
            memory.fails = lambda call, what: "lost" if call == "register" else ""
            await asyncio.sleep(300)
            assert len(memory.opened) > 50

    run(main())
    away = (
        "the registry in memory is away: {}; what is known of services stays, and what is "
        "provided here is registered when it is back"
    )
    assert [record.message for record in caplog.records] == [
        away.format("connection refused"),
        "the registry in memory is back",
        away.format("the connection is gone"),
    ]


def test_the_log_says_of_calls_that_fail_a_line_in_ten_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        memory = Memory(fails=lambda call, what: "before" if call == "register" else "")
        async with Running(memory) as running:
            for number in range(100):
                running.client.register(provides(ECHO, Instance(Address("10.0.0.1", number + 1))))
            await asyncio.sleep(59)

    run(main())
    said = [record.message for record in caplog.records]
    assert len(said) == 6
    assert said[0] == (
        "the registry in memory, service Echo:1.0: it failed: before; it is tried again"
    )
    assert "more calls failed since the last such line" in said[1]


def test_what_others_say_does_not_reach_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Running() as running:
            await asyncio.sleep(2)
            running.session.lose("\x1b[2J" + "x" * 10_000)
            await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            assert running.client.state.startswith("away: \N{REPLACEMENT CHARACTER}[2Jxx")

    run(main())
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 1000


_services = st.sampled_from([ECHO, ORDERS])
_wishes = st.one_of(
    st.tuples(st.just("register"), _services, st.sampled_from([A, B, replace(A, weight=7)])),
    st.tuples(st.just("unregister"), _services, st.sampled_from([A, B])),
    st.tuples(st.sampled_from(["subscribe", "unsubscribe"]), _services, st.none()),
    st.tuples(st.just("lose"), _services, st.none()),
)


@settings(max_examples=100, deadline=None)
@given(
    wishes=st.lists(
        st.tuples(_wishes, st.sampled_from([0.0, 0.0005, 0.01, 0.5, 11.0])), max_size=25
    ),
    failures=st.lists(
        st.sampled_from(["", "", "before", "after", "lost", "never", "mistake"]), max_size=60
    ),
)
def test_whatever_fails_it_ends_with_what_was_wanted_last(
    wishes: list[tuple[tuple[str, ServiceKey, Instance | None], float]], failures: list[str]
) -> None:
    async def main() -> None:
        left = iter(failures)
        memory = Memory(fails=lambda call, what: next(left, ""))
        held: dict[tuple[ServiceKey, Address], Registration] = {}
        watched: set[ServiceKey] = set()
        async with Running(memory) as running:
            for (wish, service, instance), pause in wishes:
                if instance is not None:
                    registration = provides(service, instance)
                    getattr(running.client, wish)(registration)
                    held[service, instance.address] = registration
                    if wish == "unregister":
                        del held[service, instance.address]
                elif wish == "lose":
                    if memory.opened:
                        running.session.lose()
                else:
                    getattr(running.client, wish)(service)
                    (watched.add if wish == "subscribe" else watched.discard)(service)
                await asyncio.sleep(pause)
            memory.fails = lambda call, what: ""
            await asyncio.sleep(30)
            assert memory.held == held
            assert memory.watched == watched
            assert all(map(running.client.is_registered, held.values()))
            assert memory.under_way == 0
            before = len(memory.calls)
            await asyncio.sleep(100)
            assert len(memory.calls) == before
        assert not memory.held

    run(main())
