"""anthunder by commands, one a line on standard input, each an HTML form; so are the answers.

``serve``: ``port``, ``name``, and ``services`` with their versions, separated by commas; publishes
them. ``stop``: unpublishes them. ``subscribe``: ``services``. ``call``: ``service``, ``method``,
``text``, ``kind`` (sync, future, callback, oneway) and ``client`` (threads, asyncio).
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import Future
from urllib.parse import parse_qsl, urlencode

from anthunder import AioClient, Client  # type: ignore[import-untyped]
from anthunder.listener.aio_listener import AioListener  # type: ignore[import-untyped]
from mytracer import SpanContext  # type: ignore[import-untyped]

_PATIENCE = 20.0  # seconds
_LISTENERS: list[AioListener] = []
_CLIENTS: dict[str, Client | AioClient] = {}
_NOTES: dict[bytes, int] = {}


def _message(text: bytes) -> bytes:
    """Protocol Buffers' StringValue, of a short text: what SOFARPC's tests exchange."""
    return b"\x0a" + bytes([len(text)]) + text if text else b""


def _text(message: bytes) -> bytes:
    return message[2:]


class _Echo:
    name = b""

    def __init__(self, context: object) -> None:
        self._context = context

    def echo(self, content: bytes) -> bytes:
        return _message(self.name + b" " + _text(content))

    def note(self, content: bytes) -> bytes:
        _NOTES[_text(content)] = _NOTES.get(_text(content), 0) + 1
        return b""

    def noted(self, content: bytes) -> bytes:
        return _message(b"%d" % _NOTES.get(_text(content), 0))


def _serve(command: dict[str, str]) -> str:
    asyncio.set_event_loop(asyncio.new_event_loop())
    listener = AioListener(("127.0.0.1", int(command["port"])), command["name"])
    echo = type("Echo", (_Echo,), {"name": command["name"].encode()})
    for service in command["services"].split(","):
        listener.handler.register_interface(service, echo)
    listener.run_threading()
    listener.publish()
    _LISTENERS.append(listener)
    return ""


def _stop(_: dict[str, str]) -> str:
    for listener in _LISTENERS:
        listener.unpublish()
    return ""


def _client(command: dict[str, str]) -> Client | AioClient:
    kind = command.get("client", "threads")
    if kind not in _CLIENTS:
        _CLIENTS[kind] = (AioClient if kind == "asyncio" else Client)("consumer")
    return _CLIENTS[kind]


def _subscribe(command: dict[str, str]) -> str:
    _client(command).subscribe(*command["services"].split(","))
    return ""


def _call(command: dict[str, str]) -> str:
    client = _client(command)
    arguments = (command["service"], command["method"], _message(command["text"].encode()))
    timed = {"spanctx": SpanContext(), "timeout_ms": 10_000}
    match command.get("kind", "sync"):
        case "oneway":
            client.invoke_oneway(*arguments, spanctx=SpanContext())
            return "sent"
        case "future":
            return _text(
                client.invoke_async(*arguments, **timed).result(_PATIENCE).content
            ).decode()
        case "callback":
            answer: Future[bytes] = Future()
            client.invoke_async(*arguments, **timed, callback=answer.set_result)
            return _text(answer.result(_PATIENCE)).decode()
    return _text(client.invoke_sync(*arguments, **timed)).decode()


_OPS = {"serve": _serve, "stop": _stop, "subscribe": _subscribe, "call": _call}


def _carry_out(command: dict[str, str]) -> dict[str, str]:
    try:
        return {"value": _OPS[command["op"]](command)}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr
    lock = threading.Lock()

    def answer(**values: str) -> None:
        with lock:
            print(urlencode(values), file=answers, flush=True)

    answer(id="ready")
    for line in sys.stdin:
        command = dict(parse_qsl(line.rstrip("\n"), keep_blank_values=True))
        answer(id=command["id"], **_carry_out(command))
    os._exit(0)  # its threads do not end


if __name__ == "__main__":
    main()
