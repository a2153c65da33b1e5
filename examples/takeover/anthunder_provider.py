"""A provider in Python, with SOFA's own SDK: ``pip install anthunder opentracing``.

Nothing here knows of a registry or of other hosts: the sidecar beside it does.
"""

from __future__ import annotations

import asyncio

from anthunder.listener.aio_listener import AioListener  # type: ignore[import-untyped]


class Greeter:
    def __init__(self, context: object) -> None:
        pass

    def greet(self, content: bytes) -> bytes:
        return b"Hello, " + content


def main() -> None:
    asyncio.set_event_loop(asyncio.new_event_loop())
    listener = AioListener(("127.0.0.1", 12200), "greeter")
    listener.handler.register_interface("example.Greeter:1.0", Greeter)
    listener.run_threading()
    listener.publish()  # to the sidecar, which registers it
    print("example.Greeter:1.0 is published", flush=True)
    try:
        input()  # serves until standard input ends
    except EOFError:
        listener.unpublish()


if __name__ == "__main__":
    main()
