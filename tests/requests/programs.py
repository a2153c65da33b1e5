"""The programs of tests/interop/java and node, each a process that carries out commands."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO
from urllib.parse import parse_qsl, urlencode

from pysidecar.testing.processes import end_process
from tests.interop.servers import plain_environment, program
from tests.waiting import PATIENCE

__all__ = [
    "Answer",
    "Program",
    "dubbo",
    "go_grpc",
    "java_grpc",
    "java_http",
    "node",
    "node_http2",
    "registered_dubbo",
    "running",
    "sofa",
]

_JAVA = Path(__file__).parents[2] / "build" / "java"
_GO = Path(__file__).parents[2] / "build" / "go"
_NODE = Path(__file__).parents[1] / "interop" / "node" / "peer.mjs"
_SOFA_OPTIONS = (
    "--add-opens=java.base/java.lang=ALL-UNNAMED",  # for its Hessian
    "-Dsofa.middleware.log.disable=true",
    # So often that heartbeats are among the calls of every test.
    "-Dbolt.tcp.heartbeat.interval=300",
    # Else it refuses to send where 64 KiB wait already.
    "-Dbolt.netty.buffer.low.watermark=33554432",
    "-Dbolt.netty.buffer.high.watermark=67108864",
)

Answer = dict[str, str]
"""The values of an answer: ``value``, or ``error``, ``message`` and perhaps ``code``."""


class Program:
    """Gives commands, and waits for the answers; the program's source describes them. The first
    ones wait until it has started: so several may be started at once."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._commands: IO[str] = process.stdin
        self._answers: IO[str] = process.stdout
        self._ids = itertools.count()
        self._waiting: dict[str, Future[Answer]] = {"ready": Future()}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._answers:
            answer = dict(parse_qsl(line.rstrip("\n"), keep_blank_values=True))
            self._waiting.pop(answer.pop("id")).set_result(answer)
        for future in self._waiting.values():
            future.set_exception(ConnectionError("the program has ended"))

    def start(self, op: str, **values: str | int) -> Future[Answer]:
        """Gives a command; any number of them may be under way."""
        name = str(next(self._ids))
        future = self._waiting[name] = Future()
        self._commands.write(urlencode({"id": name, "op": op, **values}) + "\n")
        self._commands.flush()
        return future

    def ask(self, op: str, **values: str | int) -> Answer:
        """The answer to a command."""
        return self.start(op, **values).result(2 * PATIENCE)

    def call(self, **values: str | int) -> Answer:
        """The answer to one call, without its duration."""
        answer = self.ask("call", **values)
        answer.pop("ms", None)
        return answer


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    hooked: Mapping[str, str] | None = None,
    prefix: Sequence[str | Path] = (),
) -> Iterator[Program]:
    """Any program that carries out commands; ``prefix`` is one that runs it."""
    with (
        # Whatever they write, logs for one, goes below the home directory.
        tempfile.TemporaryDirectory(prefix="pysidecar-peer-") as home,
        (Path(home) / "stderr").open("wb") as stderr,
        subprocess.Popen(
            [program("setpriv"), "--pdeathsig", "KILL", "--", *prefix, *command],
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=plain_environment(JAVA_TOOL_OPTIONS=f"-Duser.home={home}", **(hooked or {})),
        ) as process,
    ):
        try:
            yield Program(process)
            # Only a test may have killed it.
            assert process.poll() in (None, -signal.SIGKILL), (Path(home) / "stderr").read_text()
        finally:
            # Nothing to clean up, and Dubbo takes three seconds to end in order.
            assert end_process(process, PATIENCE, signal.SIGKILL)


def _java(module: str, main: str, *options: str, beside: Sequence[str] = ()) -> list[str]:
    """``beside``: modules whose libraries it has, too."""
    # Of scripts/archive_java_classes.py. Where one does not fit, the JVM says so and goes without.
    archive = _JAVA / module / "classes.jsa"
    archived = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []
    return [
        *(program("java"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx512m"),
        *(*archived, "-Xlog:disable", "-Xlog:all=warning:stderr"),
        *(*options, "-cp", ":".join(f"{_JAVA}/{each}/lib/*" for each in (module, *beside)), main),
    ]


# `hooked` are the variables that put a program under the hook; `prefix` is a command that runs it.


def sofa(
    hooked: Mapping[str, str] | None = None,
    prefix: Sequence[str | Path] = (),
    *,
    traced: bool = True,
    zookeeper: bool = False,
) -> AbstractContextManager[Program]:
    """SOFARPC and SOFABolt, client and server. Without ``traced``, SOFATracer is off; with
    ``zookeeper``, its registry of that name can be used, which needs the client that Dubbo 2.7
    needs."""
    options = (*_SOFA_OPTIONS, *(() if traced else ("-Ddefault.tracer=",)))
    beside = ("dubbo2",) if zookeeper else ()
    return running(_java("sofa", "peer.Sofa", *options, beside=beside), hooked, prefix)


def dubbo(hooked: Mapping[str, str] | None = None) -> AbstractContextManager[Program]:
    """Dubbo, client and server."""
    return running(_java("dubbo", "peer.Dubbo"), hooked)


def registered_dubbo(
    version: int, prefix: Sequence[str | Path] = ()
) -> AbstractContextManager[Program]:
    """Dubbo 2.7 or 3 with a registry, provider or consumer."""
    module = {2: "dubbo2", 3: "dubbo"}[version]
    opened = "--add-opens=java.base/java.lang=ALL-UNNAMED"
    return running(_java(module, "peer.Registered", opened), prefix=prefix)


def java_http(hooked: Mapping[str, str] | None = None) -> AbstractContextManager[Program]:
    """Java's HTTP client."""
    return running(_java("http", "peer.Http"), hooked)


def java_grpc(hooked: Mapping[str, str] | None = None) -> AbstractContextManager[Program]:
    """Java's gRPC, client and server."""
    return running(_java("grpc", "peer.Grpc"), hooked)


def go_grpc() -> AbstractContextManager[Program]:
    """Go's gRPC, client and server. The hook does not reach it."""
    return running([_GO / "peer"])


def node(hooked: Mapping[str, str] | None = None) -> AbstractContextManager[Program]:
    """Node's HTTP server, and clients."""
    return running([program("node"), str(_NODE)], hooked)


def node_http2(hooked: Mapping[str, str] | None = None) -> AbstractContextManager[Program]:
    """Node's HTTP/2, client and server."""
    return running([program("node"), str(_NODE.with_name("peer2.mjs"))], hooked)
