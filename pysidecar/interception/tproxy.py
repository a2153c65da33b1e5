"""Transparent proxying: connections come unchanged to a socket that has the client's destination.

See the kernel's Documentation/networking/tproxy.rst. What the rules do is in ``rules.nft``.
"""

from __future__ import annotations

import socket

from pysidecar.interception.base import (
    ApplicationLeg,
    Listener,
    OriginalDestination,
    SocketOption,
    Way,
    late_port_option,
    mark_option,
    transparent_option,
)
from pysidecar.interception.rules import InboundMode, InboundSettings
from pysidecar.interception.rules.model import APPLICATION_SOURCES

__all__ = ["TransparentProxy"]


class TransparentProxy(Way[InboundSettings]):
    """Inbound connections without conntrack, with the client's address if wanted."""

    name = "tproxy"

    def __init__(self, settings: InboundSettings) -> None:
        if settings.mode is not InboundMode.TPROXY:
            raise ValueError("expected settings of mode tproxy")
        super().__init__(settings)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Marked, and what they accept inherits the mark: so the rules know its packets."""
        return tuple(
            Listener(
                address,
                OriginalDestination.LOCAL_ADDRESS,
                (transparent_option(address.family), mark_option(self.settings.mark)),
            )
            for address in self.settings.listen
        )

    @property
    def application_leg(self) -> ApplicationLeg:
        """From the client's address, or from one that only the sidecar uses."""
        families = [address.family for address in self.settings.listen]
        preserve = self.settings.preserve_source
        return ApplicationLeg(
            options={family: self._options(family) for family in families},
            sources={
                family: None if preserve else APPLICATION_SOURCES[family] for family in families
            },
        )

    def _options(self, family: socket.AddressFamily) -> tuple[SocketOption, ...]:
        return (transparent_option(family), mark_option(self.settings.mark), late_port_option())
