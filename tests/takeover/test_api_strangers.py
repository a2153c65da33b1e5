"""What others on this host, and web pages, can do by the mesh API: nothing to anybody else."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysidecar.config import Takeover
from pysidecar.registry.service import ServiceKey
from pysidecar.takeover import json_api
from pysidecar.takeover.api import MeshApi
from pysidecar.takeover.table import MAX_PER_USER, ServiceTable
from pysidecar.web.gate import current_connection
from tests.takeover.serving_api import Served, serving_api
from tests.users import USERS, needs_root, start_script
from tests.waiting import PATIENCE, eventually

ECHO = ServiceKey("bolt", "Echo:1.0")
BODY = b'{"serviceName":"Echo:1.0"}'

# What Python has imported before it became another user has to do.
_EXCHANGE = """
with socket.socket() as client:
    client.connect((sys.argv[1], int(sys.argv[2])))
    client.sendall(sys.argv[3].encode())
    while data := client.recv(65536):
        os.write(1, data)
"""
_LISTEN = """
with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
"""
_CONNECT = """
clients = [socket.socket() for _ in range(int(sys.argv[3]))]
for client in clients:
    client.connect((sys.argv[1], int(sys.argv[2])))
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def api() -> Iterator[Served]:
    with serving_api() as served:
        yield served


def post_as(user: int, api: Served, path: str, **more: object) -> dict[str, Any]:
    body = json.dumps({"serviceName": "Echo:1.0", **more})
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    text = f"{head}Content-Length: {len(body)}\r\n\r\n{body}"
    process = start_script(user, _EXCHANGE, api.address.host, api.address.port, text)
    output, errors = process.communicate(timeout=PATIENCE)
    assert output.startswith("HTTP/1.1 200 OK"), errors or output
    answer: dict[str, Any] = json.loads(output.partition("\n\n")[2])
    return answer


@pytest.fixture
def port_of_another() -> Iterator[int]:
    """On which an application of the first of USERS listens."""
    process = start_script(USERS[0], _LISTEN)
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.kill()
    process.communicate()


# ---- web pages ----


def request(api: Served, *headers: str, path: str = "/services/subscribe") -> tuple[int, Any]:
    lines = [f"POST {path} HTTP/1.1", f"Content-Length: {len(BODY)}", "Connection: close", *headers]
    received = api.exchange("\r\n".join([*lines, "", ""]).encode() + BODY)
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:%d", "127.1.2.3:%d", "[::1]:%d", "localhost:%d", "localhost", "127.0.0.1"]
)
def test_who_names_us_is_answered(api: Served, host: str) -> None:
    name = host % api.address.port if "%" in host else host
    status, answer = request(api, f"Host: {name}")
    assert (status, answer["success"]) == (200, True)


@pytest.mark.parametrize(
    "headers",
    [
        ["Host: evil.example:%d"],
        ["Host: localhost.evil.example:%d"],
        ["Host: 127.0.0.1.evil.example:%d"],
        ["Host: 10.0.0.7:%d"],
        ["Host: [::ffff:10.0.0.7]:%d"],
        ["Host: 127.0.0.1:1"],
        ["Host: localhost:99999"],
        ["Host: [::1"],
        ["Host: "],
        ["Host: 127.0.0.1:%d", "Origin: http://evil.example"],
        ["Host: 127.0.0.1:%d", "Origin: null"],
        ["Host: 127.0.0.1:%d", "Origin: http://127.0.0.1:%d"],
    ],
)
def test_web_pages_are_refused(api: Served, headers: list[str]) -> None:
    port = str(api.address.port)
    status, answer = request(api, *(each.replace("%d", port) for each in headers))
    assert status == 403
    assert answer["success"] is False
    assert not list(api.table.subscriptions)


# ---- other users ----


@needs_root
def test_only_the_user_who_published_unpublishes(api: Served) -> None:
    assert post_as(USERS[0], api, "/services/publish")["success"] is True
    (publication,) = api.table.publications
    assert publication.uid == USERS[0]
    answer = post_as(USERS[1], api, "/services/unpublish")
    assert "published by" in answer["errorMessage"]
    assert list(api.table.publications) == [publication]
    assert post_as(USERS[0], api, "/services/unpublish")["success"] is True
    assert not list(api.table.publications)


@needs_root
def test_root_unpublishes_for_others(api: Served) -> None:
    assert post_as(USERS[0], api, "/services/publish")["success"] is True
    assert api.post("/services/unpublish", BODY)["success"] is True
    assert not list(api.table.publications)


@needs_root
def test_nobody_joins_a_service_of_another_user(api: Served) -> None:
    assert post_as(USERS[0], api, "/services/publish")["success"] is True
    answer = post_as(USERS[1], api, "/services/publish", port=12345)
    assert "published by" in answer["errorMessage"]
    assert [each.uid for each in api.table.publications] == [USERS[0]]


@needs_root
def test_only_the_user_who_subscribed_unsubscribes(api: Served) -> None:
    for user in USERS:
        assert post_as(user, api, "/services/subscribe")["success"] is True
    assert post_as(USERS[1], api, "/services/unsubscribe")["success"] is True
    assert [uids for _, uids, _ in api.table.subscriptions] == [{USERS[0]}]


@needs_root
def test_a_port_is_published_by_whose_it_is(api: Served, port_of_another: int) -> None:
    answer = post_as(USERS[1], api, "/services/publish", port=port_of_another)
    assert answer["errorMessage"].startswith("port: expected one of user 65534")
    assert not list(api.table.publications)
    assert post_as(USERS[0], api, "/services/publish", port=port_of_another)["success"] is True
    (publication,) = api.table.publications
    assert publication.alive


