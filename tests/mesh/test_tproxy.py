"""Inbound by tproxy: real clients and servers, unchanged addresses, nothing in conntrack."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.interception.rules.namespace import inside
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
from tests.waiting import PATIENCE, eventually

each_version = pytest.mark.parametrize("version", [4, 6])

PRESERVED = """
inbound:
  ports: [25, 6379, 8080]
  application_address: [127.0.0.1, "::1"]
  preserve_source: true
manage_rules: true
"""
ALL_PORTS = PRESERVED.replace("  ports: [25, 6379, 8080]\n", "")
PLAIN = "inbound: {}\nmanage_rules: true\n"


@each_version
@pytest.mark.parametrize(
    "config", [PRESERVED, ALL_PORTS, PLAIN], ids=["preserved", "all_ports", "plain"]
)
def test_http_to_nginx(mesh: Mesh, tmp_path: Path, version: int, config: str) -> None:
    destination = mesh.server.address(version, 8080)
    with nginx(mesh.server, tmp_path), PodSidecar(mesh.server, tmp_path, config) as sidecar:
        mesh.server.forget()
        seen = curl(mesh.client, destination)
        [record] = sidecar.access_log()
        assert mesh.server.tracked == 0
    if config == PLAIN:
        assert seen == ("127.0.0.6" if version == 4 else "fd70:7973:6964:6563::6")
    else:
        assert seen == mesh.client.host(version)
    assert Address.parse(record["source"]).host == mesh.client.host(version)
    assert (record["direction"], record["transport"]) == ("inbound", "tproxy")
    assert record["original_destination"] == str(destination)
    assert record["error"] is None


@each_version
def test_redis(mesh: Mesh, tmp_path: Path, version: int) -> None:
    server = (
        "redis-server", "--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no",
        "--save", "", "--dir", tmp_path,
    )  # fmt: skip
    client = ("redis-cli", "-h", mesh.server.host(version))
    with (
        mesh.server.running(*server, log=tmp_path / "redis.log"),
        PodSidecar(mesh.server, tmp_path, PRESERVED) as sidecar,
    ):
        eventually(lambda: mesh.server.listens(6379))
        mesh.server.forget()
        assert mesh.client.output(*client, "SET", "key", "value") == "OK\n"
        assert mesh.client.output(*client, "GET", "key") == "value\n"
        info = mesh.client.output(*client, "CLIENT", "INFO")
        records = sidecar.access_log(3)
        assert mesh.server.tracked == 0
    assert f"addr={Address(mesh.client.host(version), 0)}"[:-1] in info
    assert {Address.parse(r["source"]).host for r in records} == {mesh.client.host(version)}


@each_version
def test_a_protocol_in_which_the_server_speaks_first(
    mesh: Mesh, tmp_path: Path, version: int
) -> None:
    server = (sys.executable, PROGRAMS / "smtp_server.py", "25")
    client = (sys.executable, PROGRAMS / "smtp_client.py", mesh.server.host(version), "25")
    with (
        mesh.server.running(*server, log=tmp_path / "smtp.log"),
        PodSidecar(mesh.server, tmp_path, PRESERVED) as sidecar,
    ):
        eventually(lambda: mesh.server.listens(25))
        answer = mesh.client.output(*client)
        [record] = sidecar.access_log()
    assert answer == f"250 b'from {mesh.client.host(version)}'\n"
    assert Address.parse(record["source"]).host == mesh.client.host(version)


@each_version
def test_conntrack_stays_empty_after_10_000_connections(
    mesh: Mesh, tmp_path: Path, version: int
) -> None:
    with (
        nginx(mesh.server, tmp_path) as application_log,
        PodSidecar(mesh.server, tmp_path, PRESERVED) as sidecar,
    ):
        mesh.server.forget()
        wrk(mesh.client, mesh.server.address(version, 8080), 10_000)
        assert mesh.server.tracked == 0
        sidecar.settled()
        mesh.server.forget()
        assert sidecar.metric("pysidecar_conntrack_entries") == 1  # that very request
        assert sidecar.metric("pysidecar_conntrack_limit") > 0
        records = sidecar.access_log(10_000)
        counted = sidecar.metric(
            "pysidecar_rule_packets_total", direction="inbound", purpose="connections"
        )
        assert counted >= len(records)
    client = mesh.client.host(version)
    assert {Address.parse(record["source"]).host for record in records} == {client}
    seen = application_log.read_text().splitlines()
    assert len(seen) >= 10_000
    assert set(seen) == {client}


@each_version
def test_without_its_sidecar_a_pod_refuses(mesh: Mesh, tmp_path: Path, version: int) -> None:
    destination = mesh.server.address(version, 8080)
    with nginx(mesh.server, tmp_path), PodSidecar(mesh.server, tmp_path, PRESERVED) as sidecar:
        assert mesh.client.connect(destination) == "connected"
        sidecar.kill()
        mesh.server.forget()
        assert mesh.client.connect(destination) == "ConnectionRefusedError"
        assert mesh.server.tracked == 0


def test_the_sidecars_own_ports_are_not_reached_from_outside(mesh: Mesh, tmp_path: Path) -> None:
    """With an application on loopback, every port there is the application's but these."""
    config = f"{ALL_PORTS}outbound:\n  listen: [127.0.0.1:15001]\n"
    with PodSidecar(mesh.server, tmp_path, config) as sidecar:
        for port in (15000, 15001):
            with (
                contextlib.suppress(ConnectionResetError),
                connection(mesh, Address(mesh.server.ipv4, port)) as client,
            ):
                client.sendall(b"GET /config HTTP/1.0\r\n\r\n")
                assert client.recv(1) == b""
        records = sidecar.access_log(2)
    assert {r["error"] for r in records} == {
        "the original destination is a listener of this sidecar itself: ECONNREFUSED"
    }
    assert mesh.client.connect(mesh.server.address(4, 15006)) == "ConnectionRefusedError"


