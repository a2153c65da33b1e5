"""What every registry does, whichever it is.

``tests/registry/test_KIND.py`` has a class that derives from ``Contract``, with a fixture
``served``: a real registry, behind ``Served``.
"""

from __future__ import annotations

import abc
import contextlib
import random
import socketserver
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from pysidecar.address import Address, NamedAddress
from pysidecar.config import RegistryEntry
from pysidecar.registry.service import Instance, Registration, ServiceKey
from tests.registry.relay import Relay
from tests.registry.sides import Side, SideProcess
from tests.serving import serving
from tests.waiting import eventually

BACK_WITHIN = 10.0
"""Seconds from the return of a registry until all is there again."""


@dataclass
class Way:
    """How a client gets to a registry, and that it does not."""

    entry: RegistryEntry
    cut: Callable[[], None]
    heal: Callable[[], None]


class Served(abc.ABC):
    """A real registry, which runs, and what can happen to it."""

    address: Address
    """Where clients find it."""

    kind: ClassVar[str]

    session_timeout = 2.0
    """Seconds; as short as the registry takes it."""

    def entry(self, address: Address | NamedAddress | None = None) -> RegistryEntry:
        """What a client's configuration says."""
        return RegistryEntry.model_validate(
            {
                "type": self.kind,
                "address": str(address or self.address),
                "session_timeout": f"{self.session_timeout * 1000:.0f}ms",
            }
        )

    def entry_by_name(self) -> RegistryEntry:
        """Likewise, by a name where the host has one."""
        named = self.address.host == "127.0.0.1"
        return self.entry(NamedAddress("localhost", self.address.port) if named else None)

    @abc.abstractmethod
    def start(self) -> None:
        """After ``kill``: with what it remembers, at the same address. Returns when it serves."""

    @abc.abstractmethod
    def kill(self) -> None:
        """With -9."""

    @abc.abstractmethod
    def pause(self) -> None:
        """SIGSTOP."""

    @abc.abstractmethod
    def resume(self) -> None:
        """SIGCONT."""

    @abc.abstractmethod
    def forget(self) -> None:
        """While it does not run: what it remembers on disk is gone."""

    @contextlib.contextmanager
    def way(self) -> Iterator[Way]:
        """To it, which can be cut. A registry that tells its clients addresses of its own needs
        another one than this."""
        with Relay(self.address) as relay:
            yield Way(self.entry(relay.address), relay.cut, relay.heal)


