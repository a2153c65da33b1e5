"""The life of a socket whose captured connect fails, beside one that fails natively."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from tests.hook.reference import Sidecar
from tests.hook.support import PORT, V4, V6, Result, Runner

LOOPBACK = {V4: "127.0.0.1", V6: "::1"}  # where nothing is captured


@pytest.mark.parametrize("kind", ["error", "connect", "edge", "shut", "undo", "blocking"])
@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize("error", ["ECONNREFUSED", "EHOSTUNREACH", "ETIMEDOUT"])
def test_everything_is_as_after_a_native_failure(
    run: Runner, libc: str, sidecar: Sidecar, kind: str, host: str, error: str
) -> None:
    """Whatever failed: a native ECONNREFUSED is the model of all."""
    run.libc = libc
    sidecar.fallback = getattr(errno, error)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as refusing:
        refusing.bind((LOOPBACK[host], 0))  # and does not listen
        model = run("failing", kind, *refusing.getsockname()[:2], sidecar=sidecar).output
    expected = model.replace(f"={errno.ECONNREFUSED}\n", f"={getattr(errno, error)}\n")
    assert run("failing", kind, host, PORT, sidecar=sidecar).output == expected


def test_an_error_after_a_connect_that_was_not_seen_is_its_own(
    run: Runner, libc: str, sidecar: Sidecar
) -> None:
    """Not that of the captured connect before, which the socket still remembers."""
    run.libc = libc
    sidecar.fallback = errno.EHOSTUNREACH
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        port = elsewhere.getsockname()[1]
        with run.start("unseen", V4, PORT, port, sidecar=sidecar) as process:
            connection = elsewhere.accept()[0]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("2i", 1, 0))
            connection.close()
            output, _ = process.communicate(timeout=20)
    result = Result.parse(output)
    assert result.number("captured") == errno.EHOSTUNREACH
    assert result.number("unseen") == errno.EINPROGRESS
    assert result.number("reset") == errno.ECONNRESET
