"""The whole way: an application with the connect hook, its sidecar, the wire, tproxy in the other
pod, that one's sidecar, and the application there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pysidecar.address import Address
from tests.launching import PYSIDECAR
from tests.mesh.conftest import Mesh
from tests.mesh.support import PodSidecar, nginx, wrk

SERVER = """
inbound: {ports: 8080, application_address: ["127.0.0.1", "::1"], preserve_source: true}
manage_rules: true
"""


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("transport", ["unix", "header"])
def test_wrk_through_both_sidecars(
    mesh: Mesh, tmp_path: Path, version: int, transport: str
) -> None:
    destination = mesh.server.address(version, 8080)
    with (
        nginx(mesh.server, tmp_path) as application_log,
        PodSidecar(mesh.server, tmp_path, SERVER) as inbound,
        PodSidecar(mesh.caller, tmp_path, f"outbound:\n  transport: {transport}\n") as outbound,
    ):
        mesh.server.forget()
        hooked = (*PYSIDECAR, "exec", "-c", outbound.config_file, "--")
        wrk(mesh.caller, destination, 1_000, hooked=hooked)
        assert mesh.server.tracked == 0
        outbound.settled()
        inbound.settled()
        sent = [r for r in outbound.access_log() if r["process"] == "wrk"]
        received = inbound.access_log()
    assert {r["original_destination"] for r in sent} == {str(destination)}
    assert {r["original_destination"] for r in received} == {str(destination)}
    assert len(sent) == len(received) >= 1_000
    assert {(r["direction"], r["transport"]) for r in sent} == {("outbound", transport)}
    assert {(r["direction"], r["transport"]) for r in received} == {("inbound", "tproxy")}
    caller = mesh.caller.host(version)
    assert {Address.parse(r["source"]).host for r in received} == {caller}
    # nginx does not log a connection that wrk gave up before its request.
    assert Counter(application_log.read_text().split()).keys() == {caller}
