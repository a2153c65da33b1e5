"""What keeps a client's HTTP connection, and what ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from pysidecar.testing import Sidecar
from tests.interop.servers import free_port

GET = b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 9\r\n\r\n"


@pytest.fixture
def client(sidecar_factory: Callable[..., Sidecar]) -> Iterator[socket.socket]:
    """Of a listener whose service has no endpoint that listens."""
    listen = f"127.0.0.1:{free_port()}"
    sidecar_factory(
        {
            "services": {"orders": {"protocol": "http", "endpoints": [f"127.0.0.1:{free_port()}"]}},
            "listeners": [{"listen": listen, "protocol": "http", "service": "orders"}],
        }
    )
    host, _, port = listen.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        yield client


def answer(client: socket.socket) -> bytes:
    """One answer, up to the end of its body."""
    text = b""
    while not text.endswith(b"Bad Gateway\n"):
        more = client.recv(65536)
        assert more, text
        text += more
    return text


def test_connection_outlives_a_request_without_a_body_that_failed(client: socket.socket) -> None:
    for _ in range(3):
        client.sendall(GET)
        text = answer(client)
        assert text.startswith(b"HTTP/1.1 502 ")
        assert b"\r\nConnection: close\r\n" not in text


def test_connection_ends_where_the_rest_of_a_failed_request_may_follow(
    client: socket.socket,
) -> None:
    client.sendall(POST)
    assert b"\r\nConnection: close\r\n" in answer(client)
    client.sendall(GET)
    assert client.recv(1) == b""
