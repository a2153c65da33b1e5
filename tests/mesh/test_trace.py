"""What a trace tells of connections that rules in the kernel bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.conftest import Mesh
from tests.mesh.support import PodSidecar, curl, nginx


@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_stations_of_inbound_connections(mesh: Mesh, tmp_path: Path, mode: str) -> None:
    destination = mesh.server.address(4, 8080)
    config = f"manage_rules: true\ninbound: {{mode: {mode}}}\n"
    with (
        nginx(mesh.server, tmp_path),
        PodSidecar(mesh.server, tmp_path, config) as sidecar,
        sidecar.tracing("--json") as trace,
    ):
        curl(mesh.client, destination)
        assert trace.stdout
        entries: list[dict[str, Any]] = []
        while not entries or entries[-1]["station"] != "closed":
            entries.append(json.loads(trace.stdout.readline()))
    assert [entry["station"] for entry in entries] == [
        *("accepted", "requested", "routed", "connecting", "connected", "completed"),
        *("first_bytes", "first_bytes", "ended", "ended", "closed"),
    ]
    assert entries[0]["transport"] == mode
    assert entries[0]["direction"] == "inbound"
    assert entries[1]["destination"] == entries[3]["endpoint"] == str(destination)
