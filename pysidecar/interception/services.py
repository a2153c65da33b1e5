"""Clients that connect by themselves, to listeners for services: nothing is intercepted."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.config import Config
from pysidecar.dataplane import DataPlane, Listener, Transport
from pysidecar.interception import Interception
from pysidecar.interception.kernel import upstream_mark
from pysidecar.listeners import open_listener

__all__ = ["ServiceListeners"]


class ServiceListeners(Interception):
    """Those of the section ``listeners``. Their numbers are their places there at the start; what
    they are for is said by the table of services, which a reload replaces."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stack = contextlib.ExitStack()
        self._listeners: list[socket.socket] = []
        self._addresses: list[Address] = []

    @override
    def open(self) -> None:
        for index, entry in enumerate(self._config.listeners):
            listener = open_listener(entry.listen, f"listeners[{index}].listen")
            self._stack.callback(listener.close)
            self._listeners.append(listener)
            self._addresses.append(Address(*listener.getsockname()[:2]))

    @override
    def attach(self, data_plane: DataPlane) -> None:
        mark = upstream_mark(self._config)
        for number, listener in enumerate(self._listeners):
            data_plane.add_listener(
                listener, Listener(Transport.LISTENER, mark=mark, number=number)
            )

    @property
    @override
    def own_addresses(self) -> Sequence[Address]:
        return self._addresses

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
        return [
            f"service {entry.service or 'by the rules in requests'}: {address}"
            for entry, address in zip(self._config.listeners, self._addresses, strict=False)
        ]
