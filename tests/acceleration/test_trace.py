"""What a trace tells of accelerated connections."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceleration.support import HookedApplication


@pytest.mark.parametrize("path", ["full", "local"])
def test_a_connection_that_the_kernel_moves(
    start: Callable[..., HookedApplication], path: str
) -> None:
    application = start(path, after_bytes=2**63 - 1, after_round_trips=2)
    admin = application.sidecar.admin
    client = http.client.HTTPConnection(admin.host, admin.port, timeout=10)
    with contextlib.closing(client):
        client.request("GET", "/debug/trace")
        answer = client.getresponse()  # what happens from here on is in it
        application.exchange()
        found: dict[str, Any] = {}
        while found.get("station") != "accelerated":
            line = answer.readline()
            found = json.loads(line) if line.strip() else {}
    assert found["path"] == path
