"""A consumer in Python, with SOFA's own SDK: ``pip install anthunder opentracing``."""

from __future__ import annotations

import os
import sys

from anthunder import AioClient  # type: ignore[import-untyped]
from mytracer import SpanContext  # type: ignore[import-untyped]

SERVICE = "example.Greeter:1.0"


def main() -> None:
    client = AioClient("caller")
    client.subscribe(SERVICE)  # at the sidecar, which also gets the calls
    for name in sys.argv[1:]:
        answer = client.invoke_sync(
            SERVICE, "greet", name.encode(), spanctx=SpanContext(), timeout_ms=5000
        )
        print(answer.decode(), flush=True)
    os._exit(0)  # its threads do not end


if __name__ == "__main__":
    main()
