"""Endpoints that are ill, behind a sidecar: servers that are stopped, killed, and answer 503."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pysidecar.address import Address
from tests.control.conftest import RunningSidecar
from tests.serving import Server
from tests.waiting import PATIENCE, eventually

CHECK = "health_check: {path: /health, interval: 100ms, timeout: 10s}"
HASTY = "health_check: {path: /health, interval: 100ms, timeout: 500ms}"
WEB = Path(__file__).with_name("web.py")


class Shop(Server):
    """Several servers would be told apart by their ports, which they answer with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Shop)
        self.address = Address("127.0.0.1", self.server_address[1])
        self.health = self.status = 200
        self.asked = 0


class _Shop(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        shop = self.server
        assert isinstance(shop, Shop)
        is_check = self.path == "/health"
        shop.asked += not is_check
        body = str(shop.address.port).encode()
        self.send_response(shop.health if is_check else shop.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def shops() -> Iterator[list[Shop]]:
    with contextlib.ExitStack() as stack:
        made = [Shop() for _ in range(3)]
        for shop in made:
            stack.enter_context(running(shop))
        yield made


class Place(RunningSidecar):
    """A sidecar with a listener for one service."""

    def __init__(
        self, directory: Path, endpoints: list[Address], settings: str, **more: str
    ) -> None:
        self.endpoints = endpoints
        self.protocol = more.get("protocol", "http")
        self.top = self.services(settings)
        super().__init__(directory)

    def services(self, settings: str) -> str:
        endpoints = ", ".join(f'"{each}"' for each in self.endpoints)
        return (
            f"services: {{orders: {{protocol: {self.protocol}, endpoints: [{endpoints}], "
            f'{settings}}}}}\nlisteners: [{{listen: "127.0.0.1:0", service: orders}}]'
        )

    def write_config(self, outbound: str = "", top: str = "") -> None:
        super().write_config(outbound, top or self.top)

    @property
    def service_listener(self) -> tuple[str, int]:
        address = self._logged_address(r"service [^:]*: (\S+)")
        return address.host, address.port

    def change(self, settings: str) -> None:
        self.write_config(top=self.services(settings))
        assert "reloaded" in self.reload()

    def entry(self) -> Any:
        [entry] = self.get_json("/services?service=orders")
        return entry

    def endpoint(self, address: Address) -> Any:
        return next(each for each in self.entry()["endpoints"] if each["address"] == str(address))

    def metric(self, name: str, **labels: str) -> float:
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"pysidecar_{name}") and all(
                f'{key}="{value}"' in line for key, value in labels.items()
            ):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def requests(self) -> list[Any]:
        lines = self.access_log_file.read_text().splitlines()
        return [each for each in map(json.loads, lines) if each["type"] == "request"]

    def ask(self, count: int) -> Counter[tuple[int, str]]:
        """Statuses and bodies of so many answers."""
        client = http.client.HTTPConnection(*self.service_listener, timeout=PATIENCE)
        answers: Counter[tuple[int, str]] = Counter()
        with contextlib.closing(client):
            for _ in range(count):
                client.request("GET", "/")
                response = client.getresponse()
                answers[response.status, response.read().decode()] += 1
        return answers


def good(*addresses: Address) -> set[tuple[int, str]]:
    return {(200, str(address.port)) for address in addresses}


def test_requests_avoid_whom_checks_find_ill(tmp_path: Path, shops: list[Shop]) -> None:
    one, ill, other = shops
    with Place(tmp_path, [each.address for each in shops], CHECK) as place:
        assert set(place.ask(30)) == good(*place.endpoints)
        assert place.endpoint(one.address)["health"] == "healthy"
        ill.health = 503
        eventually(lambda: place.endpoint(ill.address)["health"] == "unhealthy")
        assert place.endpoint(ill.address)["reason"] == "its answer is 503"
        eventually(lambda: f"orders: {ill.address} is unhealthy: its answer is 503" in place.log)
        asked = ill.asked
        assert set(place.ask(30)) == good(one.address, other.address)
        assert ill.asked == asked
        entry = place.entry()
        assert (entry["available"], entry["panic"]) == (2, False)
        assert place.metric("service_endpoints_available", service="orders") == 2
        assert place.metric("service_endpoint_unhealthy", endpoint=str(ill.address)) == 1
        eventually(lambda: place.metric("health_checks_total", result="failed") >= 3)
        place.change(f"{CHECK}, connections: 99")  # what is known stays
        assert set(place.ask(30)) == good(one.address, other.address)
        ill.health = 200
        eventually(lambda: place.endpoint(ill.address)["health"] == "healthy")
        assert set(place.ask(30)) == good(*place.endpoints)
        ill.health = 503
        eventually(lambda: place.endpoint(ill.address)["health"] == "unhealthy")
        place.change("connections: 99")  # nobody asks any more
        assert set(place.ask(30)) == good(*place.endpoints)
        assert "check" not in place.endpoint(ill.address)


@contextlib.contextmanager
def web() -> Iterator[tuple[subprocess.Popen[str], Address]]:
    command = [sys.executable, str(WEB)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process, Address("127.0.0.1", int(process.stdout.readline()))
        finally:
            process.kill()


def test_servers_that_stop_and_die_are_left_alone(tmp_path: Path) -> None:
    with web() as (stops, silent), web() as (dies, gone), web() as (_, well):
        endpoints = [silent, gone, well]
        settings = f"{HASTY}, read_timeout: 5s, healthy_panic_threshold: 0%"
        with Place(tmp_path, endpoints, settings) as place:
            assert set(place.ask(9)) == good(*endpoints)
            stops.send_signal(signal.SIGSTOP)
            dies.kill()
            eventually(lambda: place.entry()["available"] == 1)
            assert set(place.ask(30)) == good(well)
            assert place.endpoint(silent)["reason"] == "no answer within 0.5 s"
            assert place.endpoint(gone)["reason"] == "connection refused"
            stops.send_signal(signal.SIGCONT)
            eventually(lambda: place.entry()["available"] == 2)
            assert set(place.ask(30)) == good(well, silent)


def test_with_all_ill_the_threshold_decides_and_says_so(tmp_path: Path, shops: list[Shop]) -> None:
    for shop in shops:
        shop.health = 500
    with Place(tmp_path, [each.address for each in shops], CHECK) as place:
        eventually(lambda: place.entry()["available"] == 0)
        assert set(place.ask(9)) == good(*place.endpoints)
        assert place.entry()["panic"]
        assert place.metric("service_panic", service="orders") == 1
        assert place.metric("request_flags_total", service="orders", flag="panic") == 9
        eventually(lambda: len(place.requests()) == 9)
        assert {tuple(each["flags"]) for each in place.requests()} == {("panic",)}
        eventually(lambda: "less than its healthy_panic_threshold of 50%" in place.log)
        place.change(f"{CHECK}, healthy_panic_threshold: 0%")
        [(status, _)] = place.ask(3)
        assert status == 503
        eventually(lambda: len(place.requests()) == 12)
        assert set(place.requests()[-1]["flags"]) == {"no_endpoint", "unavailable"}
        eventually(lambda: "requests are answered with an error" in place.log)
        for shop in shops:
            shop.health = 200
        eventually(lambda: place.entry()["available"] == 3)
        assert set(place.ask(9)) == good(*place.endpoints)
        eventually(lambda: "enough of its endpoints are available again" in place.log)


def test_an_endpoint_that_fails_requests_is_ejected_for_a_while(
    tmp_path: Path, shops: list[Shop]
) -> None:
    one, ill, other = shops
    settings = "outlier_detection: {consecutive_errors: 3, ejection_time: 1500ms}"
    with Place(tmp_path, [each.address for each in shops], settings) as place:
        ill.status = 503
        assert sum(n for (status, _), n in place.ask(30).items() if status == 503) == 3
        assert ill.asked == 3
        endpoint = place.endpoint(ill.address)
        assert endpoint["health"] == "ejected"
        assert endpoint["reason"].startswith("its requests failed; ejected for ")
        assert place.metric("service_endpoint_ejected", endpoint=str(ill.address)) == 1
        assert place.metric("request_flags_total", service="orders", flag="ejected") == 1
        eventually(lambda: len(place.requests()) == 30)
        [last] = [each for each in place.requests() if each["flags"]]
        assert (last["flags"], last["upstream"]) == (["ejected"], str(ill.address))
        ill.status = 200
        eventually(lambda: place.endpoint(ill.address)["health"] == "healthy")
        assert set(place.ask(9)) == good(one.address, ill.address, other.address)


class Bolt(socketserver.BaseRequestHandler):
    """Answers each request with an exception of the application, or a status."""

    status = 0

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, struct.error):
            while True:
                head = self.request.recv(22, socket.MSG_WAITALL)
                *_, number, _, _, name, headers, content = struct.unpack(">BBHBIBiHHI", head)
                self.request.recv(name + headers + content, socket.MSG_WAITALL)
                texts = b"sofa_head_response_error", b"true"
                said = b"".join(struct.pack(">i", len(text)) + text for text in texts)
                self.request.sendall(
                    struct.pack(
                        *(">BBHBIBHHHI", 1, 0, 2, 1, number, 1, self.status, 0, len(said), 0)
                    )
                    + said
                )


@pytest.mark.parametrize(("status", "ejected"), [(0, False), (4, True)])
def test_an_exception_of_the_application_is_no_fault_of_its_endpoint(
    tmp_path: Path, status: int, ejected: bool
) -> None:
    handler = type("Handler", (Bolt,), {"status": status})
    server = Server(("127.0.0.1", 0), handler)
    address = Address("127.0.0.1", server.server_address[1])
    settings = "outlier_detection: {consecutive_errors: 3, ejection_time: 60s}"
    with running(server), Place(tmp_path, [address], settings, protocol="bolt") as place:
        with socket.create_connection(place.service_listener, PATIENCE) as client:
            for number in range(1, 7):
                client.sendall(struct.pack(">BBHBIBiHHI", 1, 1, 1, 1, number, 1, 9999, 0, 0, 0))
                assert client.recv(20, socket.MSG_WAITALL)
                client.recv(65536)
        endpoint = place.endpoint(address)
        assert (endpoint["health"] == "ejected") == ejected
