"""What is seen of requests that pass a running sidecar: lines, lists, sums and metrics."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pysidecar.address import Address
from tests.control.conftest import RunningSidecar
from tests.control.test_admin import metric
from tests.launching import PYSIDECAR
from tests.serving import serving
from tests.waiting import PATIENCE, eventually


class Handler(http.server.BaseHTTPRequestHandler):
    """``/bad`` fails, ``/slow`` waits until it is let go."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet
    released = threading.Event()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a request that nobody waits for any more
            super().handle()

    def do_GET(self) -> None:
        if self.path.startswith("/slow"):
            self.released.wait(PATIENCE)
        body = b"x" * 100
        self.send_response(500 if self.path == "/bad" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Requesting(RunningSidecar):
    """One with a listener for each of its services."""

    names = ("orders", "closed", "nowhere", "impatient")

    def __init__(self, directory: Path, server: Address, *, log: str = "") -> None:
        self.server = server
        self.log_keys = log
        super().__init__(directory)

    def write_config(self, outbound: str = "", top: str = "") -> None:
        endpoints = {
            "orders": f"endpoints: ['{self.server}', {{address: '127.0.0.1:9', weight: 2}}]",
            "closed": "endpoints: ['127.0.0.1:9']",
            "nowhere": "timeout: 5s",
            "impatient": f"timeout: 50ms, endpoints: ['{self.server}']",
        }
        services = [f"  {name}: {{protocol: http, {endpoints[name]}}}" for name in self.names]
        listeners = [
            f"  - {{listen: 127.0.0.1:0, protocol: http, service: {name}}}" for name in self.names
        ]
        lines = ["services:", *services, "listeners:", *listeners, top]
        super().write_config(outbound, "\n".join(lines))
        if self.log_keys:
            text = self.config_file.read_text()
            self.config_file.write_text(
                text.replace("access_log: {", f"access_log: {{{self.log_keys}, ")
            )

    def listener_of(self, service: str) -> Address:
        found = re.search(rf"service {service}: (\S+)", self.log)
        assert found, self.log
        return Address.parse(found[1])

    def request(self, service: str, *paths: str) -> list[int]:
        """The statuses, of requests on one connection."""
        address = self.listener_of(service)
        client = http.client.HTTPConnection(address.host, address.port, timeout=PATIENCE)
        statuses = []
        for path in paths:
            client.request("GET", path)
            response = client.getresponse()
            response.read()
            statuses.append(response.status)
        client.close()
        return statuses

    def lines(self, kind: str, count: int) -> list[dict[str, Any]]:
        """Of the access log, when there are so many of that kind."""

        def found() -> list[dict[str, Any]]:
            lines = [each for each in self.access_log(0) if each["type"] == kind]
            return lines if len(lines) >= count else []

        return eventually(found, f"{count} lines") if count else []

    def service(self, name: str) -> dict[str, Any]:
        [found] = self.get_json(f"/services?service={name}")
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    Handler.released.clear()
    with serving(Handler) as address:
        yield address


@pytest.fixture
def requesting(tmp_path: Path, server: Address) -> Iterator[Requesting]:
    with Requesting(tmp_path, server) as running:
        yield running


def run(*arguments: str) -> list[dict[str, str]]:
    """The rows that a command prints."""
    done = subprocess.run(
        [*PYSIDECAR, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    head, *rows = (line.split("\t") for line in done.stdout.splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_a_request_is_logged_listed_and_counted(requesting: Requesting, server: Address) -> None:
    assert requesting.request("orders", "/a?token=secret", "/bad") == [200, 500]
    ok, bad = requesting.lines("request", 2)
    [connection] = requesting.lines("connection", 1)
    assert ok.pop("duration_ms") >= ok.pop("first_byte_ms") > 0
    assert ok.pop("time") <= bad["time"]
    assert ok == {
        "type": "request",
        "protocol": "http",
        "direction": "outbound",
        "source": connection["source"],
        "connection": 1,
        "service": "orders",
        "method": "GET",
        "path": "/a",
        "status": 200,
        "upstream": str(server),
        "attempts": ok["attempts"],
        "bytes_sent": ok["bytes_sent"],
        "bytes_received": ok["bytes_received"],
        "flags": [],
    }
    assert ok["attempts"] in (1, 2)  # the other endpoint refuses, and is ejected
    sent, received = (ok[key] + bad[key] for key in ("bytes_sent", "bytes_received"))
    assert (sent, received) == (connection["bytes_sent"], connection["bytes_received"])

    shown = requesting.get_json("/requests")
    assert [entry["path"] for entry in shown] == ["/bad", "/a"]
    assert shown[0] == bad
    assert [entry["path"] for entry in requesting.get_json("/requests?status=5xx")] == ["/bad"]

    orders = requesting.service("orders")
    assert (orders["requests"], orders["failures"], orders["active"]) == (2, 1, 0)
    assert orders["statuses"] == {"2xx": 1, "5xx": 1}
    assert (orders["bytes_sent"], orders["bytes_received"]) == (sent, received)
    assert orders["rate"] > 0
    assert 0 < orders["p50_ms"] <= orders["p99_ms"]
    weights = {each["address"]: each["weight"] for each in orders["endpoints"]}
    assert weights == {str(server): 1, "127.0.0.1:9": 2}
    [ours] = [each for each in orders["endpoints"] if each["address"] == str(server)]
    assert (ours["requests"], ours["failures"], ours["connections"]) == (2, 1, 1)

    labels = {"service": "orders", "status": "5xx"}
    assert metric(requesting, "pysidecar_requests_total", **labels) == 1
    assert metric(requesting, "pysidecar_request_duration_seconds_count", service="orders") == 2
    of_endpoint = {"endpoint": str(server), **labels}
    assert metric(requesting, "pysidecar_endpoint_requests_total", **of_endpoint) == 1
    assert metric(requesting, "pysidecar_upstream_connections", service="orders") == 1

    admin = ("--admin", str(requesting.admin))
    [row] = run("requests", *admin, "--service", "orders", "--flag", "failed")
    assert (row["path"], row["status"], row["upstream"]) == ("/bad", "500", str(server))
    [row, *endpoints] = run("services", *admin, "--service", "orders")
    assert (row["service"], row["requests"], row["failures"]) == ("orders", "2", "1")
    assert len(endpoints) == 2


def test_each_failure_has_a_flag(requesting: Requesting) -> None:
    """In the log, in the sums and in the metrics."""
    expected = {"closed": "connect_failed", "nowhere": "no_endpoint", "impatient": "timeout"}
    for service in expected:
        [status] = requesting.request(service, "/slow")
        assert status in (502, 503, 504)
    address = requesting.listener_of("orders")
    with socket.create_connection((address.host, address.port), PATIENCE) as client:
        client.sendall(b"G\0T / HTTP/1.1\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    lines = requesting.lines("request", 4)
    flags = {line["service"] or "": line["flags"] for line in lines}
    assert flags.pop("") == ["malformed_request"]
    assert flags == {service: [flag] for service, flag in expected.items()}
    for service, flag in expected.items():
        found = requesting.service(service)
        assert (found["flags"], found["failures"], found["active"]) == ({flag: 1}, 1, 0)
        labels = {"service": service, "flag": flag}
        assert metric(requesting, "pysidecar_request_flags_total", **labels) == 1
    [unserved] = [each for each in requesting.get_json("/services") if each["service"] is None]
    assert unserved["flags"] == {"malformed_request": 1}
    [refusing] = requesting.service("closed")["endpoints"]
    assert refusing["ejected"]
    labels = {"service": "closed", "endpoint": "127.0.0.1:9"}
    assert metric(requesting, "pysidecar_service_endpoint_ejected", **labels) == 1
    assert requesting.request("orders", "/fine") == [200]
    failed = requesting.get_json("/requests?list=failed")
    assert failed == requesting.get_json("/requests?flag=failed")
    assert len(failed) == 4
    [slowest] = requesting.get_json("/requests?list=slowest&limit=1")
    assert slowest["flags"] == ["timeout"]


def test_a_request_under_way_is_active(requesting: Requesting) -> None:
    Handler.released.clear()
    client = threading.Thread(target=requesting.request, args=("orders", "/slow"))
    client.start()
    try:
        eventually(lambda: requesting.service("orders")["active"] == 1)
        assert metric(requesting, "pysidecar_requests_active", service="orders") == 1
        assert requesting.get_json("/requests") == []
    finally:
        Handler.released.set()
        client.join()
    eventually(lambda: requesting.service("orders")["requests"] == 1)
    assert requesting.service("orders")["active"] == 0


def test_what_is_logged_follows_the_configuration(tmp_path: Path, server: Address) -> None:
    with Requesting(tmp_path, server, log="requests: off") as running:
        running.request("orders", "/1?q")
        running.lines("connection", 1)
        for keys, path in (("connections: off, query: true", "/2?q"), ("mode: off", "/3?q")):
            running.log_keys = keys
            running.write_config()
            assert "reloaded" in running.reload()
            running.request("orders", path)
        running.log_keys = ""
        running.write_config()
        assert "reloaded" in running.reload()
        running.request("orders", "/4?q")
        eventually(lambda: len(running.get_json("/connections?state=closed")) == 4)
        lines = running.lines("request", 2)
        assert [line["path"] for line in lines] == ["/2?q", "/4"]
        assert len(running.lines("connection", 2)) == 2
        assert [each["path"] for each in running.get_json("/requests")] == ["/4", "/3", "/2", "/1"]
        assert running.service("orders")["requests"] == 4, "a reload forgets nothing"


@pytest.mark.parametrize("command", ["requests", "services"])
def test_a_command_watches(requesting: Requesting, command: str) -> None:
    """In a pipe: the same again, until somebody has seen enough."""
    requesting.request("orders", "/a")
    arguments = [command, "--watch", "--interval", "0.1", "--json", "--service", "orders"]
    watching = subprocess.Popen(
        [*PYSIDECAR, *arguments, "--admin", str(requesting.admin)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with watching:
        assert watching.stdout is not None
        assert len(json.loads(watching.stdout.readline())) == 1
        requesting.request("orders", "/b")

        def sees() -> bool:
            assert watching.stdout is not None
            entries = json.loads(watching.stdout.readline())
            return len(entries) == 2 or entries[0].get("requests") == 2

        eventually(sees)
        watching.terminate()


def test_the_trace_tells_of_each_request(requesting: Requesting) -> None:
    with requesting.tracing("--json") as process:
        requesting.request("orders", "/a")
        requesting.request("nowhere", "/b")
        assert process.stdout is not None
        events: list[dict[str, Any]] = []
        while sum(event["station"] == "closed" for event in events) < 2:
            events.append(json.loads(process.stdout.readline()))
        process.terminate()
    ended = [event for event in events if event["station"] == "request_ended"]
    assert [(event["status"], event["failure"]) for event in ended] == [
        (200, None),
        (503, "no_endpoint"),
    ]
    for event in ended:
        stations = [each["station"] for each in events if each["session"] == event["session"]]
        assert stations[0] == "accepted"
        assert stations[-1] == "closed"
