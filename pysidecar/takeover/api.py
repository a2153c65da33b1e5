"""The mesh API: applications say by HTTP what they provide and want, as SOFARPC's registry `mesh`
and anthunder do."""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence

from pysidecar.address import Address
from pysidecar.config import Takeover
from pysidecar.takeover.table import ServiceTable

__all__ = ["MeshApi"]


class MeshApi:
    """On a listener that the caller opened. ``consumers`` is where applications are to send their
    calls, and ``own_ports`` those of the sidecar, which nobody may publish."""

    def __init__(
        self,
        table: ServiceTable,
        settings: Takeover,
        listener: socket.socket,
        *,
        consumers: Sequence[Address] = (),
        own_ports: Collection[int] = (),
    ) -> None:
        self._table = table
        self._settings = settings
        self._listener = listener
        self._consumers = consumers or settings.consumer
        self._own_ports = own_ports
        self.address = Address(*listener.getsockname()[:2])

    async def start(self) -> None:
        """Answers from here on."""

    async def stop(self) -> None:
        """Ends at once, also when a client is slow."""
