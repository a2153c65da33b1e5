"""Commands under the connect hook, and the connections that they made."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from pysidecar.address import Address
from pysidecar.testing.sidecar import Connection, wait_until

if TYPE_CHECKING:
    from pysidecar.testing.sidecar import Sidecar

__all__ = ["Hooked", "HookedError", "HookedProcess", "HookedResult"]

SETTLE_TIMEOUT = 20.0  # seconds for the sidecar to close what an ended command left
END_TIMEOUT = 20.0

Argument = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class HookedError(Exception):
    """A command took too long, or failed where ``check`` was asked for; has its output."""


@dataclass(frozen=True, slots=True)
class HookedResult:
    """An ended command.

    ``returncode`` is negative for a signal, as in ``subprocess``. ``connections`` were made by it
    and all of its children.
    """

    args: tuple[Argument, ...]
    returncode: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    connections: tuple[Connection, ...]

    @property
    def stdout(self) -> str:
        """Decoded from UTF-8; what is not UTF-8 is escaped."""
        return self.stdout_bytes.decode(errors="backslashreplace")

    @property
    def stderr(self) -> str:
        """Decoded from UTF-8; what is not UTF-8 is escaped."""
        return self.stderr_bytes.decode(errors="backslashreplace")

    @property
    def connection(self) -> Connection:
        """The only connection. Raises HookedError where there are more or none."""
        if len(self.connections) != 1:
            raise HookedError(f"expected one connection, not {list(self.connections)}")
        return self.connections[0]

    def check(self) -> HookedResult:
        """Itself; raises HookedError with its output where the command failed."""
        if self.returncode != 0:
            raise HookedError(
                f"{self.args} ended with status {self.returncode}\n"
                f"stdout:\n{self.stdout}\nstderr:\n{self.stderr}"
            )
        return self


class HookedProcess:
    """A command that runs under the hook.

    Its connections are told from others by the hook's own log (``MOSNHOOK_LOG``): each command and
    its children have a log of their own, where the hook enters process and destination of each
    connection that it captured, after the fact. So a child that is long gone is known too, whatever
    became of its parents, unless it could not write there (chroot, another user) or set
    ``MOSNHOOK_LOG`` itself.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        directory: Path,
        args: Sequence[Argument],
        *,
        env: Mapping[str, str | None] | None,
        cwd: str | os.PathLike[str] | None,
        input: str | bytes | None,
    ) -> None:
        self.args = tuple(args)
        self._sidecar = sidecar
        self._directory = directory
        self._hook_log = directory / "hook.log"
        # In whole milliseconds, as the sidecar's times are.
        self._started = datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)
        directory.mkdir()
        (directory / "stdin").write_bytes(
            input.encode() if isinstance(input, str) else input or b""
        )
        # Files, not pipes: a pipe would fill up, or be held open by a daemon.
        with (
            (directory / "stdin").open("rb") as stdin,
            (directory / "stdout").open("wb") as stdout,
            (directory / "stderr").open("wb") as stderr,
        ):
            self._process = subprocess.Popen(
                self.args,
                cwd=cwd,
                env=self._environment(env or {}),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def _environment(self, env: Mapping[str, str | None]) -> dict[str, str]:
        merged: dict[str, str | None] = {
            **os.environ,
            **self._sidecar.environment,
            "MOSNHOOK_LOG": str(self._hook_log),
            **env,
        }
        return {name: value for name, value in merged.items() if value is not None}

    @property
    def pid(self) -> int:
        """The command's own process id, which is also its process group and session."""
        return self._process.pid

    @property
    def stdout(self) -> str:
        """What it printed so far."""
        return (self._directory / "stdout").read_text(errors="backslashreplace")

    @property
    def stderr(self) -> str:
        """What it printed so far."""
        return (self._directory / "stderr").read_text(errors="backslashreplace")

    @property
    def hook_log(self) -> str:
        """What the hook logged so far, in the command and its children."""
        try:
            return self._hook_log.read_text(errors="backslashreplace")
        except FileNotFoundError:
            return ""

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        """Sends a signal to the command alone."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Sends SIGTERM to the command alone."""
        self._process.terminate()

    def kill(self) -> None:
        """Kills it and its children, but not those that left its process group (daemons)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout: float = 30.0) -> HookedResult:
        """Waits for its end, at most ``timeout`` seconds; then kills it and raises HookedError.

        The result comes when the connections of its ended processes are closed in the sidecar too.
        """
        try:
            returncode = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise HookedError(
                f"{self.args} still ran after {timeout:g} s\n"
                f"stdout:\n{self.stdout}\nstderr:\n{self.stderr}"
            ) from None
        wait_until(self._settled, SETTLE_TIMEOUT)
        return HookedResult(
            self.args,
            returncode,
            (self._directory / "stdout").read_bytes(),
            (self._directory / "stderr").read_bytes(),
            tuple(self.connections()),
        )

    def connections(self) -> list[Connection]:
        """The connections that it and its children made so far; see `Sidecar.connections`."""
        return list(filter(self._made(), self._sidecar.connections()))

    def wait_for_connection(
        self,
        destination: str | None = None,
        *,
        closed: bool | None = None,
        matching: Callable[[Connection], bool] = lambda connection: True,
        timeout: float = 10.0,
    ) -> Connection:
        """The first of its connections that fits; see `Sidecar.wait_for_connection`."""
        return self._sidecar.wait_for_connection(
            destination,
            closed=closed,
            matching=lambda found: self._made()(found) and matching(found),
            timeout=timeout,
        )

    def _made(self) -> Callable[[Connection], bool]:
        """Tells the connections that it and its children made so far."""
        captures = {(capture.pid, capture.destination) for capture in self._captures()}
        return lambda found: found.time >= self._started and _pid_and_destination(found) in captures

    def _captures(self) -> list[_Capture]:
        return [_Capture.parse(line) for line in _CAPTURED.finditer(self.hook_log)]

    def _settled(self) -> bool:
        """Whether the sidecar knows every connection, and those of ended processes as closed."""
        found = self.connections()
        handed_over = sum(capture.handed_over for capture in self._captures())
        return len(found) >= handed_over and all(
            connection.closed or _is_alive(connection.pid) for connection in found
        )


# The lines of hook/log.c; the command between "]" and the address may have any characters.
_CAPTURED = re.compile(
    r"^mosnhook\[(\d+)\] .*: (\[[0-9a-f:]+\]:\d+|[0-9.]+:\d+) captured: (.+)$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class _Capture:
    pid: int
    destination: Address
    handed_over: bool  # surely known to the sidecar; a connect that failed may be or not

    @classmethod
    def parse(cls, line: re.Match[str]) -> _Capture:
        return cls(int(line[1]), _normal(line[2]), line[3] in ("connected", "in progress"))


def _pid_and_destination(connection: Connection) -> tuple[int | None, Address | None]:
    destination = connection.original_destination
    return connection.pid, None if destination is None else _normal(destination)


def _normal(text: str) -> Address:
    """In the shortest form, without a zone, which the hook's log leaves out."""
    address = Address.parse(text)
    return Address(str(ip_address(address.host.partition("%")[0])), address.port)


class Hooked:
    """Runs commands under the hook, through one sidecar; ends those that still run with it."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._processes: list[HookedProcess] = []

    def popen(
        self,
        args: Sequence[Argument],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        input: str | bytes | None = None,
    ) -> HookedProcess:
        """Starts a command in the background; it is killed at the end of the test.

        ``env`` is laid over this process's environment, None removes a variable; ``input`` is what
        it reads from standard input.
        """
        directory = self._sidecar.directory / f"hooked-{len(self._processes) + 1}"
        process = HookedProcess(self._sidecar, directory, args, env=env, cwd=cwd, input=input)
        self._processes.append(process)
        return process

    def run(
        self,
        args: Sequence[Argument],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        input: str | bytes | None = None,
        timeout: float = 30.0,
        check: bool = False,
    ) -> HookedResult:
        """Runs a command to its end.

        As `popen`; ``timeout`` is in seconds. Raises HookedError when it takes longer, and with
        ``check`` when its exit status is not 0.
        """
        result = self.popen(args, env=env, cwd=cwd, input=input).wait(timeout)
        return result.check() if check else result

    def close(self) -> None:
        """Kills what still runs under the hook through this sidecar, daemons included."""
        for process in self._processes:
            process.kill()
        if not wait_until(self._kill_daemons, END_TIMEOUT):
            raise HookedError("processes under the hook outlive SIGKILL")

    def _kill_daemons(self) -> bool:
        """Kills what left its process group; whether there is nothing left.

        A process under the hook has the page mapped since its first connect, and the page's path in
        its environment unless it wrote over that (as nginx does for its title).
        """
        sidecar = self._sidecar.process
        daemons = [
            pid
            for pid in _processes_with(bytes(self._sidecar.page))
            if sidecar is None or pid != sidecar.pid
        ]
        for pid in daemons:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not daemons


def _is_alive(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()


def _processes_with(page: bytes) -> Iterator[int]:
    """The processes that have the policy page mapped, or named in their environment."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # ended, or not ours
                if any(page in (entry / name).read_bytes() for name in ("maps", "environ")):
                    yield int(entry.name)
