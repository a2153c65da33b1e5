"""A sidecar in front of services: one port for all of them, and one for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from pysidecar.testing import Sidecar
from tests.interop.servers import free_port

__all__ = ["Front", "front"]

Services = Mapping[str, Mapping[str, Any]]
"""As in the configuration, by name."""


class Front:
    def __init__(self, sidecar: Sidecar, ports: Mapping[str, int]) -> None:
        self.sidecar = sidecar
        self._ports = ports

    def port(self, service: str = "") -> int:
        """Where requests go to that service; by default, where they say themselves which."""
        return self._ports[service]

    def address(self, service: str = "") -> str:
        return f"127.0.0.1:{self.port(service)}"


@contextlib.contextmanager
def front(
    protocol: str,
    services: Services,
    requests: list[dict[str, Any]],
    *,
    host: str = "127.0.0.1",
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Front]:
    """``requests`` is the table of that name in the configuration."""
    ports = {name: free_port() for name in ("", *services)}
    listeners: list[dict[str, Any]] = [
        {"listen": f"{host}:{port}", "protocol": protocol} | ({"service": name} if name else {})
        for name, port in ports.items()
    ]
    table = {name: {"protocol": protocol, **service} for name, service in services.items()}
    with Sidecar(
        {"services": table, "requests": requests, "listeners": listeners, **(settings or {})}
    ) as sidecar:
        yield Front(sidecar, ports)
