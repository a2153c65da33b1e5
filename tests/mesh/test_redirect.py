"""Inbound and outbound by redirect: right destinations, no loop, and an entry a connection."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from pysidecar.address import Address
from tests.launching import PYSIDECAR
from tests.mesh.conftest import Mesh
from tests.mesh.support import (
    PROGRAMS,
    WITHOUT_CAPABILITIES,
    PodSidecar,
    curl,
    nginx,
    wrk,
)
from tests.waiting import eventually

each_version = pytest.mark.parametrize("version", [4, 6])
each_backend = pytest.mark.parametrize("backend", ["nft", "iptables-nft", "iptables-legacy"])

# Kept between runs: with an empty cache, Go compiles its own library first.
GO_CACHE = Path(__file__).parents[2] / "build" / "go-cache"


def managed(backend: str, *, inbound: bool = False, outbound: bool = False) -> str:
    return (
        f"manage_rules: true\nrules_backend: {backend}\n"
        + ("inbound: {mode: redirect}\n" if inbound else "")
        + ("outbound:\n  redirect: true\n" if outbound else "")
    )


@each_version
@each_backend
def test_inbound(mesh: Mesh, tmp_path: Path, version: int, backend: str) -> None:
    destination = mesh.server.address(version, 8080)
    before = mesh.server.snapshot() if backend == "nft" else None
    config = managed(backend, inbound=True)
    with nginx(mesh.server, tmp_path), PodSidecar(mesh.server, tmp_path, config) as sidecar:
        mesh.server.forget()
        assert curl(mesh.client, destination) == mesh.server.host(version)
        [record] = sidecar.access_log()
        assert mesh.server.tracked >= 2  # to the sidecar, and from there to the application
        counted = sidecar.metric(
            "pysidecar_rule_packets_total", direction="inbound", purpose="connections"
        )
        assert counted == 1
        sidecar.kill()
        assert mesh.client.connect(destination) == "ConnectionRefusedError"
        sidecar.start()
        assert sidecar.stop() == 0, sidecar.log
        assert mesh.client.connect(destination) == "connected"
    assert (record["direction"], record["transport"]) == ("inbound", "redirect")
    assert Address.parse(record["source"]).host == mesh.client.host(version)
    assert record["original_destination"] == record["upstream"] == str(destination)
    if before is not None:  # iptables itself leaves the tables that it made
        assert mesh.server.snapshot() == before


@each_version
@each_backend
def test_outbound(mesh: Mesh, tmp_path: Path, version: int, backend: str) -> None:
    """Once through the sidecar, whose own connections are left alone."""
    destination = mesh.server.address(version, 8080)
    config = managed(backend, outbound=True)
    with nginx(mesh.server, tmp_path), PodSidecar(mesh.caller, tmp_path, config) as sidecar:
        mesh.caller.forget()
        assert curl(mesh.caller, destination) == mesh.caller.host(version)
        assert mesh.caller.tracked >= 2
        sidecar.settled()
        [record] = sidecar.access_log()
        own = sidecar.metric("pysidecar_rule_packets_total", direction="outbound", purpose="own")
        assert own == 1
        sidecar.kill()
        assert mesh.caller.connect(destination) == "ConnectionRefusedError"
    assert (record["direction"], record["transport"]) == ("outbound", "redirect")
    assert record["original_destination"] == record["upstream"] == str(destination)
    assert record["error"] is None


def test_hooked_and_redirected_programs_share_a_sidecar(mesh: Mesh, tmp_path: Path) -> None:
    """What was hooked is not redirected again, and both ways of one configuration obey its routes
    and exclusions."""
    config = (
        "manage_rules: true\noutbound:\n  redirect: true\n"
        f"  exclude: [127.0.0.0/8, '::1', {mesh.client.ipv4}]\n"
        f"  routes: [{{match: {{ports: 80}}, endpoints: ['{mesh.server.address(4, 8080)}']}}]\n"
    )
    with (
        nginx(mesh.server, tmp_path),
        nginx(mesh.client, tmp_path, ports=(80,)),
        PodSidecar(mesh.caller, tmp_path, config) as sidecar,
    ):
        target = Address("10.79.0.99", 80)
        assert curl(mesh.caller, target) == mesh.caller.ipv4
        hooked = mesh.caller.output(
            *PYSIDECAR, "exec", "-c", sidecar.config_file, "--", "curl", "-sS", f"http://{target}/"
        )
        assert hooked == mesh.caller.ipv4
        assert curl(mesh.caller, mesh.client.address(4, 80)) == mesh.caller.ipv4
        sidecar.settled()
        records = sidecar.access_log(2)
        excluded = {"direction": "outbound", "purpose": "excluded"}
        assert sidecar.metric("pysidecar_rule_packets_total", **excluded) == 1
        # A reload with other exclusions changes the rules too.
        sidecar.write_config(config.replace(f", {mesh.client.ipv4}", ""))
        sidecar.process.send_signal(signal.SIGHUP)
        eventually(lambda: "reloaded" in sidecar.log)
        assert mesh.client.ipv4 not in str(sidecar.get_json("/config")["rules"])
        assert curl(mesh.caller, mesh.client.address(4, 80)) == mesh.caller.ipv4
        sidecar.settled()
        assert len(sidecar.access_log(3)) == 3
    assert {record["transport"] for record in records} == {"redirect", "unix"}
    assert {record["original_destination"] for record in records} == {str(target)}


@each_backend
def test_a_sidecar_without_capabilities(mesh: Mesh, tmp_path: Path, backend: str) -> None:
    """Told by its group; someone else applies the rules, before it starts."""
    before = mesh.caller.snapshot() if backend == "nft" else None
    config = (
        f"inbound: {{mode: redirect}}\nrules_backend: {backend}\n"
        "outbound:\n  redirect: {mark: null, gids: 1337}\n"
    )
    unprivileged = (*WITHOUT_CAPABILITIES, "--regid", "1337", "--clear-groups")
    sidecar = PodSidecar(mesh.caller, tmp_path, config, prefix=unprivileged)
    rules = (*PYSIDECAR, "rules")
    applied = mesh.caller.output(*rules, "apply", "-c", sidecar.config_file)
    assert applied == "inbound rules: applied\noutbound rules: applied\n"
    with nginx(mesh.server, tmp_path), nginx(mesh.caller, tmp_path), sidecar:
        assert curl(mesh.caller, mesh.server.address(4, 8080)) == mesh.caller.ipv4
        assert curl(mesh.client, mesh.caller.address(6, 8080)) == mesh.caller.ipv6
        records = sidecar.access_log(2)
        assert sidecar.metric("pysidecar_conntrack_limit") > 0  # the counters need a capability
        assert sidecar.stop() == 0, sidecar.log
    assert {record["direction"] for record in records} == {"outbound", "inbound"}
    assert mesh.caller.output(*rules, "delete") == "rules: deleted\n"
    if before is not None:
        assert mesh.caller.snapshot() == before


def test_a_static_go_program(mesh: Mesh, tmp_path: Path) -> None:
    program = tmp_path / "get"
    subprocess.run(
        ["go", "build", "-o", program, PROGRAMS / "get.go"],
        check=True,
        env={
            **os.environ,
            "CGO_ENABLED": "0",
            "GO111MODULE": "off",
            "GOFLAGS": "",
            "GOTOOLCHAIN": "local",
            "GOCACHE": str(GO_CACHE),
        },
    )
    destination = mesh.server.address(6, 8080)
    config = managed("nft", outbound=True)
    with nginx(mesh.server, tmp_path), PodSidecar(mesh.caller, tmp_path, config) as sidecar:
        assert mesh.caller.output(program, f"http://{destination}/") == mesh.caller.ipv6
        [record] = sidecar.access_log()
    assert record["original_destination"] == str(destination)
    assert record["transport"] == "redirect"


def test_what_each_way_costs_in_conntrack(
    mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers of docs/interception.md: pytest tests/mesh -k costs_in_conntrack."""
    entries = {}
    with nginx(mesh.server, tmp_path):
        for mode in ("tproxy", "redirect"):
            config = f"inbound: {{mode: {mode}}}\nmanage_rules: true\n"
            with PodSidecar(mesh.server, tmp_path, config, mode) as sidecar:
                mesh.server.forget()
                wrk(mesh.client, mesh.server.address(4, 8080), 2_000)
                entries[mode] = mesh.server.tracked
                sidecar.settled()
                connections = len(sidecar.access_log())
                assert sidecar.stop() == 0, sidecar.log
            with capsys.disabled():
                print(
                    f"\n{mode}: {entries[mode]} conntrack entries after {connections} connections"
                )
    assert entries["tproxy"] == 0
    assert entries["redirect"] >= 2_000
