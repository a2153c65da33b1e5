"""``takeover.services``: a whole sidecar treats what it finds as it says, and as a reload says."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pysidecar.testing.sidecar import Sidecar
from tests.waiting import eventually

_LIMITED = {"rate_limit": {"requests": 1, "per": "1h"}}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503 if self.path == "/broken" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def application() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def sidecar(application: int) -> Iterator[Sidecar]:
    """It provides and calls two services, of which it is configured no more than their names."""
    made = Sidecar()
    taken = [{"service": name, "protocol": "http"} for name in ("orders", "stock")]
    made._settings["takeover"] = {
        "api": f"{made.address}:13330",
        "consumer": f"{made.address}:12220",
        "provider": f"{made.address}:20881",
        "subscribe": taken,
        "publish": [{**each, "port": application} for each in taken],
    }
    with made:
        eventually(lambda: {get(made, "orders"), get(made, "stock")} == {200})
        yield made


def get(sidecar: Sidecar, service: str, path: str = "/") -> int:
    connection = http.client.HTTPConnection(str(sidecar.address), 12220, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": service})
        return connection.getresponse().status
    finally:
        connection.close()


def subscribed(sidecar: Sidecar, service: str) -> dict[str, Any]:
    [found] = [
        each
        for each in sidecar.admin_json("/services")
        if (each["service"], each["role"]) == (service, "subscribed")
    ]
    return dict(found)


def test_a_policy_counts_for_what_it_names_until_a_reload_says_otherwise(sidecar: Sidecar) -> None:
    sidecar.configure({"takeover": {"services": {"*": {"timeout": "9s"}, "ord*": _LIMITED}}})
    assert [get(sidecar, "orders") for _ in range(3)] == [200, 429, 429]
    assert [get(sidecar, "stock") for _ in range(3)] == [200, 200, 200]
    assert [subscribed(sidecar, each)["policy"] for each in ("orders", "stock")] == ["ord*", "*"]
    sidecar.configure({"takeover": {"services": {"ord*": None}}})
    assert [get(sidecar, "orders") for _ in range(3)] == [200, 200, 200]


def test_endpoints_that_were_found_are_asked_how_they_are(sidecar: Sidecar) -> None:
    check = {"type": "http", "path": "/broken", "interval": "100ms"}
    sidecar.configure({"takeover": {"services": {"orders": {"health_check": check}}}})

    def health(service: str) -> list[str]:
        return [each["health"] for each in subscribed(sidecar, service)["endpoints"]]

    eventually(lambda: health("orders") == ["unhealthy"])
    assert health("stock") == ["healthy"]
