"""The peers that relay connections: HAProxy, nginx, and those that speak SOCKS.

A peer is started with the settings that its own documentation recommends for what is measured here.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pysidecar.address import Address
from pysidecar.interception.rules.namespace import inside
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
from scripts.bench.side import SPARE_FILES, Kind, Proxy, Side, Site, Way, cpus

__all__ = ["RELAYS"]

# Not on 127.0.0.0/8, which torsocks leaves alone; from the range for benchmarks (RFC 2544).
_AWAY = "198.18.0.1"


# ---- HAProxy and nginx, which clients are pointed at, or which stand behind the hook ----

_StartProxy = Callable[[Site, Address | None], AbstractContextManager[Proxy]]
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
def _haproxy(site: Site, destination: Address | None) -> Iterator[Proxy]:
    directory, here = site.new_directory("haproxy"), Address("127.0.0.1", free_port())
    configuration = directory / "haproxy.cfg"
    configuration.write_text(
        _HAPROXY.format(
            threads=cpus(),
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
        yield Proxy(here, family(process))


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
def _nginx(site: Site, destination: Address | None) -> Iterator[Proxy]:
    directory, here = site.new_directory("nginx"), Address("127.0.0.1", free_port())
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _NGINX.format(
            # As root it would make its workers "nobody".
            user="user root;" if os.geteuid() == 0 else "",
            directory=directory,
            workers=cpus(),
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
        yield Proxy(here, family(process, cpus()))


# ---- Those that speak SOCKS, to a microsocks ----


@contextmanager
def _microsocks(site: Site, netns: str | None = None) -> Iterator[Proxy]:
    directory, here = site.new_directory("microsocks"), Address("127.0.0.1", free_port())
    command: list[str | Path] = [find_program("microsocks"), "-i", here.host, "-p", str(here.port)]
    with running(
        command,
        log=directory / "log",
        ready=lambda: accepts(here, netns),
        netns=netns,
        unprivileged=os.geteuid() == 0,  # a user of its own, by which rules know it
    ) as process:
        yield Proxy(here, family(process))


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

RELAYS: tuple[Side, ...] = (
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