class Contract:
    """The tests. What a registry cannot keep apart, or keep at all, its class says here."""

    kept: ClassVar = ("weight", "warmup", "started", "zone", "metadata")
    """Of an instance, what the registry gives back as it was registered."""

    patience = 20.0
    """Seconds for what is not about time."""

    _number = iter(range(1 << 30))

    def service(self, name: str = "") -> ServiceKey:
        """One that no other test has."""
        return ServiceKey("bolt", f"org.example.Test{next(self._number)}{name}:1.0")

    def services_of_one_name(self) -> list[ServiceKey]:
        """Different services with the same name."""
        name = self.service().name.removesuffix(":1.0")
        return [
            ServiceKey("bolt", f"{name}:1.0"),
            ServiceKey("bolt", f"{name}:2.0"),
            ServiceKey("dubbo", name),
            ServiceKey("dubbo", name, version="1.0"),
            ServiceKey("dubbo", name, version="1.0", group="blue"),
            ServiceKey("dubbo", name, group="blue"),
            ServiceKey("tri", name),
            ServiceKey("tri", name, version="1.0", group="blue"),
            ServiceKey("grpc", name),
            ServiceKey("http", name),
        ]

    # ---- helpers ----

    def until(self, side: Side, service: ServiceKey, *instances: Instance) -> None:
        """It sees exactly those, with their weights."""
        wanted = {each.address: each.weight for each in instances}
        eventually(
            lambda: _weights(side, service) == wanted,
            lambda: f"{wanted}; {service} is {_weights(side, service)}, {side.state}",
            self.patience,
        )

    def until_anew(self, served: Served, service: ServiceKey, *instances: Instance) -> None:
        """Those are in the registry: a client sees exactly them that knew nothing before."""
        with Side(served.entry()) as side:
            side.subscribe(service)
            self.until(side, service, *instances)

    # ---- in peace ----

    def test_what_is_registered_is_pushed_to_who_subscribed(self, served: Served) -> None:
        service = self.service()
        with Side(served.entry()) as provider, Side(served.entry()) as consumer:
            consumer.subscribe(service)
            self.until(consumer, service)  # nobody, and that is told
            provider.register(Registration(service, instance(1)))
            self.until(consumer, service, instance(1))
            with Side(served.entry_by_name()) as late:
                late.subscribe(service)
                self.until(late, service, instance(1))

    def test_all_that_is_known_of_an_instance_is_pushed(self, served: Served) -> None:
        service = self.service()
        known = Instance(
            Address("10.1.2.3", 20881),
            weight=7,
            started=1764144000.0,
            warmup=120.0,
            zone="zone-1",
            metadata=(("appName", "prov"), ("odd", "ä ?&=,;|%\"'/<>:")),
        )
        six = replace(known, address=Address("2001:db8::7", 20881))
        with Side(served.entry()) as provider, Side(served.entry()) as consumer:
            consumer.subscribe(service)
            provider.register(Registration(service, known), Registration(service, six))
            self.until(consumer, service, known, six)
            seen = consumer.sees(service)
            assert seen
            for wanted in (known, six):
                for name in self.kept:
                    got = getattr(seen[wanted.address], name)
                    if name == "metadata":
                        assert set(wanted.metadata) <= set(got)
                    else:
                        assert got == getattr(wanted, name), name

    def test_another_weight_replaces_the_one_before_without_a_gap(self, served: Served) -> None:
        service = self.service()
        with Side(served.entry()) as provider, Side(served.entry()) as consumer:
            consumer.subscribe(service)
            provider.register(Registration(service, instance(1)))
            self.until(consumer, service, instance(1))
            before = len(consumer.told(service)) - 1
            for weight in (200, 0, 50):
                changed = replace(instance(1), weight=weight)
                provider.register(Registration(service, changed))
                self.until(consumer, service, changed)
            assert all(instance(1).address in seen for seen in consumer.told(service)[before:])

    def test_what_is_unregistered_is_gone(self, served: Served) -> None:
        service = self.service()
        with (
            Side(served.entry()) as one,
            Side(served.entry()) as other,
            Side(served.entry()) as consumer,
        ):
            consumer.subscribe(service)
            one.register(Registration(service, instance(1)))
            other.register(Registration(service, instance(2)))
            self.until(consumer, service, instance(1), instance(2))
            one.unregistered([Registration(service, instance(1))], 10)
            self.until(consumer, service, instance(2))
            self.until_anew(served, service, instance(2))

    def test_a_client_that_stops_in_order_is_gone_at_once(self, served: Served) -> None:
        service = self.service()
        with Side(served.entry()) as consumer:
            consumer.subscribe(service)
            with Side(served.entry()) as provider:
                provider.register(Registration(service, instance(1)))
                self.until(consumer, service, instance(1))
            self.until(consumer, service)

    def test_services_of_one_name_are_kept_apart(self, served: Served) -> None:
        services = self.services_of_one_name()
        with Side(served.entry()) as provider, Side(served.entry()) as consumer:
            consumer.subscribe(*services)
            for number, service in enumerate(services, 1):
                provider.register(Registration(service, instance(number)))
            for number, service in enumerate(services, 1):
                self.until(consumer, service, instance(number))
            provider.unregister(Registration(services[0], instance(1)))
            self.until(consumer, services[0])
            for number, service in enumerate(services[1:], 2):
                self.until(consumer, service, instance(number))

    def test_what_is_unsubscribed_can_be_subscribed_again(self, served: Served) -> None:
        service = self.service()
        with Side(served.entry()) as provider, Side(served.entry()) as consumer:
            consumer.subscribe(service)
            self.until(consumer, service)
            consumer.unsubscribe(service)
            provider.register(Registration(service, instance(1)))
            eventually(lambda: provider.has_registered(Registration(service, instance(1))))
            consumer.subscribe(service)
            self.until(consumer, service, instance(1))

    def test_two_clients_that_change_everything_see_the_same_in_the_end(
        self, served: Served
    ) -> None:
        services = [self.service() for _ in range(200)]
        # Long enough for a busy host: of a session that is lost, what is gone is kept for a while.
        patient = served.entry().model_copy(update={"session_timeout": 9.0})
        with Side(patient) as one, Side(patient) as other:
            truth: dict[ServiceKey, dict[Address, Instance]] = {each: {} for each in services}
            sides = (one, other)
            for side in sides:
                side.subscribe(*services)
            chosen = random.Random(7)
            end = time.monotonic() + self.churn
            while time.monotonic() < end:
                index = chosen.randrange(2)
                service = chosen.choice(services)
                own = instance(index + 1 + 2 * chosen.randrange(3), chosen.choice((1, 100, 200)))
                if chosen.random() < 0.6:
                    sides[index].register(Registration(service, own))
                    truth[service][own.address] = own
                else:
                    sides[index].unregister(Registration(service, own))
                    truth[service].pop(own.address, None)
            quiet = time.monotonic()
            for service in services:
                for side in sides:
                    self.until(side, service, *truth[service].values())
            took = time.monotonic() - quiet
            assert took < self.settled_within, f"{took:.1f} s"

    churn = 2.0  # seconds of changes
    settled_within = 2.0  # seconds of quiet until all is true; a busy host needs more

    # ---- faults ----

    def test_a_client_that_is_killed_is_gone_after_the_timeout(self, served: Served) -> None:
        service = self.service()
        with (
            Side(served.entry()) as consumer,
            Side(served.entry()) as other,
            SideProcess(served.entry(), Registration(service, instance(1))) as provider,
        ):
            consumer.subscribe(service)
            other.register(Registration(service, instance(2)))
            self.until(consumer, service, instance(1), instance(2))
            provider.kill()
            self.until(consumer, service, instance(2))

    def test_all_is_back_after_a_registry_that_was_killed(self, served: Served) -> None:
        with self.away(served) as _:
            served.kill()
            time.sleep(0.3)  # while which clients notice
            served.start()

    def test_all_is_back_after_a_registry_that_was_restarted_empty(self, served: Served) -> None:
        with self.away(served) as _:
            served.kill()
            served.forget()
            served.start()

    def test_all_is_back_after_a_registry_that_was_stopped(self, served: Served) -> None:
        with self.away(served) as sides:
            served.pause()
            try:
                for side in sides:
                    eventually(lambda side=side: side.state != "connected")  # type: ignore[misc]
            finally:
                served.resume()

    @contextlib.contextmanager
    def away(self, served: Served) -> Iterator[tuple[Side, Side]]:
        """Something happens to the registry in here. Whoever knew an instance knows it all the
        time, and afterwards all is there again, and changes are pushed."""
        service, later = self.service(), self.service()
        registrations = [Registration(self.service(), instance(n)) for n in range(1, 20)]
        with Side(served.entry()) as provider, Side(served.entry()) as consumer:
            consumer.subscribe(service, later)
            provider.register(Registration(service, instance(1)), *registrations)
            self.until(consumer, service, instance(1))
            eventually(lambda: provider.has_registered(*registrations))
            known = len(consumer.told(service)) - 1
            yield provider, consumer
            back = time.monotonic()
            provider.register(Registration(later, instance(2)))
            self.until(consumer, later, instance(2))
            eventually(lambda: provider.has_registered(*registrations))
            for registration in (Registration(service, instance(1)), registrations[-1]):
                self.until_anew(served, registration.service, registration.instance)
            took = time.monotonic() - back
            assert took < BACK_WITHIN, f"{took:.1f} s"
            assert all(instance(1).address in seen for seen in consumer.told(service)[known:])

    def test_all_is_back_after_a_network_that_was_cut(self, served: Served) -> None:
        service, later = self.service(), self.service()
        with (
            served.way() as way,
            Side(way.entry) as cut_off,
            Side(served.entry()) as other,
        ):
            other.subscribe(service)
            cut_off.subscribe(later)
            cut_off.register(Registration(service, instance(1)))
            self.until(other, service, instance(1))
            way.cut()
            self.until(other, service)  # its timeout is over
            eventually(lambda: cut_off.state != "connected")
            other.register(Registration(later, instance(2)))
            way.heal()
            back = time.monotonic()
            self.until(other, service, instance(1))
            self.until(cut_off, later, instance(2))
            took = time.monotonic() - back
            assert took < BACK_WITHIN, f"{took:.1f} s"

    @pytest.mark.parametrize(
        "answer", [b"", b"\n", b"\0" * 70_000, b"\xff" * 1000, b"HTTP/1.1 200 OK\r\n\r\n"]
    )
    def test_something_else_at_its_address_costs_an_error(
        self, served: Served, answer: bytes
    ) -> None:
        with _answering(answer) as address, Side(served.entry(address)) as side:
            side.register(Registration(self.service(), instance(1)))
            side.subscribe(self.service())
            eventually(lambda: side.state.startswith("away: "))


def instance(number: int, weight: int = 100) -> Instance:
    """With an address of its own."""
    return Instance(Address(f"10.0.0.{number}", 20881), weight=weight)


def _weights(side: Side, service: ServiceKey) -> dict[Address, int] | None:
    seen = side.sees(service)
    return None if seen is None else {address: each.weight for address, each in seen.items()}


@contextlib.contextmanager
def _answering(answer: bytes) -> Iterator[Address]:
    """A server that says this to everybody, reads nothing, and closes."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.sendall(answer)

    with serving(Handler) as address:
        yield address
