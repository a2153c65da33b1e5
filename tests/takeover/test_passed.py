"""Calls at the provider port for services that nobody published."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from pysidecar.address import Address
from pysidecar.config import parse
from pysidecar.routing.found import FoundServices
from pysidecar.takeover.takeover import Takeover

METADATA = "org.apache.dubbo.metadata.MetadataService"
HERE = Address("127.0.0.1", 20880)
TRIPLE = [("tri", METADATA, Address("127.0.0.1", 50051))]
TRIPLE += [("tri", f"{METADATA}V2", Address("127.0.0.1", 50051))]
PUBLISHED = "publish: [{service: com.example.Echo, protocol: dubbo, port: 20880}]"
CALLED = "publish: [{service: com.example.Echo, protocol: grpc, port: 50051}]"
ALL = ("tri", "*", Address("127.0.0.1", 50051))


def _never(found: FoundServices) -> NoReturn:
    raise AssertionError(found)


@pytest.mark.parametrize(
    ("registry", "takeover", "passed"),
    [
        # What listens on loopback is not handed to other hosts where nothing registers it.
        ("embedded", "", [("dubbo", METADATA, HERE), *TRIPLE]),
        ("etcd", "", [("dubbo", METADATA, HERE), *TRIPLE]),
        ("zookeeper", "", [("dubbo", "*", HERE), ALL]),
        ("sofaregistry", "", [("dubbo", "*", HERE), *TRIPLE]),
        ("zookeeper", PUBLISHED, [("dubbo", METADATA, HERE), ALL]),
        ("zookeeper", CALLED, [("dubbo", "*", HERE), *TRIPLE]),
        (
            "zookeeper",
            "application_ports: {dubbo: 1, tri: 2}",
            [("dubbo", "*", Address("127.0.0.1", 1)), ("tri", "*", Address("127.0.0.1", 2))],
        ),
        ("zookeeper", "application_ports: {bolt: 12200}", []),
        ("zookeeper", "pass_unknown: []", []),
        (
            "embedded",
            "pass_unknown: Any*, application_ports: {bolt: 12200}",
            [("bolt", "Any*", Address("127.0.0.1", 12200))],
        ),
    ],
)
def test_who_is_passed(
    tmp_path: Path, registry: str, takeover: str, passed: list[tuple[str, str, Address]]
) -> None:
    config = parse(
        f"takeover: {{state: {tmp_path}/state.json, {takeover}}}\n"
        f"registry: {{type: {registry}, address: '127.0.0.1:1'}}\n"
    )
    assert list(Takeover(config, {}, _never).restore().passed) == passed
