"""anthunder on both ends of Bolt: ``anthunder_peer.py SERVED CALLED``, two ports of 127.0.0.1.

Prints the outcome of each call, one a line.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable

from anthunder import AioClient, Client  # type: ignore[import-untyped]
from anthunder.listener.aio_listener import AioListener  # type: ignore[import-untyped]
from mytracer import SpanContext  # type: ignore[import-untyped]

_SERVICE = "peer.Echo:1.0"
_COUNT = 100


class _Echo:
    def __init__(self, context: object) -> None:
        self._context = context

    def echo(self, content: bytes) -> bytes:
        return b"anthunder " + content

    def fail(self, content: bytes) -> bytes:
        raise ValueError(content)


def _outcome(call: Callable[[], bytes]) -> str:
    try:
        return call().decode()
    except KeyError:
        return "KeyError"  # of the request's id: how AioClient fails, whatever the status
    except Exception as error:
        return str(error)


def _one_by_one(client: Client) -> None:
    def call(service: str, method: str, content: bytes) -> str:
        return _outcome(
            lambda: client.invoke_sync(
                service, method, content, timeout_ms=10_000, spanctx=SpanContext()
            )
        )

    print(sum(call(_SERVICE, "echo", b"%d" % i) == f"anthunder {i}" for i in range(_COUNT)))
    print(call(_SERVICE, "fail", b"x"))
    print(call("unknown:1.0", "echo", b"x"))


def _at_once(client: AioClient) -> None:
    answers: list[bytes] = []
    complete = threading.Event()

    def answered(answer: bytes) -> None:
        answers.append(answer)
        if len(answers) == _COUNT:
            complete.set()

    for i in range(_COUNT):
        client.invoke_async(
            *(_SERVICE, "echo", b"%d" % i),
            timeout_ms=10_000,
            spanctx=SpanContext(),
            callback=answered,
        )
    complete.wait(20)
    print(sorted(answers) == sorted(b"anthunder %d" % i for i in range(_COUNT)))


def main() -> None:
    served, called = map(int, sys.argv[1:])
    asyncio.set_event_loop(asyncio.new_event_loop())
    listener = AioListener(("127.0.0.1", served), "provider")
    listener.handler.register_interface(_SERVICE, _Echo)
    listener.run_threading()
    for kind in (AioClient, Client):
        kind.mesh_service_address = ("127.0.0.1", called)
        _one_by_one(kind("consumer"))
    _at_once(AioClient("consumer"))
    sys.stdout.flush()
    os._exit(0)  # its threads do not end


if __name__ == "__main__":
    main()
