"""The mesh API in the form that MOSN has for Dubbo."""

from __future__ import annotations

import socket
from collections.abc import Collection

from pysidecar.address import Address
from pysidecar.config import Takeover
from pysidecar.takeover.table import ServiceTable

__all__ = ["DubboApi"]


class DubboApi:
    """On a listener that the caller opened. ``registry`` is the type of ours, which is used
    whatever an application says, and ``own_ports`` are those of the sidecar, which nobody may
    publish."""

    def __init__(
        self,
        table: ServiceTable,
        settings: Takeover,
        listener: socket.socket,
        *,
        registry: str = "",
        own_ports: Collection[int] = (),
    ) -> None:
        self._table = table
        self._settings = settings
        self._listener = listener
        self._registry = registry
        self._own_ports = own_ports
        self.address = Address(*listener.getsockname()[:2])

    async def start(self) -> None:
        """Answers from here on."""

    async def stop(self) -> None:
        """Ends at once, also when a client is slow."""
