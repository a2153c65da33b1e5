"""What real clients make of answers of our own, which come from a server that gives no others."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.codecs.frames import BOLT, DUBBO, Frames
from tests.requests.programs import Answer, Program
from tests.waiting import eventually

# One process of each Java program for all of these tests.
pytestmark = [pytest.mark.timeout(300)]


class Refusing:
    """Answers each request as the codec does for a flag of enum dp_flag, and each heartbeat."""

    def __init__(self, frames: Frames, codec: str, listener: socket.socket) -> None:
        self.flag = 0
        self._frames, self._codec, self._listener = frames, codec, listener
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            rest = b""
            while data := connection.recv(65536):
                reading = self._frames.read(self._codec, [rest + data])
                assert not reading.error
                rest = reading.rest
                for frame in reading.frames:
                    connection.sendall(self._answer(frame))

    def _answer(self, frame: Any) -> bytes:
        if frame.kind == "heartbeat":
            return self._frames.answer_heartbeat(self._codec, frame.frame)
        if frame.kind == "oneway":
            return b""
        return self._frames.reject(self._codec, frame.facts, frame.id, self.flag)[0]

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])


@contextlib.contextmanager
def refusing(frames: Frames, codec: str, host: str) -> Iterator[Refusing]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        try:
            yield Refusing(frames, codec, listener)
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def flag(codecs: tuple[Any, Any], name: str) -> int:
    return int(getattr(codecs[1], f"DP_FLAG_{name.upper()}"))


def call(sofa: Program, **values: str) -> Answer:
    """SOFARPC has no address until its connection is there."""

    def ask() -> Answer | None:
        answer = sofa.call(**values)
        return None if answer["error"] == "SofaRouteException" else answer

    return eventually(ask)


BOLT_CASES = [
    # flag, SOFARPC's exception and its code, bare SOFABolt's exception
    ("no_route", "SofaRpcException", "299", "InvokeException"),
    ("no_endpoint", "SofaRpcException", "250", "ConnectionClosedException"),
    ("upstream_reset", "SofaRpcException", "250", "ConnectionClosedException"),
    ("timeout", "SofaTimeOutException", "200", "InvokeTimeoutException"),
    ("overload", "SofaRpcException", "100", "InvokeServerBusyException"),
    ("malformed_response", "SofaRpcException", "299", "CodecException"),
]


def test_what_sofarpc_and_sofabolt_make_of_our_answers(
    sofa: Program, frames: Frames, codecs: tuple[Any, Any]
) -> None:
    libraries = (
        {"library": "sofarpc", "service": "a"},
        {"library": "bolt", "protocol": "1", "service": "raw"},
        {"library": "bolt", "protocol": "2", "service": "raw"},
    )
    with refusing(frames, BOLT, "127.0.0.1") as server:
        for name, sofarpc, code, bolt in BOLT_CASES:
            server.flag = flag(codecs, name)
            for library in libraries:
                address = f"127.0.0.1:{server.port}"
                answer = call(sofa, address=address, **library, text="hi", method="echo")
                if library["library"] == "sofarpc":
                    assert (answer["error"], answer["code"]) == (sofarpc, code), (name, answer)
                else:
                    assert answer["error"] == bolt, (name, answer)


DUBBO_CASES = [("timeout", "2"), ("no_route", "1"), ("connect_failed", "1"), ("overload", "1")]


def test_what_dubbo_makes_of_our_answers(
    dubbo: Program, frames: Frames, codecs: tuple[Any, Any]
) -> None:
    with refusing(frames, DUBBO, "::1") as server:
        for name, code in DUBBO_CASES:
            server.flag = flag(codecs, name)
            address = f"[::1]:{server.port}"
            answer = dubbo.call(address=address, service=" ", text="hi", method="echo")
            assert (answer["error"], answer["code"]) == ("RpcException", code), (name, answer)
            assert f"sidecar: {name}" in answer["message"]
