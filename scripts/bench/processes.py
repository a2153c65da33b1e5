"""The processes of a benchmark: started, found ready, measured, and stopped for certain."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pysidecar.address import Address
from pysidecar.interception.rules.namespace import inside
from pysidecar.testing.processes import end_process

__all__ = [
    "BenchError",
    "KernelMemory",
    "accepts",
    "cpu_seconds",
    "family",
    "find_program",
    "free_port",
    "kernel_memory",
    "namespace",
    "plain_environment",
    "private_memory",
    "running",
    "wait_until_idle",
    "wrapped",
]

PATIENCE = 20.0  # seconds until what ought to happen at once is taken as never happening
_IDLE_FOR = 0.05  # seconds without CPU time, which is counted by hundredths
_AFTERMATH = 5.0  # seconds in which a proxy has to be done with what its turn left
UNPRIVILEGED = "nobody"
_PROGRAM_PATH = (
    f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin:"
    f"{Path(sys.executable).parent}"  # where packages of Python have theirs
)
# Below the ports that the kernel gives to clients, so that none of them takes one of a server.
_PORTS = range(20000, 32000)
_NAMESPACE_PREFIX = "pysidecar-bench-"

Command = Sequence[str | Path]


class BenchError(Exception):
    """Why something cannot be measured; the text is for the user."""


def find_program(name: str) -> str:
    """The path of an installed program."""
    path = shutil.which(name, path=_PROGRAM_PATH)
    if path is None:
        raise BenchError(f"{name} is not installed; scripts/set_up.py --bench installs it")
    return path


def free_port() -> int:
    """A TCP port that is free on every IPv4 address now."""
    while True:
        port = random.choice(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("0.0.0.0", port)):
            return port


def accepts(address: Address, netns: str | None = None) -> bool:
    """Whether something takes connections there."""

    def attempt() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((address.host, address.port), timeout=1).close()
            return True
        return False

    return inside(netns, attempt)


def plain_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without any hook that this process itself may run under."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "LD_PRELOAD" and not name.startswith("MOSNHOOK_")
    }
    return {**kept, **(more or {})}


def wrapped(
    command: Command, *, netns: str | None = None, unprivileged: bool = False
) -> list[str | Path]:
    """The command that runs `command` there; it ends with this process, however that ends."""
    wrapper: list[str | Path] = []
    if netns is not None:
        wrapper += [find_program("ip"), "netns", "exec", netns]
    wrapper += [find_program("setpriv"), "--pdeathsig", "TERM"]
    if unprivileged:
        group = str(pwd.getpwnam(UNPRIVILEGED).pw_gid)
        wrapper += ["--reuid", UNPRIVILEGED, "--regid", group, "--clear-groups"]
    return [*wrapper, "--", *command]


@contextlib.contextmanager
def running(
    command: Command,
    *,
    log: Path,
    ready: Callable[[], bool],
    netns: str | None = None,
    unprivileged: bool = False,
) -> Iterator[psutil.Process]:
    """A server, from when it is ready until the end of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            wrapped(command, netns=netns, unprivileged=unprivileged),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=plain_environment(),
            start_new_session=True,  # ^C is for this process, which then stops all in order
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                ended = process.returncode is not None
                raise BenchError(
                    f"{command[0]} {'ended' if ended else 'did not become ready'}:\n"
                    f"{log.read_text(errors='replace')}"
                )
            time.sleep(0.01)
        yield psutil.Process(process.pid)
    finally:
        end_process(process, PATIENCE)


# ---- What they use ----


def family(process: psutil.Process, workers: int = 0) -> tuple[psutil.Process, ...]:
    """A process and all of its children, once there are so many workers among them: nginx listens
    before it has any."""
    deadline = time.monotonic() + PATIENCE
    while len(children := process.children(recursive=True)) < workers:
        if time.monotonic() > deadline:
            raise BenchError(f"{process.name()} has {len(children)} workers instead of {workers}")
        time.sleep(0.01)
    return (process, *children)


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """CPU time that they used so far, user and system."""
    times = [process.cpu_times() for process in processes]
    return float(sum(each.user + each.system for each in times))


def wait_until_idle(processes: Sequence[psutil.Process]) -> None:
    """Until they use no CPU: whoever does after its turn is in the numbers of all others."""
    deadline = time.monotonic() + _AFTERMATH
    used = cpu_seconds(processes)
    while time.monotonic() < deadline:
        time.sleep(_IDLE_FOR)
        before, used = used, cpu_seconds(processes)
        if used == before:
            return
    raise BenchError(f"{processes[0].name()} was still busy {_AFTERMATH:g} s after its turn")


def private_memory(processes: Iterable[psutil.Process]) -> int:
    """Bytes of user memory that are theirs alone: what would be free without them."""
    rollups = [Path(f"/proc/{process.pid}/smaps_rollup").read_text() for process in processes]
    found = [re.findall(r"^Private_\w+:\s+(\d+) kB$", rollup, re.M) for rollup in rollups]
    return 1024 * sum(int(kilobytes) for each in found for kilobytes in each)


@dataclass(frozen=True, slots=True)
class KernelMemory:
    """Bytes of the whole machine: so what else happens on it is in there, too."""

    sockets: int
    """What is in the buffers of TCP sockets, as /proc/net/sockstat says."""
    other: int
    """Slabs (sockets, files, epoll entries, conntrack), stacks of threads, and page tables."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.sockets + self.other


def kernel_memory() -> KernelMemory:
    """What the kernel uses for processes and connections now."""
    sockstat = re.search(r"^TCP:.* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.M)
    assert sockstat is not None
    meminfo = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.M))
    return KernelMemory(
        sockets=int(sockstat[1]) * os.sysconf("SC_PAGE_SIZE"),
        other=1024 * sum(int(meminfo[name]) for name in ("Slab", "KernelStack", "PageTables")),
    )


# ---- Network namespaces ----


@contextlib.contextmanager
def namespace(address: str) -> Iterator[str]:
    """A network namespace with `address` on its loopback; needs root."""
    _remove_stale_namespaces()
    name = f"{_NAMESPACE_PREFIX}{os.getpid()}-{random.randrange(1 << 20)}"
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "address", "add", f"{address}/32", "dev", "lo")

        def reuse_ports() -> None:
            # By default the kernel reuses ports of connections that just ended on 127.0.0.0/8 only;
            # this address is no less local.
            Path("/proc/sys/net/ipv4/tcp_tw_reuse").write_text("1")

        inside(name, reuse_ports)
        yield name
    finally:
        _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    done = subprocess.run([find_program("ip"), *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _remove_stale_namespaces() -> None:
    """Those of a benchmark that was killed."""
    for path in Path("/run/netns").glob(f"{_NAMESPACE_PREFIX}*"):
        owner = int(path.name.removeprefix(_NAMESPACE_PREFIX).split("-")[0])
        if not psutil.pid_exists(owner):
            _ip("netns", "delete", path.name)
