"""What a side of the benchmark is, and how direct connections and our own sides are started."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
import yaml

from pysidecar.address import Address
from pysidecar.config import ConfigError, parse
from pysidecar.testing import Sidecar
from scripts.bench.processes import BenchError, accepts, family, find_program, free_port, running

__all__ = [
    "EVERY_LOAD",
    "SPARE_FILES",
    "Kind",
    "Load",
    "Ours",
    "Proxy",
    "Side",
    "Site",
    "Way",
    "beside",
    "cpus",
    "direct",
    "ours",
]

SPARE_FILES = 4096
"""Descriptors that a proxy may need beside the two of each connection: pipes, mostly."""


class Kind(StrEnum):
    """Whose a side is."""

    DIRECT = "direct"
    OURS = "ours"
    PEER = "peer"


class Load(StrEnum):
    """What a scenario sends: bytes of which nobody knows what they mean, or requests."""

    BYTES = "bytes"
    HTTP = "http"
    BOLT = "bolt"
    DUBBO = "dubbo"
    HTTP2 = "http2"
    GRPC = "grpc"
    HTTP2_TO_HTTP = "http2-http"
    """HTTP/2 of the client, and HTTP/1.1 to the server."""


EVERY_LOAD = frozenset(Load)


@dataclass(frozen=True, slots=True)
class Way:
    """A started side: how a client gets through it, and who works for that."""

    destination: Address
    server: psutil.Process
    environment: Mapping[str, str] = field(default_factory=dict)
    wrapper: tuple[str | Path, ...] = ()
    netns: str | None = None
    proxies: tuple[psutil.Process, ...] = ()
    by_load: Mapping[Load, Address] = field(default_factory=dict)
    """Where requests of a protocol go that is told by where they go."""

    def address(self, load: Load) -> Address:
        """Where a client connects to."""
        return self.by_load.get(load, self.destination)


@dataclass(frozen=True, slots=True)
class Site:
    """Where sides are started: a directory for their files, and what they have to be ready for."""

    directory: Path
    load: Path
    """The load generator's program."""
    connections: int
    """That a proxy has to carry at one time."""
    files: int
    """Descriptors that a process here may have."""
    memory_matters: bool = False
    """Whether it is about the memory of idle connections, not about speed."""

    def new_directory(self, name: str) -> Path:
        """A directory of its own, which other users can enter, for a started program."""
        directory = self.directory / f"{name}-{free_port()}"
        directory.mkdir()
        return directory

    @contextmanager
    def server(
        self, host: str, netns: str | None = None
    ) -> Iterator[tuple[Address, psutil.Process]]:
        """The load's far end."""
        address = Address(host, free_port())
        command: list[str | Path] = [self.load, "serve", host, str(address.port)]
        log = self.directory / f"server-{address.port}.log"
        ready = functools.partial(accepts, address, netns)
        with running(command, log=log, ready=ready, netns=netns) as process:
            yield address, process


@dataclass(frozen=True, slots=True)
class Proxy:
    """A started proxy."""

    address: Address
    processes: tuple[psutil.Process, ...]


@dataclass(frozen=True, slots=True)
class Ours:
    """A sidecar's configuration, beside its listeners, and where requests go with it."""

    configuration: Mapping[str, Any]
    by_load: Mapping[Load, Address] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Side:
    """One side; `what` it is fits on a line, `settings` are the remarkable ones."""

    name: str
    kind: Kind
    what: str
    start: Callable[[Site], AbstractContextManager[Way]]
    settings: str = ""
    behind_hook: bool = False
    """A peer in the sidecar's place, behind our hook: what is compared with is only the proxy."""
    programs: tuple[str, ...] = ()
    needs_root: str = ""
    """Why, where it does."""
    sidecar: Callable[[Address], Ours] | None = None
    """Of ours: for a server there."""
    sidecars: int = 1
    """Of ours: how many one after the other, each of which is the server of the one before."""
    loads: frozenset[Load] = frozenset({Load.BYTES})
    """That it is measured with."""
    variation: bool = False
    """Whether it is like another side but for one setting: only where a scenario is about that."""

    def unavailable(self) -> str:
        """Why it cannot be started here; empty where it can."""
        try:
            for program in self.programs:
                find_program(program)
        except BenchError as error:
            return str(error)
        if self.needs_root and os.geteuid() != 0:
            return f"needs root, {self.needs_root}: run as root to have it measured"
        if self.sidecar is not None:
            try:
                configuration = self.sidecar(Address("127.0.0.1", 1)).configuration
                parse(yaml.safe_dump(dict(configuration)), source="its configuration")
            except ConfigError as error:
                return f"this sidecar does not know it ({error})"
        return ""


# ---- Direct ----


@contextmanager
def direct(site: Site) -> Iterator[Way]:
    """The server, and nothing between."""
    with site.server("127.0.0.1") as (address, server):
        yield Way(address, server)


# ---- Ours ----


class _MeasuredSidecar(Sidecar):
    """One whose access log nobody reads: it has a line for each of millions of requests."""

    @property
    def access_log(self) -> str:
        return ""


@contextmanager
def _through_sidecars(
    site: Site,
    sidecar: Callable[[Address], Ours],
    count: int = 1,
    kind: type[Sidecar] = _MeasuredSidecar,
) -> Iterator[Way]:
    with site.server("127.0.0.1") as (address, server), ExitStack() as stack:
        way, far = Way(address, server), address
        for _ in range(count):
            wanted = sidecar(far)
            started = stack.enter_context(kind(wanted.configuration))
            way = replace(
                way,
                environment=started.environment,
                proxies=(*way.proxies, *family(psutil.Process(started.pid))),
                by_load=wanted.by_load,
            )
            far = next(iter(wanted.by_load.values()), address)
        yield way


class _BesideSidecar(_MeasuredSidecar):
    """Another installation's, with its hook."""

    @property
    def environment(self) -> dict[str, str]:
        script = "from pysidecar import hook_path; print(hook_path())"
        path = subprocess.check_output([self.python, "-c", script], text=True).strip()
        return {**super().environment, "LD_PRELOAD": path}


def beside(side: Side, python: str) -> Side:
    """The same side of ours by the package that another interpreter has installed."""

    class Beside(_BesideSidecar):
        pass

    Beside.python = python
    assert side.sidecar is not None
    start = functools.partial(
        _through_sidecars, sidecar=side.sidecar, count=side.sidecars, kind=Beside
    )
    return replace(side, name=f"{side.name} (beside)", start=start, what=f"{side.what}: {python}")


def ours(
    name: str,
    what: str,
    sidecar: Callable[[Address], Ours],
    *,
    loads: frozenset[Load] = frozenset({Load.BYTES}),
    variation: bool = False,
    sidecars: int = 1,
) -> Side:
    """A side of ours, with the configuration that `sidecar` returns over what all of them have."""

    def complete(server: Address) -> Ours:
        wanted = sidecar(server)
        # As many workers as by default; the test class that runs the sidecar would have one.
        # And no peer writes anything for a connection.
        everywhere = {"workers": None, "access_log": "off"}
        return replace(wanted, configuration={**everywhere, **wanted.configuration})

    return Side(
        name,
        Kind.OURS,
        what,
        functools.partial(_through_sidecars, sidecar=complete, count=sidecars),
        sidecar=complete,
        sidecars=sidecars,
        loads=loads,
        variation=variation,
    )


def cpus() -> int:
    """How many workers or threads everybody gets."""
    return len(os.sched_getaffinity(0))
