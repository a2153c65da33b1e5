"""Streams that check themselves, through a sidecar that accelerates them."""

from __future__ import annotations

import ast
import http.client
import json
import random
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from pysidecar.testing import Sidecar
from tests.interop.servers import free_port, plain_environment
from tests.waiting import eventually

V4, V6, MAPPED = "192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7"
"""Documentation addresses (RFC 5737, RFC 3849): there is no way there but through the sidecar."""
CLIENT_FIRST, SERVER_FIRST = 7001, 7002
"""Ports: who speaks first there."""
NEVER = 2**32 - 1
SLOTS = 16384
"""The default: connections that are accelerated at a time."""
AT_ONCE = {"after_bytes": 0, "after_round_trips": 0}
EACH_TRANSPORT_AND_PATH = pytest.mark.parametrize(
    ("transport", "path"),
    [
        ("unix", "full"),
        ("header", "local"),
        pytest.param("unix", "local", marks=pytest.mark.soak),
        pytest.param("header", "full", marks=pytest.mark.soak),
    ],
)
"""Each of them; the combinations that are left are for `make soak`."""
PORT = 7003
"""Where an ``Application`` connects to."""
_PATIENCE = 10.0


def compile_program(source: Path, directory: Path) -> Path:
    output = directory / source.stem
    command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run([*command, "-o", output, source], check=True)
    return output


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one connection, as one end of it saw it; see ``traffic.c``."""

    port: int
    sent: int
    received: int
    result: str
    detail: str


class Running:
    """A `traffic` process and what it printed."""

    def __init__(self, command: list[str | Path], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env=plain_environment(**environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> list[str]:
        return [
            line.rstrip("\n")
            for line in self._log.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]

    @property
    def lines(self) -> list[Line]:
        found = []
        for text in self.output:
            words = text.split(" ", 4)
            if words[0].isdecimal():
                port, sent, received = map(int, words[:3])
                found.append(Line(port, sent, received, words[3], words[4]))
            else:
                assert words[0] == "stopped", text
        return found

    @property
    def stopped(self) -> int:
        """How many readers began their stop so far."""
        return sum(text.startswith("stopped ") for text in self.output)

    def wait(self, patience: float = 60.0) -> list[Line]:
        """Until it ends by itself; what it found."""
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"still runs after {patience:g} s:\n{self._tail()}") from None
        assert status == 0, self._tail()
        return self.lines

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _tail(self) -> str:
        return "\n".join(self.output[-20:])


@dataclass
class Server:
    """The far end of all streams, without a hook."""

    program: Path
    log: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    server_first: int = field(default_factory=free_port)

    def __enter__(self) -> Server:
        command: list[str | Path] = [self.program, "serve", "way=edge", "ip=127.0.0.1", "ip=::1"]
        command += [f"port={self.port}", f"server_first={self.server_first}", "abort=10", "pause=2"]
        command += ["down=400000", "seed=1", *self.options]
        self.running = Running(command, self.log, {})
        eventually(self._listens, "the server listens")
        return self

    def __exit__(self, *_: object) -> None:
        self.running.end()

    def _listens(self) -> bool:
        assert self.running.process.poll() is None, self.log.read_text()
        state = subprocess.run(
            ["ss", "-Hltn", f"sport = :{self.server_first}"], capture_output=True, text=True
        )
        return state.stdout.count("LISTEN") == 2

    @property
    def routes(self) -> list[dict[str, Any]]:
        table = []
        for ip, here in ((V4, "127.0.0.1"), (V6, "[::1]")):
            for port, local in ((CLIENT_FIRST, self.port), (SERVER_FIRST, self.server_first)):
                match = {"destination": ip, "ports": [port]}
                table.append({"match": match, "endpoints": [f"{here}:{local}"]})
        return table

    def wait(self, complete: int) -> list[Line]:
        """Until so many connections are complete here; what it saw of them and others."""

        def found() -> int:
            return sum(line.result == "complete" for line in self.running.lines)

        eventually(lambda: found() >= complete, lambda: f"{complete} are complete: {found()} are")
        return self.running.lines


@dataclass
class Mesh:
    """A sidecar between clients and the server."""

    sidecar: Sidecar
    server: Server
    directory: Path
    clients: list[Running] = field(default_factory=list)

    def start(self, *to: str, **options: object) -> Running:
        """A client under the hook; `to` as in ``traffic.c``."""
        words = [f"to={target}" for target in to]
        words += [f"{name}={value}" for name, value in options.items()]
        log = self.directory / f"client-{time.monotonic_ns()}"
        client = Running([self.server.program, "run", *words], log, self.sidecar.environment)
        self.clients.append(client)
        return client

    def run(self, *to: str, **options: object) -> list[Line]:
        return self.start(*to, **options).wait()

    def log(self, count: int) -> list[dict[str, Any]]:
        """The access log, when it has so many lines."""

        def written() -> bool:
            return self.sidecar.access_log.count("\n") >= count

        eventually(written, lambda: f"{count} are logged: {self.sidecar.access_log.count(chr(10))}")
        return [json.loads(line) for line in self.sidecar.access_log.splitlines()]

    def end(self) -> None:
        for client in self.clients:
            client.end()


@contextmanager
def mesh(
    server: Server,
    directory: Path,
    *,
    transport: str = "unix",
    path: str = "full",
    drain_timeout: str = "2s",
    **more: Any,
) -> Iterator[Mesh]:
    """`more`: after_bytes, after_round_trips and connections, or settings of ``outbound``."""
    acceleration = {"mode": "require", "path": path, "receive": True, "blocking_sockets": True}
    acceleration |= AT_ONCE
    acceleration["connections"] = SLOTS
    outbound: dict[str, Any] = {"transport": transport, "routes": server.routes}
    for name, value in more.items():
        (acceleration if name in acceleration else outbound)[name] = value
    settings = {"outbound": outbound, "acceleration": acceleration, "drain_timeout": drain_timeout}
    with Sidecar(settings) as sidecar:
        made = Mesh(sidecar, server, directory)
        try:
            yield made
        finally:
            made.end()


def check(lines: list[Line]) -> Counter[str]:
    """Fails when a connection failed; else how many ended how."""
    failed = [line for line in lines if line.result == "failed"]
    assert not failed, "\n".join(map(str, failed))
    return Counter(line.result for line in lines)


def _bpftool(*words: str) -> list[dict[str, Any]]:
    done = subprocess.run(["bpftool", "-j", *words], capture_output=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _maps_of_records(slots: int) -> set[int]:
    return {
        one["id"]
        for one in _bpftool("map", "list")
        if one.get("name") == "records" and one["max_entries"] == slots
    }


def some_slots() -> int:
    """A number of slots that no other sidecar has, so that its BPF objects can be found by it."""
    return random.randint(4_000, 9_999)


def records(slots: int) -> list[dict[str, Any]]:
    """What the programs of the sidecar with so many slots know of its connections: see record.h."""
    (number,) = _maps_of_records(slots)
    dumped = _bpftool("map", "dump", "id", str(number))
    return [entry["formatted"]["value"] for entry in dumped]


def windows(slots: int) -> list[int]:
    """How much may be redirected for each connection."""
    return [record["window"] for record in records(slots) if record["id"]]


def kernel_objects(slots: int) -> set[tuple[str, int]]:
    """BPF maps and programs of the sidecar with so many slots."""
    maps = _maps_of_records(slots)
    programs = {one["id"] for one in _bpftool("prog", "list") if maps & {*one.get("map_ids", [])}}
    return {("map", number) for number in maps} | {("prog", number) for number in programs}


class CallError(Exception):
    """A call of the application failed; the text is the errno's name."""


