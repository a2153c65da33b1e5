"""Takeover's two ports, with a data plane and without a registry: who is called at each."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from pysidecar.address import Address
from pysidecar.config import parse
from pysidecar.dataplane import (
    DataPlane,
    DemandedService,
    Direction,
    Flag,
    Protocol,
    ServiceRole,
    Timeouts,
)
from pysidecar.interception.services import ServiceListeners
from pysidecar.registry.service import ServiceKey
from pysidecar.routing.found import NOTHING_FOUND, FoundService, FoundServices, Role
from pysidecar.routing.services import ServiceNumbers, pack_services
from tests.requests.frames import BOLT, DUBBO, Answer, Request, Wire
from tests.requests.support import Upstream, echo, read_message
from tests.waiting import PATIENCE, eventually

SERVICES = {  # what the frames ask for
    "bolt": ServiceKey("bolt", "any"),
    "dubbo": ServiceKey("dubbo", "any", "1.0"),
    "http": ServiceKey("http", "orders"),
}
WIRES = {"bolt": BOLT, "dubbo": DUBBO}


class Ports:
    """A data plane with nothing but the ports."""

    def __init__(self, config: str = "", more: str = "") -> None:
        takeover = f"{{consumer: '127.0.0.1:0', provider: '0.0.0.0:0'{config}}}"
        listeners = "[{listen: '127.0.0.1:0'}]"
        self.config = parse(f"takeover: {takeover}\nlisteners: {listeners}\n{more}")
        self.numbers = ServiceNumbers()
        self.listeners = ServiceListeners(self.config)
        self.listeners.open()
        _, *own = self.listeners.own_addresses
        self.consumer, *self.twins, provider = own
        assert provider.host == "0.0.0.0"
        self.provider = Address("127.0.0.1", provider.port)
        self.plane = DataPlane(workers=2, timeouts=Timeouts())
        self.listeners.attach(self.plane)
        self.plane.set_own_addresses(self.listeners.own_addresses)
        self.find(NOTHING_FOUND)
        self.plane.start()

    def find(self, found: FoundServices) -> None:
        listen = [each.listen for each in self.config.listeners]
        self.plane.set_services(pack_services(self.config, self.numbers, listen, found))

    def add(self, role: Role, protocol: str, *endpoints: Address) -> None:
        """Nothing but this is found."""
        found = FoundService(SERVICES[protocol], role, tuple((each, 1) for each in endpoints))
        self.find(FoundServices((found,)))

    def close(self) -> None:
        self.plane.stop()
        self.plane.close()
        self.listeners.close()

    def last(self) -> tuple[Direction | None, str | None, tuple[Flag, ...]]:
        """Of the latest request that ended."""
        for request, *_ in self.plane.recent_requests():
            return request.direction, request.service, request.flags
        return None, None, ()


@pytest.fixture
def ports() -> Iterator[Ports]:
    ports = Ports()
    yield ports
    ports.close()


def connect(address: Address) -> socket.socket:
    return socket.create_connection((address.host, address.port), PATIENCE)


def call(address: Address, protocol: str) -> int:
    """The status of the answer to one request for the service."""
    with connect(address) as client:
        if protocol == "http":
            client.sendall(b"GET / HTTP/1.1\r\nHost: orders:80\r\n\r\n")
            return int(read_message(client)[0].split(b" ")[1])
        wire = WIRES[protocol]
        client.sendall(wire.request(Request(7, "echo", b"hello")))
        answer = wire.read(client)
        assert isinstance(answer, Answer)
        assert answer.id == 7
        return answer.status


def answering(wire: Wire) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        while True:
            request = wire.read(connection)
            assert isinstance(request, Request)
            connection.sendall(wire.answer(Answer(request.id, wire.good, request.content)))

    return serve


@contextlib.contextmanager
def application(protocol: str) -> Iterator[Address]:
    with Upstream(echo if protocol == "http" else answering(WIRES[protocol])) as upstream:
        yield upstream.address


def good(protocol: str) -> int:
    return 200 if protocol == "http" else WIRES[protocol].good


@pytest.mark.parametrize("protocol", SERVICES)
def test_each_port_knows_its_services(ports: Ports, protocol: str) -> None:
    ways = (
        (Role.SUBSCRIBED, ports.consumer, ports.provider),
        (Role.PUBLISHED, ports.provider, ports.consumer),
    )
    with application(protocol) as address:
        for role, right, wrong in ways:
            ports.add(role, protocol, address)
            assert call(right, protocol) == good(protocol)
            direction = Direction.OUTBOUND if role is Role.SUBSCRIBED else Direction.INBOUND
            name = str(SERVICES[protocol])
            eventually(lambda want=(direction, name, ()): ports.last() == want)  # type: ignore[misc]
            [found] = [each for piece in ports.plane.services() for each in piece]
            assert (found.role, found.tally.requests) == (ServiceRole[role.name], 1)
            assert call(wrong, protocol) != good(protocol)
            eventually(lambda: ports.last()[2] == (Flag.NO_ROUTE,))


@pytest.mark.parametrize("protocol", SERVICES)
def test_an_unknown_service_is_answered_at_once(ports: Ports, protocol: str) -> None:
    for port in (ports.consumer, ports.provider):
        assert call(port, protocol) != good(protocol)
        eventually(lambda: ports.last()[2] == (Flag.NO_ROUTE,))
    ports.add(Role.SUBSCRIBED, protocol)
    assert call(ports.consumer, protocol) != good(protocol)
    eventually(lambda: ports.last()[2] == (Flag.NO_ENDPOINT,))


def test_the_application_of_a_passed_service_is_asked(ports: Ports) -> None:
    with application("dubbo") as address:
        ports.find(FoundServices(passed=(("dubbo", "a*", address),)))
        assert call(ports.provider, "dubbo") == DUBBO.good
        assert call(ports.consumer, "dubbo") != DUBBO.good
        assert call(ports.provider, "bolt") != BOLT.good


def test_many_services_on_one_connection(ports: Ports) -> None:
    """Each request by itself: also where its neighbour has no service."""
    with application("bolt") as address, connect(ports.consumer) as client:
        ports.add(Role.SUBSCRIBED, "bolt", address)
        known = BOLT.request(Request(1, "echo", b"x"))
        client.sendall(known.replace(b"\3any", b"\3AnY") + known + b"".join([known] * 3))
        answers = [BOLT.read(client) for _ in range(5)]
        statuses = [each.status for each in answers if isinstance(each, Answer)]
        assert sorted(statuses)[:4] == [BOLT.good] * 4
        assert sorted(statuses)[4] != BOLT.good


def test_calls_to_ourselves_end_here(ports: Ports) -> None:
    """Whatever a registry says."""
    for own in (ports.provider, ports.consumer):
        ports.add(Role.SUBSCRIBED, "http", own)
        assert call(ports.consumer, "http") == 508
        eventually(lambda: ports.last()[2] == (Flag.LOOP,))


def test_dubbo_finds_the_consumer_port_by_ipv6(ports: Ports) -> None:
    if not ports.twins:
        pytest.skip("there is no IPv6 here")
    assert ports.twins == [Address("::1", ports.consumer.port)]
    with application("dubbo") as address:
        ports.add(Role.SUBSCRIBED, "dubbo", address)
        assert call(ports.twins[0], "dubbo") == DUBBO.good
    assert any("[::1]" in line for line in ports.listeners.description)


def test_a_twin_whose_port_is_taken_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        config = parse(f"takeover: {{consumer: '127.0.0.1:{port}', provider: '127.0.0.1:0'}}")
        listeners = ServiceListeners(config)
        listeners.open()
        assert Address("::1", port) not in listeners.own_addresses
        assert Address("127.0.0.1", port) in listeners.own_addresses
        listeners.close()
    assert f"[::1]:{port} (takeover.consumer)" in caplog.text
    assert "Dubbo" in caplog.text


def test_with_an_address_of_its_own_nothing_is_added() -> None:
    config = parse("takeover: {consumer: ['127.0.0.1:0', '[::1]:0'], provider: '127.0.0.1:0'}")
    listeners = ServiceListeners(config)
    if not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")
    listeners.open()
    hosts = [each.host for each in listeners.own_addresses]
    assert hosts.count("127.0.0.1") == 2
    assert "::1" in hosts
    listeners.close()


def test_names_come_and_go_while_requests_run(ports: Ports) -> None:
    """And nothing of them is kept."""
    rounds, name = 200, SERVICES["bolt"].name
    with application("bolt") as address:
        lasting = FoundService(SERVICES["bolt"], Role.SUBSCRIBED, ((address, 1),))
        failed = threading.Event()
        done = threading.Event()

        def ask() -> None:
            with connect(ports.consumer) as client:
                while not done.is_set():
                    client.sendall(BOLT.request(Request(1, "echo", b"x")))
                    answer = BOLT.read(client)
                    if not isinstance(answer, Answer) or answer.status != BOLT.good:
                        failed.set()

        ports.find(FoundServices((lasting,)))
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(rounds):
            other = FoundService(ServiceKey("bolt", f"{name}{number}"), Role.SUBSCRIBED)
            # The lasting one changes, too.
            changed = replace(lasting, endpoints=((address, 1 + number % 2),))
            ports.find(FoundServices((other, changed)))
            ports.plane.clear_event()
        done.set()
        for thread in threads:
            thread.join()
        assert not failed.is_set()
        assert len(ports.numbers) == 2
        assert {each.name for piece in ports.plane.services() for each in piece} == {
            *(name, f"{name}{rounds - 1}"),
        }


def test_a_service_that_goes_while_it_is_called_is_counted_anew(ports: Ports) -> None:
    released = threading.Event()

    def late(connection: socket.socket) -> None:
        request = BOLT.read(connection)
        released.wait(PATIENCE)
        connection.sendall(BOLT.answer(Answer(request.id, BOLT.good, b"")))

    with Upstream(late) as upstream, connect(ports.consumer) as client:
        ports.add(Role.SUBSCRIBED, "bolt", upstream.address)
        client.sendall(BOLT.request(Request(1, "echo", b"x")))
        eventually(lambda: upstream.accepted == 1)
        ports.find(NOTHING_FOUND)
        ports.add(Role.SUBSCRIBED, "bolt", upstream.address)
        released.set()
        answer = BOLT.read(client)
        assert isinstance(answer, Answer)
        assert answer.status == BOLT.good
        [found] = [each for piece in ports.plane.services() for each in piece]
        assert (found.tally.requests, found.tally.active) == (0, 0)


# ---- on demand ----


@pytest.fixture
def demanding() -> Iterator[Ports]:
    ports = Ports(", on_demand: true, on_demand_timeout: 20s")
    yield ports
    ports.close()


def wanted(ports: Ports) -> set[DemandedService]:
    """What is told, as soon as anything is."""
    return set(eventually(ports.plane.take_wanted))


def in_background(call: Callable[[], int]) -> Callable[[], int]:
    """Begins it; what it gives, when it does."""
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()

    def result() -> int:
        thread.join(PATIENCE)
        return results[0]

    return result


@pytest.mark.parametrize("protocol", SERVICES)
def test_an_unknown_service_is_waited_for(demanding: Ports, protocol: str) -> None:
    with application(protocol) as address:
        status = in_background(lambda: call(demanding.consumer, protocol))
        key = SERVICES[protocol]
        want = DemandedService(Protocol[protocol.upper()], key.name, key.version, key.group)
        assert wanted(demanding) == {want}
        demanding.find(FoundServices((FoundService(ServiceKey("bolt", "x"), Role.SUBSCRIBED),)))
        assert demanding.plane.take_wanted() == []
        demanding.add(Role.SUBSCRIBED, protocol, address)
        assert status() == good(protocol)
        eventually(lambda: demanding.last()[1:] == (str(key), ()))
    assert call(demanding.provider, protocol) != good(protocol)  # there nobody waits


@pytest.mark.parametrize("protocol", SERVICES)
def test_a_configured_service_is_waited_for_that_is_subscribed(protocol: str) -> None:
    """As one is that an application subscribed."""
    key = SERVICES[protocol]
    mine = f"services: {{mine: {{protocol: {protocol}, subscribe: '{key}'}}}}"
    ports = Ports(", await_timeout: 20s", f"{mine}\nrequests: [{{services: mine}}]")
    try:
        with application(protocol) as address:
            status = in_background(lambda: call(ports.consumer, protocol))
            eventually(lambda: ports.plane.counters().accepted)
            ports.find(FoundServices((FoundService(key, Role.SUBSCRIBED, (), 20_000),)))
            ports.add(Role.SUBSCRIBED, protocol, address)
            assert status() == good(protocol)
            eventually(lambda: ports.last()[1:] == ("mine", ()))
        ports.find(FoundServices((FoundService(key, Role.SUBSCRIBED, (), 50),)))
        assert call(ports.consumer, protocol) != good(protocol)
        eventually(lambda: ports.last()[2] == (Flag.NO_ENDPOINT,))
    finally:
        ports.close()


def test_a_body_waits_with_its_head(demanding: Ports) -> None:
    body = b"x" * 300_000
    head = b"POST /b HTTP/1.1\r\nHost: orders\r\nContent-Length: %d\r\n\r\n" % len(body)
    with application("http") as address, connect(demanding.consumer) as client:
        sending = threading.Thread(target=client.sendall, args=(head + body,))
        sending.start()
        assert len(wanted(demanding)) == 1
        demanding.add(Role.SUBSCRIBED, "http", address)
        answer = read_message(client)
        sending.join()
    assert answer[1] == b"/b|" + body


def test_others_on_the_connection_go_on_meanwhile(demanding: Ports) -> None:
    """And each name is told once."""
    with application("bolt") as address, connect(demanding.consumer) as client:
        other = FoundService(ServiceKey("bolt", "AnY"), Role.SUBSCRIBED, ((address, 1),))
        demanding.find(FoundServices((other,)))
        for number in range(100):
            client.sendall(BOLT.request(Request(number, "echo", b"%d" % number)))
        known = BOLT.request(Request(100, "echo", b"known"))
        client.sendall(known.replace(b"\3any", b"\3AnY"))
        assert BOLT.read(client) == Answer(100, BOLT.good, b"known")
        assert demanding.plane.take_wanted() == [DemandedService(Protocol.BOLT, "any", "", "")]
        found = FoundService(SERVICES["bolt"], Role.SUBSCRIBED, ((address, 1),))
        demanding.find(FoundServices((other, found)))
        answers = [BOLT.read(client) for _ in range(100)]
        assert {each.content for each in answers} == {b"%d" % number for number in range(100)}


def test_nobody_waits_longer_than_that(demanding: Ports) -> None:
    short = Ports(", on_demand: true, on_demand_timeout: 100ms")
    try:
        for protocol in SERVICES:
            assert call(short.consumer, protocol) != good(protocol)
            eventually(lambda: short.last()[2] == (Flag.NO_ROUTE,))
        assert len(wanted(short)) == len(SERVICES)
    finally:
        short.close()
    with connect(demanding.consumer) as client:  # what the client itself waits
        client.sendall(BOLT.request(Request(1, "echo", b""), timeout_ms=50))
        answer = BOLT.read(client)
        assert isinstance(answer, Answer)
        assert answer.status != BOLT.good


def test_who_leaves_waits_no_longer(demanding: Ports) -> None:
    for _ in range(3):
        with connect(demanding.consumer) as client:
            for number in range(50):
                client.sendall(BOLT.request(Request(number, "echo", b"x" * 5000)))
            assert len(wanted(demanding)) == 1
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        eventually(lambda: demanding.last()[2] == (Flag.DOWNSTREAM_CLOSED,))
    with application("bolt") as address:
        demanding.add(Role.SUBSCRIBED, "bolt", address)
        assert call(demanding.consumer, "bolt") == BOLT.good


def test_what_is_no_name_is_refused_at_once(demanding: Ports) -> None:
    with connect(demanding.consumer) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % (b"h" * 300))
        assert b" 404 " in read_message(client)[0]
        client.sendall(b"CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n")
        assert b" 404 " not in read_message(client)[0]
    assert demanding.plane.take_wanted() == []


def test_another_header_names_what_is_wanted() -> None:
    ports = Ports(", on_demand: true, on_demand_timeout: 100ms, host_header: X-Service")
    try:
        with connect(ports.consumer) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nx-service: Orders\r\n\r\n")
            read_message(client)
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            read_message(client)
        assert wanted(ports) == {DemandedService(Protocol.HTTP, "Orders", "", "")}
    finally:
        ports.close()


def test_so_many_names_wait_and_no_more(demanding: Ports) -> None:
    """While nobody takes what is told."""
    names, most = 1500, 1024
    request = BOLT.request(Request(1, "echo", b""))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(demanding.consumer)) for _ in range(15)]
        for number in range(names):
            name = short_name(number)
            clients[number % len(clients)].sendall(request.replace(b"any", name))
        eventually(lambda: demanding.plane.unserved().requests == names - most)
        assert len(set(demanding.plane.take_wanted())) == most
        assert demanding.plane.take_wanted() == []
    eventually(lambda: demanding.plane.unserved().requests == names)
    assert call(demanding.provider, "bolt") != BOLT.good


def short_name(number: int) -> bytes:
    """As long as that of the frame."""
    return b"%03x" % number
