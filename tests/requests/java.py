"""The Java programs of tests/interop/java, each a process that carries out commands."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import IO
from urllib.parse import parse_qsl, urlencode

from pysidecar.testing.processes import end_process
from tests.interop.servers import plain_environment, program
from tests.waiting import PATIENCE

__all__ = ["Answer", "Java", "dubbo", "http", "sofa"]

_BUILT = Path(__file__).parents[2] / "build" / "java"
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


class Java:
    """A Java program. Commands and answers are described in its main class."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._commands: IO[str] = process.stdin
        self._answers: IO[str] = process.stdout
        self._ids = itertools.count()
        self._waiting: dict[str, Future[Answer]] = {"ready": Future()}
        ready = self._waiting["ready"]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        ready.result(PATIENCE)

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
def _running(
    module: str, main: str, *options: str, hooked: Mapping[str, str] | None
) -> Iterator[Java]:
    command = [
        *(program("setpriv"), "--pdeathsig", "KILL", "--", program("java")),
        *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx512m"),
    ]
    with (
        # Whatever they write, logs for one, goes below the home directory.
        tempfile.TemporaryDirectory(prefix="pysidecar-java-") as home,
        (Path(home) / "stderr").open("wb") as stderr,
    ):
        command += [f"-Duser.home={home}", *options, "-cp", f"{_BUILT}/{module}/lib/*", main]
        with subprocess.Popen(
            command,
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=plain_environment(**(hooked or {})),
        ) as process:
            try:
                yield Java(process)
            finally:
                # Nothing to clean up, and Dubbo takes three seconds to end in order.
                assert end_process(process, PATIENCE, signal.SIGKILL)


def sofa(hooked: Mapping[str, str] | None = None) -> contextlib.AbstractContextManager[Java]:
    """SOFARPC and SOFABolt. ``hooked`` are the variables that put it under the hook."""
    return _running("sofa", "peer.Sofa", *_SOFA_OPTIONS, hooked=hooked)


def dubbo(hooked: Mapping[str, str] | None = None) -> contextlib.AbstractContextManager[Java]:
    """Dubbo."""
    return _running("dubbo", "peer.Dubbo", hooked=hooked)


def http(hooked: Mapping[str, str] | None = None) -> contextlib.AbstractContextManager[Java]:
    """Java's HTTP client."""
    return _running("http", "peer.Http", hooked=hooked)