@needs_root
def test_roots_port_is_not_published_by_others(api: Served) -> None:
    with socket.create_server(("0.0.0.0", 0)) as application:
        port = application.getsockname()[1]
        answer = post_as(USERS[1], api, "/services/publish", port=port)
    assert answer["errorMessage"].startswith("port: expected")


def test_an_application_that_starts_again_elsewhere_leaves_nothing_behind(api: Served) -> None:
    with socket.socket() as before:
        before.bind(("127.0.0.1", 0))
        api.post("/services/publish", {"serviceName": "Echo:1.0", "port": before.getsockname()[1]})
    with socket.create_server(("127.0.0.1", 0)) as application:
        port = application.getsockname()[1]
        assert api.post("/services/publish", {"serviceName": "Echo:1.0", "port": port})["success"]
    assert [each.address.port for each in api.table.publications] == [port]


def test_a_port_on_which_nobody_listens_is_not_alive(api: Served) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        answer = api.post("/services/publish", {"serviceName": "Echo:1.0", "port": port})
    assert answer["success"] is True
    (publication,) = api.table.publications
    assert not publication.alive


@pytest.mark.parametrize("port", [20881, None])
def test_the_sidecars_own_ports_are_not_published(api: Served, port: int | None) -> None:
    body = {"serviceName": "Echo:1.0", "port": port or api.address.port}
    assert api.post("/services/publish", body)["errorMessage"].startswith("port: expected")


@needs_root
def test_a_user_has_so_many_subscriptions_and_others_theirs(api: Served) -> None:
    def fill() -> None:
        for number in range(MAX_PER_USER):
            api.table.subscribe(ServiceKey("http", f"host{number}"), USERS[0])

    api.call(fill)
    answer = post_as(USERS[0], api, "/services/subscribe")
    assert "the limit" in answer["errorMessage"]
    assert post_as(USERS[1], api, "/services/subscribe")["success"] is True


# ---- bytes, and time ----


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST /services/subscribe HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /services/subscribe HTTP/1.1\r\nHost: localhost\r\nA: \0\r\n\r\n",
        b"POST /services/subscribe HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10000,
        b"POST /services/subscribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /services/subscribe HTTP/1.1\r\nHost: localhost\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_an_error_of_the_client(api: Served, sent: bytes) -> None:
    assert api.exchange(sent).split()[1] == b"400"
    assert api.post("/services/subscribe", BODY)["success"] is True


def test_nothing_is_unpacked(api: Served) -> None:
    packed = gzip.compress(BODY + b" " * 60000)
    head = b"POST /services/subscribe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    more = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    received = api.exchange(head + more + packed)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert b"expected JSON" in received


def test_a_body_may_be_chunked(api: Served) -> None:
    head = b"POST /services/subscribe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    received = api.exchange(head + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert b'"success": true' in received


def test_endless_bodies_are_cut(api: Served) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
    with pytest.raises(ConnectionError):
        api.exchange(head + b"x" * (16 << 20))


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        ("request_timeout", b""),
        ("request_timeout", b"POST /services/subs"),
        ("request_timeout", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"),
        ("idle_timeout", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"),
    ],
)
def test_who_is_slow_ends_and_others_are_served(
    monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes
) -> None:
    limits: Any = {limit: 0.5}
    monkeypatch.setattr(json_api, "LIMITS", replace(json_api.LIMITS, **limits))
    with serving_api() as api, api.socket() as client:
        client.sendall(sent)
        assert api.post("/services/subscribe", BODY)["success"] is True
        while client.recv(65536):
            pass


@needs_root
def test_a_user_who_connects_a_lot_takes_nobodys_place(api: Served) -> None:
    limits = json_api.LIMITS
    count = limits.of_a_peer + 20
    process = start_script(USERS[0], _CONNECT, api.address.host, api.address.port, count)
    assert process.stdout is not None
    try:
        assert process.stdout.readline()
        gate = json_gate(api)
        eventually(lambda: gate.connections == limits.of_a_peer, "his share")
        assert post_as(USERS[1], api, "/services/subscribe")["success"] is True
        assert post_as(USERS[0], api, "/services/subscribe")["success"] is True
    finally:
        process.kill()
        process.communicate()


def json_gate(api: Served) -> Any:
    served: Any = api.api
    return served.gate


_PIECES = st.sampled_from(
    (
        b"POST |GET |/services/publish|/| HTTP/1.1\r\n|\r\n|\n|Host: localhost\r\n|:|"
        b"Content-Length: |Transfer-Encoding: chunked\r\n|2|{}|{|0|\xff|\0|Origin: |%"
    ).split(b"|")
)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(st.one_of(_PIECES, st.binary(max_size=4)), max_size=24), min_size=20))
def test_whatever_comes_the_next_one_is_served(requests: list[list[bytes]]) -> None:
    with serving_api() as api:
        for pieces in requests:
            with api.socket() as client:
                client.sendall(b"".join(pieces))
        assert api.post("/services/subscribe", BODY)["success"] is True


def test_a_connection_that_ends_before_the_answer_costs_no_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def settled() -> None:
        current_connection().abort()

    def make(table: ServiceTable, listener: socket.socket) -> MeshApi:
        return MeshApi(table, Takeover(), listener, settled=settled)

    lines = ["POST /services/subscribe HTTP/1.1", "Host: localhost", f"Content-Length: {len(BODY)}"]
    with serving_api(make) as api:
        with contextlib.suppress(ConnectionError):
            api.exchange("\r\n".join([*lines, "", ""]).encode() + BODY)
        eventually(lambda: json_gate(api).connections == 0)
    assert list(api.table.subscriptions)
    assert not caplog.messages
