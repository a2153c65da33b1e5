"""Clients that connect by themselves, to listeners for services: nothing is intercepted."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import NamedTuple

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.config import Config, Takeover
from pysidecar.dataplane import DataPlane, Direction, Listener, Transport
from pysidecar.errors import StartError
from pysidecar.interception import Interception
from pysidecar.interception.kernel import upstream_mark
from pysidecar.listeners import has_ipv6_loopback, open_listener
from pysidecar.routing.services import consumer_entrance, provider_entrance

__all__ = ["ServiceListeners"]

log = logging.getLogger(__name__)


class _Open(NamedTuple):
    """A listener. Several may have one number."""

    socket: socket.socket
    address: Address
    number: int
    direction: Direction
    purpose: str


class ServiceListeners(Interception):
    """Those of the section ``listeners``, whose numbers are their places there at the start, and
    takeover's two ports. What they are for is said by the table of services, which a reload
    replaces."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stack = contextlib.ExitStack()
        self._listeners: list[_Open] = []

    @override
    def open(self) -> None:
        for index, entry in enumerate(self._config.listeners):
            purpose = f"service {entry.service or 'by the rules in requests'}"
            direction = Direction[entry.direction.upper()]
            self._open(entry.listen, f"listeners[{index}].listen", index, purpose, direction)
        if self._config.takeover is not None:
            self._open_ports(self._config.takeover)

    def _open(
        self,
        address: Address,
        key: str,
        number: int,
        purpose: str,
        direction: Direction = Direction.OUTBOUND,
    ) -> Address:
        """Where it is, with the port that the kernel picked."""
        listener = open_listener(address, key)
        self._stack.callback(listener.close)
        bound = Address(*listener.getsockname()[:2])
        self._listeners.append(_Open(listener, bound, number, direction, purpose))
        return bound

    def _open_ports(self, takeover: Takeover) -> None:
        number = consumer_entrance(self._config.listeners)
        key, purpose = "takeover.consumer", "calls of applications here"
        bound = [self._open(each, key, number, purpose) for each in takeover.consumer]
        twins = (Address("::1", each.port) for each in bound if each.host == "127.0.0.1")
        for twin in twins if has_ipv6_loopback() else ():
            if twin in bound:
                continue
            try:
                self._open(twin, key, number, purpose)
            except StartError as error:
                log.warning("%s; Dubbo, which never connects to 127.0.0.1, needs it", error)
        number = provider_entrance(self._config.listeners)
        self._open(
            takeover.provider,
            "takeover.provider",
            number,
            "calls of other hosts for applications here",
            Direction.INBOUND,
        )

    @override
    def attach(self, data_plane: DataPlane) -> None:
        mark = upstream_mark(self._config)
        for each in self._listeners:
            settings = Listener(Transport.LISTENER, each.direction, mark=mark, number=each.number)
            data_plane.add_listener(each.socket, settings)

    @property
    @override
    def own_addresses(self) -> Sequence[Address]:
        return [each.address for each in self._listeners]

    @override
    def serve(self, also_own: Sequence[Address]) -> None:
        """Whoever knows the address comes."""

    @override
    async def apply(self, config: Config) -> None:
        self._config = config

    @override
    def drain(self) -> None:
        """The data plane closes the listeners."""

    @override
    def close(self) -> None:
        self._stack.close()

    @property
    @override
    def description(self) -> Sequence[str]:
        return [f"{each.purpose}: {each.address}" for each in self._listeners]
