"""How to test an application's real network calls: no mock in it, no address changed.

``sidecar`` and ``hooked`` come with pysidecar's pytest plugin. The application runs as its own
process, connects to the payment service's real address, and the sidecar takes it to our fake.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pysidecar.testing import Hooked, Sidecar

CHECKOUT = [sys.executable, str(Path(__file__).with_name("checkout_service.py"))]
PAYMENT_SERVICE = "10.20.30.40:8080"


class FakePayments(HTTPServer):
    """Accepts up to 100 euros, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakePaymentsHandler)
        self.charges: list[dict[str, Any]] = []


class FakePaymentsHandler(BaseHTTPRequestHandler):
    server: FakePayments

    def do_POST(self) -> None:
        charge = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.charges.append(charge)
        self.send_response(201 if charge["cents"] <= 10_000 else 402)
        self.end_headers()
        self.wfile.write(json.dumps({"payment": "P-1"}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def payments(sidecar: Sidecar) -> Iterator[FakePayments]:
    """A payment service in place of the real one."""
    with FakePayments() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sidecar.route(PAYMENT_SERVICE, server.socket)
        yield server
        server.shutdown()


def test_charges_the_order(hooked: Hooked, payments: FakePayments) -> None:
    result = hooked.run([*CHECKOUT, "A-17", "4200"])

    assert result.stdout == "order A-17: paid, P-1\n"
    assert payments.charges == [{"order": "A-17", "cents": 4200}]
    # It went where the application believes that the payment service is.
    assert result.connection.original_destination == PAYMENT_SERVICE


def test_says_that_the_payment_was_refused(hooked: Hooked, payments: FakePayments) -> None:
    result = hooked.run([*CHECKOUT, "A-18", "999999"])

    assert result.returncode == 1
    assert result.stdout == "order A-18: payment refused (402)\n"


def test_asks_to_try_again_without_a_payment_service(sidecar: Sidecar, hooked: Hooked) -> None:
    sidecar.route(PAYMENT_SERVICE, action="refuse")

    result = hooked.run([*CHECKOUT, "A-19", "4200"])

    assert result.returncode == 2
    assert "try again later" in result.stdout
    assert "Connection refused" in result.stdout


def test_recovers_with_the_payment_service(
    sidecar: Sidecar, hooked: Hooked, payments: FakePayments
) -> None:
    sidecar.route(PAYMENT_SERVICE, action="refuse")
    assert hooked.run([*CHECKOUT, "A-20", "4200"]).returncode == 2

    sidecar.route(PAYMENT_SERVICE, payments.socket)

    assert hooked.run([*CHECKOUT, "A-20", "4200"], check=True).stdout.endswith("paid, P-1\n")
