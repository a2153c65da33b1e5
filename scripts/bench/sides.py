"""The sides of the benchmark: the direct connection, ours, and the peers.

One entry of `SIDES` is one side. A side starts its proxies with the settings that its own
documentation recommends for what is measured here, and says how a client goes through it.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
import yaml

from pysidecar.address import Address
from pysidecar.config import ConfigError, parse
from pysidecar.interception.rules.namespace import inside
from pysidecar.testing import Sidecar
from pysidecar.testing.other_proxy import hooked_to
from scripts.bench.processes import (
    UNPRIVILEGED,
    BenchError,
    accepts,
    family,
    find_program,
    free_port,
    namespace,
    running,
)

__all__ = [
    "DIRECT",
    "NOT_CAPTURED",
    "SIDES",
    "SPARE_FILES",
    "Kind",
    "Side",
    "Site",
    "Way",
    "beside",
]

DIRECT = "direct"
NOT_CAPTURED = "not captured"

SPARE_FILES = 4096
"""Descriptors that a proxy may need beside the two of each connection: pipes, mostly."""

# Not on 127.0.0.0/8, which torsocks leaves alone; from the range for benchmarks (RFC 2544).
_AWAY = "198.18.0.1"


class Kind(StrEnum):
    """Whose a side is."""

    DIRECT = "direct"
    OURS = "ours"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Way:
    """A started side: how a client gets through it, and who works for that."""

    destination: Address
    server: psutil.Process
    environment: Mapping[str, str] = field(default_factory=dict)
    wrapper: tuple[str | Path, ...] = ()
    netns: str | None = None
    proxies: tuple[psutil.Process, ...] = ()


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
    sidecar: Mapping[str, Any] | None = None
    """Of ours: the sidecar's configuration, beside its listeners."""

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
                parse(yaml.safe_dump(dict(self.sidecar)), source="its configuration")
            except ConfigError as error:
                return f"this sidecar does not know it ({error})"
        return ""


# ---- Direct and ours ----


@contextmanager
def _direct(site: Site) -> Iterator[Way]:
    with site.server("127.0.0.1") as (address, server):
        yield Way(address, server)


@contextmanager
def _through_sidecar(
    site: Site, settings: Mapping[str, Any], kind: type[Sidecar] = Sidecar
) -> Iterator[Way]:
    with site.server("127.0.0.1") as (address, server), kind(settings) as sidecar:
        processes = family(psutil.Process(sidecar.pid))
        yield Way(address, server, environment=sidecar.environment, proxies=processes)


class _BesideSidecar(Sidecar):
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
    start = functools.partial(_through_sidecar, settings=side.sidecar or {}, kind=Beside)
    return replace(side, name=f"{side.name} (beside)", start=start, what=f"{side.what}: {python}")


def _ours(name: str, what: str, sidecar: Mapping[str, Any]) -> Side:
    # As many workers as by default; the test class that runs the sidecar would have one.
    # And no peer writes anything for a connection.
    configuration = {"workers": None, "access_log": "off", **sidecar}
    start = functools.partial(_through_sidecar, settings=configuration)
    return Side(name, Kind.OURS, what, start, sidecar=configuration)


# ---- HAProxy and nginx, which clients are pointed at, or which stand behind the hook ----


@dataclass(frozen=True, slots=True)
class _Proxy:
    address: Address
    processes: tuple[psutil.Process, ...]


_StartProxy = Callable[[Site, Address | None], AbstractContextManager[_Proxy]]
"""Starts one that leads to the address; with None, one that takes PROXY headers and leads to the
destination that they name."""


@contextmanager
def _pointed_at(site: Site, start: _StartProxy) -> Iterator[Way]:
    with site.server("127.0.0.1") as (address, server), start(site, address) as proxy:
        yield Way(proxy.address, server, proxies=proxy.processes)


@contextmanager
def _behind_hook(site: Site, start: _StartProxy) -> Iterator[Way]:
    page = site.new_directory("page") / "hook.policy"
    with (
        site.server("127.0.0.1") as (address, server),
        start(site, None) as proxy,
        hooked_to([proxy.address], page) as environment,
    ):
        yield Way(address, server, environment=environment, proxies=proxy.processes)


_HAPROXY = """
global
    # One for each CPU, which is its default.
    nbthread {threads}
    # A connection takes two descriptors, and so does a pipe.
    maxconn {connections}
    maxpipes {pipes}
    # 16384 by default. Measured, bulk is half as fast again with this one, and slower with larger
    # ones; "the global maxconn parameter should be decreased", which memory allows not to do.
    tune.bufsize 49152
    # "it can improve performance to increase pipe sizes, especially if it is suspected that pipes
    # are not filled and that many calls to splice() are performed"
    tune.pipesize {pipe_size}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    # "kernel-based acceleration ... noticeable performance gains and CPU cycles savings", for the
    # directions where its heuristics see bulk.
    option splice-auto
    # And no `log`: nothing is written for a connection.
listen relay
    bind 127.0.0.1:{port} {bind}
    server far {destination}
"""


