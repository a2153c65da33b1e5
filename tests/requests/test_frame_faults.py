"""Bolt and Dubbo upstreams that fail in every way, with many requests on their connections: each
gets its one answer, none another's."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.interop.servers import closed_port
from tests.requests.frames import BOLT, DUBBO, Answer, Request, Wire
from tests.requests.fronts import Front, front
from tests.requests.upstreams import Scripted, reset, scripted
from tests.waiting import PATIENCE

_TIMEOUT_MS = 400

# ---- The upstream: a request's method is the fault ----

Fault = Callable[[Wire, socket.socket, Request], None]


def _fine(wire: Wire, connection: socket.socket, request: Request) -> None:
    connection.sendall(wire.answer(Answer(request.id, wire.good, request.content)))


def _trap(wire: Wire, id_: int) -> bytes:
    """What no client may ever see."""
    return wire.answer(Answer(id_, wire.good, b"TRAP"))


def _says(make: Callable[[Wire, Request], bytes]) -> Fault:
    return lambda wire, connection, request: connection.sendall(make(wire, request))


def _half(wire: Wire, connection: socket.socket, request: Request) -> None:
    connection.sendall(_trap(wire, request.id)[:-2])
    connection.shutdown(socket.SHUT_WR)


def _slow(wire: Wire, connection: socket.socket, request: Request) -> None:
    """A byte at a time."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in wire.answer(Answer(request.id, wire.good, request.content)):
        connection.sendall(bytes([byte]))


def _asks_first(asked: Request) -> Fault:
    """Answers when it was answered itself."""

    def answer(wire: Wire, connection: socket.socket, request: Request) -> None:
        connection.sendall(wire.request(asked))
        while True:
            frame = wire.read(connection)
            if isinstance(frame, Answer):
                assert (frame.id, frame.heartbeat) == (77, asked.heartbeat)
                assert asked.heartbeat or frame.status == wire.refused
                _fine(wire, connection, request)
                return
            _serve_one(wire, connection, frame)

    return answer


FAULTS: dict[str, Fault] = {
    "fine": _fine,
    "slow": _slow,
    "heartbeat-first": _asks_first(Request(77, "", b"", heartbeat=True)),
    "asks-first": _asks_first(Request(77, "echo", b"TRAP")),
    # Answered twice, or what nobody asked for.
    "twice": _says(
        lambda wire, request: (
            wire.answer(Answer(request.id, wire.good, request.content)) + _trap(wire, request.id)
        )
    ),
    "unknown-id": _says(
        lambda wire, request: (
            _trap(wire, request.id + 1_000_000)
            + wire.answer(Answer(request.id, wire.good, request.content))
        )
    ),
    # No answer.
    "silent": lambda wire, connection, request: None,
    "closes": lambda wire, connection, request: connection.close(),
    "resets": lambda wire, connection, request: reset(connection),
    "half": _half,
    "garbage": _says(lambda wire, request: b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2),
    "huge": _says(lambda wire, request: wire.huge(request.id)),
}
_ANSWERED = {"fine", "slow", "heartbeat-first", "asks-first", "twice", "unknown-id"}


def _serve_one(wire: Wire, connection: socket.socket, frame: Request | Answer) -> None:
    assert isinstance(frame, Request), frame
    if frame.heartbeat:
        connection.sendall(wire.answer(Answer(frame.id, wire.good, b"", heartbeat=True)))
    else:
        FAULTS[frame.method](wire, connection, frame)


# ---- The client, and the sidecar between ----


