"""``pysidecar registry``: a process that is a registry."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from ipaddress import ip_address
from pathlib import Path

from pysidecar.address import Address
from pysidecar.background import spare_collections
from pysidecar.config.schema import default_control_socket
from pysidecar.errors import StartError
from pysidecar.listeners import open_listener
from pysidecar.log import start_writing
from pysidecar.registry.embedded.server import RegistryServer
from pysidecar.registry.embedded.state import State

__all__ = ["default_state", "explain", "serve"]

log = logging.getLogger(__name__)


def default_state(port: int) -> Path:
    """Beside the control socket of a sidecar without configuration."""
    return default_control_socket().with_name(f"registry-{port}.sqlite")


async def serve(address: Address, state_file: Path | None) -> None:
    """Until SIGTERM or SIGINT. Raises StartError."""
    spare_collections()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    listener = open_listener(address, "--listen")
    address = Address(*listener.getsockname()[:2])
    if state_file is None:
        state_file = default_state(address.port)
        _make_directory(state_file.parent)
    server = RegistryServer(listener, State(state_file))
    await server.start()
    start_writing()
    explain(address, state_file)
    await ended.wait()
    log.info("ends")
    await server.stop()


def explain(address: Address, state_file: Path) -> None:
    """In the log, with the lines to copy."""
    log.info("the registry listens on %s, and remembers in %s", address, state_file)
    host = ip_address(address.host.partition("%")[0])
    shown = f"ADDRESS-OF-THIS-HOST:{address.port}" if host.is_unspecified else str(address)
    log.info("sidecars use it with  registry: {type: embedded, address: %s}", _quoted(shown))
    log.info("what is in it:  pysidecar registry --list %s", shown)
    if not host.is_loopback:
        log.warning(
            "whoever reaches %s can register and remove services: there is no authentication, so "
            "keep it in a network that you trust",
            address,
        )


def _quoted(address: str) -> str:
    return f'"{address}"' if address.startswith("[") else address


def _make_directory(directory: Path) -> None:
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
    except OSError as error:
        raise StartError(
            f"cannot make {directory}: {error.strerror}; give a file with --state"
        ) from None
