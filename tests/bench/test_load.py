"""The benchmark's load generator and its server: they speak the protocols as they are, and no
answer counts that is not the one to its request."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pysidecar.address import Address
from pysidecar.testing import Sidecar
from scripts.bench.h2load import h2load
from scripts.bench.processes import BenchError, accepts, free_port, running
from scripts.bench.run import build_load

NONCE = b"0123456789abcdef"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_load(tmp_path_factory.mktemp("load"))


@pytest.fixture(scope="module")
def server(load: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    address = Address("127.0.0.1", free_port())
    command = [str(load), "serve", address.host, str(address.port)]
    log = tmp_path_factory.mktemp("server") / "log"
    with running(command, log=log, ready=lambda: accepts(address)):
        yield address


def _run(load: Path, mode: str, server: Address, *words: object) -> tuple[int, dict[str, Any], str]:
    command = [str(load), mode, server.host, str(server.port), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, input="\n")
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("http", (1, 1, 100)),
        ("http", (32, 8, 1024)),
        ("bolt", (1, 1, 100)),
        ("bolt", (32, 32, 1024)),
        ("dubbo", (1, 1, 100)),
        ("dubbo", (32, 32, 1024)),
        # More than sockets have room for, both ways.
        ("http", (2, 256, 32768)),
        ("bolt", (2, 256, 32768)),
        ("dubbo", (2, 256, 32768)),
        ("http-upload", (10_000_000,)),
        ("http-download", (10_000_000,)),
    ],
)
def test_it_gets_the_answers_to_its_requests(
    load: Path, server: Address, mode: str, words: tuple[int, ...]
) -> None:
    status, result, errors = _run(load, mode, server, 0.02, 0.1, *words)
    assert status == 0, errors
    assert result["amount_with_warm_up"] > 0
    assert not any(result["failures"].values())


@pytest.mark.parametrize("path", ["/orders/1", "/com.example.Orders/Get"])
def test_its_server_answers_http2(server: Address, path: str) -> None:
    assert h2load(server, 8, 8, 0.1, path).requests > 0


def test_a_call_of_grpc_without_its_answer_is_an_error() -> None:
    here, nobody = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    configuration = {
        "services": {"far": {"protocol": "grpc", "endpoints": [nobody]}},
        "listeners": [{"listen": here, "protocol": "grpc", "service": "far"}],
    }
    with (
        Sidecar(configuration),
        pytest.raises(BenchError, match="not all have status and body"),
    ):
        h2load(Address.parse(here), 1, 1, 0.1, "/com.example.Orders/Get")


def test_idle_connections_of_http(load: Path, server: Address) -> None:
    status, result, errors = _run(load, "http-idle", server, 20)
    assert status == 0, errors
    assert result["amount"] == 20


# ---- An answer that is not the one to its request ----


Change = Callable[[bytes], bytes]


class Meddler:
    """Stands between client and server and changes the `nth` piece that one of them sends."""

    def __init__(
        self, server: Address, change: Change, *, nth: int, of_server: bool = True, ends: bool
    ) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server, self._change, self._nth = server, change, nth
        self._of_server, self._ends = of_server, ends
        self.address = Address(*self._listener.getsockname())
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Meddler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection((self._server.host, self._server.port)) as far:
            source, target = (far, client) if self._of_server else (client, far)
            as_it_is = threading.Thread(target=self._pump, args=(target, source, None))
            as_it_is.start()
            self._pump(source, target, self._change)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            as_it_is.join()

    def _pump(self, source: socket.socket, target: socket.socket, change: Change | None) -> None:
        with contextlib.suppress(OSError):
            seen = 0
            while piece := source.recv(1 << 16):
                seen += 1
                changed = change is not None and seen == self._nth
                target.sendall(change(piece) if change is not None and changed else piece)
                if changed and self._ends:
                    return
            target.shutdown(socket.SHUT_WR)


def _status(answer: bytes, at: int, status: bytes) -> bytes:
    return answer[:at] + status + answer[at + len(status) :]


def _another_nonce(answer: bytes, at: int) -> bytes:
    """One digit of the nonce at an offset is another one."""
    return answer[:at] + (b"0" if answer[at : at + 1] != b"0" else b"1") + answer[at + 1 :]


BOLT_BODY = 20 + len("com.alipay.sofa.rpc.core.response.SofaResponse")


@pytest.mark.parametrize(
    ("mode", "change", "failure"),
    [
        ("http", lambda answer: _status(answer, 9, b"503"), "error status"),
        ("http", lambda answer: _another_nonce(answer, len(answer) - 1), "garbled"),
        ("http", lambda answer: _another_nonce(answer, answer.index(b"\r\n\r\n") + 4), "garbled"),
        ("http", lambda answer: answer.replace(b"Length: 100", b"Length: 99"), "garbled"),
        ("http", lambda answer: answer + answer, "garbled"),
        ("http", lambda answer: b"", "ended early"),
        ("http", lambda answer: answer[:50], "ended early"),
        ("bolt", lambda answer: _status(answer, 10, b"\x00\x07"), "error status"),
        ("bolt", lambda answer: _status(answer, 5, b"\x00\x00\x00\x09"), "garbled"),  # the id
        ("bolt", lambda answer: _another_nonce(answer, BOLT_BODY + 15), "garbled"),
        ("bolt", lambda answer: _another_nonce(answer, len(answer) - 1), "garbled"),
        ("bolt", lambda answer: _another_nonce(answer, BOLT_BODY + 50), "garbled"),
        ("bolt", lambda answer: answer + answer, "garbled"),
        ("dubbo", lambda answer: _status(answer, 3, b"\x50"), "error status"),
        ("dubbo", lambda answer: _status(answer, 11, b"\x09"), "garbled"),  # the id
        ("dubbo", lambda answer: _another_nonce(answer, 16 + 1 + 2), "garbled"),
        ("dubbo", lambda answer: _status(answer, 16, b"\x93"), "garbled"),  # an exception
        ("dubbo", lambda answer: b"", "ended early"),
    ],
)
def test_a_wrong_answer_is_a_failure(
    load: Path, server: Address, mode: str, change: Change, failure: str
) -> None:
    with Meddler(server, change, nth=10, ends=True) as meddler:
        status, result, _ = _run(load, mode, meddler.address, 0, 10, 1, 1, 100)
    assert status == 1
    failed = {name: count for name, count in result["failures"].items() if count}
    assert failed == {failure: 1}
    assert result["amount"] in (9, 10)  # what came before is another matter


@pytest.mark.parametrize(
    ("mode", "failure"),
    # Of an upload the server finds it, and closes.
    [("http-upload", {"ended early", "reset"}), ("http-download", {"garbled"})],
)
def test_a_byte_of_a_long_body_that_is_missing_is_a_failure(
    load: Path, server: Address, mode: str, failure: set[str]
) -> None:
    def without_a_byte(piece: bytes) -> bytes:
        return piece[:-9] + piece[-8:]

    of_server = mode == "http-download"
    with Meddler(server, without_a_byte, nth=2, of_server=of_server, ends=False) as meddler:
        status, result, _ = _run(load, mode, meddler.address, 0, 0.1, 10_000_000)
    assert status == 1
    failed = {name for name, count in result["failures"].items() if count}
    assert len(failed) == 1
    assert failed <= failure


# ---- The server, asked in bytes that were written by hand ----


def _bolt_request(
    number: int, content: bytes, *, kind: int = 1, command: int = 1, headers: bytes = b""
) -> bytes:
    """Version, type, command, version, id, codec, timeout and lengths; then the parts."""
    name = b"com.alipay.sofa.rpc.core.request.SofaRequest"
    head = struct.pack(
        ">BBHBIBiHHI", 1, kind, command, 1, number, 1, 3000, *map(len, (name, headers, content))
    )
    return head + name + headers + content


def _dubbo_request(number: int, text: bytes, flags: int = 0xC2) -> bytes:
    strings = [b"2.0.2", b"com.example.Orders", b"1.0", b"create", b"Ljava/lang/String;", text]
    body = b"".join(bytes([len(each)]) + each for each in strings) + b"HZ"
    return struct.pack(">HBBQI", 0xDABB, flags, 0, number, len(body)) + body


BOLT_NAME = b"com.alipay.sofa.rpc.core.response.SofaResponse"
BOLT_ANSWER = struct.pack(">BBHBIBHHHI", 1, 0, 2, 1, 7, 1, 0, len(BOLT_NAME), 0, 5) + BOLT_NAME
BOLT_ALIVE = struct.pack(">BBHBIBHHHI", 1, 0, 0, 1, 8, 1, 0, 0, 0, 0)
DUBBO_VALUE = b"\x94\x05hello" + b"H\x05dubbo\x052.0.2Z"
DUBBO_ANSWER = struct.pack(">HBBQI", 0xDABB, 0x02, 20, 7, len(DUBBO_VALUE)) + DUBBO_VALUE
DUBBO_ALIVE = struct.pack(">HBBQI", 0xDABB, 0x22, 20, 8, 1) + b"N"


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("requests", "answers"),
    [
        (
            # One-way, a call, a heartbeat.
            _bolt_request(6, b"silent", kind=2, headers=b"\0\0\0\x01a\xff\xff\xff\xff")
            + _bolt_request(7, b"hello")
            + struct.pack(">BBHBIBiHHI", 1, 1, 0, 1, 8, 1, 3000, 0, 0, 0),
            BOLT_ANSWER + b"hello" + BOLT_ALIVE,
        ),
        (
            _dubbo_request(6, b"silent", flags=0x82)
            + _dubbo_request(7, b"hello")
            + struct.pack(">HBBQI", 0xDABB, 0xE2, 0, 8, 1)
            + b"N",
            DUBBO_ANSWER + DUBBO_ALIVE,
        ),
        (
            b"GET /%b?bytes=32 HTTP/1.1\r\nHost: a\r\n\r\n" % NONCE
            + b"POST /%b HTTP/1.1\r\ncontent-length: 32\r\n\r\n%b%b" % (NONCE, NONCE, NONCE)
            + b"GET /%b?bytes=32 HTTP/1.1\r\nHost: a\r\n\r\n" % NONCE[::-1],
            None,
        ),
    ],
)
def test_the_server_answers(
    server: Address, requests: bytes, answers: bytes | None, at_once: bool
) -> None:
    pieces = [requests] if at_once else [requests[i : i + 1] for i in range(len(requests))]
    with socket.create_connection((server.host, server.port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        received = b""
        wanted = len(answers) if answers is not None else None
        while (wanted is None or len(received) < wanted) and not received.endswith(NONCE[::-1]):
            piece = client.recv(1 << 16)
            assert piece, received
            received += piece
    if answers is not None:
        assert received == answers
        return
    first, second, third = (each for each in received.split(b"HTTP/1.1 200 OK\r\n")[1:])
    assert first.endswith(b"Content-Length: 32\r\n\r\n" + 2 * NONCE)
    assert second.partition(b"\r\n\r\n")[2].startswith(NONCE)
    assert third.endswith(b"\r\n\r\n" + 2 * NONCE[::-1])
