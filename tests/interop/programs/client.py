"""The ways of Python to the network: ``client.py WAY HOST PORT``.

The ways are blocking, timeout, requests, asyncio and uvloop. Prints the peer, where the way names
it, and the body of ``/whoami``; exit 1 with the exception's name when it cannot connect.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import requests
import uvloop

_PATIENCE = 20.0
_REQUEST = b"GET /whoami HTTP/1.0\r\nHost: interop\r\n\r\n"


def _report(peer: tuple[str, int], response: bytes) -> None:
    print("peer", *peer[:2])
    print(response.partition(b"\r\n\r\n")[2].decode(), end="")


def _with_socket(host: str, port: int, timeout: float | None) -> None:
    with socket.create_connection((host, port), timeout=timeout) as connection:
        connection.sendall(_REQUEST)
        response = b""
        while chunk := connection.recv(4096):
            response += chunk
        _report(connection.getpeername(), response)


def _with_requests(host: str, port: int) -> None:
    literal = f"[{host}]" if ":" in host else host
    print(requests.get(f"http://{literal}:{port}/whoami", timeout=_PATIENCE).text, end="")


async def _with_streams(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(_REQUEST)
    response = await reader.read()
    _report(writer.get_extra_info("peername"), response)
    writer.close()
    await writer.wait_closed()


def main(way: str, host: str, port: int) -> int:
    """Fetches in one of the ways."""
    try:
        if way == "blocking":
            _with_socket(host, port, None)
        elif way == "timeout":
            _with_socket(host, port, _PATIENCE)
        elif way == "requests":
            _with_requests(host, port)
        elif way == "asyncio":
            asyncio.run(_with_streams(host, port))
        elif way == "uvloop":
            uvloop.run(_with_streams(host, port))
        else:
            raise ValueError(f"unknown way {way!r}")
    except OSError as error:
        print(type(error).__name__, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
