"""The network that hooked programs see: destinations that nobody owns, and what is behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pysidecar.testing import Connection, HookedResult, Sidecar
from tests.interop.servers import HAS_IPV6

__all__ = ["ECHO", "REFUSING", "REFUSING6", "WEB", "WEB6", "Mesh", "literal", "routes"]

WEB = "10.1.2.3"
"""All the servers, on their usual ports; HTTP/2 in clear text is on 8080."""
WEB6 = "fd00::1:2:3"
"""The web server alone."""
REFUSING = "10.1.2.9"
REFUSING6 = "fd00::9"
"""Refuse every connection."""
ECHO = "10.2.0.0/16"
"""Echoes, on every address and port."""


def literal(host: str, port: int) -> str:
    """As the sidecar writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def routes(ports: dict[int, int], *, refusing: int, echo: int) -> list[dict[str, Any]]:
    """What leads from the destinations to local ports: `ports` maps those of `WEB`."""
    table: list[dict[str, Any]] = [
        {
            "match": {"destination": WEB, "ports": [port]},
            "endpoints": [f"127.0.0.1:{local}"],
        }
        for port, local in ports.items()
    ]
    loopback6 = "[::1]" if HAS_IPV6 else "127.0.0.1"
    return [
        *table,
        {"match": {"destination": WEB6, "ports": [80]}, "endpoints": [f"{loopback6}:{ports[80]}"]},
        {"match": {"destination": REFUSING}, "endpoints": [f"127.0.0.1:{refusing}"]},
        {"match": {"destination": REFUSING6}, "endpoints": [f"{loopback6}:{refusing}"]},
        {"match": {"destination": ECHO}, "endpoints": [f"127.0.0.1:{echo}"]},
    ]


@dataclass(frozen=True, slots=True)
class Mesh:
    """A sidecar with these routes, and the transport that its hooks use."""

    sidecar: Sidecar
    transport: str

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: dict[str, str | None] | None = None,
    ) -> tuple[HookedResult, int]:
        """Runs a program under the hook to its end; also gives its process id."""
        process = self.sidecar.hooked.popen(command, cwd=cwd, env=env)
        return process.wait(), process.pid

    def check(
        self,
        connection: Connection,
        destination: str,
        process: str,
        *,
        pid: int | None = None,
        error: str | None = None,
    ) -> None:
        """Fails unless the sidecar recorded this connection as it was."""
        assert connection.original_destination == destination
        assert connection.process == process
        assert connection.transport == self.transport
        assert connection.direction == "outbound"
        assert connection.closed
        if pid is not None:
            assert connection.pid == pid
        if error is None:
            assert connection.error is None
            assert connection.upstream is not None
        else:
            assert connection.error is not None
            assert error in connection.error
