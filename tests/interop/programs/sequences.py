"""Random sequences of socket calls, and what each of them said: one JSON line for each seed.

Arguments: seconds to wait after each call, so that what it caused has arrived, and seeds. Addresses
are written as what they are, since ports differ from run to run.
"""

import asyncio
import ctypes
import errno
import fcntl
import json
import random
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_NOW = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_ABORT = struct.pack("ii", 1, 0)
_FIONREAD = 0x541B
_CLOSED = 7  # TCP_CLOSE

# How often each call is taken.
_CALLS = {
    "connect": 10,
    "connect to nobody": 3,
    "connect to port 0": 1,
    "do not block": 1,
    "block": 1,
    "send": 5,
    "receive": 6,
    "peek": 2,
    "poll": 6,
    "error": 4,
    "shut down writing": 2,
    "shut down reading": 1,
    "shut down": 1,
    "peer's name": 3,
    "disconnect": 1,
    "abort on close": 1,
    "bytes to read": 1,
    "state": 2,
    "accept": 8,
    "server sends": 5,
    "server receives": 5,
    "server shuts down writing": 3,
    "server closes": 2,
    "server aborts": 2,
    "server polls": 2,
}


def _said(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _events(connection: socket.socket) -> str:
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLRDHUP)
    return "".join(f"{events:#x}" for _, events in poll.poll(0))


def _disconnect(connection: socket.socket) -> str:
    nowhere = struct.pack("HHIQ", socket.AF_UNSPEC, 0, 0, 0)
    failed = _libc.connect(connection.fileno(), nowhere, len(nowhere))
    return errno.errorcode[ctypes.get_errno()] if failed else ""


class _Sequence:
    def __init__(self, seed: int, nobody: tuple[str, int]) -> None:
        self._random = random.Random(seed)
        self._nobody = nobody
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._client = socket.socket()
        self._client.setblocking(self._random.random() < 0.5)
        self._accepted: list[socket.socket] = []

    async def run(self, settle: float) -> list[Any]:
        said = []
        for _ in range(self._random.randint(4, 12)):
            [call] = self._random.choices(list(_CALLS), list(_CALLS.values()))
            if call.startswith("shut down") and self._call("state") == _CLOSED:
                continue  # of a connect that follows, the kernel makes strange things
            if call.startswith("server"):
                if not self._accepted:
                    continue
                said.append([call, _said(lambda: self._server(call))])  # noqa: B023 - called now
            else:
                said.append([call, _said(lambda: self._call(call))])  # noqa: B023 - called now
            await asyncio.sleep(settle)
        self._client.close()
        await asyncio.sleep(settle)
        for server in self._accepted:
            said.append(["end", [_said(lambda: server.recv(100).hex()) for _ in range(3)]])  # noqa: B023
            server.close()
        self._listener.close()
        return said

    def _call(self, call: str) -> Any:
        client = self._client
        match call:
            case "connect":
                return client.connect(self._listener.getsockname())
            case "connect to nobody":
                return client.connect(self._nobody)
            case "connect to port 0":
                return client.connect(("127.0.0.1", 0))
            case "do not block" | "block":
                return client.setblocking(call == "block")
            case "send":
                return client.send(b"abc", _NOW)
            case "receive":
                return client.recv(10, _NOW).decode()
            case "peek":
                return client.recv(10, _NOW | socket.MSG_PEEK).decode()
            case "poll":
                return _events(client)
            case "error":
                return errno.errorcode.get(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            case "shut down writing":
                return client.shutdown(socket.SHUT_WR)
            case "shut down reading":
                return client.shutdown(socket.SHUT_RD)
            case "shut down":
                return client.shutdown(socket.SHUT_RDWR)
            case "peer's name":
                peer = client.getpeername()
                return "nobody" if peer == self._nobody else peer == self._listener.getsockname()
            case "disconnect":
                return _disconnect(client)
            case "abort on close":
                return client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            case "bytes to read":
                return fcntl.ioctl(client, _FIONREAD, b"\0" * 4).hex()
            case "state":
                return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            case "accept":
                accepted, _ = self._listener.accept()
                accepted.setblocking(False)
                self._accepted.append(accepted)
                return None
        raise ValueError(call)

    def _server(self, call: str) -> Any:
        server = self._accepted[-1]
        match call:
            case "server sends":
                return server.send(b"xyz", _NOW)
            case "server receives":
                return server.recv(10).decode()
            case "server polls":
                return _events(server)
            case "server shuts down writing":
                return server.shutdown(socket.SHUT_WR)
            case "server aborts":
                server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self._accepted.pop().close()
        return None


async def main() -> None:
    settle, *seeds = float(sys.argv[1]), *map(int, sys.argv[2:])
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        sequences = [_Sequence(seed, nobody.getsockname()) for seed in seeds]
        results = await asyncio.gather(*(each.run(settle) for each in sequences))
    for seed, said in zip(seeds, results, strict=True):
        print(json.dumps([seed, said]))


asyncio.run(main())
