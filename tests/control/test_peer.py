"""Whose the other end of a connection is."""

from __future__ import annotations

import os
import socket

import pytest

from pysidecar.sock_diag import owner_of
from pysidecar.web.peer import peer_of
from tests.waiting import eventually


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_is_its_users_until_it_is_closed(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        with listener.accept()[0] as accepted:
            assert peer_of(accepted) == f"uid {os.geteuid()}"
            client.shutdown(socket.SHUT_WR)
            assert peer_of(accepted) == f"uid {os.geteuid()}"
            client.close()
            # Else whoever connects and closes would use up what root may have.
            eventually(lambda: peer_of(accepted) == "a socket that is closed already")


@pytest.mark.parametrize(("everywhere", "there"), [("0.0.0.0", "192.0.2.9"), ("::", "2001:db8::9")])
def test_the_port_of_another_host_makes_it_nobody_here(everywhere: str, there: str) -> None:
    family = socket.AF_INET6 if ":" in everywhere else socket.AF_INET
    with socket.create_server((everywhere, 0), family=family) as listener:
        port = listener.getsockname()[1]  # which another host can connect from
        assert owner_of(family, (there, port), (there[:-1] + "1", 13330)) is None
