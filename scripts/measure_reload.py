"""How long a reload takes, from SIGHUP to the new routes, and for how long the admin interface was
silent at most meanwhile. ``python -m scripts.measure_reload [ROUTES | services=COUNT …]``, or
``make bench-reload``. Each service has a rule and an endpoint.
"""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pysidecar.address import Address

_ROUNDS = 5


def _write(
    config: Path, directory: str, admin: Address, kind: str, count: int, round_: int
) -> None:
    lines = [
        f"admin: {{listen: '{admin}'}}",
        f"access_log: {{path: {directory}/access.jsonl}}",
        "outbound:",
        "  listen: [127.0.0.1:0]",
        f"  control_socket: {directory}/hook.sock",
    ]
    lines += _services(count, round_) if kind == "services" else _routes(count, round_)
    config.write_text("\n".join(lines) + "\n")


def _routes(count: int, round_: int) -> list[str]:
    lines = ["  routes:"]
    for number in range(count):
        network = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        lines += [
            f"    - match: {{destination: {network}, ports: {1 + number % 60000}}}",
            f"      endpoints: [127.0.0.{2 + round_}:{1 + number % 60000}]",
        ]
    return lines


def _services(count: int, round_: int) -> list[str]:
    lines = ["services:"]
    for number in range(count):
        port = 1 + number % 60000
        lines += [
            f"  service-{number}:",
            "    protocol: http",
            f"    endpoints: [127.0.0.{2 + round_}:{port}]",
        ]
    lines += ["requests:"]
    for number in range(count):
        lines += [
            f"  - match: {{host: service-{number}.example}}",
            f"    services: service-{number}",
        ]
    return lines


class _Admin:
    def __init__(self, address: Address) -> None:
        self._address = address
        self.longest = 0.0

    def get(self, path: str) -> str:
        start = time.monotonic()
        connection = http.client.HTTPConnection(self._address.host, self._address.port)
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        self.longest = max(self.longest, time.monotonic() - start)
        return text


def _reloads(log: Path) -> int:
    """So far. Not from ``/metrics``, whose answer grows with what is configured."""
    return log.read_text().count(" reloaded ")


def _measure(kind: str, count: int) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.create_server(("127.0.0.1", 0)) as probe,
    ):
        address = Address(*probe.getsockname())
        probe.close()
        config, log = Path(directory, "sidecar.yaml"), Path(directory, "sidecar.log")
        _write(config, directory, address, kind, count, 0)
        with (
            log.open("wb") as errors,
            subprocess.Popen(
                [sys.executable, "-m", "pysidecar", "run", "-c", config, "--until-stdin-ends"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            ) as process,
        ):
            try:
                admin = _Admin(address)
                _wait_until_it_answers(admin, process)
                for round_ in range(1, _ROUNDS + 1):
                    _write(config, directory, address, kind, count, round_)
                    before = _reloads(log)
                    admin.longest = 0.0
                    start = time.monotonic()
                    process.send_signal(signal.SIGHUP)
                    checked = start
                    while True:
                        admin.get("/ready")
                        now = time.monotonic()
                        if now - checked > 0.01:
                            checked = now
                            if _reloads(log) != before:
                                break
                    took = time.monotonic() - start
                    print(
                        f"{count:,} {kind}: {took:.2f} s, silent for {admin.longest * 1000:.0f} ms "
                        "at most",
                        flush=True,
                    )
            finally:
                process.kill()


def _wait_until_it_answers(admin: _Admin, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            admin.get("/ready")
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("the sidecar did not start")


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["5000", "50000", "services=10000"]:
        kind, _, count = argument.rpartition("=")
        _measure(kind or "routes", int(count))