@contextmanager
def _haproxy(site: Site, destination: Address | None) -> Iterator[_Proxy]:
    directory, here = site.new_directory("haproxy"), Address("127.0.0.1", free_port())
    configuration = directory / "haproxy.cfg"
    configuration.write_text(
        _HAPROXY.format(
            threads=_cpus(),
            connections=site.connections + 100,
            pipes=SPARE_FILES // 4,
            pipe_size=1 << 20,
            port=here.port,
            bind="accept-proxy" if destination is None else "",
            # "0.0.0.0" without a port: the address and port that the client wanted.
            destination=destination or "0.0.0.0",
        )
    )
    command: list[str | Path] = [find_program("haproxy"), "-db", "-f", configuration]
    with running(command, log=directory / "log", ready=lambda: accepts(here)) as process:
        yield _Proxy(here, family(process))


_NGINX = """
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
{user}
pid {directory}/pid;
error_log {directory}/error.log crit;
# One for each CPU.
worker_processes {workers};
worker_rlimit_nofile {files};
events {{
    # The client's and the upstream's are two.
    worker_connections {files};
    # "a worker process will ... accept all new connections at a time"
    multi_accept on;
}}
stream {{
    # Nothing is written for a connection.
    access_log off;
    # The size of the buffer for reading, 16k by default. Measured, bulk is fastest with 1m, and
    # nothing else is slower. It is allocated for each connection, hence the default for idle ones.
    proxy_buffer_size {buffer};
    proxy_timeout 1h;
    server {{
        # "an individual listening socket for each worker process ... allowing a kernel to
        # distribute incoming connections between worker processes"; the default backlog is 511.
        listen 127.0.0.1:{port} reuseport backlog=4096 {listen};
        proxy_pass {destination};
    }}
}}
"""


@contextmanager
def _nginx(site: Site, destination: Address | None) -> Iterator[_Proxy]:
    directory, here = site.new_directory("nginx"), Address("127.0.0.1", free_port())
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _NGINX.format(
            # As root it would make its workers "nobody".
            user="user root;" if os.geteuid() == 0 else "",
            directory=directory,
            workers=_cpus(),
            buffer="16k" if site.memory_matters else "1m",
            files=2 * site.connections + 200,
            port=here.port,
            listen="proxy_protocol" if destination is None else "",
            destination=destination or "$proxy_protocol_server_addr:$proxy_protocol_server_port",
        )
    )
    command: list[str | Path] = [
        find_program("nginx"),
        "-e",
        directory / "error.log",
        "-c",
        configuration,
    ]
    with running(command, log=directory / "log", ready=lambda: accepts(here)) as process:
        yield _Proxy(here, family(process))


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


# ---- Those that speak SOCKS, to a microsocks ----


@contextmanager
def _microsocks(site: Site, netns: str | None = None) -> Iterator[_Proxy]:
    directory, here = site.new_directory("microsocks"), Address("127.0.0.1", free_port())
    command: list[str | Path] = [find_program("microsocks"), "-i", here.host, "-p", str(here.port)]
    with running(
        command,
        log=directory / "log",
        ready=lambda: accepts(here, netns),
        netns=netns,
        unprivileged=os.geteuid() == 0,  # a user of its own, by which rules know it
    ) as process:
        yield _Proxy(here, family(process))


_PROXYCHAINS = """
# One proxy, no list to walk through, and no message for a connection.
strict_chain
quiet_mode
tcp_connect_time_out 8000
[ProxyList]
socks5 {host} {port}
"""


@contextmanager
def _proxychains(site: Site) -> Iterator[Way]:
    configuration = site.new_directory("proxychains") / "proxychains.conf"
    with site.server("127.0.0.1") as (address, server), _microsocks(site) as socks:
        here = socks.address
        configuration.write_text(_PROXYCHAINS.format(host=here.host, port=here.port))
        wrapper = (find_program("proxychains4"), "-q", "-f", configuration)
        yield Way(address, server, wrapper=wrapper, proxies=socks.processes)


@contextmanager
def _torsocks(site: Site) -> Iterator[Way]:
    configuration = site.new_directory("torsocks") / "torsocks.conf"
    with (
        namespace(_AWAY) as netns,
        site.server(_AWAY, netns) as (address, server),
        _microsocks(site, netns) as socks,
    ):
        here = socks.address
        configuration.write_text(f"TorAddress {here.host}\nTorPort {here.port}\n")
        yield Way(
            address,
            server,
            environment={"TORSOCKS_CONF_FILE": str(configuration)},
            wrapper=(find_program("torsocks"),),
            netns=netns,
            proxies=socks.processes,
        )


_REDSOCKS = """
base {{
    log_debug = off;
    // Nothing is written for a connection.
    log_info = off;
    log = stderr;
    daemon = off;
    redirector = iptables;
    rlimit_nofile = {files};
    redsocks_conn_max = {connections};
}}
redsocks {{
    local_ip = {host};
    local_port = {port};
    listenq = 4096;
    ip = {socks_host};
    port = {socks_port};
    type = socks5;
    // "Enable or disable faster data pump based on splice(2)": six descriptors a connection instead
    // of two, so not where there are thousands of idle ones.
    splice = {splice};
}}
"""
_REDSOCKS_RULES = """
table ip bench {{
    chain output {{
        type nat hook output priority -100
        ip daddr {away} meta skuid != {socks_user} tcp dport {destination} redirect to :{port}
    }}
}}
"""


