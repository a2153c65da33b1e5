"""Clients that call one service each, over and over, and keep what became of their requests."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.requests.frames import BOLT, DUBBO, Answer, Request, Wire
from tests.requests.support import Upstream, echo
from tests.takeover.test_flow import CONSUMER, Pod
from tests.waiting import PATIENCE, eventually

WIRES = {"bolt": BOLT, "dubbo": DUBBO}
SERVICES = {"http": "orders", "bolt": "any", "dubbo": "any:1.0"}
"""By protocol, as the clients ask for them."""

_REST = 0.002  # seconds between two requests of a client


@dataclass
class Outcome:
    """Of all requests of one protocol."""

    answered: int = 0
    lost: list[str] = field(default_factory=list)
    """Those that were sent, and had no answer or a bad one."""

    refused: int = 0
    """Connects: nothing was sent."""


class _Connection:
    """Of a client that notices when its connection ends, as real ones do."""

    def __init__(self, host: str) -> None:
        self.socket = socket.create_connection((host, CONSUMER), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def has_ended(self) -> bool:
        readable, _, _ = select.select([self.socket], [], [], 0)
        return bool(readable)  # nothing is under way that could be answered


def _call_http(connection: _Connection, number: int) -> bool:
    """Whether the connection is of use any more. Raises OSError or AssertionError."""
    connection.socket.sendall(b"GET /%d HTTP/1.1\r\nHost: orders\r\n\r\n" % number)
    answer = http.client.HTTPResponse(connection.socket)
    try:
        answer.begin()
        body = answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(repr(error)) from None
    assert answer.status == 200, (answer.status, answer.headers.get("x-sidecar-reason"))
    assert body == b"/%d|" % number
    return not answer.will_close


def _call_frames(wire: Wire) -> Callable[[_Connection, int], bool]:
    def call(connection: _Connection, number: int) -> bool:
        connection.socket.sendall(wire.request(Request(number, "echo", b"%d" % number)))
        answer = wire.read(connection.socket)
        assert isinstance(answer, Answer)
        assert (answer.id, answer.status) == (number, wire.good), answer
        assert answer.content == b"%d" % number
        return True

    return call


_CALLS = {"http": _call_http, "bolt": _call_frames(BOLT), "dubbo": _call_frames(DUBBO)}


class Load:
    """Until ``stop``: so many clients of each protocol."""

    def __init__(self, pod: Pod, clients: int = 2) -> None:
        self.outcomes = {protocol: Outcome() for protocol in SERVICES}
        self._host = pod.host
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(protocol,))
            for protocol in SERVICES
            for _ in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, protocol: str) -> None:
        outcome, call = self.outcomes[protocol], _CALLS[protocol]
        connection: _Connection | None = None
        number = 0
        while not self._done.wait(_REST):
            if connection is not None and connection.has_ended:
                connection.socket.close()
                connection = None
            try:
                connection = connection or _Connection(self._host)
            except OSError:
                outcome.refused += 1
                continue
            number += 1
            try:
                is_kept = call(connection, number)
                outcome.answered += 1
            except (OSError, AssertionError) as error:
                outcome.lost.append(f"{time.strftime('%X')} {error!r}")
                is_kept = False
            if not is_kept:
                connection.socket.close()
                connection = None
        if connection is not None:
            connection.socket.close()

    def goes_on(self) -> None:
        """Each protocol has some more answers."""
        before = {name: each.answered for name, each in self.outcomes.items()}
        eventually(
            lambda: all(each.answered > before[name] + 20 for name, each in self.outcomes.items()),
            lambda: str(self.outcomes),
        )

    @property
    def lost(self) -> dict[str, Sequence[str]]:
        return {name: each.lost for name, each in self.outcomes.items() if each.lost}

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def load(pod: Pod, clients: int = 2) -> Iterator[Load]:
    """Stopped at the end."""
    made = Load(pod, clients)
    try:
        yield made
    finally:
        made.stop()


def _answering(wire: Wire) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        while True:
            request = wire.read(connection)
            assert isinstance(request, Request)
            answer = Answer(request.id, wire.good, request.content, request.heartbeat)
            connection.sendall(wire.answer(answer))

    return serve


@contextlib.contextmanager
def applications(pod: Pod) -> Iterator[None]:
    """One of each protocol, that are published there."""
    with contextlib.ExitStack() as stack:
        for protocol, service in SERVICES.items():
            serve = echo if protocol == "http" else _answering(WIRES[protocol])
            upstream = stack.enter_context(Upstream(serve))
            port = upstream.address.port
            said = pod.say(
                "/services/publish", serviceName=service, protocolType=protocol, port=port
            )
            assert said["success"], said
        yield


def subscribe(pod: Pod) -> None:
    """All of them."""
    for protocol, service in SERVICES.items():
        assert pod.say("/services/subscribe", serviceName=service, protocolType=protocol)["success"]
