"""The mesh API, as clients speak it that we did not write."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any, BinaryIO
from unittest import mock

import pytest
from anthunder.listener.base_listener import BaseListener  # type: ignore[import-untyped]
from anthunder.mesh.mesh_client import ApplicationInfo, MeshClient  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from pysidecar.address import Address
from pysidecar.registry.service import ServiceKey
from pysidecar.takeover import json_api
from pysidecar.takeover.table import Publication
from tests.takeover.serving_api import Served, post, serving_api
from tests.waiting import PATIENCE

# anthunder makes uvloop the loop of everything in this process, which is not what others test with.
asyncio.set_event_loop_policy(None)

ECHO = ServiceKey("bolt", "Echo:1.0")
PATHS = (
    "/configs/application",
    "/services/publish",
    "/services/unpublish",
    "/services/subscribe",
    "/services/unsubscribe",
)
# As SOFARPC for Java 5.13.2 sends them.
SOFARPC_PUBLISH = (
    b'{"serviceName":"Echo:1.0","protocolType":"bolt","providerMetaInfo":{"protocol":"bolt",'
    b'"version":"4.0","serializeType":"hessian2","appName":"prov","properties":{}},'
    b'"onlyPublishInCloud":false,"group":null}'
)
SOFARPC_SUBSCRIBE = (
    b'{"serviceName":"Echo:1.0","protocolType":"bolt","targetAppAddress":null,"vipEnforce":false,'
    b'"vipOnly":false,"localCloudFirst":false,"group":null,"properties":null}'
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with serving_api() as served:
        yield served


@pytest.fixture
def api(shared: Served) -> Iterator[Served]:
    yield shared
    shared.call(lambda: empty(shared))


def empty(served: Served) -> None:
    for publication in served.table.publications:
        served.table.unpublish(publication.service, 0)
    for service, uids, _ in served.table.subscriptions:
        for uid in uids:
            served.table.unsubscribe(service, uid)


@pytest.fixture
def port() -> Iterator[int]:
    """One on which an application of ours listens."""
    with socket.create_server(("127.0.0.1", 0)) as application:
        yield application.getsockname()[1]


def published(api: Served) -> list[Publication]:
    return list(api.table.publications)


def subscribed(api: Served) -> list[ServiceKey]:
    return [service for service, _, _ in api.table.subscriptions]


# ---- what clients send ----


def test_sofarpc_publishes_at_the_port_of_the_configuration(api: Served) -> None:
    assert api.post("/configs/application", {"appName": "prov"})["success"] is True
    assert api.post("/services/publish", SOFARPC_PUBLISH) == {"success": True, "errorMessage": ""}
    (publication,) = published(api)
    assert publication.service == ECHO
    assert publication.address == Address("127.0.0.1", 12200)
    assert publication.application == "prov"
    assert dict(publication.metadata) == {"serialization": "hessian2", "p": "bolt", "v": "4.0"}
    body = b'{"serviceName":"Echo:1.0","protocolType":"bolt","group":null}'
    assert api.post("/services/unpublish", body)["success"] is True
    assert not published(api)


def test_sofarpc_subscribes_and_is_told_where_to_call(api: Served) -> None:
    assert api.post("/services/subscribe", SOFARPC_SUBSCRIBE) == {
        "success": True,
        "errorMessage": "",
        "serviceName": "Echo:1.0",
        "datas": ["127.0.0.1:12220?p=1&v=4.0"],
    }
    assert subscribed(api) == [ECHO]
    body = b'{"serviceName":"Echo:1.0","targetAppAddress":null,"protocolType":"bolt","group":null}'
    assert api.post("/services/unsubscribe", body)["success"] is True
    assert not subscribed(api)


def test_anthunder_publishes_and_subscribes(api: Served, port: int) -> None:
    with mock.patch.object(MeshClient, "_server", f"http://{api.address}/{{}}".format):
        listener: Any = BaseListener(("127.0.0.1", port), "prov")
        listener.handler.interface_mapping = {"Echo:1.0": None}
        listener.publish()
        (publication,) = published(api)
        assert (publication.service, publication.address.port) == (ECHO, port)
        assert publication.alive
        client = MeshClient(ApplicationInfo("cons"))
        assert client.startup()
        assert client.subscribe("Echo:1.0")["datas"] == ["127.0.0.1:12220?p=1&v=4.0"]
        assert subscribed(api) == [ECHO]
        client.unsubscribe("Echo:1.0")
        listener.unpublish()
        assert not published(api)
        assert not subscribed(api)
        for session in (client._sess, listener._mesh_client._sess):
            session.close()


def test_a_connection_may_have_many_requests(api: Served) -> None:
    with closing(api.connect()) as connection:
        connection.connect()
        before = connection.sock
        for _ in range(100):
            assert post(connection, "/services/subscribe", SOFARPC_SUBSCRIBE)["success"] is True
        assert connection.sock is before


@pytest.mark.parametrize(
    ("body", "service"),
    [
        ({"protocolType": "DEFAULT", "port": "%d"}, ECHO),
        ({"protocolType": None}, ECHO),
        ({"group": "SOFA"}, ECHO),
        ({"group": "blue"}, ServiceKey("bolt", "Echo:1.0", group="blue")),
        ({"protocolType": "dubbo"}, ServiceKey("dubbo", "Echo", "1.0")),
        (
            {"protocolType": "dubbo", "serviceName": "Echo:1.0:blue"},
            ServiceKey("dubbo", "Echo", "1.0", "blue"),
        ),
        (
            {"protocolType": "rest", "serviceName": "Orders.example"},
            ServiceKey("http", "orders.example"),
        ),
        ({"protocolType": "HTTP", "serviceName": "orders"}, ServiceKey("http", "orders")),
    ],
)
def test_services_of_each_protocol_are_published(
    api: Served, port: int, body: dict[str, Any], service: ServiceKey
) -> None:
    body = {"serviceName": "Echo:1.0", "port": port, **body}
    if isinstance(body["port"], str):
        body["port"] %= port
    assert api.post("/services/publish", body)["success"] is True
    (publication,) = published(api)
    assert publication.service == service
    assert publication.address == Address("127.0.0.1", port)
    assert api.post("/services/unpublish", body)["success"] is True
    assert not published(api)


def test_weights_and_warming_up_are_read_by_sofas_names(api: Served, port: int) -> None:
    properties = {
        "weight": "50",
        "warmupTime": "30000",
        "startTime": "1700000000000",
        "warmupWeight": "10",
        "sofa.x": True,
    }
    body = {
        "serviceName": "Echo:1.0",
        "port": port,
        "providerMetaInfo": {"properties": properties},
    }
    assert api.post("/services/publish", body)["success"] is True
    (publication,) = published(api)
    assert publication.weight == 50
    assert publication.warmup == 30
    assert publication.started == 1_700_000_000
    assert publication.metadata == (("sofa.x", "true"), ("warmupWeight", "10"))


@pytest.mark.parametrize("host", ["::1", "::", "0.0.0.0", "127.0.0.9"])
def test_an_application_may_listen_anywhere(api: Served, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = host == "::"
    with socket.create_server((host, 0), family=family, dualstack_ipv6=dual) as application:
        port = application.getsockname()[1]
        body = {"serviceName": "Echo:1.0", "port": port}
        assert api.post("/services/publish", body)["success"] is True
        (publication,) = published(api)
        expected = {"::": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(host, host)
        assert publication.address == Address(expected, port)
        assert publication.alive


def test_dubbo_is_told_an_address_that_it_calls(api: Served) -> None:
    body = {"serviceName": "Echo:1.0", "protocolType": "dubbo"}
    assert api.post("/services/subscribe", body)["datas"] == ["[::1]:12220?p=dubbo&v=4.0"]


def test_ten_thousand_subscriptions(api: Served) -> None:
    with socket.create_connection((api.address.host, api.address.port), PATIENCE) as client:
        answers = client.makefile("rb")
        for first in range(0, 10_000, 100):  # without waiting for each answer
            client.sendall(b"".join(map(subscription, range(first, first + 100))))
            for _ in range(100):
                assert b"success" in answers.read(length_of_answer(answers))
    assert len(subscribed(api)) == 10_000


def subscription(number: int) -> bytes:
    body = b'{"serviceName":"Echo%d:1.0"}' % number
    head = b"POST /services/subscribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def length_of_answer(answers: BinaryIO) -> int:
    """Of the body that comes next."""
    length = -1
    while (line := answers.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split()[1])
    return length


# ---- what is wrong with it ----


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b"", ""),
        (b"nonsense", ""),
        (b"\xff", ""),
        (b"{" * 30000, ""),
        (b"[" * 60000 + b"]" * 5000, ""),
        (b'{"serviceName":' + b"9" * 5000 + b"}", ""),
        (b'{"port":NaN}', ""),
        (b"[]", ""),
        (b'"serviceName"', ""),
        (b"{}", "serviceName"),
        (b'{"serviceName":null}', "serviceName"),
        (b'{"serviceName":""}', "serviceName"),
        (b'{"serviceName":["Echo:1.0"]}', "serviceName"),
        (b'{"serviceName":"a b"}', "serviceName"),
        (b'{"serviceName":"../providers"}', "serviceName"),
        (b'{"serviceName":"a\\u0000"}', "serviceName"),
        (b'{"serviceName":"a\\u001b[2J"}', "serviceName"),
        (b'{"serviceName":"a\\ud800"}', "serviceName"),
        (b'{"serviceName":"a\\u202e"}', "serviceName"),
        (b'{"serviceName":"%b"}' % (b"a" * 513), "serviceName"),
        (b'{"serviceName":"a","protocolType":"ftp"}', "protocolType"),
        (b'{"serviceName":"a","protocolType":1}', "protocolType"),
        (b'{"serviceName":"a","group":{}}', "group"),
        (b'{"serviceName":"a","port":0}', "port"),
        (b'{"serviceName":"a","port":65536}', "port"),
        (b'{"serviceName":"a","port":-1}', "port"),
        (b'{"serviceName":"a","port":true}', "port"),
        (b'{"serviceName":"a","port":80.5}', "port"),
        (b'{"serviceName":"a","port":1e999}', "port"),
        (b'{"serviceName":"a","port":"x"}', "port"),
        (b'{"serviceName":"a","port":"%b"}' % (b"1" * 5000), "port"),
        (b'{"serviceName":"a","port":20881}', "port"),
        (b'{"serviceName":"a","protocolType":"http"}', "port"),
        (b'{"serviceName":"a","providerMetaInfo":[]}', "providerMetaInfo"),
        (b'{"serviceName":"a","providerMetaInfo":{"appName":1}}', "providerMetaInfo.appName"),
        (
            b'{"serviceName":"a","providerMetaInfo":{"properties":{"weight":"much"}}}',
            "providerMetaInfo.properties.weight",
        ),
        (
            b'{"serviceName":"a","providerMetaInfo":{"properties":{"weight":-1}}}',
            "providerMetaInfo.properties.weight",
        ),
        (
            b'{"serviceName":"a","providerMetaInfo":{"properties":{"x":{}}}}',
            "providerMetaInfo.properties.x",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_key(api: Served, body: bytes, key: str) -> None:
    answer = api.post("/services/publish", body)
    assert answer["success"] is False
    assert answer["errorMessage"].startswith(f"{key}: expected" if key else "expected")
    assert answer["errorMessage"].isprintable()
    assert len(answer["errorMessage"]) < 300
    assert not published(api)


def test_an_application_has_a_name(api: Served) -> None:
    assert api.post("/configs/application", {})["errorMessage"].startswith("appName: expected")
    assert api.post("/configs/application", {"appName": 1})["success"] is False
    # SOFARPC without a name sends this.
    assert api.post("/configs/application", {"appName": None})["success"] is True


def test_a_body_that_is_too_long_is_answered(api: Served) -> None:
    body = b'{"serviceName":"a","x":"%b"}'
    longest = body % (b"x" * (json_api.MAX_BODY - len(body) + 2))
    assert api.post("/services/subscribe", longest)["success"] is True
    answer = api.post("/services/subscribe", longest + b" ")
    assert answer["errorMessage"] == "expected a body of at most 65536 bytes"


@pytest.mark.parametrize("path", ["/", "/services", "/services/publish/", "/%00", "//"])
def test_other_paths_are_answered(api: Served, path: str) -> None:
    answer = api.post(path, SOFARPC_PUBLISH)
    assert answer["success"] is False
    assert "/services/publish" in answer["errorMessage"]
    assert not published(api)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_KEYS = st.sampled_from(
    "serviceName protocolType group port providerMetaInfo appName properties".split()
)
_BODIES = st.dictionaries(_KEYS, _JSON | st.just("Echo:1.0") | st.dictionaries(_KEYS, _JSON))


@settings(max_examples=60, deadline=None)
@given(path=st.sampled_from(PATHS), body=_BODIES | _JSON)
def test_any_json_is_answered(shared: Served, path: str, body: object) -> None:
    answer = shared.post(path, body)
    assert isinstance(answer["success"], bool)
    assert isinstance(answer["errorMessage"], str)
    assert answer["success"] is not bool(answer["errorMessage"])
    assert "sidecar:" not in answer["errorMessage"]


@settings(max_examples=50, deadline=None)
@given(path=st.sampled_from(PATHS), body=st.binary() | st.text().map(str.encode))
def test_any_bytes_are_answered(shared: Served, path: str, body: bytes) -> None:
    answer = shared.post(path, body)
    assert answer["success"] is False
    assert answer["errorMessage"].startswith("expected")
