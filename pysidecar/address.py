"""Addresses with a port, in the forms that the control plane and the tables need."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

# Of an interface, or its number. Registries tell of addresses, which reach logs and terminals.
_ZONE = re.compile(r"[!-$&-.0-~]{1,15}")
_V4_MAPPED = b"\0" * 10 + b"\xff\xff"
_MAX_NAME = 253  # characters
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# The last one is no number: 10.0.0.500 is a mistake, and no name.
_NAME = re.compile(rf"({_LABEL}\.)*(?![0-9]+\.?$){_LABEL}\.?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """``host`` is an IPv4 or IPv6 literal, the latter possibly with a ``%zone``."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads ``127.0.0.1:80`` or ``[::1]:80``. Raises ValueError saying what was expected."""
        host, colon, port = text.rpartition(":")
        if port.isascii() and port.isdigit() and len(port) <= 5 and is_ipv4(host):
            number = int(port)
            if number <= 0xFFFF:
                return cls(host, number)
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed:
            host = host[1:-1]
        try:
            version = 4 if is_ipv4(host) else ip_address(host).version if colon else 0
            number = int(port) if port.isascii() and port.isdigit() else -1
        except ValueError:
            version, number = 0, -1
        _, has_zone, zone = host.partition("%")
        if (
            version != (6 if bracketed else 4)
            or not 0 <= number <= 0xFFFF
            or (has_zone and not _ZONE.fullmatch(zone))
        ):
            raise ValueError(
                "expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080"
            )
        return cls(host, number)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def to_native(self) -> tuple[bytes, int, int, int]:
        """The fields of ``struct mosnhook_address``."""
        if ":" not in self.host:
            return (_V4_MAPPED + socket.inet_pton(socket.AF_INET, self.host), self.port, 0, 0)
        ip = IPv6Address(self.host)
        scope = ip.scope_id
        if scope is None:
            index = 0
        else:
            index = int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
        return (ip.packed, self.port, 0, index)

    @classmethod
    def from_native(cls, raw: Any) -> Address | None:
        """From a ``struct mosnhook_address``; None where it is all zero (unset)."""
        return cls.from_packed(bytes(raw.ip), raw.port, raw.scope_id)

    @classmethod
    def from_packed(cls, ip: bytes, port: int, scope_id: int) -> Address | None:
        """As ``from_native``, from the fields of one."""
        return cls(_host(ip, scope_id), port) if port or any(ip) else None


@dataclass(frozen=True, slots=True)
class NamedAddress:
    """A host by its name, with a port: of which the resolver says the addresses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def is_host_name(text: str) -> bool:
    """Whether it is spelled as one."""
    return len(text) <= _MAX_NAME and _NAME.fullmatch(text) is not None


def is_ipv4(host: str) -> bool:
    """Whether this is an IPv4 address, spelled in the only form that ``ip_address`` takes: much
    faster than that."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return False
    return True


@lru_cache(maxsize=4096)
def _host(packed: bytes, scope_id: int) -> str:
    if packed.startswith(_V4_MAPPED):
        return str(IPv4Address(packed[12:]))
    host = str(IPv6Address(packed))
    return f"{host}%{scope_id}" if scope_id else host