@contextlib.contextmanager
def connection(mesh: Mesh, destination: Address) -> Iterator[socket.socket]:
    client = inside(
        mesh.client.name,
        lambda: socket.create_connection((destination.host, destination.port), PATIENCE),
    )
    with client:
        yield client


def test_routes_choose_by_the_original_destination_and_reload(mesh: Mesh, tmp_path: Path) -> None:
    config = "inbound:\n  ports: [80, 81, 8080]\nmanage_rules: true\n"
    with (
        nginx(mesh.server, tmp_path, ports=(8080,)),
        nginx(mesh.caller, tmp_path, ports=(8080,)),
        PodSidecar(mesh.server, tmp_path, config) as sidecar,
    ):
        target = mesh.server.address(4, 80)
        assert re.search("Recv failure|Failed to connect", failure(mesh, target))
        elsewhere = f"    - {{match: {{ports: 81}}, endpoints: ['{mesh.caller.ipv4}:8080']}}\n"
        sidecar.write_config(
            config.replace(
                "manage",
                "  routes:\n    - {match: {ports: 80}, endpoints: ['127.0.0.1:8080']}\n"
                f"{elsewhere}manage",
            )
        )
        sidecar.process.send_signal(signal.SIGHUP)
        eventually(lambda: "reloaded" in sidecar.log)
        assert curl(mesh.client, target) == "127.0.0.6"
        assert curl(mesh.client, mesh.server.address(4, 81)) == mesh.server.ipv4
        sidecar.write_config(config.replace("[80, 81, 8080]", "[80]"))
        sidecar.process.send_signal(signal.SIGHUP)
        eventually(lambda: "inbound.ports: expected no change" in sidecar.log)
        assert sidecar.get_json("/config")["inbound"]["ports"] == [80, 81, 8080]


def failure(mesh: Mesh, destination: Address) -> str:
    """What curl says."""
    script = f"curl -sS --max-time 10 http://{destination}/ 2>&1 || true"
    return mesh.client.output("sh", "-c", script)


def test_killed_at_any_moment_apply_leaves_nothing_that_delete_does_not_remove(
    mesh: Mesh, tmp_path: Path
) -> None:
    before = mesh.server.snapshot()
    file = tmp_path / "f.yaml"
    file.write_text(f"{PRESERVED}\noutbound: {{redirect: true}}\n")
    command = (*PYSIDECAR, "rules", "apply", "-c", file)
    states = set()
    # Few times: what a change that is killed leaves is tried in tests/interception.
    for step in range(4):
        with mesh.server.running(*command, log=tmp_path / "log") as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.3 + step * 0.15)
            process.kill()
            process.wait()
        # What it started may go on, and holds the lock as long.
        states.add(process.returncode)
        mesh.server.output(*PYSIDECAR, "rules", "delete")
        assert mesh.server.snapshot() == before
    assert -signal.SIGKILL in states