class Application:
    """A process with a connection `s`, and `far`, the server's end of it."""

    def __init__(
        self,
        listener: socket.socket,
        environment: Mapping[str, str],
        destination: tuple[str, int],
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("application.py")],
            env=plain_environment(**environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        family = "AF_INET6" if ":" in destination[0] else "AF_INET"
        self(f"s = socket.socket(socket.{family})")
        self(f"s.connect({destination!r})")
        listener.settimeout(_PATIENCE)
        self.far = listener.accept()[0]
        self.far.settimeout(_PATIENCE)

    def begin(self, code: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()

    def answers(self, seconds: float) -> bool:
        """Whether the call that began ends within this time."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def end(self) -> Any:
        assert self._process.stdout is not None
        assert self.answers(_PATIENCE), "hangs"
        kind, value = json.loads(self._process.stdout.readline())
        if kind == "error":
            raise CallError(value)
        return ast.literal_eval(value)

    def __call__(self, code: str) -> Any:
        self.begin(code)
        return self.end()

    def exchange(self, count: int = 3) -> None:
        """Some messages there and back: a hooked one's data is redirected afterwards, if any is."""
        for number in range(count):
            question, answer = b"question %d" % number, b"answer %d" % number
            self(f"s.sendall({question!r})")
            assert receive(self.far, len(question)) == question
            self.far.sendall(answer)
            self(f"select.select([s], [], [], {_PATIENCE})[0] != []")
            assert self(f"s.recv({len(answer)})") == answer

    def deliver(self, data: bytes) -> None:
        """The server's data is there for the application to read."""
        self.far.sendall(data)
        self(f"select.select([s], [], [], {_PATIENCE})[0] != []")

    def close(self) -> None:
        self.far.close()
        self._process.kill()
        self._process.communicate()


class HookedApplication(Application):
    """One under the hook."""

    def __init__(self, sidecar: Sidecar, listener: socket.socket, ip: str = V4) -> None:
        self.sidecar = sidecar
        super().__init__(listener, sidecar.environment, (ip, PORT))

    @property
    def path(self) -> str:
        return self.sidecar.wait_for_connection(pid=self._process.pid).path

    def wait_for_path(self, path: str) -> None:
        eventually(lambda: self.path == path, lambda: f"{self.path} becomes {path}")


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, f"ends after {data!r}"
        data += part
    return data


class Trace:
    """What happens to connections of a sidecar, from now on."""

    def __init__(self, sidecar: Sidecar) -> None:
        admin = sidecar.admin
        self._client = http.client.HTTPConnection(admin.host, admin.port, timeout=_PATIENCE)
        self._client.request("GET", "/debug/trace")
        self._answer = self._client.getresponse()

    def find(self, station: str) -> dict[str, Any]:
        """The next event there."""
        while True:
            line = self._answer.readline()
            assert line, f"ends without {station}"
            event: dict[str, Any] = json.loads(line) if line.strip() else {}
            if event.get("station") == station:
                return event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
