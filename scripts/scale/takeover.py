"""A whole sidecar whose services a registry tells of: how long until requests go as it says, with a
thousand services of a hundred endpoints, and requests at full rate meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil

from pysidecar.address import Address
from pysidecar.testing import Sidecar
from scripts.bench.processes import accepts, free_port, private_memory, running
from scripts.bench.run import build_load

_SERVICES = 1_000
_ENDPOINTS = 100
_ROUNDS = 5
_CONNECTIONS = 32
_SECONDS = 5
_PATIENCE = 60.0  # seconds
_LOADED = "orders.example"  # what the load generator asks for
_PATH = "/0000000000000000?bytes=100"  # what its server answers


class _Registry:
    """In a thread: takes everything, and tells what it is told to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._subscribed = 0
        self._clients: list[asyncio.StreamWriter] = []

    def __enter__(self) -> Self:
        self._thread.start()
        server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address = Address(*server.sockets[0].getsockname())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while line := await reader.readline():
                request = json.loads(line)
                answer = {"id": request["id"], "ok": True, "timeout": 10.0}
                writer.write(json.dumps(answer).encode() + b"\n")
                if request["do"] == "subscribe":
                    self._subscribed += 1
                    if self._subscribed == 1:
                        self._clients.append(writer)

    def wait(self) -> None:
        """Until all is subscribed."""
        _until(lambda: self._subscribed >= _SERVICES)

    def say(self, lines: bytes) -> None:
        self._loop.call_soon_threadsafe(self._clients[0].write, lines)


def _until(is_so: Any) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit("what was waited for does not come about")
        time.sleep(0.001)


def _push(service: str, addresses: Iterable[str]) -> bytes:
    metadata = {"application": "orders", "serialization": "hessian2", "rpcVer": "51302"}
    told = [{"address": each, "weight": 100, "metadata": metadata} for each in addresses]
    name = {"protocol": "http", "name": service}
    return json.dumps({"service": name, "instances": told}).encode() + b"\n"


def _name(number: int) -> str:
    return _LOADED if number == 0 else f"service-{number}.example"


def _last_two(turn: int) -> tuple[str, str]:
    """That is served in this turn, and that is not."""
    names = [_name(_SERVICES - 2), _name(_SERVICES - 1)]
    return names[turn % 2], names[1 - turn % 2]


def _everything(turn: int, port: int) -> bytes:
    """All services. Those of the load and one of the last two, which are read last, are served."""
    served = (_LOADED, _last_two(turn)[0])
    lines = []
    for number in range(_SERVICES):
        name, where = _name(number), f"10.{turn % 2}.{number >> 8}.{number & 255}"
        if name in served:
            addresses = [f"127.0.{2 + turn % 2}.{n + 1}:{port}" for n in range(_ENDPOINTS)]
        else:
            addresses = [f"{where}:{n + 1}" for n in range(_ENDPOINTS)]
        lines.append(_push(name, [] if name in _last_two(turn)[1:] else addresses))
    return b"".join(lines)