@contextmanager
def _redsocks(site: Site) -> Iterator[Way]:
    directory, here = site.new_directory("redsocks"), Address("127.0.0.1", free_port())
    configuration = directory / "redsocks.conf"
    with (
        namespace(_AWAY) as netns,
        site.server(_AWAY, netns) as (address, server),
        _microsocks(site, netns) as socks,
    ):
        configuration.write_text(
            _REDSOCKS.format(
                files=site.files,
                connections=site.connections + 100,
                host=here.host,
                port=here.port,
                socks_host=socks.address.host,
                socks_port=socks.address.port,
                splice="off" if site.memory_matters else "on",
            )
        )
        rules = _REDSOCKS_RULES.format(
            away=_AWAY, socks_user=UNPRIVILEGED, destination=address.port, port=here.port
        )
        inside(netns, functools.partial(_apply_rules, rules))
        command: list[str | Path] = [find_program("redsocks"), "-c", configuration]
        # Asked by its rule: on a connection to itself the original destination is itself, and it
        # would connect to itself through microsocks for ever.
        ready = functools.partial(accepts, address, netns)
        with running(command, log=directory / "log", ready=ready, netns=netns) as process:
            proxies = (*family(process), *socks.processes)
            yield Way(address, server, netns=netns, proxies=proxies)


def _apply_rules(rules: str) -> None:
    done = subprocess.run(
        [find_program("nft"), "-f", "-"], input=rules, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise BenchError(f"nft: {done.stderr.strip()}")


# ---- All of them ----

_ACCELERATED = {"mode": "require", "receive": True, "blocking_sockets": True}

SIDES: tuple[Side, ...] = (
    Side(DIRECT, Kind.DIRECT, "the client connects to the server", _direct),
    _ours(
        "relay unix",
        "hook, transport `unix`; no privilege",
        {"acceleration": "off", "outbound": {"transport": "unix"}},
    ),
    _ours(
        "relay header",
        "hook, transport `header`; no privilege",
        {"acceleration": "off", "outbound": {"transport": "header"}},
    ),
    _ours(
        "local",
        "hook, `acceleration: {mode: require, path: local, receive: true, blocking_sockets: true}`",
        {"acceleration": {**_ACCELERATED, "path": "local"}},
    ),
    _ours(
        "full",
        "hook, `acceleration: {mode: require, receive: true, blocking_sockets: true}`",
        {"acceleration": _ACCELERATED},
    ),
    _ours(
        "action direct",
        "hook, a route with `action: direct`",
        {"acceleration": "off", "outbound": {"routes": [{"action": "direct"}]}},
    ),
    _ours(
        NOT_CAPTURED,
        "under the hook, but the destination is excluded (loopback is, by default)",
        {"acceleration": "off", "outbound": {"exclude": ["127.0.0.0/8"]}},
    ),
    Side(
        "HAProxy",
        Kind.PEER,
        "a TCP relay that the client is pointed at",
        functools.partial(_pointed_at, start=_haproxy),
        settings="a thread for each CPU, splice-auto, tune.bufsize 49152, tune.pipesize 1 MiB",
        programs=("haproxy",),
    ),
    Side(
        "HAProxy, our hook",
        Kind.PEER,
        "the same behind our hook, on to the original destination",
        functools.partial(_behind_hook, start=_haproxy),
        settings="the same, accept-proxy",
        behind_hook=True,
        programs=("haproxy",),
    ),
    Side(
        "nginx",
        Kind.PEER,
        "the stream module, which the client is pointed at",
        functools.partial(_pointed_at, start=_nginx),
        settings="a worker for each CPU, reuseport, multi_accept, proxy_buffer_size 1m (16k where "
        "memory is measured)",
        programs=("nginx",),
    ),
    Side(
        "nginx, our hook",
        Kind.PEER,
        "the same behind our hook, on to the original destination",
        functools.partial(_behind_hook, start=_nginx),
        settings="the same, proxy_protocol",
        behind_hook=True,
        programs=("nginx",),
    ),
    Side(
        "redsocks",
        Kind.PEER,
        "REDIRECT rules and microsocks, in a network namespace",
        _redsocks,
        settings="splice (not where memory is measured)",
        programs=("redsocks", "microsocks", "nft", "ip"),
        needs_root="for REDIRECT rules in a network namespace",
    ),
    Side(
        "proxychains",
        Kind.PEER,
        "proxychains4 (LD_PRELOAD) and microsocks",
        _proxychains,
        settings="strict_chain",
        programs=("proxychains4", "microsocks"),
    ),
    Side(
        "torsocks",
        Kind.PEER,
        "torsocks (LD_PRELOAD) and microsocks, in a network namespace",
        _torsocks,
        programs=("torsocks", "microsocks", "ip"),
        needs_root="for a network namespace with an address that is not on loopback",
    ),
)
