"""Ports of TCP that a test chooses before a program listens there, or at which nobody ever does.

A port that the kernel gave to a socket which was closed again is anybody's: the next of thousands
of clients may get it before the program does. These lie below those that the kernel gives
(net.ipv4.ip_local_port_range), and each process of the tests has some of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import threading
from collections.abc import Iterator

from pysidecar.listeners import has_ipv6_loopback

_PORTS = range(20000, 32000)
_BLOCK = 100
_MOST_BLOCKS = 4  # of a process, which then begins again
_CLAIMED: list[socket.socket] = []
"""Names in the network namespace that say whose a block is, for as long as its process is there."""

HAS_IPV6 = has_ipv6_loopback()
"""Containers often have no ::1. A program can connect to an IPv6 destination all the same: the
sidecar is on the other side, and it has a route."""


def _claim_block() -> range:
    """A hundred ports that no other process of the tests takes."""
    starts = list(range(_PORTS.start, _PORTS.stop, _BLOCK))
    random.SystemRandom().shuffle(starts)
    for start in starts:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0pysidecar-tests-ports-{start}")
        except OSError:  # another process's
            claim.close()
        else:
            _CLAIMED.append(claim)
            return range(start, start + _BLOCK)
    raise AssertionError("other processes of tests have all ports")


def _own_ports() -> Iterator[int]:
    blocks: list[range] = []
    for number in itertools.count():
        if len(blocks) < _MOST_BLOCKS:
            blocks.append(_claim_block())
        yield from blocks[number % _MOST_BLOCKS]


_own = _own_ports()
_owner = os.getpid()
_lock = threading.Lock()


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        stack.enter_context(socket.create_server(("0.0.0.0", port)))
        if HAS_IPV6:
            stack.enter_context(socket.create_server(("::", port), family=socket.AF_INET6))
        return True
    return False


def free_port() -> int:
    """One that is free on every address now, and that no other test gets."""
    global _own, _owner
    with _lock:
        if os.getpid() != _owner:  # a fork has none of its parent's
            _own, _owner = _own_ports(), os.getpid()
        return next(filter(_is_free, _own))


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """One of the loopbacks that refuses every connection, and that nobody else can take."""
    port = free_port()
    with socket.socket(socket.AF_INET) as v4, socket.socket(socket.AF_INET6) as v6:
        v4.bind(("127.0.0.1", port))  # bound, but not listening
        if HAS_IPV6:
            v6.bind(("::1", port))
        yield port
