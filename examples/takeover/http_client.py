"""Calls an HTTP service by its name, through the sidecar: wherever it is, and whoever provides it.

python http_client.py greetings.example /you
"""

from __future__ import annotations

import json
import os
import sys
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

SIDECAR = os.environ.get("SIDECAR", "http://127.0.0.1:13330")
CALLS = os.environ.get("SIDECAR_CALLS", "http://127.0.0.1:12220")


def main() -> None:
    service, *paths = sys.argv[1:]
    body = json.dumps({"serviceName": service, "protocolType": "http"}).encode()
    with urlopen(Request(f"{SIDECAR}/services/subscribe", body)) as response:
        answer = json.load(response)
    if not answer["success"]:
        sys.exit(f"the sidecar says: {answer['errorMessage']}")
    for path in paths:
        print(get(service, path), end="", flush=True)


def get(service: str, path: str) -> str:
    """The registry's answer may be on its way: then the sidecar says 503, no endpoint yet."""
    deadline = time.monotonic() + 5
    while True:
        try:
            with urlopen(Request(CALLS + path, headers={"Host": service})) as response:
                text: str = response.read().decode()
                return text
        except HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


if __name__ == "__main__":
    main()
