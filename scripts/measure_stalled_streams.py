"""What clients of HTTP/2 that take nothing cost, and what others notice of one: another user
(65534, where this runs as root) opens connections with a window of zero, as many streams on each,
and asks for an answer on each stream. Prints the memory of a stream, how many were refused, and
what h2load, as our own user, measures before and meanwhile.
``python -m scripts.measure_stalled_streams [CONNECTIONS [STREAMS [BYTES]]]``, such as
``400 200 2000``. An nghttpd answers, a sidecar with two workers is in between.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from hpack import Encoder
from hyperframe.frame import HeadersFrame, PingFrame, SettingsFrame

from pysidecar.address import Address
from pysidecar.testing import Sidecar
from pysidecar.testing.sidecar import wait_until
from scripts.bench.processes import accepts, find_program, free_port

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_NOBODY = 65534
_REQUESTS = 5000


@contextlib.contextmanager
def _server(directory: Path, size: int) -> Iterator[int]:
    (directory / "answer").write_bytes(b"x" * size)
    (directory / "index.html").write_bytes(b"x")
    port = free_port()
    command = [find_program("nghttpd"), "--no-tls", "-n1", "-a", "127.0.0.1", "-d", str(directory)]
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: accepts(Address("127.0.0.1", port)), 60)
        yield port
    finally:
        process.terminate()
        process.wait()


def _stall(port: int, connections: int, streams: int) -> None:
    """In a process of its own: says how many connections it has, and keeps them until its end."""
    if os.geteuid() == 0:
        os.setuid(_NOBODY)
    settings = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0})
    ack = SettingsFrame(0, flags=["ACK"])
    fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/answer")]
    first, again = (lambda encoder: (encoder.encode(fields), encoder.encode(fields)))(Encoder())
    heads = b"".join(
        HeadersFrame(
            2 * at + 1, again if at else first, flags=["END_HEADERS", "END_STREAM"]
        ).serialize()
        for at in range(streams)
    )
    hello = _PREFACE + settings.serialize() + ack.serialize() + heads
    ping = PingFrame(0, opaque_data=b"12345678").serialize()
    kept = []
    for _ in range(connections):
        try:
            sock = socket.socket()
            sock.connect(("127.0.0.1", port))
            sock.sendall(hello)
            sock.setblocking(False)
        except OSError:
            break
        kept.append(sock)
    print(len(kept), flush=True)
    while True:
        for sock in kept:
            with contextlib.suppress(OSError):
                sock.send(ping)
                sock.recv(1 << 16)
        time.sleep(5)


def _load(port: int) -> str:
    command = ["h2load", f"-n{_REQUESTS}", "-c10", "-m10", f"http://127.0.0.1:{port}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^(?:finished|time for request|requests:).*", done, re.MULTILINE)
    return "\n    ".join(lines)


def _metric(sidecar: Sidecar, name: str) -> float:
    url = f"http://{sidecar.admin}/metrics"
    with urllib.request.urlopen(url) as answer:
        found = re.search(rf"^{name} (\S+)", answer.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])


def _measure(directory: Path, connections: int, streams: int, size: int) -> None:
    port = free_port()
    with _server(directory, size) as upstream:
        config = {
            "workers": 2,
            "services": {"web": {"protocol": "http2", "endpoints": [f"127.0.0.1:{upstream}"]}},
            "listeners": [{"listen": f"127.0.0.1:{port}", "protocol": "http2", "service": "web"}],
            "access_log": {"mode": "off"},
        }
        with Sidecar(config) as sidecar:
            process = psutil.Process(sidecar.pid)
            print(f"before:\n    {_load(port)}")
            before = process.memory_info().rss
            command = [sys.executable, "-m", "scripts.measure_stalled_streams", "--stall"]
            attacker = subprocess.Popen(
                [*command, str(port), str(connections), str(streams)],
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                assert attacker.stdout
                got = int(attacker.stdout.readline())
                while process.cpu_percent(1) > 10:
                    pass
                refused = _metric(sidecar, "pysidecar_http2_streams_refused_total")
                grown = process.memory_info().rss - before
                held = got * streams - refused
                print(f"{got} connections of {streams} streams, {refused:.0f} refused:")
                print(f"    {grown / 2**20:.0f} MiB, {grown / max(1, held):.0f} bytes a stream")
                print(f"meanwhile:\n    {_load(port)}")
            finally:
                attacker.kill()
                attacker.wait()


def main(arguments: list[str]) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if arguments[:1] == ["--stall"]:
        _stall(*map(int, arguments[1:]))
        return
    numbers = [*map(int, arguments), *(400, 200, 2000)[len(arguments) :]]
    with tempfile.TemporaryDirectory() as directory:
        _measure(Path(directory), *numbers)


if __name__ == "__main__":
    main(sys.argv[1:])
