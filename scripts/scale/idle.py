"""Idle connections through a sidecar, over loopback."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_address

from pysidecar.address import Address
from pysidecar.testing import Sidecar

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PATIENCE = 60.0  # seconds
_FDS_BESIDE = 64  # that are not for connections


@contextlib.contextmanager
def idle_connections(sidecar: Sidecar, count: int) -> Iterator[None]:
    """So many, that the sidecar knows of, each with its upstream."""
    allow_descriptors(2 * count + _FDS_BESIDE)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        said = header(Address(*server.getsockname()))
        accepted: list[socket.socket] = []
        stack.callback(_close, accepted)
        accepting = threading.Thread(
            target=lambda: accepted.extend(server.accept()[0] for _ in range(count)), daemon=True
        )
        accepting.start()
        for _ in range(count):
            client = socket.create_connection((str(sidecar.address), 15001), timeout=_PATIENCE)
            stack.callback(client.close)
            client.sendall(said)
        accepting.join(_PATIENCE)
        if len(accepted) < count:
            raise SystemExit(f"only {len(accepted)} of {count} connections came through")
        yield


def _close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()


def header(destination: Address) -> bytes:
    """A PROXY v2 header: its source is whatever the kernel says."""
    packed = ip_address("127.0.0.1").packed + ip_address(destination.host).packed
    body = packed + struct.pack("!HH", 1, destination.port)
    return _SIGNATURE + struct.pack("!BBH", 0x21, 0x11, len(body)) + body


def allow_descriptors(count: int) -> None:
    """For this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        raise SystemExit(f"needs {count} file descriptors, of which {hard} are allowed: ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
