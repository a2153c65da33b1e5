"""Opening listeners, and saying who is there already."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable

import psutil

from pysidecar.address import Address
from pysidecar.errors import StartError
from pysidecar.socket_options import SocketOption
from pysidecar.text import printable

__all__ = ["describe_process", "has_ipv6_loopback", "open_listener"]

_BACKLOG = 65535  # the kernel's net.core.somaxconn is the real limit
_MAX_COMMAND = 80  # characters of a command line in a message


def open_listener(
    address: Address, key: str, options: Iterable[SocketOption] = ()
) -> socket.socket:
    """A listening TCP socket with these options, non-blocking. Raises StartError that names ``key``
    and who or what is in the way."""
    listener = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for option in options:
            _set_option(listener, option, f"cannot listen on {address} ({key})")
        listener.bind((address.host, address.port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except StartError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno or 0)
        if error.errno == errno.EADDRINUSE:
            occupant = describe_process(_listening_pid(address))
            reason = f"in use by {occupant}; stop it, or configure another address"
        elif error.errno == errno.EADDRNOTAVAIL:
            reason = "this machine does not have that address"
        elif error.errno == errno.EACCES:
            reason = "no permission for a port this low; configure one from 1024 on"
        raise StartError(f"cannot listen on {address} ({key}): {reason}") from None
    return listener


def _set_option(listener: socket.socket, option: SocketOption, failure: str) -> None:
    try:
        option.set(listener)
    except OSError as error:
        reason = f"{option.symbol}: {error.strerror}"
        if error.errno == errno.EPERM:
            reason = (
                f"setting {option.symbol} needs the capability CAP_NET_ADMIN: run as root, or give "
                "it to the process"
            )
        raise StartError(f"{failure}: {reason}") from None


def has_ipv6_loopback() -> bool:
    """Whether ::1 can be bound here."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def describe_process(pid: int | None) -> str:
    """Such as ``another pysidecar, pid 12 (pysidecar run)``."""
    if pid is None:
        return "another process (it belongs to another user, or its pid is hidden from here)"
    if pid == os.getpid():
        return "this very process"
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return f"pid {pid}"
    command = printable(command)
    if len(command) > _MAX_COMMAND:
        command = command[: _MAX_COMMAND - 1] + "…"
    kind = "another pysidecar" if "pysidecar" in command else "a process"
    return f"{kind}, pid {pid} ({command})"


def _listening_pid(address: Address) -> int | None:
    family = "tcp6" if address.family == socket.AF_INET6 else "tcp4"
    wildcards = {"0.0.0.0", "::"}
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind=family):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == address.port
                and connection.laddr.ip in {address.host, *wildcards}
            ):
                return connection.pid
    return None