@dataclass(frozen=True)
class Mesh:
    wire: Wire
    front: Front
    upstream: Scripted

    def connect(self, service: str = "faulty") -> socket.socket:
        address = ("127.0.0.1", self.front.port(service))
        return socket.create_connection(address, timeout=PATIENCE)

    def ask(self, methods: list[str], service: str = "faulty") -> list[Answer]:
        """The answers to these requests, all of them under way at once on one connection, which
        then answers a heartbeat. The ids begin with 1 on each connection."""
        with self.connect(service) as connection:
            own = str(connection.getsockname()[1])
            requests = [
                Request(i + 1, method, f"{method} {i} {own}".encode())
                for i, method in enumerate(methods)
            ]
            connection.sendall(
                b"".join(self.wire.request(request, _TIMEOUT_MS) for request in requests)
            )
            answers: dict[int, Answer] = {}
            while len(answers) < len(requests):
                frame = self.wire.read(connection)
                assert isinstance(frame, Answer)
                assert frame.id not in answers
                answers[frame.id] = frame
            for request in requests:
                answer = answers[request.id]
                if answer.status == self.wire.good:
                    assert answer.content == request.content
            connection.sendall(self.wire.request(Request(99, "", b"", heartbeat=True)))
            assert self.wire.read(connection) == Answer(99, self.wire.good, b"", heartbeat=True)
        return [answers[request.id] for request in requests]

    def ask_one(self, method: str, service: str = "faulty") -> int:
        """The status of a request alone."""
        return self.ask([method], service)[0].status


@pytest.fixture(scope="module", params=[BOLT, DUBBO], ids=["bolt", "dubbo"])
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    wire: Wire = request.param

    def serve(connection: socket.socket) -> None:
        while True:
            _serve_one(wire, connection, wire.read(connection))

    with scripted(serve) as upstream, closed_port() as closed:
        services: dict[str, Any] = {
            "faulty": {"endpoints": [upstream.address]},
            "refusing": {"endpoints": [f"127.0.0.1:{closed}"]},
        }
        with front(wire.name, services, []) as through:
            yield Mesh(wire, through, upstream)


@pytest.mark.parametrize("fault", sorted(_ANSWERED))
def test_a_request_is_answered_whatever_else_comes(mesh: Mesh, fault: str) -> None:
    assert mesh.ask_one(fault) == mesh.wire.good
    assert {answer.status for answer in mesh.ask([fault, "fine"] * 10)} == {mesh.wire.good}


@pytest.mark.parametrize("fault", ["closes", "resets", "half", "garbage", "huge"])
def test_a_connection_that_ends_is_an_error_to_all_on_it(mesh: Mesh, fault: str) -> None:
    errors = {*mesh.wire.unreachable, mesh.wire.malformed}
    assert mesh.ask_one(fault) in errors
    answers = mesh.ask(["silent", "silent", fault, "silent"])
    assert {answer.status for answer in answers} <= {*errors, mesh.wire.timeout}
    assert mesh.ask_one("fine") == mesh.wire.good


def test_a_silent_upstream_is_a_timeout(mesh: Mesh) -> None:
    answers = mesh.ask(["silent", "fine", "silent", "fine"])
    statuses = [answer.status for answer in answers]
    assert statuses == [mesh.wire.timeout, mesh.wire.good] * 2


def test_an_upstream_that_refuses_is_an_error(mesh: Mesh) -> None:
    for _ in range(3):
        assert mesh.ask_one("fine", "refusing") in mesh.wire.unreachable


def test_faults_never_give_anothers_answer(mesh: Mesh) -> None:
    """Many connections with the same ids share upstream connections, which fail."""
    faults = [name for name in FAULTS if name not in ("fine", "silent")]
    randomness = random.Random(1)
    methods = [*faults, *["fine"] * 300]
    orders = [[randomness.choice(methods) for _ in range(20)] for _ in range(100)]
    with ThreadPoolExecutor(4) as threads:
        answers = [answer for found in threads.map(mesh.ask, orders) for answer in found]
    statuses = Counter(answer.status for answer in answers)
    assert len(answers) == 100 * 20
    wire = mesh.wire
    assert set(statuses) <= {wire.good, wire.timeout, wire.malformed, *wire.unreachable}
    assert statuses[mesh.wire.good] > 200


def _ends(connection: socket.socket) -> bool:
    """Whatever may come before."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(4096):
            pass
    return True


def test_a_malformed_frame_ends_that_connection_and_no_other(mesh: Mesh) -> None:
    bad = struct.pack(">I", 0xDEADBEEF) * 16
    with mesh.connect() as other:
        other.sendall(mesh.wire.request(Request(1, "silent", b"other"), 10_000))
        with mesh.connect() as connection:
            connection.sendall(bad)
            assert _ends(connection)
        other.sendall(mesh.wire.request(Request(2, "fine", b"mine"), 10_000))
        assert mesh.wire.read(other) == Answer(2, mesh.wire.good, b"mine")
