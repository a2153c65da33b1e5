"""Calls the services of the wires in tests/requests, and an HTTP service named orders, as programs
do that know nothing of a sidecar. By itself: ``PROTOCOL ADDRESS:PORT [HOST]``."""

from __future__ import annotations

import socket
import sys

from pysidecar.address import Address
from tests.requests.frames import BOLT, DUBBO, Answer, Request

WIRES = {"bolt": BOLT, "dubbo": DUBBO}
GOOD = {"http": 200, **{name: wire.good for name, wire in WIRES.items()}}
CALLED = "hello"


def call(client: socket.socket, protocol: str, host: str = "orders") -> tuple[int, str]:
    """Status and answer of one call; an HTTP server is expected to close its connection."""
    if protocol == "http":
        head = f"GET /{CALLED} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode())
        with client.makefile("rb") as answers:
            head, _, body = answers.read().decode().partition("\r\n\r\n")
        return int(head.split(" ")[1]), body
    wire = WIRES[protocol]
    client.sendall(wire.request(Request(7, "echo", CALLED.encode())))
    answer = wire.read(client)
    assert isinstance(answer, Answer)
    return answer.status, answer.content.decode()


def serve(client: socket.socket, protocol: str) -> None:
    """Answers each call with what it was called with."""
    if protocol == "http":
        with client.makefile("rb") as requests:
            path = requests.readline().split()[1].lstrip(b"/")
            while requests.readline().strip():
                pass
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(path)
        client.sendall(head + path)
        return
    wire = WIRES[protocol]
    while True:
        request = wire.read(client)
        assert isinstance(request, Request)
        client.sendall(wire.answer(Answer(request.id, wire.good, request.content)))


def _main(protocol: str, destination: str, host: str = "orders") -> None:
    address = Address.parse(destination)
    with socket.create_connection((address.host, address.port), 30) as client:
        status, text = call(client, protocol, host)
        print(status, text)


if __name__ == "__main__":
    _main(*sys.argv[1:])
