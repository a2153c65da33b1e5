"""Programs of three protocols at one port, each known by its first bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from pysidecar.testing import Sidecar
from tests.interop.servers import HAS_IPV6, free_port, program
from tests.requests import programs
from tests.waiting import PATIENCE

pytestmark = pytest.mark.skipif(
    not HAS_IPV6, reason="a Dubbo consumer connects to no IPv4 loopback address"
)

_REQUESTS: list[dict[str, Any]] = [
    {"match": {"host": "one.test"}, "services": "node"},
    {"match": {"service": "peer.Echo:1.0:a"}, "services": "sofarpc"},
    {"match": {"service": "peer.Echo:1.0", "group": "blue"}, "services": "dubbo"},
]


@dataclass(frozen=True)
class Servers:
    services: dict[str, Any]
    http_port: int


@pytest.fixture(scope="module")
def real() -> Iterator[Servers]:
    with ExitStack() as stack:
        ports = {name: free_port() for name in ("node", "sofarpc", "dubbo")}
        stack.enter_context(programs.node()).ask("serve", port=ports["node"], name="node")
        stack.enter_context(programs.sofa()).ask(
            "serve", library="sofarpc", port=ports["sofarpc"], name="sofarpc", services="a"
        )
        stack.enter_context(programs.dubbo()).ask(
            "serve", port=ports["dubbo"], name="dubbo", services="1.0 blue"
        )
        protocols = {"node": "http", "sofarpc": "bolt", "dubbo": "dubbo"}
        services = {
            name: {"protocol": protocols[name], "endpoints": [f"127.0.0.1:{port}"]}
            for name, port in ports.items()
        }
        yield Servers(services, ports["node"])


def _check_all(http_address: str, bolt_address: str, dubbo_address: str, **hooked: Any) -> None:
    """Bursts of all three at the same time."""
    common = {"count": 200, "concurrency": 8, "jitter": 3}
    with (
        programs.node(**hooked) as node,
        programs.sofa(**hooked) as sofa,
        programs.dubbo(**hooked) as dubbo,
    ):
        http = {"host": "one.test", "path": "/echo/1", "way": "http"}
        bursts = [
            node.start("burst", address=http_address, **common, **http),
            sofa.start("burst", address=bolt_address, **common, library="sofarpc", service="a"),
            dubbo.start("burst", address=dubbo_address, **common, service="1.0 blue"),
        ]
        assert [burst.result(PATIENCE) for burst in bursts] == [{"right": "200"}] * 3


def test_a_listener_tells_protocols_apart(real: Servers) -> None:
    port = free_port()
    listeners = [
        {"listen": f"{host}:{port}", "protocol": "auto"} for host in ("127.0.0.1", "[::1]")
    ]
    settings = {"services": real.services, "requests": _REQUESTS, "listeners": listeners}
    with Sidecar(settings):
        _check_all(f"127.0.0.1:{port}", f"127.0.0.1:{port}", f"[::1]:{port}")


def test_a_route_tells_protocols_apart(real: Servers) -> None:
    """All three call an address where only HTTP is served, and which they share."""
    port = real.http_port
    routes = [{"match": {"ports": port}, "action": "requests"}]
    settings = {
        "services": real.services,
        "requests": _REQUESTS,
        "outbound": {"routes": routes},
    }
    with Sidecar(settings) as sidecar:
        address = f"127.0.0.1:{port}"
        _check_all(address, address, f"[::1]:{port}", hooked=sidecar.environment)
        # What no rule matches goes where it wanted to go.
        curl = [program("curl"), "-sS", "--fail", "-d", "text", f"http://{address}/echo"]
        result = sidecar.hooked.run(curl).check()
        assert result.stdout == "node text"
        assert result.connection.original_destination == address
        assert result.connection.action == "requests"
