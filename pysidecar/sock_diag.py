"""Whose a TCP socket of this network namespace is, by the kernel's word (NETLINK_SOCK_DIAG)."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import struct
from collections.abc import Container, Iterator
from typing import NamedTuple

from pysidecar.address import Address

__all__ = ["ListeningSocket", "SocketOwner", "listening_sockets", "owner_of"]

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>, <net/tcp_states.h>
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 1
_NLM_F_DUMP = 0x300
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2, without the id
_ID = struct.Struct("!HH16s16s4s8s")  # struct inet_diag_sockid
_ANY = b"\0" * 4 + b"\xff" * 8  # interface and cookie
_STATE = struct.Struct("=xB")  # struct inet_diag_msg
_PORTS = struct.Struct("!4xHH")  # likewise: of this side and the other
_MESSAGE = struct.Struct("=4x48x12xII")  # likewise: uid, inode
_LISTENING = struct.Struct("!4xH2x16s")  # struct inet_diag_msg: port and address of this side
_INTERFACE = struct.Struct("=40xI")  # struct inet_diag_msg: the interface that it is bound to
_MESSAGE_SIZE = 72
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_INET_DIAG_SKV6ONLY = 11
_ALL_STATES = 0xFFFFFFFF
_TCP_LISTEN = 10
_LISTEN = 1 << _TCP_LISTEN
_PIECE = 1 << 16
_V4_MAPPED = b"\0" * 10 + b"\xff\xff"


class SocketOwner(NamedTuple):
    """A socket's user, and its inode, which is 0 for one that is closed already."""

    uid: int
    inode: int


class ListeningSocket(NamedTuple):
    """One in state LISTEN."""

    address: Address
    uid: int
    interface: int
    """The only one whose connections it accepts; 0: those of all."""

    dual: bool
    """Whether it is IPv6 and accepts IPv4 as well."""

    def accepts(self, address: Address) -> bool:
        """Whether a connection to that address, from this host, can be for it."""
        if address.port != self.address.port:
            return False
        if self.interface and self.interface != _loopback_interface():
            return False
        if self.address.host == address.host:
            return True
        if self.address.host == "0.0.0.0":
            return address.family == socket.AF_INET
        return self.address.host == "::" and (address.family == socket.AF_INET6 or self.dual)

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """The kernel takes the highest of those that can accept it."""
        return (
            self.address.host not in ("0.0.0.0", "::"),
            bool(self.interface),
            self.address.family == socket.AF_INET,
        )


@functools.cache
def _loopback_interface() -> int:
    return socket.if_nametoindex("lo")


@functools.cache
def _diag() -> socket.socket:
    diag = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_SOCK_DIAG
    )
    atexit.register(diag.close)
    return diag


def owner_of(
    family: int, source: tuple[str, int], destination: tuple[str, int]
) -> SocketOwner | None:
    """That of the connected socket with these addresses; None: there is none here. Raises
    OSError."""
    socket_id = _ID.pack(
        source[1],
        destination[1],
        socket.inet_pton(family, source[0].partition("%")[0]),
        socket.inet_pton(family, destination[0].partition("%")[0]),
        *(_ANY[:4], _ANY[4:]),
    )
    answer = _ask(_REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES) + socket_id)
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    # Without a socket that is connected like that, the kernel looks for one that listens at the
    # source: another host picks the port of its own side, and would be whoever listens there.
    (state,) = _STATE.unpack_from(answer, _HEADER.size)
    ports = _PORTS.unpack_from(answer, _HEADER.size)
    if state == _TCP_LISTEN or ports != (source[1], destination[1]):
        return None
    return SocketOwner(*_MESSAGE.unpack_from(answer, _HEADER.size))


def listening_sockets(ports: Container[int]) -> list[ListeningSocket]:
    """Those that listen on any of these ports. Raises OSError."""
    return [
        found
        for family in (socket.AF_INET, socket.AF_INET6)
        for found in _listening_of(family, ports)
    ]


def _listening_of(family: int, ports: Container[int]) -> Iterator[ListeningSocket]:
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LISTEN) + bytes(_ID.size)
    piece = _ask(body, _NLM_F_DUMP)
    while True:
        position = 0
        while position < len(piece):
            size, kind, _, _, _ = _HEADER.unpack_from(piece, position)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                (error,) = struct.unpack_from("=i", piece, position + _HEADER.size)
                if family == socket.AF_INET6:
                    return  # there is no IPv6 here
                raise OSError(-error, os.strerror(-error))
            port, host = _LISTENING.unpack_from(piece, position + _HEADER.size)
            if port in ports:
                yield _listening(family, port, host, piece[position : position + size])
            position += (size + 3) & ~3
        piece = _diag().recv(_PIECE)


def _listening(family: int, port: int, packed: bytes, message: bytes) -> ListeningSocket:
    uid, _inode = _MESSAGE.unpack_from(message, _HEADER.size)
    (interface,) = _INTERFACE.unpack_from(message, _HEADER.size)
    return ListeningSocket(
        Address(_host(family, packed), port),
        uid,
        interface,
        family == socket.AF_INET6 and not _only_v6(message),
    )


@functools.lru_cache(maxsize=1024)
def _host(family: int, packed: bytes) -> str:
    if family == socket.AF_INET6 and packed.startswith(_V4_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(family, packed if family == socket.AF_INET6 else packed[:4])


def _only_v6(message: bytes) -> bool:
    position = _HEADER.size + _MESSAGE_SIZE
    while position + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, position)
        if kind == _INET_DIAG_SKV6ONLY:
            return bool(message[position + _ATTRIBUTE.size])
        position += max(_ATTRIBUTE.size, (size + 3) & ~3)
    return False


def _ask(body: bytes, flags: int = 0) -> bytes:
    """The kernel's answer, or the first piece of it: it is there when ``send`` returns."""
    diag = _diag()
    with contextlib.suppress(BlockingIOError):
        while True:
            diag.recv(_PIECE)  # of a question that was given up
    size = _HEADER.size + len(body)
    diag.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 0, 0) + body)
    return diag.recv(_PIECE)
