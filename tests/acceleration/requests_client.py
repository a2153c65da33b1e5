"""A client of HTTP under the hook: carries out the work that its first argument names, and says by
its exit status whether everything was as it should be. The server is that of ``http_server.py``.

With a timeout Python's sockets do not block, without one they do."""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

_HOST, _PORT, _WORK, _SEED, _TIMEOUT = sys.argv[1:6]
_RANDOM = random.Random(int(_SEED))
_MIB = 1 << 20
_WINDOW = 4 * _MIB - 32 * 1024


def _connect() -> http.client.HTTPConnection:
    timeout = None if _TIMEOUT == "none" else float(_TIMEOUT)
    return http.client.HTTPConnection(_HOST, int(_PORT), timeout=timeout)


def _get(connection: http.client.HTTPConnection, size: int) -> http.client.HTTPResponse:
    connection.request("GET", f"/bytes?{size}")
    return connection.getresponse()


def _check(answer: http.client.HTTPResponse, data: bytes) -> None:
    assert answer.status == 200
    assert hashlib.sha256(data).hexdigest() == answer.headers["x-sha256"], len(data)


def _check_pipelined(answers: BinaryIO, size: int) -> None:
    assert answers.readline().startswith(b"HTTP/1.1 200")
    fields = http.client.parse_headers(answers)
    assert hashlib.sha256(answers.read(size)).hexdigest() == fields["x-sha256"]


def keep_alive() -> None:
    """Many requests, small and large, with bodies both ways of known and unknown length."""
    connection = _connect()
    for number in range(60):
        size = int(2 ** _RANDOM.uniform(0, 21 if number % 10 == 0 else 15))
        answer = _get(connection, size)
        data = answer.read()
        assert len(data) == size
        _check(answer, data)
        body = _RANDOM.randbytes(int(2 ** _RANDOM.uniform(0, 21 if number % 10 == 5 else 15)))
        pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
        chunked = number % 3 == 0
        connection.request("POST", "/echo", iter(pieces) if chunked else body)
        answer = connection.getresponse()
        data = answer.read()
        assert data == body
        _check(answer, data)


def slow_reader() -> None:
    """More than all queues on the way hold, for one who stops, and then reads piece by piece."""
    connection = _connect()
    _get(connection, 10).read()
    answer = _get(connection, 16 * _MIB)
    time.sleep(0.1)
    pieces = []
    while piece := answer.read(int(2 ** _RANDOM.uniform(8, 21))):
        pieces.append(piece)
        if _RANDOM.random() < 0.2:
            time.sleep(0.01)
    _check(answer, b"".join(pieces))
    connection.request("POST", "/echo", b"afterwards")
    assert connection.getresponse().read() == b"afterwards"


def slow_server() -> None:
    """As much, in messages of all sizes, to a server that does not read it for a while."""
    connection = _connect()
    _get(connection, 10).read()
    for _ in range(2):
        body = _RANDOM.randbytes(16 * _MIB)
        cuts = sorted(_RANDOM.sample(range(len(body)), 1000))
        pieces = (body[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True))
        connection.request("POST", "/slow", pieces, {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        _check(answer, body)
        assert answer.read() == b""


def pipelined() -> None:
    """A pipeline of requests, sent and read by two threads."""
    connection = _connect()
    _get(connection, 10).read()
    sizes = [int(2 ** _RANDOM.uniform(0, 17)) for _ in range(100)]
    asked = "".join(f"GET /bytes?{size} HTTP/1.1\r\nHost: far\r\n\r\n" for size in sizes)
    plain = connection.sock

    def write() -> None:
        data = asked.encode()
        while data:
            size = _RANDOM.randint(1, 3000)
            plain.sendall(data[:size])
            data = data[size:]

    writer = threading.Thread(target=write)
    writer.start()
    with plain.makefile("rb") as answers:
        for size in sizes:
            _check_pipelined(answers, size)
    writer.join()


def upgrade() -> None:
    """Requests, then another protocol on the same connection: an echo."""
    connection = _connect()
    for size in (10, 100_000, 10):
        _check(answer := _get(connection, size), answer.read())
    plain = connection.sock
    plain.sendall(
        b"GET /bytes?%d HTTP/1.1\r\nHost: far\r\n\r\n"
        b"GET /echo HTTP/1.1\r\nHost: far\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" % _WINDOW
    )
    time.sleep(0.1)  # the answer fills all that may be redirected, and the next one has to wait
    with plain.makefile("rb") as answers:
        _check_pipelined(answers, _WINDOW)
        assert answers.readline().startswith(b"HTTP/1.1 101")
        while answers.readline() != b"\r\n":
            pass
        for size in (1, 10_000, 100, 8 * _MIB, 1, 1):
            data = _RANDOM.randbytes(size)
            writer = threading.Thread(target=plain.sendall, args=(data,))
            writer.start()
            assert answers.read(size) == data
            writer.join()
        print("upgraded", flush=True)
        sys.stdin.readline()
        plain.shutdown(socket.SHUT_WR)
        assert answers.read() == b""


def interrupted() -> None:
    """A body that ends with its connection: how that ended."""
    connection = _connect()
    for size in (10, 100_000, 10):
        _check(answer := _get(connection, size), answer.read())
    plain = connection.sock
    plain.sendall(b"GET /endless HTTP/1.0\r\nHost: far\r\n\r\n")
    received, told = 0, False
    try:
        while data := plain.recv(100_000):
            received += len(data)
            if received > 4 * _MIB and not told:
                told = True
                print("receives", flush=True)
            time.sleep(_RANDOM.uniform(0, 0.001))
    except ConnectionResetError:
        return
    raise AssertionError(f"it seems to end after {received} bytes")


def late() -> None:
    """A request that is answered late, to its end."""
    connection = _connect()
    for size in (10, 100_000, 10):
        _check(answer := _get(connection, size), answer.read())
    connection.request("GET", "/late?3000000")
    print("asked", flush=True)
    answer = connection.getresponse()
    _check(answer, answer.read())


def idle() -> None:
    """Requests, a pause in which others look at the connection, and requests again."""
    connection = _connect()
    for _ in range(2):
        for size in (10, 100_000, 3 * _MIB, 10):
            _check(answer := _get(connection, size), answer.read())
        print("idle", flush=True)
        sys.stdin.readline()


_WORKS: dict[str, Callable[[], None]] = {
    work.__name__: work
    for work in (keep_alive, slow_reader, slow_server, pipelined, upgrade, interrupted, late, idle)
}
_WORKS[_WORK]()