class _Measured:
    def __init__(self, registry: _Registry, sidecar: Sidecar, consumer: Address) -> None:
        self.registry = registry
        self.process = psutil.Process(sidecar.pid)
        self.consumer = consumer

    def is_served(self, service: str) -> bool:
        """Whether a request for it is answered by somebody."""
        client = http.client.HTTPConnection(self.consumer.host, self.consumer.port)
        try:
            client.request("GET", _PATH, headers={"Host": service})
            answer = client.getresponse()
            answer.read()
        finally:
            client.close()
        return answer.status == 200

    def all_at_once(self, turn: int, port: int) -> tuple[float, float]:
        """Seconds until it is applied, and of processor time."""
        lines = _everything(turn, port)
        served, unserved = _last_two(turn)
        cpu, began = self.cpu, time.monotonic()
        self.registry.say(lines)
        _until(lambda: self.is_served(served) and not self.is_served(unserved))
        took = time.monotonic() - began
        time.sleep(0.5)  # what is left of it is done
        return took, self.cpu - cpu

    def one(self, turn: int, port: int) -> float:
        """Seconds from the push of an endpoint until a request is answered by it."""
        service = _name(1)
        self.registry.say(_push(service, []))
        _until(lambda: not self.is_served(service))
        began = time.monotonic()
        self.registry.say(_push(service, [f"127.0.4.{turn + 1}:{port}"]))
        _until(lambda: self.is_served(service))
        return time.monotonic() - began

    @property
    def cpu(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    @property
    def mebibytes(self) -> float:
        return private_memory([self.process]) / (1 << 20)


@contextlib.contextmanager
def _started(directory: Path, load: Path) -> Iterator[tuple[_Measured, int]]:
    port, consumer = free_port(), Address("127.0.0.1", free_port())
    server: list[str | Path] = [load, "serve", "0.0.0.0", str(port)]
    with (
        _Registry() as registry,
        running(
            server, log=directory / "server", ready=lambda: accepts(Address("127.0.0.1", port))
        ),
    ):
        settings = {
            "access_log": "off",
            "takeover": {
                "api": f"127.0.0.1:{free_port()}",
                "consumer": str(consumer),
                "provider": f"127.0.0.1:{free_port()}",
                "state": str(directory / "state.json"),
                "subscribe": [
                    {"service": _name(number), "protocol": "http"} for number in range(_SERVICES)
                ],
            },
            "registry": {"type": "embedded", "address": str(registry.address)},
        }
        with Sidecar(settings) as sidecar:
            registry.wait()
            yield _Measured(registry, sidecar, consumer), port


def _rate(load: Path, consumer: Address, meanwhile: Any = None) -> float:
    """Requests a second."""
    words = [consumer.host, consumer.port, 1, _SECONDS, _CONNECTIONS, 1, 100]
    process = subprocess.Popen([load, "http", *map(str, words)], stdout=subprocess.PIPE)
    while meanwhile is not None and process.poll() is None:
        meanwhile()
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"requests failed: {output.decode()}")
    result = json.loads(output.splitlines()[-1])
    return float(result["amount"] / result["seconds"])


def measure() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        load = build_load(Path(name))
        measured, port = stack.enter_context(_started(Path(name), load))
        memory = measured.mebibytes
        first = measured.all_at_once(0, port)
        pushes = [measured.all_at_once(turn, port) for turn in range(1, _ROUNDS + 1)]
        ones = [measured.one(turn, port) for turn in range(_ROUNDS)]
        print(
            f"  {_SERVICES:,} services with {_ENDPOINTS} endpoints each: "
            f"{measured.mebibytes - memory:.0f} MiB. Requests go as was pushed, of all at once: "
            f"after {first[0]:.2f} s and {first[1]:.2f} s of processor time the first time, later "
            f"{statistics.median(took for took, _ in pushes):.2f} s and "
            f"{statistics.median(cpu for _, cpu in pushes):.2f} s; of one: "
            f"after {statistics.median(ones) * 1e3:.0f} ms, {max(ones) * 1e3:.0f} at most",
            flush=True,
        )
        _measure_loaded(measured, port, load)


def _measure_loaded(measured: _Measured, port: int, load: Path) -> None:
    rates: list[float] = []
    ones: list[float] = []
    pushes: list[float] = []

    def change() -> None:
        ones.append(measured.one(len(ones) % _ENDPOINTS, port))

    def push_all() -> None:
        pushes.append(measured.all_at_once(len(pushes) + 1, port)[0])
        time.sleep(0.5)

    for meanwhile in (None, change, push_all):
        rates.append(_rate(load, measured.consumer, meanwhile))
    print(
        f"  with requests at full rate: {rates[0]:,.0f} a second in peace; {rates[1]:,.0f} while "
        f"one service after the other changes, which is there after "
        f"{statistics.median(ones) * 1e3:.0f} ms, {max(ones) * 1e3:.0f} at most; {rates[2]:,.0f} "
        f"while all change each second, which is there after {statistics.median(pushes):.2f} s, "
        f"{max(pushes):.2f} at most",
        flush=True,
    )
