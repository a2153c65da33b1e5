"""Inbound connections whose requests are read: rules bring them here, and each request finds its
service or the application."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pysidecar.address import Address
from tests.interception.support import Server, application, ask, connect, listen
from tests.mesh.conftest import Mesh
from tests.mesh.support import Pod, PodSidecar, nginx
from tests.requests.frames import BOLT, Answer, Request
from tests.requests.support import read_all, read_message
from tests.waiting import PATIENCE

[UNREACHABLE] = BOLT.unreachable
each_mode = pytest.mark.parametrize("mode", ["tproxy", "redirect"])

# Two applications of each protocol: that on the port that clients know, and one behind it.
CONFIG = """
inbound:
  mode: {mode}
  ports: [25, 8080, 12200]
  routes: [{{match: {{ports: [25, 8080, 12200]}}, action: requests, detect_timeout: 0.1s}}]
services:
  orders: {{protocol: http, endpoints: ["127.0.0.1:8081"]}}
  same-pod: {{protocol: http, endpoints: ["10.79.0.3:8081"]}}
  calls: {{protocol: bolt, endpoints: ["[::1]:12201"]}}
requests:
  - match: {{path_prefix: /orders}}
    services: orders
    rewrite: {{original_destination_header: x-wanted}}
  - match: {{path_prefix: /same-pod}}
    services: same-pod
  - match: {{method: buy}}
    services: calls
manage_rules: true
"""
# What an application sees as its client: at the pod's address, and on loopback.
SOURCES = {
    ("tproxy", 4): ("127.0.0.6", "127.0.0.6"),
    ("tproxy", 6): ("fd70:7973:6964:6563::6", "fd70:7973:6964:6563::6"),
    ("redirect", 4): ("10.79.0.3", "127.0.0.1"),
    ("redirect", 6): ("fd79::3", "::1"),
}


def web(pod: Pod, directory: Path) -> contextlib.AbstractContextManager[Path]:
    answer = "$server_port $remote_addr $request_uri $http_x_wanted\\n"
    return nginx(pod, directory, (8080, 8081), answer)


@contextlib.contextmanager
def calls(pod: Pod, port: int) -> Iterator[threading.Event]:
    """Bolt: a call is answered with the port and the client's address. `hold` sets the event."""
    held = threading.Event()

    def serve(connection: socket.socket, _: object) -> None:
        while True:
            request = BOLT.read(connection)
            assert isinstance(request, Request)
            content = f"{port} {connection.getpeername()[0]} ".encode() + request.content
            if request.method == "hold":
                held.set()
            else:
                connection.sendall(BOLT.answer(Answer(request.id, BOLT.good, content)))

    server = Server(serve)
    for host in (pod.ipv6, "::1"):
        server.add(listen(pod.name, Address(host, port)))
    with server:
        yield held


