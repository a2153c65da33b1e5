"""Redirect in both directions: the original destination, no loop, and its price."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.config import Config
from pysidecar.destinations import PortRange
from pysidecar.direction import Direction
from pysidecar.interception import rules
from pysidecar.interception.redirect import (
    InboundRedirect,
    InboundRedirectRules,
    OutboundRedirect,
    OwnTraffic,
)
from tests.interception.support import (
    ANY,
    CLIENT,
    FAR,
    LOOPBACK,
    POD,
    Pair,
    application,
    ask,
    directly,
    entries,
    inside,
    outbound,
    output,
    refused,
    sidecar,
    to_application,
)

BACKENDS = ("nft", "iptables-nft", "iptables-legacy")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_version = pytest.mark.parametrize("version", [4, 6])
INBOUND = InboundRedirect(Config(), InboundRedirectRules(InboundRedirect.default_listen))


@contextlib.contextmanager
def applied(
    way: InboundRedirect | OutboundRedirect, namespace: str, backend: str
) -> Iterator[None]:
    assert rules.apply(way.ruleset, backend, namespace)
    yield
    assert rules.delete(netns=namespace)


def anywhere(port: int) -> tuple[Address, ...]:
    return tuple(Address(host, port) for host in ANY.values())


@each_version
@each_backend
def test_inbound_reaches_the_sidecar_with_its_original_destination(
    pair: Pair, backend: str, version: int
) -> None:
    destination = Address(POD[version], 8080)
    upstream = to_application(pair.pod, INBOUND)
    with (
        application(pair.pod, *anywhere(8080)),
        sidecar(pair.pod, INBOUND, upstream) as seen,
        applied(INBOUND, pair.pod, backend),
    ):
        answers = {ask(pair.client, destination) for _ in range(50)}
        assert entries(pair.pod) >= 50  # the price
        counted = rules.counters(Direction.INBOUND, backend, pair.pod)
    assert answers == {f"application {LOOPBACK[version]}"}
    assert seen.destinations == {destination}
    assert seen.clients == {CLIENT[version]}
    assert counted["connections"][0] == 50


@each_version
@each_backend
def test_inbound_without_a_sidecar_is_refused(pair: Pair, backend: str, version: int) -> None:
    with application(pair.pod, *anywhere(8080)), applied(INBOUND, pair.pod, backend):
        assert refused(pair.client, Address(POD[version], 8080))


@each_version
@each_backend
def test_outbound_reaches_the_sidecar_once(pair: Pair, backend: str, version: int) -> None:
    way = outbound()
    destination = Address(FAR[version], 7000)
    with (
        application(pair.client, destination, name="far"),
        sidecar(pair.pod, way, directly(pair.pod, way)) as seen,
        applied(way, pair.pod, backend),
    ):
        answers = {ask(pair.pod, destination) for _ in range(50)}
        counted = rules.counters(Direction.OUTBOUND, backend, pair.pod)
    assert answers == {f"far {POD[version]}"}
    assert seen.destinations == {destination}
    assert len(seen.connections) == 50
    assert counted["connections"][0] == 50
    assert counted["own"][0] == 50


@each_version
@each_backend
def test_outbound_without_a_sidecar_is_refused(pair: Pair, backend: str, version: int) -> None:
    way = outbound()
    destination = Address(FAR[version], 7000)
    with application(pair.client, destination), applied(way, pair.pod, backend):
        assert refused(pair.pod, destination)


@each_backend
@pytest.mark.parametrize(
    ("own", "owner"),
    [
        (OwnTraffic(marks=(), uids=(64999, 65001)), (65001, 0)),
        (OwnTraffic(marks=(), gids=(65002,)), (0, 65002)),
    ],
    ids=["uid", "gid"],
)
def test_the_sidecar_is_told_by_its_user_or_group(
    pair: Pair, backend: str, own: OwnTraffic, owner: tuple[int, int]
) -> None:
    way = outbound(own=own)
    destination = Address(FAR[4], 7000)
    with application(pair.client, destination, name="far"), applied(way, pair.pod, backend):
        assert refused(pair.pod, destination)
        assert ask(pair.pod, destination, owner) == f"far {POD[4]}"


def _cgroup_root() -> Path:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    roots = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    if not roots:
        pytest.skip("the cgroup v2 hierarchy is not mounted")
    return Path(roots[0])


_ASK_IN_CGROUP = """
import os, pathlib, socket, sys
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
with socket.create_connection((sys.argv[2], int(sys.argv[3])), 10) as s:
    print(s.makefile().readline(), end="")
