"""aiohttp behind a gate."""

from __future__ import annotations

import logging
from ipaddress import ip_address

from aiohttp import web

from pysidecar.web.gate import BadRequestFilter, Gate

__all__ = ["GatedServer", "is_for_us"]


class GatedServer:
    """Serves an application to those whom the gate lets in."""

    def __init__(self, application: web.Application, gate: Gate) -> None:
        self._gate = gate
        logger = logging.Logger(f"{__name__}.aiohttp", logging.DEBUG)  # not shared, so not found
        logger.parent = logging.getLogger(__name__)
        logger.addFilter(BadRequestFilter(gate))
        self._runner = web.AppRunner(
            application, access_log=None, logger=logger, lingering_time=0, shutdown_timeout=0
        )

    async def start(self) -> None:
        """Answers from here on."""
        await self._runner.setup()
        assert self._runner.server is not None
        self._gate.open(self._runner.server)

    async def stop(self) -> None:
        """Ends at once, also when a client is slow."""
        self._gate.close()
        await self._runner.cleanup()


def is_for_us(request: web.Request) -> bool:
    """Whether its Host is an IP address or localhost. Another name is a web page that got our
    address under its own name (DNS rebinding)."""
    host = request.url.host or ""
    if host == "localhost":
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
