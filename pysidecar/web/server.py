"""aiohttp behind a gate."""

from __future__ import annotations

import logging
import re
from ipaddress import ip_address

from aiohttp import web

from pysidecar.web.gate import BadRequestFilter, Gate

__all__ = ["GatedServer", "is_for_us"]

_HOST = re.compile(
    r"(?P<name>localhost|[0-9.]+|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?", re.IGNORECASE
)


class GatedServer:
    """Serves an application to those whom the gate lets in."""

    def __init__(self, application: web.Application, gate: Gate) -> None:
        self._gate = gate
        logger = logging.Logger(f"{__name__}.aiohttp", logging.DEBUG)  # not shared, so not found
        logger.parent = logging.getLogger(__name__)
        logger.addFilter(BadRequestFilter(gate))
        self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=logger,
            lingering_time=0,
            shutdown_timeout=0,
            auto_decompress=False,  # else a few bytes could become very many
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


def is_for_us(request: web.Request, port: int | None = None) -> bool:
    """Whether its Host is an IP address or localhost. Another name is a web page that got our
    address under its own name (DNS rebinding); HTTP/1.0 may do without, which no web page does.
    With ``port``: on loopback, and no other port."""
    if "Host" not in request.headers:
        return True
    parts = _HOST.fullmatch(request.headers.get("Host", ""))
    if parts is None:
        return False
    host, said = parts["name"].strip("[]").lower(), parts["port"]
    if port is not None and said not in (None, str(port)):
        return False
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return port is None or address.is_loopback