"""


@each_backend
def test_the_sidecar_is_told_by_its_cgroup(pair: Pair, backend: str) -> None:
    root = _cgroup_root()
    if backend == "nft" and root != Path("/sys/fs/cgroup"):
        pytest.skip(f"nft wants the cgroup v2 hierarchy at /sys/fs/cgroup; here it is {root}")
    cgroup = root / f"pysidecar-test-{os.getpid()}"
    cgroup.mkdir()
    try:
        way = outbound(own=OwnTraffic(marks=(), cgroup=f"/{cgroup.name}"))
        destination = Address(FAR[4], 7000)
        command = [sys.executable, "-c", _ASK_IN_CGROUP, str(cgroup), FAR[4], "7000"]
        with application(pair.client, destination, name="far"), applied(way, pair.pod, backend):
            assert refused(pair.pod, destination)
            answer = inside(pair.pod, lambda: subprocess.check_output(command, text=True))
            assert answer == f"far {POD[4]}\n"
    finally:
        cgroup.rmdir()


def test_a_cgroup_that_nft_cannot_name_is_a_problem(pair: Pair) -> None:
    own = OwnTraffic(marks=(), cgroup="no/such.service")
    found = rules.problems(outbound(own=own).ruleset)
    assert "/sys/fs/cgroup/no/such.service" in found[0]


@each_version
@each_backend
def test_outbound_leaves_alone_what_is_excluded(pair: Pair, backend: str, version: int) -> None:
    way = outbound(
        exclude_networks=(
            ip_network(CLIENT[4]),
            ip_network("10.77.0.0/24"),  # contains the first: intervals may not overlap
            ip_network(CLIENT[6]),
        ),
        exclude_ports=(PortRange(7001, 7002),),
    )
    far = [Address(FAR[version], port) for port in (7000, 7001, 7003)]
    near = [Address(CLIENT[version], 7000), Address(POD[version], 7004)]
    with (
        application(pair.client, *far, near[0]),
        application(pair.pod, near[1]),
        sidecar(pair.pod, way, directly(pair.pod, way)) as seen,
        applied(way, pair.pod, backend),
    ):
        for destination in (*far, *near):
            ask(pair.pod, destination)
    assert seen.destinations == {far[0], far[2]}


@each_backend
def test_outbound_and_inbound_work_together(pair: Pair, backend: str) -> None:
    way = outbound()
    into = to_application(pair.pod, INBOUND)
    far, near = Address(FAR[4], 7000), Address(POD[4], 8080)
    with (
        application(pair.client, far, name="far"),
        application(pair.pod, near, Address(LOOPBACK[4], 8080)),
        sidecar(pair.pod, INBOUND, into) as came,
        sidecar(pair.pod, way, directly(pair.pod, way)) as went,
    ):
        rules.apply(INBOUND.ruleset, backend, pair.pod)
        rules.apply(way.ruleset, backend, pair.pod)
        ask(pair.client, near)
        ask(pair.pod, far)
        assert rules.delete([Direction.INBOUND], pair.pod)
        assert rules.is_applied(way.ruleset, backend, pair.pod)
        ask(pair.pod, far)
        ask(pair.client, near)
    assert came.destinations == {near}
    assert len(came.connections) == 1
    assert len(went.connections) == 2


@each_backend
def test_rules_of_docker_and_kubernetes_work_on(pair: Pair, backend: str) -> None:
    """A service's address is what the sidecar is told, and the sidecar's connection goes through
    the service's rules; a published port stays Docker's."""
    variant = "iptables-legacy" if backend == "iptables-legacy" else "iptables-nft"
    foreign = (Path(__file__).parent / "foreign.iptables").read_text()
    output(pair.pod, f"{variant}-restore", stdin=foreign)
    output(pair.pod, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def foreign_rules() -> list[str]:
        saved = output(pair.pod, f"{variant}-save").splitlines()
        return [line for line in saved if line.startswith("-A") and "PYSIDECAR" not in line]

    way = outbound()
    service = Address("10.96.0.10", 80)
    before = foreign_rules()
    with (
        application(pair.client, Address(FAR[4], 7000), name="far"),
        application(pair.pod, *anywhere(8080)),
        application(pair.pod, Address(POD[4], 9091), name="published"),
        sidecar(pair.pod, way, directly(pair.pod, way)) as went,
        sidecar(pair.pod, INBOUND, to_application(pair.pod, INBOUND)) as came,
    ):
        rules.apply(way.ruleset, backend, pair.pod)
        rules.apply(INBOUND.ruleset, backend, pair.pod)
        assert ask(pair.pod, service) == f"far {POD[4]}"
        assert ask(pair.client, Address(POD[4], 8080)) == f"application {LOOPBACK[4]}"
        assert ask(pair.client, Address(POD[4], 9090)).startswith("published")
        assert foreign_rules() == before
        rules.delete(netns=pair.pod)
        assert foreign_rules() == before
        assert ask(pair.pod, service) == f"far {POD[4]}"
    assert went.destinations == {service}
    assert came.destinations == {Address(POD[4], 8080)}
