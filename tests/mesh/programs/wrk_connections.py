"""Runs wrk, each request on a connection of its own, until so many were made: count, URL."""

from __future__ import annotations

import re
import subprocess
import sys


def main(count: int, url: str) -> None:
    done = 0
    while done < count:
        command = ["wrk", "-t1", "-c16", "-d1", "--timeout", "10", "-H", "Connection: close", url]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(output)
        found = re.search(r"(\d+) requests in", output)
        requests = int(found[1]) if found else 0
        if requests == 0 or "Socket errors" in output or "Non-2xx" in output:
            sys.exit(f"errors:\n{output}")
        done += requests


main(int(sys.argv[1]), sys.argv[2])
