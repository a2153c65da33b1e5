"""Pointers and lengths that are wrong: the kernel judges them, with and without the hook."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.hook.reference import HEADER, UNIX, Sidecar
from tests.hook.support import PORT, SANITIZED, V4, V6, EchoServer, Runner

pytestmark = pytest.mark.skipif(
    SANITIZED, reason="ASan reads what it is to pass on, and dies of it"
)


@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize("transport", [UNIX, HEADER])
def test_every_call_answers_as_without_the_hook(
    run: Runner,
    make_sidecar: Callable[..., Sidecar],
    upstream: EchoServer,
    host: str,
    transport: int,
) -> None:
    sidecar = make_sidecar(transport=transport, fallback=upstream.address)
    with EchoServer("::1" if ":" in host else "127.0.0.1") as server:
        native = run("pointers", *server.address, MOSNHOOK_DISABLE="1").output
    hooked = run("pointers", host, PORT, sidecar=sidecar).output
    assert hooked == native
    assert native.count("EFAULT") > 100
