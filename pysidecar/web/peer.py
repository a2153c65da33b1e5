"""Who is at the other end of a TCP connection: the user, where that is on this host."""

from __future__ import annotations

import contextlib
import os
import socket
from ipaddress import ip_address

from pysidecar.sock_diag import owner_of

__all__ = ["Peer", "is_trusted", "peer_of", "uid_of"]

Peer = str
"""Such as ``uid 1000`` or ``192.0.2.1``."""

_NOBODY = "a socket that is closed already"
_USER = "uid "


def peer_of(accepted: socket.socket) -> Peer:
    """The user whose socket is connected to this one; another host's address if it is elsewhere.
    One that is closed already is nobody's: the kernel says uid 0 of it."""
    try:
        ours, theirs = accepted.getsockname(), accepted.getpeername()
        found = owner_of(accepted.family, theirs, ours)
    except OSError:
        return _NOBODY
    if found is None:
        return str(theirs[0])
    return f"{_USER}{found.uid}" if found.inode else _NOBODY


def uid_of(peer: Peer) -> int | None:
    """Of a user of this host; None: it is none, or it is not known which."""
    return int(peer.removeprefix(_USER)) if peer.startswith(_USER) else None


def is_trusted(peer: Peer) -> bool:
    """Whether it is root, the user as whom we run, or on another host, which the operator lets in
    by the address that is listened on. Not one of this host whose user is not known."""
    if uid_of(peer) in (0, os.geteuid()):
        return True
    with contextlib.suppress(ValueError):
        return not ip_address(peer).is_loopback
    return False
