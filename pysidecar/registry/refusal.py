"""Addresses that a registry tells of and that cannot be meant."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from pysidecar.address import Address

__all__ = ["refusal"]

_NEVER = (
    ("it is on this link only", "is_link_local"),  # and where clouds keep their credentials
    ("it is no host's address", "is_unspecified"),
    ("it is a multicast address", "is_multicast"),
    ("it is a reserved address", "is_reserved"),
)


@lru_cache(maxsize=65536)
def _refusal_of_host(host: str, loopback: bool) -> str | None:
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "it is no IP address"
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "it is on this link only"
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    if address.is_loopback:  # of which some count as reserved
        return None if loopback else "it is on the loopback of whoever reads it"
    if address.version == 4 and int(address) >> 24 == 0:
        return "it is no host's address"
    return next((reason for reason, name in _NEVER if getattr(address, name)), None)


def refusal(address: Address, *, loopback: bool) -> str | None:
    """Why no request goes to an address that a registry told of; None: it may. ``loopback``:
    addresses on loopback may be meant, since all of the registry's services are on this host."""
    if not 0 < address.port <= 0xFFFF:
        return "it has no port"
    return _refusal_of_host(address.host, loopback)
