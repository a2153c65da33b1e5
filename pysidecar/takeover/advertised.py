"""The address that the registry is told."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from ipaddress import ip_address

import psutil

from pysidecar.address import Address, NamedAddress

__all__ = ["advertised", "dubbo_environment", "expand", "is_local", "local_hosts"]

# Nothing is sent to it: of documentation, so that the way there is the default one (RFC 5737).
_ANYWHERE = Address("192.0.2.1", 9)


def advertised(
    wanted: str | None, provider: Address, registry: Iterable[Address | NamedAddress]
) -> Address:
    """Where other hosts reach the provider port: as configured, else where it listens, else the
    address from which this host reaches the registry, or, where that is on this host itself,
    anything else; loopback where there is nothing but that. Names are not looked up."""
    host = wanted
    if host is None and not ip_address(provider.host).is_unspecified:
        host = provider.host
    if host is None:
        towards = [each for each in registry if isinstance(each, Address)]
        found = (_source(address) for address in (*towards, _ANYWHERE))
        host = next((each for each in found if each), None) or _any_host()
    return Address(host, provider.port)


def is_local(server: Address | NamedAddress) -> bool:
    """Whether it can only be on this host."""
    if isinstance(server, NamedAddress):
        return server.host == "localhost"
    return ip_address(server.host).is_loopback


def dubbo_environment(address: Address) -> dict[str, str]:
    """What has a Dubbo provider tell its registry our address instead of its own: variables of
    Dubbo's. None for a loopback address, with which it would not start."""
    if ip_address(address.host).is_loopback:
        return {}
    return {"DUBBO_IP_TO_REGISTRY": address.host, "DUBBO_PORT_TO_REGISTRY": str(address.port)}


def _source(towards: Address) -> str | None:
    with contextlib.suppress(OSError), socket.socket(towards.family, socket.SOCK_DGRAM) as probe:
        probe.connect((towards.host, towards.port))
        host = str(probe.getsockname()[0])
        return None if ip_address(host).is_loopback else host
    return None


def _any_host() -> str:
    return next((host for host in local_hosts() if not ip_address(host).is_loopback), "127.0.0.1")


def local_hosts() -> list[str]:
    """The addresses of this host, IPv4 first, without those of one link only."""
    hosts = [
        entry.address
        for family in (socket.AF_INET, socket.AF_INET6)
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == family and "%" not in entry.address
    ]
    return [host for host in hosts if not ip_address(host).is_link_local]


def expand(address: Address, hosts: Iterable[str]) -> list[Address]:
    """All addresses of this host, of ``hosts``, that reach a listener."""
    host = ip_address(address.host)
    if not host.is_unspecified:
        return [address]
    return [
        Address(each, address.port) for each in hosts if ip_address(each).version == host.version
    ]
