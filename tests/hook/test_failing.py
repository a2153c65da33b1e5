"""The life of a socket whose captured connect fails, beside one that fails natively."""

from __future__ import annotations

import errno
import socket

import pytest

from tests.hook.reference import Sidecar
from tests.hook.support import PORT, V4, V6, Runner

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
