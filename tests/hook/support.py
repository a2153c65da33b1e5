"""Programs that run under the hook, and a server for them."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.hook.reference import Endpoint, Sidecar
from tests.talking import Talking

SOURCES = Path(__file__).parent / "programs"

# The tests of `make test-sanitizers` run with libasan preloaded.
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")

# Documentation addresses (RFC 5737, RFC 3849): there is no way there but through the sidecar.
V4, V6, MAPPED = "192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7"
PORT = 5432

# What a busy machine may add to a time.
SLACK_MS = 5000


class Programs:
    """The C programs, each compiled when first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, name: str, libc: str = "glibc") -> Path:
        output = self._directory / f"{name}-{libc}"
        if not output.exists():
            compiler = {"glibc": "gcc", "musl": "musl-gcc"}[libc]
            options = ["-shared", "-fPIC"] if name == "neighbour" else ["-pthread"]
            subprocess.run(
                [
                    *(compiler, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", *options),
                    *("-o", str(output), str(SOURCES / f"{name}.c")),
                ],
                check=True,
            )
        return output


@dataclass(frozen=True, slots=True)
class Result:
    """What a program printed: ``name=value`` lines by name, and everything else."""

    values: dict[str, str]
    output: str
    errors: str
    status: int

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def number(self, name: str) -> int:
        return int(self.values[name])

    @classmethod
    def parse(cls, output: str, errors: str = "", status: int = 0) -> Result:
        lines = [line.partition("=") for line in output.splitlines() if "=" in line]
        return cls({name: value for name, _, value in lines}, output, errors, status)


@dataclass
class Runner:
    """Starts programs under the hook."""

    library: Path
    programs: Programs
    libc: str = "glibc"
    preload_before: list[Path] = field(default_factory=list)
    preload_after: list[Path] = field(default_factory=list)
    through: list[str] = field(default_factory=list)  # a command that runs the program

    def environment(self, sidecar: Sidecar | None, extra: Mapping[str, str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("MOSNHOOK_") and name not in ("LD_PRELOAD", "XDG_RUNTIME_DIR")
        }
        runtime = [Path(name) for name in os.environ.get("LD_PRELOAD", "").split(":") if name]
        libraries = [*self.preload_before, self.library, *self.preload_after]
        kept["LD_PRELOAD"] = ":".join(map(str, [*runtime, *libraries]))
        if sidecar:
            kept["MOSNHOOK_POLICY"] = str(sidecar.policy_path)
        return {**kept, **extra}

    def start(
        self,
        name: str,
        *arguments: object,
        sidecar: Sidecar | None = None,
        pass_fds: tuple[int, ...] = (),
        **extra: str,
    ) -> subprocess.Popen[str]:
        """``extra`` are variables of the environment."""
        return subprocess.Popen(
            [*self.through, str(self.programs(name, self.libc)), *map(str, arguments)],
            env=self.environment(sidecar, extra),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )

    def __call__(
        self,
        name: str,
        *arguments: object,
        sidecar: Sidecar | None = None,
        timeout: float = 20,
        status: int = 0,
        **extra: str,
    ) -> Result:
        with self.start(name, *arguments, sidecar=sidecar, pass_fds=(), **extra) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == status, (process.returncode, output, errors)
        return Result.parse(output, errors, process.returncode)


class Interactive(Talking):
    """``programs/connect.c`` that connects line by line."""

    def __init__(self, run: Runner, *arguments: str, sidecar: Sidecar | None, **extra: str) -> None:
        super().__init__(run.start("connect", *arguments, sidecar=sidecar, pass_fds=(), **extra))

    def send(self, ip: str = V4, port: int = PORT) -> None:
        self.write(f"{ip} {port}")

    def result(self) -> Result:
        text = ""
        while not text.endswith("done\n"):
            line = self.read()
            assert line, f"ended after {text!r}"
            text += line
        return Result.parse(text)

    def connect(self, ip: str = V4, port: int = PORT) -> Result:
        self.send(ip, port)
        return self.result()


class EchoServer:
    """Sends back what it gets."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=512)
        self.address: Endpoint = self._listener.getsockname()[:2]
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> EchoServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass  # the client aborted
