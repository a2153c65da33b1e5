"""What a way of interception is to the kernel: its rules, its sockets, its original destination."""

from __future__ import annotations

import abc
import enum
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from pysidecar.address import Address
from pysidecar.interception.rules import (
    Direction,
    InboundSettings,
    OutboundRedirectSettings,
    Ruleset,
    problems,
)

__all__ = [
    "ApplicationLeg",
    "Direction",
    "Listener",
    "OriginalDestination",
    "SocketOption",
    "Way",
]

# <linux/in.h> and <linux/in6.h>; Python's socket module has none of them before 3.14.
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
IP_BIND_ADDRESS_NO_PORT = 24
SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>; IP6T_SO_ORIGINAL_DST has the same number


class OriginalDestination(enum.Enum):
    """How the data plane learns where an accepted connection wanted to go."""

    HEADER = "header"
    """The PROXY v2 header that the connection begins with."""
    CONTROL = "control"
    """Told over the hook's control socket."""
    ORIGINAL_DST = "original_dst"
    """``getsockopt(SO_ORIGINAL_DST)``: conntrack remembers it."""
    LOCAL_ADDRESS = "local_address"
    """``getsockname``: the socket has the address that the client asked for."""


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


@dataclass(frozen=True, slots=True)
class Listener:
    """How a socket must be opened for the rules to find it, and for its connections to pass."""

    address: Address
    original_destination: OriginalDestination
    options: tuple[SocketOption, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplicationLeg:
    """How the sidecar must connect to the application on this host, and only there.

    ``sources`` has the address to bind to, by family: None is the client's own; a family that is
    not there needs no bind. The port is left to the kernel, at connect.
    """

    options: Mapping[socket.AddressFamily, tuple[SocketOption, ...]] = field(default_factory=dict)
    sources: Mapping[socket.AddressFamily, str | None] = field(default_factory=dict)


_Settings = TypeVar("_Settings", bound=InboundSettings | OutboundRedirectSettings)


class Way(abc.ABC, Generic[_Settings]):
    """One way that needs rules in the kernel."""

    name: ClassVar[str]

    def __init__(self, settings: _Settings) -> None:
        self.settings = settings

    @property
    def rules(self) -> Ruleset:
        """What must be in the kernel."""
        return Ruleset(self.settings)

    @property
    @abc.abstractmethod
    def listeners(self) -> tuple[Listener, ...]:
        """The sockets that the rules point to."""

    @property
    def application_leg(self) -> ApplicationLeg:
        """For inbound: how to connect to the application."""
        return ApplicationLeg()

    def problems(self, backend: str = "nft", netns: str | None = None) -> list[str]:
        """Why it cannot work here, a sentence each that says what to do; tried without changing
        anything."""
        return problems(self.rules, backend, netns)


def mark_option(mark: int) -> SocketOption:
    """SO_MARK: needs CAP_NET_ADMIN, or CAP_NET_RAW from Linux 5.17 on."""
    return SocketOption(socket.SOL_SOCKET, socket.SO_MARK, mark, "SO_MARK")


def transparent_option(family: socket.AddressFamily) -> SocketOption:
    """To have an address that is not this host's: needs CAP_NET_ADMIN or CAP_NET_RAW."""
    if family == socket.AF_INET6:
        return SocketOption(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1, "IPV6_TRANSPARENT")
    return SocketOption(socket.IPPROTO_IP, IP_TRANSPARENT, 1, "IP_TRANSPARENT")


def late_port_option() -> SocketOption:
    """The kernel picks the source port at connect, when it knows the destination: otherwise all
    connections of a source share 28,000 ports. Also for IPv6. Linux 4.2."""
    level = socket.IPPROTO_IP
    return SocketOption(level, IP_BIND_ADDRESS_NO_PORT, 1, "IP_BIND_ADDRESS_NO_PORT")
