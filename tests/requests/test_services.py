"""Which service a request comes to: with a sidecar that runs, and as its configuration changes."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pysidecar.address import Address
from tests.control.conftest import RunningSidecar, exchange
from tests.serving import Echo, serving
from tests.waiting import PATIENCE, eventually


class Service(BaseHTTPRequestHandler):
    """Says what it was asked, and where."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a sidecar that is killed
            super().handle()

    def do_GET(self) -> None:
        port = self.request.getsockname()[1]
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.dumps({"port": port, "path": self.path, "headers": headers}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Routing(RunningSidecar):
    """One whose configuration has more than ``outbound``."""

    def __init__(self, directory: Path, top: str) -> None:
        self.top = top
        super().__init__(directory)

    def write_config(self, outbound: str = "", top: str = "") -> None:
        super().write_config(outbound or ROUTE, top or self.top)


class Place(NamedTuple):
    """A sidecar, and two services."""

    sidecar: Routing
    one: Address
    other: Address

    @property
    def listeners(self) -> list[Address]:
        return [
            Address.parse(text) for text in re.findall(r"service [^:]*: (\S+)", self.sidecar.log)
        ]


CONFIG = """\
services:
  one: {{protocol: http, endpoints: ["{one}"]}}
  other: {{protocol: http, endpoints: ["{other}"]}}
requests:
  - match: {{host: "orders.*", path_prefix: /v2/, headers: {{x-env: canary}}}}
    services: other
    rewrite: {{path_prefix: /, host: "inner:81", set_headers: {{x-by: "1"}}, remove_headers: x-env}}
  - match: {{host: "orders.*"}}
    services: {by_rule}
listeners:
  - {{listen: "127.0.0.1:0"}}
"""
ROUTE = "routes: [{match: {destination: 127.0.0.1}, action: requests}]"


def config(one: Address, other: Address, by_rule: str = "one") -> str:
    return CONFIG.format(one=one, other=other, by_rule=by_rule)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with (
        serving(Service) as one,
        serving(Service) as other,
        Routing(tmp_path, config(one, other)) as sidecar,
    ):
        yield Place(sidecar, one, other)


def ask(client: http.client.HTTPConnection, path: str = "/", **headers: str) -> Any:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request("GET", path, headers={"Host": "orders.example", **names})
    response = client.getresponse()
    body = response.read()
    assert response.status == 200, (response.status, body)
    return json.loads(body)


@pytest.fixture
def client(place: Place) -> Iterator[http.client.HTTPConnection]:
    [listener] = place.listeners
    client = http.client.HTTPConnection(listener.host, listener.port, timeout=PATIENCE)
    yield client
    client.close()


def test_each_request_of_a_connection_finds_its_own_service(
    place: Place, client: http.client.HTTPConnection
) -> None:
    assert ask(client, "/v2/a")["port"] == place.one.port
    answer = ask(client, "/v2/a?b=/v2", x_env="canary")
    assert (answer["port"], answer["path"]) == (place.other.port, "/a?b=/v2")
    headers = answer["headers"]
    assert (headers["host"], headers["x-by"], headers.get("x-env")) == ("inner:81", "1", None)
    answer = ask(client, "/v2", x_env="canary", Host="ORDERS.B:80")
    assert (answer["port"], answer["path"]) == (place.other.port, "/")
    assert ask(client, "/v2x", x_env="canary")["path"] == "/v2x"


def test_where_no_rule_matches_a_listener_has_nothing(
    client: http.client.HTTPConnection, place: Place
) -> None:
    client.request("GET", "/", headers={"Host": "elsewhere"})
    response = client.getresponse()
    assert (response.status, response.headers["x-sidecar-reason"]) == (404, "no_route")


def test_where_no_rule_matches_a_route_goes_on_to_the_destination(place: Place) -> None:
    with place.sidecar.connect(place.other) as raw:
        client = http.client.HTTPConnection("unused")
        client.sock = raw
        assert ask(client)["port"] == place.one.port
        assert ask(client, Host="elsewhere")["port"] == place.other.port
        assert ask(client)["port"] == place.one.port


def test_requests_go_on_while_the_rules_change(
    place: Place, client: http.client.HTTPConnection
) -> None:
    stop = threading.Event()
    ports: list[int] = []

    def wait_for(count: int) -> None:
        eventually(lambda: len(ports) > count)

    def keep_asking() -> None:
        while not stop.is_set():
            ports.append(ask(client)["port"])

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        wait_for(0)
        for by_rule in ("other", "{one: 1, other: 1}", "one", "other"):
            place.sidecar.write_config(top=config(place.one, place.other, by_rule))
            assert "reloaded" in place.sidecar.reload()
            asked = len(ports)
            wait_for(asked + 20)
    finally:
        stop.set()
        thread.join()
    assert ports[0] == place.one.port
    assert ports[-1] == place.other.port
    sums = {entry["service"]: entry for entry in place.sidecar.get_json("/services")}
    assert sum(sums[name]["requests"] for name in ("one", "other")) == len(ports)
    assert sums["one"]["failures"] == sums["other"]["failures"] == 0
    assert sums["one"]["connections"] <= 2  # a worker each: a change makes no new ones


def test_an_endpoint_that_is_removed_gets_no_new_request(
    place: Place, client: http.client.HTTPConnection
) -> None:
    assert ask(client)["port"] == place.one.port
    place.sidecar.config_file.write_text(
        place.sidecar.config_file.read_text().replace(str(place.one), str(place.other))
    )
    assert "reloaded" in place.sidecar.reload()
    assert ask(client)["port"] == place.other.port
    services = place.sidecar.get_json("/services?service=one")
    assert [entry["address"] for entry in services[0]["endpoints"]] == [str(place.other)]


def test_what_a_listener_is_for_changes_but_not_its_address(
    place: Place, client: http.client.HTTPConnection
) -> None:
    [listener] = place.listeners
    before = place.sidecar.top
    place.sidecar.write_config(top=before.replace(':0"}', ':0", service: other}'))
    assert "reloaded" in place.sidecar.reload()
    assert ask(client)["port"] == place.other.port
    late = http.client.HTTPConnection(listener.host, listener.port, timeout=PATIENCE)
    with contextlib.closing(late):
        assert ask(late)["port"] == place.other.port
    place.sidecar.write_config(top=before.replace("127.0.0.1:0", "127.0.0.1:1"))
    log = place.sidecar.reload()
    assert "listeners[].listen: expected no change: it takes effect at a restart" in log
    assert ask(client)["port"] == place.other.port


def test_a_listener_relays_to_a_service_of_tcp(tmp_path: Path) -> None:
    with (
        serving(Echo) as echo,
        Routing(
            tmp_path,
            f"services: {{raw: {{protocol: tcp, endpoints: ['{echo}']}}}}\n"
            "listeners: [{listen: '127.0.0.1:0', service: raw}]",
        ) as sidecar,
    ):
        [listener] = Place(sidecar, echo, echo).listeners
        with socket.create_connection((listener.host, listener.port), PATIENCE) as raw:
            assert exchange(raw, b"anything") == b"anything"


def test_our_own_listeners_are_no_destination(place: Place) -> None:
    [listener] = place.listeners
    with place.sidecar.connect(listener) as raw, pytest.raises(ConnectionError):
        exchange(raw, b"GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n")
