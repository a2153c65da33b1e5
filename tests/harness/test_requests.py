"""What the fixture ``sidecar`` tells of requests."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from pysidecar.testing import Hooked, Sidecar

ORDERS = "10.7.7.7:8080"


class Orders(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path.startswith("/orders") else 404)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def sidecar(sidecar_factory: Callable[..., Sidecar]) -> Sidecar:
    """With a service for everything that goes to ORDERS."""
    server = HTTPServer(("127.0.0.1", 0), Orders)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    host, port = server.server_address[:2]
    return sidecar_factory(
        {
            "services": {"orders": {"protocol": "http", "endpoints": [f"{host!s}:{port}"]}},
            "requests": [{"services": "orders"}],
            "outbound": {
                "routes": [{"match": {"ports": 8080}, "action": "requests", "protocol": "http"}]
            },
        }
    )


def test_requests_are_told_as_they_end(sidecar: Sidecar, hooked: Hooked) -> None:
    done = hooked.run(["curl", "-sS", f"http://{ORDERS}/orders/7?token=x", f"http://{ORDERS}/no"])
    assert done.stdout == "okok"
    found = sidecar.wait_for_request("orders", path="/orders/7")
    assert (found.method, found.status, found.attempts, found.flags) == ("GET", 200, 1, ())
    missing = sidecar.wait_for_request(matching=lambda request: request.status == 404)
    assert missing.path == "/no"
    assert sidecar.requests() == [found, missing]


def test_one_that_never_comes_says_what_came_instead(sidecar: Sidecar, hooked: Hooked) -> None:
    hooked.run(["curl", "-sS", f"http://{ORDERS}/orders/8"])
    sidecar.wait_for_request(path="/orders/8")
    with pytest.raises(TimeoutError, match="/orders/8"):
        sidecar.wait_for_request(method="POST", timeout=0.1)
