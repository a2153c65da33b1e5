"""NAT: connections come to the sidecar's own address, and conntrack remembers where from."""

from __future__ import annotations

from pysidecar.interception.base import (
    Listener,
    OriginalDestination,
    SocketOption,
    Way,
    mark_option,
)
from pysidecar.interception.rules import (
    InboundMode,
    InboundSettings,
    OutboundRedirectSettings,
)

__all__ = ["InboundRedirect", "OutboundRedirect"]


class InboundRedirect(Way[InboundSettings]):
    """Inbound connections, at the price of a conntrack entry each."""

    name = "redirect"

    def __init__(self, settings: InboundSettings) -> None:
        if settings.mode is not InboundMode.REDIRECT:
            raise ValueError("expected settings of mode redirect")
        super().__init__(settings)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Ordinary sockets."""
        return tuple(
            Listener(address, OriginalDestination.ORIGINAL_DST) for address in self.settings.listen
        )


class OutboundRedirect(Way[OutboundRedirectSettings]):
    """Outbound connections of programs that the hook does not reach, such as static ones."""

    name = "redirect"

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Ordinary sockets."""
        return tuple(
            Listener(address, OriginalDestination.ORIGINAL_DST) for address in self.settings.listen
        )

    @property
    def upstream_options(self) -> tuple[SocketOption, ...]:
        """For every connection that the sidecar itself opens to other hosts: so it is not
        redirected again. Empty when the sidecar is told by its uid, gid or cgroup."""
        return tuple(mark_option(mark) for mark in self.settings.own.marks[:1])
