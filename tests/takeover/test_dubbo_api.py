"""MOSN's form of the mesh API, for Dubbo."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pysidecar.address import Address
from pysidecar.config import Takeover
from pysidecar.registry.service import ServiceKey
from pysidecar.takeover.dubbo_api import DubboApi
from pysidecar.takeover.table import ServiceTable
from tests.takeover.serving_api import Served, serving_api

ZOOKEEPER = {"type": "zookeeper", "addr": "127.0.0.1:2181", "username": "", "password": ""}
SERVICE = {
    "interface": "com.example.Echo",
    "methods": ["hello"],
    "group": "blue",
    "version": "1.0.3",
}
KEY = ServiceKey("dubbo", "com.example.Echo", "1.0.3", "blue")


def make(table: ServiceTable, listener: socket.socket) -> DubboApi:
    return DubboApi(table, Takeover(), listener, registry="zookeeper")


@pytest.fixture
def api() -> Iterator[Served]:
    with serving_api(make) as served:
        yield served


def test_a_provider_is_published_at_the_port_of_the_configuration(api: Served) -> None:
    body = {"registry": ZOOKEEPER, "service": SERVICE}
    assert api.post("/pub", body) == {"err_no": 0, "err_msg": "publish success"}
    (publication,) = api.table.publications
    assert publication.service == KEY
    assert publication.address == Address("127.0.0.1", 20880)
    assert api.post("/unpub", body) == {"err_no": 0, "err_msg": "unpub success"}
    assert not list(api.table.publications)


def test_a_consumer_subscribes(api: Served) -> None:
    service = {"interface": "com.example.Echo", "methods": ["hello"], "group": ""}
    body = {"registry": ZOOKEEPER, "service": service}
    assert api.post("/sub", body) == {"err_no": 0, "err_msg": "subscribe success"}
    assert [key for key, _, _ in api.table.subscriptions] == [
        ServiceKey("dubbo", "com.example.Echo")
    ]
    assert api.post("/unsub", body) == {"err_no": 0, "err_msg": "unsubscribe success"}
    assert not list(api.table.subscriptions)


def test_our_own_registry_is_used_and_that_is_said_once(
    api: Served, caplog: pytest.LogCaptureFixture
) -> None:
    api.post("/pub", {"registry": ZOOKEEPER, "service": SERVICE})
    assert "registry" not in caplog.text
    for _ in range(3):
        answer = api.post("/pub", {"registry": {"type": "nacos"}, "service": SERVICE})
        assert answer["err_no"] == 0
    assert caplog.text.count("nacos") == 1


@pytest.mark.parametrize("path", ["/pub", "/unpub", "/sub", "/unsub"])
@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b"nonsense", ""),
        (b"[]", ""),
        (b"{}", "service.interface"),
        (b'{"service":[]}', "service"),
        (b'{"service":{"interface":1}}', "service.interface"),
        (b'{"service":{"interface":"a/../b"}}', "service.interface"),
        (b'{"service":{"interface":"a","group":[]}}', "service.group"),
        (b'{"service":{"interface":"a","version":"x y"}}', "service.version"),
        (b'{"registry":1,"service":{"interface":"a"}}', "registry"),
        (b'{"registry":{"type":1},"service":{"interface":"a"}}', "registry.type"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(api: Served, path: str, body: bytes, key: str) -> None:
    answer = api.post(path, body)
    assert answer["err_no"] == 1
    assert answer["err_msg"].startswith(f"{key}: expected" if key else "expected")
    assert not list(api.table.publications)
    assert not list(api.table.subscriptions)
