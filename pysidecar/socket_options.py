"""Options of sockets that Python's ``socket`` module has no names for before 3.14."""

from __future__ import annotations

import socket
from dataclasses import dataclass

__all__ = ["SocketOption", "mark_option", "transparent_option"]

# <linux/in.h> and <linux/in6.h>
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75


@dataclass(frozen=True, slots=True)
class SocketOption:
    """An integer option, to be set before bind; ``symbol`` is for messages."""

    level: int
    name: int
    value: int
    symbol: str

    def set(self, target: socket.socket) -> None:
        """Raises OSError, EPERM when a capability is missing."""
        target.setsockopt(self.level, self.name, self.value)


def mark_option(mark: int) -> SocketOption:
    """SO_MARK: needs CAP_NET_ADMIN, or CAP_NET_RAW from Linux 5.17 on."""
    return SocketOption(socket.SOL_SOCKET, socket.SO_MARK, mark, "SO_MARK")


def transparent_option(family: socket.AddressFamily) -> SocketOption:
    """To have an address that is not this host's: needs CAP_NET_ADMIN or CAP_NET_RAW."""
    if family == socket.AF_INET6:
        return SocketOption(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1, "IPV6_TRANSPARENT")
    return SocketOption(socket.IPPROTO_IP, _IP_TRANSPARENT, 1, "IP_TRANSPARENT")
