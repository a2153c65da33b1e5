"""Who is at the other end of a TCP connection: the user, where that is on this host."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
from ipaddress import ip_address

__all__ = ["Peer", "is_trusted", "peer_of"]

Peer = str
"""Such as ``uid 1000`` or ``192.0.2.1``."""

_NOBODY = "a socket that is closed already"

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2, without the id
_ID = struct.Struct("!HH16s16s4s8s")  # struct inet_diag_sockid
_ANY = b"\0" * 4 + b"\xff" * 8  # interface and cookie
_MESSAGE = struct.Struct("=4x48x12xII")  # struct inet_diag_msg: uid, inode
_ALL_STATES = 0xFFFFFFFF


def peer_of(accepted: socket.socket) -> Peer:
    """The user whose socket is connected to this one; another host's address if it is elsewhere.
    One that is closed already is nobody's: the kernel says uid 0 of it."""
    try:
        ours, theirs = accepted.getsockname(), accepted.getpeername()
        found = _owner(accepted.family, theirs, ours)
    except OSError:
        return _NOBODY
    if found is None:
        return str(theirs[0])
    uid, inode = found
    return f"uid {uid}" if inode else _NOBODY


def is_trusted(peer: Peer) -> bool:
    """Whether it is root, the user as whom we run, or on another host, which the operator lets in
    by the address that is listened on. Not one of this host whose user is not known."""
    if peer in ("uid 0", f"uid {os.geteuid()}"):
        return True
    with contextlib.suppress(ValueError):
        return not ip_address(peer).is_loopback
    return False


@functools.cache
def _diag() -> socket.socket:
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_SOCK_DIAG
    )


def _owner(
    family: int, source: tuple[str, int], destination: tuple[str, int]
) -> tuple[int, int] | None:
    """Uid, and inode or 0. The kernel answers such a question before ``send`` returns."""
    socket_id = _ID.pack(
        source[1],
        destination[1],
        socket.inet_pton(family, source[0].partition("%")[0]),
        socket.inet_pton(family, destination[0].partition("%")[0]),
        *(_ANY[:4], _ANY[4:]),
    )
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES) + socket_id
    size = _HEADER.size + len(body)
    diag = _diag()
    with contextlib.suppress(BlockingIOError):
        while True:
            diag.recv(4096)  # of a question that was given up
    diag.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + body)
    answer = diag.recv(4096)
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None  # there is no such socket here
    uid, inode = _MESSAGE.unpack_from(answer, _HEADER.size)
    return uid, inode