def test_rules_come_and_go_with_the_sidecar(mesh: Mesh, tmp_path: Path) -> None:
    before = mesh.server.snapshot()
    with nginx(mesh.server, tmp_path), PodSidecar(mesh.server, tmp_path, PLAIN) as sidecar:
        applied = mesh.server.snapshot()
        assert "pysidecar_inbound" in applied
        shown = mesh.server.output(*PYSIDECAR, "rules", "show", "-c", sidecar.config_file)
        rules = sidecar.get_json("/config")["rules"]["inbound"]
        assert rules["lines"] == shown.splitlines()
        assert (rules["backend"], rules["managed"]) == ("nft", True)
        assert sidecar.stop() == 0, sidecar.log
        assert mesh.server.snapshot() == before
        assert mesh.client.connect(mesh.server.address(4, 8080)) == "connected"

        sidecar.start()
        sidecar.kill()
        assert mesh.server.snapshot() == applied
        sidecar.start()
        assert mesh.server.snapshot() == applied
        assert curl(mesh.client, mesh.server.address(4, 8080)) == "127.0.0.6"
        sidecar.kill()
        mesh.server.output(*PYSIDECAR, "rules", "delete")
        assert mesh.server.snapshot() == before

        sidecar.start()
        sidecar.kill()
        sidecar.write_config("manage_rules: true")
        sidecar.start()
        assert mesh.server.snapshot() == before
        assert "removed rules that an earlier sidecar left behind" in sidecar.log


def test_open_connections_end_in_their_own_time(mesh: Mesh, tmp_path: Path) -> None:
    """While draining, what is open goes on, from the client's address, and what is new is refused;
    then the rules go."""
    before = mesh.server.snapshot()
    server = (sys.executable, PROGRAMS / "smtp_server.py", "25")
    destination = mesh.server.address(4, 25)
    with (
        mesh.server.running(*server, log=tmp_path / "smtp.log"),
        PodSidecar(mesh.server, tmp_path, PRESERVED) as sidecar,
    ):
        eventually(lambda: mesh.server.listens(25))
        with connection(mesh, destination) as client:
            assert client.recv(100).startswith(b"220 ")
            sidecar.process.terminate()
            eventually(lambda: mesh.client.connect(destination) == "ConnectionRefusedError")
            client.sendall(b"NOOP\r\n")
            assert client.recv(100).startswith(b"250 ")
        assert sidecar.process.wait(PATIENCE) == 0
    assert mesh.server.snapshot() == before


def test_it_starts_only_with_what_it_needs(mesh: Mesh, tmp_path: Path) -> None:
    """And says what is missing before anything has changed."""
    before = mesh.server.snapshot()
    for number, (config, said) in enumerate(
        (
            (PLAIN, "cannot manage the inbound rules (manage_rules): the capability CAP_NET_ADMIN"),
            ("inbound: {}", "cannot listen on 127.0.0.1:15006 (inbound.listen): setting IP_TRANS"),
            ("outbound:\n  redirect: true\n", "cannot mark connections with 15001 (outbound.redi"),
        )
    ):
        sidecar = PodSidecar(mesh.server, tmp_path, config, f"sidecar{number}")
        script = f'"$@" run -c {sidecar.config_file} 2>&1; test $? = 1'
        output = mesh.server.output(*WITHOUT_CAPABILITIES, "sh", "-c", script, "sh", *PYSIDECAR)
        assert said in output, output
        assert "Traceback" not in output
    assert mesh.server.snapshot() == before


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [20_000, pytest.param(50_000, marks=pytest.mark.soak)])
def test_connections_leave_nothing_behind(mesh: Mesh, tmp_path: Path, count: int) -> None:
    destination = mesh.server.address(4, 8080)
    with nginx(mesh.server, tmp_path), PodSidecar(mesh.server, tmp_path, PRESERVED) as sidecar:
        wrk(mesh.client, destination, 5_000)  # pools and caches fill
        sidecar.settled()
        fds, memory = sidecar.resources
        opened = sidecar.metric("pysidecar_connections_opened_total")
        while sidecar.metric("pysidecar_connections_opened_total") < opened + count:
            wrk(mesh.client, destination, 10_000)
        sidecar.settled()
        eventually(lambda: sidecar.resources[0] <= fds)
        grown = sidecar.resources[1] - memory
        assert grown < 84 * count  # where each connection left something, it would be more
