"""Loads HTTP/2 with nghttp2's own h2load, and reads what it found."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pysidecar.address import Address
from scripts.bench.processes import BenchError, find_program, plain_environment, wrapped

__all__ = ["BODY", "Counted", "h2load"]

BODY = 100
"""Bytes of each answer, and of each call of gRPC: what the load's server has (load.h)."""

_STARTUP = 20.0  # seconds that it may take beside what it is asked to do
_MOST_SECONDS = 10.0
_CALL = bytes(4) + bytes([BODY - 5]) + b"x" * (BODY - 5)
_FOUND = re.compile(
    r"finished in (?P<time>[\d.]+)(?P<unit>m?s), .*?"
    r"(?P<done>\d+) done, (?P<succeeded>\d+) succeeded, (?P<failed>\d+) failed, "
    r"(?P<errored>\d+) errored, (?P<timeout>\d+) timeout\n"
    r"status codes: (?P<good>\d+) 2xx.*?"
    r"\((?P<data>\d+)\) data",
    re.S,
)


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests that were answered, and the time that it took."""

    requests: int
    seconds: float


def h2load(address: Address, connections: int, streams: int, seconds: float, path: str) -> Counted:
    """Connections with so many streams each, by prior knowledge; with a path of gRPC, calls.

    Takes longer where nothing was answered in that time, as on a machine that has no time for it.
    """
    while not (counted := _run(address, connections, streams, seconds, path)).requests:
        seconds *= 2
        if seconds > _MOST_SECONDS:
            raise BenchError("h2load: no answer")
    return counted


def _run(address: Address, connections: int, streams: int, seconds: float, path: str) -> Counted:
    command = [
        *(find_program("h2load"), "-c", str(connections), "-m", str(streams)),
        *("-D", f"{round(seconds * 1000)}ms", f"http://{address}{path}"),
    ]
    with tempfile.TemporaryDirectory() as directory:
        if path.startswith("/com."):
            call = Path(directory, "call")
            call.write_bytes(_CALL)
            command += ["-d", str(call), "-H", "content-type: application/grpc"]
            command += ["-H", "te: trailers"]
        try:
            done = subprocess.run(
                wrapped(command),
                env=plain_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds + _STARTUP,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise BenchError("h2load did not end in time") from None
    return _counted(done.stdout, done.stderr)


def _counted(output: str, errors: str) -> Counted:
    """An answer that lacks its status or its body (as a failed call of gRPC does) is an error."""
    found = _FOUND.search(output)
    if found is None:
        raise BenchError(f"h2load: {(output + errors).strip()[-300:] or 'without a word'}")
    requests = int(found["succeeded"])
    if any(int(found[name]) for name in ("failed", "errored", "timeout")):
        raise BenchError(f"h2load: {found[0].splitlines()[-3]}")
    if int(found["good"]) < requests or int(found["data"]) < requests * BODY:
        raise BenchError(f"h2load: {requests} answers, of which not all have status and body")
    seconds = float(found["time"]) / (1000 if found["unit"] == "ms" else 1)
    return Counted(requests, seconds)
