"""Inbound by tproxy: unchanged destination, real client, no conntrack."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from pysidecar.address import Address
from pysidecar.config import Config
from pysidecar.destinations import PortRange
from pysidecar.direction import Direction
from pysidecar.interception import rules
from pysidecar.interception.rules.model import APPLICATION_SOURCES
from pysidecar.interception.tproxy import TproxyRules, TransparentProxy
from tests.interception.support import (
    ANY,
    CLIENT,
    FAMILY,
    FAR,
    POD,
    Pair,
    application,
    ask,
    connect,
    entries,
    output,
    receive_line,
    refused,
    sidecar,
    to_application,
)

LISTEN = TransparentProxy.default_listen
BACKENDS = ("nft", "iptables-nft", "iptables-legacy")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_version = pytest.mark.parametrize("version", [4, 6])


def tproxy(**settings: object) -> TransparentProxy:
    return TransparentProxy(Config(), TproxyRules(LISTEN, **settings))  # type: ignore[arg-type]


@contextlib.contextmanager
def applied(way: TransparentProxy, namespace: str, backend: str = "nft") -> Iterator[None]:
    assert rules.apply(way.ruleset, backend, namespace)
    yield
    assert rules.delete(netns=namespace)


def anywhere(port: int) -> tuple[Address, ...]:
    return tuple(Address(host, port) for host in ANY.values())


@each_version
@each_backend
@pytest.mark.parametrize("preserve", [False, True], ids=["own_source", "client_source"])
def test_the_sidecar_learns_the_destination_and_conntrack_nothing(
    pair: Pair, backend: str, version: int, preserve: bool
) -> None:
    way = tproxy(preserve_source=preserve)
    destination = Address(POD[version], 8080)
    with (
        application(pair.pod, *anywhere(8080)),
        sidecar(pair.pod, way, to_application(pair.pod, way)) as seen,
        applied(way, pair.pod, backend),
    ):
        before = entries(pair.pod)
        answers = {ask(pair.client, destination) for _ in range(100)}
        assert entries(pair.pod) == before == 0
        counted = rules.counters(Direction.INBOUND, backend, pair.pod)
    source = CLIENT[version] if preserve else APPLICATION_SOURCES[FAMILY[version]]
    assert answers == {f"application {source}"}
    assert seen.clients == {CLIENT[version]}
    assert seen.destinations == {destination}
    assert len(seen.connections) == 100
    assert counted["connections"][0] == 100
    assert counted["answers"][0] > 100


@each_version
@each_backend
def test_without_a_sidecar_connections_are_refused(pair: Pair, backend: str, version: int) -> None:
    way = tproxy()
    with application(pair.pod, *anywhere(8080)), applied(way, pair.pod, backend):
        assert refused(pair.client, Address(POD[version], 8080))
        assert rules.counters(Direction.INBOUND, backend, pair.pod)["refused"][0] > 0
        assert entries(pair.pod) == 0


@each_backend
def test_a_listener_that_is_not_transparent_gets_nothing(pair: Pair, backend: str) -> None:
    way = tproxy()
    impostor = application(pair.pod, *LISTEN, name="impostor")
    with application(pair.pod, *anywhere(8080)), impostor, applied(way, pair.pod, backend):
        assert refused(pair.client, Address(POD[4], 8080))


@each_version
@each_backend
def test_only_the_ports_asked_for_are_taken(pair: Pair, backend: str, version: int) -> None:
    singles = tuple(PortRange.single(port) for port in range(8000, 8080, 2))
    way = tproxy(ports=(*singles, PortRange(9000, 9010)), exclude_ports=(PortRange(9005, 9006),))
    with (
        application(pair.pod, *anywhere(8000), *anywhere(8001), *anywhere(9004), *anywhere(9005)),
        sidecar(pair.pod, way, to_application(pair.pod, way)) as seen,
        applied(way, pair.pod, backend),
    ):
        for port in (8000, 8001, 9004, 9005):
            ask(pair.client, Address(POD[version], port))
    assert {destination.port for destination in seen.destinations} == {8000, 9004}


@each_version
@each_backend
def test_the_applications_own_connections_stay_its_own(
    pair: Pair, backend: str, version: int
) -> None:
    way = tproxy(preserve_source=True)
    with (
        application(pair.client, Address(FAR[version], 7000), name="far"),
        sidecar(pair.pod, way, to_application(pair.pod, way)) as seen,
        connect(pair.pod, Address(FAR[version], 7000)) as old,
    ):
        assert receive_line(old) == f"far {POD[version]}"
        with applied(way, pair.pod, backend):
            old.sendall(b"during\n")
            assert receive_line(old) == "during"
            assert ask(pair.pod, Address(FAR[version], 7000)) == f"far {POD[version]}"
        old.sendall(b"after\n")
        assert receive_line(old) == "after"
    assert seen.connections == []


@each_version
@each_backend
def test_connections_from_before_live_on(pair: Pair, backend: str, version: int) -> None:
    way = tproxy()
    with (
        application(pair.pod, *anywhere(8080)),
        connect(pair.client, Address(POD[version], 8080)) as old,
    ):
        receive_line(old)
        with applied(way, pair.pod, backend):
            old.sendall(b"during\n")
            assert receive_line(old) == "during"


@each_version
@each_backend
def test_a_port_used_again_goes_to_the_sidecar_again(
    pair: Pair, backend: str, version: int
) -> None:
    """The server closes first, so its end waits in TIME_WAIT when the client comes again."""
    way = tproxy()
    destination = Address(POD[version], 8080)
    with (
        application(pair.pod, *anywhere(8080), talkative=False),
        sidecar(pair.pod, way, to_application(pair.pod, way)) as seen,
        applied(way, pair.pod, backend),
    ):
        for count in range(1, 6):
            with connect(pair.client, destination, source_port=40000) as client:
                receive_line(client)
                assert client.recv(1) == b""
            time_wait = output(pair.pod, "ss", "-Htan", "state", "time-wait", "dport", "= :40000")
            assert "8080" in time_wait
            assert len(seen.connections) == count


def test_answers_of_a_closed_application_are_refusals(pair: Pair) -> None:
    """The kernel's reset, sent for the application, finds the way back to the sidecar."""
    way = tproxy(preserve_source=True)
    errors: list[OSError] = []
    upstream = to_application(pair.pod, way)

    def failing(client: Address, destination: Address) -> object:
        try:
            return upstream(client, destination)
        except OSError as error:
            errors.append(error)
            raise

    with (
        sidecar(pair.pod, way, failing),  # type: ignore[arg-type]
        applied(way, pair.pod),
    ):
        for version in (4, 6):
            with connect(pair.client, Address(POD[version], 8080)) as client:
                assert client.recv(1) == b""
    assert [type(error) for error in errors] == [ConnectionRefusedError] * 2