def records(sidecar: PodSidecar, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those of requests and those of connections."""
    found = sidecar.access_log(count)
    return (
        [record for record in found if record["type"] == "request"],
        [record for record in found if record["type"] == "connection"],
    )


@each_mode
def test_http_requests_of_a_connection_go_to_their_services(
    mesh: Mesh, tmp_path: Path, mode: str
) -> None:
    destination = mesh.server.address(4, 8080)
    config = CONFIG.format(mode=mode)
    with web(mesh.server, tmp_path), PodSidecar(mesh.server, tmp_path, config) as sidecar:
        mesh.server.forget()
        urls = [f"http://{destination}{path}" for path in ("/orders/1?key", "/same-pod", "/else")]
        seen = mesh.client.output("curl", "-sS", "--noproxy", "*", *urls)
        assert (mesh.server.tracked == 0) == (mode == "tproxy")
        requests, [connection] = records(sidecar, 4)
    direct, on_loopback = SOURCES[mode, 4]
    assert seen.splitlines() == [
        f"8081 {on_loopback} /orders/1?key {destination}",
        f"8081 {direct} /same-pod ",
        f"8080 {direct} /else ",
    ]
    assert [(each["path"], each["service"], each["upstream"]) for each in requests] == [
        ("/orders/1", "orders", "127.0.0.1:8081"),
        ("/same-pod", "same-pod", f"{mesh.server.ipv4}:8081"),
        ("/else", mesh.server.ipv4, str(destination)),
    ]
    fields: tuple[str, ...] = (
        "protocol",
        "direction",
        "source",
        "method",
        "status",
        "attempts",
        "flags",
    )
    expected = ["http", "inbound", connection["source"], "GET", 200, 1, []]
    assert [[each[field] for field in fields] for each in requests] == [expected] * 3
    assert len({each["connection"] for each in requests}) == 1
    assert Address.parse(connection["source"]).host == mesh.client.ipv4
    fields = ("direction", "transport", "original_destination", "action", "error")
    expected = ["inbound", mode, str(destination), "requests", None]
    assert [connection[field] for field in fields] == expected


@each_mode
def test_what_is_no_request_is_relayed_to_the_application(
    mesh: Mesh, tmp_path: Path, mode: str
) -> None:
    """Here the server speaks first."""
    destination = mesh.server.address(4, 25)
    config = CONFIG.format(mode=mode)
    with (
        application(mesh.server.name, destination),
        PodSidecar(mesh.server, tmp_path, config) as sidecar,
    ):
        assert ask(mesh.client.name, destination) == f"application {SOURCES[mode, 4][0]}"
        [record] = sidecar.access_log()
    fields = ("type", "direction", "upstream", "action", "error")
    expected = ["connection", "inbound", str(destination), "relay", None]
    assert [record[field] for field in fields] == expected


def answered(client: socket.socket) -> dict[int, tuple[int, str]]:
    """Two answers: status and content by id."""
    answers = [BOLT.read(client) for _ in range(2)]
    return {a.id: (a.status, a.content.decode()) for a in answers if isinstance(a, Answer)}


@each_mode
def test_bolt_calls_of_a_connection_go_to_their_services_and_end_with_them(
    mesh: Mesh, tmp_path: Path, mode: str
) -> None:
    destination = mesh.server.address(6, 12200)
    config = CONFIG.format(mode=mode)
    buy, sell, hold = (
        BOLT.request(Request(number, method, b"text"))
        for number, method in enumerate(("buy", "sell", "hold"), 1)
    )
    direct, behind = SOURCES[mode, 6]
    expected = {
        1: (BOLT.good, f"12201 {behind} text"),
        2: (BOLT.good, f"12200 {direct} text"),
    }
    with (
        PodSidecar(mesh.server, tmp_path, config) as sidecar,
        calls(mesh.server, 12201),
        connect(mesh.client.name, destination) as client,
    ):
        client.settimeout(PATIENCE)
        with calls(mesh.server, 12200) as held:
            mesh.server.forget()
            client.sendall(sell + buy)
            assert answered(client) == expected
            assert (mesh.server.tracked == 0) == (mode == "tproxy")
            client.sendall(hold)
            assert held.wait(PATIENCE)
        assert BOLT.read(client) == Answer(3, UNREACHABLE, b"")
        client.sendall(buy + sell)
        found = answered(client)
        assert found[1] == expected[1]
        assert found[2] == (UNREACHABLE, "")
        with calls(mesh.server, 12200):
            client.sendall(sell + buy)
            assert answered(client) == expected
        client.close()
        requests, [connection] = records(sidecar, 8)
    assert {each["source"] for each in requests} == {connection["source"]}
    assert {(each["protocol"], each["direction"]) for each in requests} == {("bolt", "inbound")}
    told = [(each["method"], each["upstream"], each["flags"]) for each in requests]
    assert sorted(told) == [
        *[("buy", "[::1]:12201", [])] * 3,
        ("hold", str(destination), ["upstream_reset"]),
        *[("sell", str(destination), [])] * 2,
        ("sell", str(destination), ["connect_failed"]),
    ]


@each_mode
def test_a_malformed_request_ends_its_connection_and_no_other(
    mesh: Mesh, tmp_path: Path, mode: str
) -> None:
    config = CONFIG.format(mode=mode)
    http, bolt = mesh.server.address(4, 8080), mesh.server.address(6, 12200)
    request = b"GET /else HTTP/1.1\r\nHost: a\r\n\r\n"
    call = BOLT.request(Request(1, "sell", b"text"))

    def asked(client: socket.socket) -> None:
        client.sendall(request)
        assert read_message(client)[0].startswith(b"HTTP/1.1 200 ")

    def called(client: socket.socket) -> None:
        client.sendall(call)
        answer = BOLT.read(client)
        assert isinstance(answer, Answer)
        assert answer.status == BOLT.good

    with (
        web(mesh.server, tmp_path) as application_log,
        calls(mesh.server, 12200),
        PodSidecar(mesh.server, tmp_path, config) as sidecar,
        connect(mesh.client.name, http) as one,
        connect(mesh.client.name, bolt) as other,
    ):
        asked(one)
        called(other)
        with connect(mesh.client.name, http) as bad:
            bad.sendall(request.replace(b"Host: a", b"Host: a\r\nHost: b"))
            assert read_all(bad).startswith(b"HTTP/1.1 400 ")
        with connect(mesh.client.name, bolt) as bad:
            called(bad)
            bad.sendall(b"\xff" + call[1:])
            assert read_all(bad) == b""
        asked(one)
        called(other)
        requests, ended = records(sidecar, 9)
    assert len(ended) == 2
    malformed = [each for each in requests if each["flags"]]
    assert sorted((each["protocol"], each["status"], each["upstream"]) for each in malformed) == [
        ("bolt", None, None),
        ("http", 400, None),
    ]
    assert {each["direction"] for each in malformed} == {"inbound"}
    assert len(application_log.read_text().splitlines()) == 2
