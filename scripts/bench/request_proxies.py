"""Those that read each request and pass it on by itself: ours, and the peers that do.

A peer is started with the settings that its own documentation recommends for what is measured here,
with connections to the server that are kept, and with as many threads as ours has workers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from pysidecar.address import Address
from scripts.bench.collector import collector
from scripts.bench.processes import accepts, family, find_program, free_port, running
from scripts.bench.side import Kind, Load, Ours, Proxy, Side, Site, Way, cpus, ours

__all__ = [
    "ACCELERATED",
    "ENVOY",
    "HOOKED",
    "HTTP2_BETWEEN",
    "LISTENER",
    "LOGGED",
    "MECHANISMS",
    "RELAYING_LISTENER",
    "REQUEST_PROXIES",
    "TRACES",
    "TWO_SIDECARS",
]

LISTENER = "listener"
LOGGED = "listener, log"
RELAYING_LISTENER = "listener, tcp"
HOOKED = "requests unix"
ACCELERATED = "requests local"
ENVOY = "Envoy"
TWO_SIDECARS = "two sidecars"
HTTP2_BETWEEN = "two sidecars, HTTP/2"
MECHANISMS = "listener, mechanisms"
TRACES = "listener, traces"

_REQUESTS = frozenset({Load.HTTP, Load.BOLT, Load.DUBBO})
_HTTP2 = frozenset({Load.HTTP2, Load.GRPC, Load.HTTP2_TO_HTTP})
_COSTS = frozenset({Load.HTTP, Load.HTTP2})

# ---- Ours ----

# Destinations of which the hook lets the sidecar believe that they exist, a protocol each.
_CAPTURED = {
    Load.HTTP: Address("198.18.0.2", 80),
    Load.BOLT: Address("198.18.0.2", 12200),
    Load.DUBBO: Address("198.18.0.2", 20880),
}


def _services(server: Address) -> dict[str, Any]:
    return {
        str(load): {"protocol": str(load), "endpoints": [str(server)]} for load in sorted(_REQUESTS)
    }


def _listeners(server: Address, **more: Any) -> Ours:
    loads = sorted(_REQUESTS | _HTTP2)
    by_load = {load: Address("127.0.0.1", free_port()) for load in loads}
    services = _services(server)
    services |= {
        str(load): {"protocol": str(load), "endpoints": [str(server)]}
        for load in (Load.HTTP2, Load.GRPC)
    }
    listeners = [
        {"listen": str(address), "protocol": str(load), "service": str(load)}
        for load, address in by_load.items()
        if load is not Load.HTTP2_TO_HTTP
    ]
    to_http = {"listen": str(by_load[Load.HTTP2_TO_HTTP]), "protocol": "http2", "service": "http"}
    configuration = {
        "acceleration": "off",
        "services": services,
        "listeners": [*listeners, to_http],
    }
    return Ours({**configuration, **more}, by_load)


def _with_mechanisms(server: Address) -> Ours:
    """All of resilience, of which nothing strikes; beyond it, rules instead of a service."""
    by_load = {load: Address("127.0.0.1", free_port()) for load in sorted(_COSTS)}
    mechanisms: dict[str, Any] = {
        "retries": {
            "attempts": 2,
            "on": ["connect_failure", "refused_stream", "gateway_error"],
            "per_try_timeout": "5s",
            "backoff": {"base": "25ms", "max": "250ms"},
            "budget": "20%",
        },
        "circuit_breaker": {"connections": 1024, "pending": 1024, "requests": 10000},
        "rate_limit": {"requests": 10_000_000, "per": "1s"},
        "balance": "least_requests",
        "outlier_detection": {"consecutive_errors": 5},
        "slow_start": "30s",
        "timeout": "15s",
    }
    services = {
        str(load): {
            "protocol": str(load),
            "endpoints": [str(server)],
            "mirror": {"to": f"{load}-shadow", "percent": 0},
            **mechanisms,
        }
        for load in by_load
    }
    shadows = {
        f"{load}-shadow": {"protocol": str(load), "endpoints": [str(server)]} for load in by_load
    }
    rule = {
        "idempotent": True,
        "hedge": {"after": "1s"},
        "fault": {"delay": {"fixed": "1s", "percent": 0}, "abort": {"status": 503, "percent": 0}},
    }
    configuration = {
        "acceleration": "off",
        "services": {**services, **shadows},
        "requests": [
            {"match": {"path_prefix": "/orders/"}, "services": "http2", **rule},
            {"match": {"path_prefix": "/"}, "services": "http", **rule},
        ],
        "listeners": [
            {"listen": str(address), "protocol": str(load)} for load, address in by_load.items()
        ],
    }
    return Ours(configuration, by_load)


def _with_traces(server: Address) -> Ours:
    return _listeners(server, tracing={"otlp": f"http://{collector()}", "sample": "1%"})


def _relaying_listener(server: Address) -> Ours:
    here = Address("127.0.0.1", free_port())
    configuration = {
        "acceleration": "off",
        "services": {"bytes": {"protocol": "tcp", "endpoints": [str(server)]}},
        "listeners": [{"listen": str(here), "protocol": "tcp", "service": "bytes"}],
    }
    return Ours(configuration, {Load.HTTP: here})


_RULES = [
    {"match": {"host": "orders.example"}, "services": "http"},
    {"match": {"service": "com.example.Orders:1.0"}, "services": "bolt"},
    {"match": {"service": "com.example.Orders"}, "services": "dubbo"},
]


def _one_port(server: Address) -> Ours:
    """For all protocols and services, as takeover's ports are."""
    here = Address("127.0.0.1", free_port())
    configuration = {
        "acceleration": "off",
        "services": _services(server),
        "requests": _RULES,
        "listeners": [{"listen": str(here), "protocol": "auto"}],
    }
    return Ours(configuration, dict.fromkeys(sorted(_REQUESTS), here))


def _http2_between(server: Address) -> Ours:
    """For both of two: the one before the server takes HTTP/2, the other one HTTP/1.1."""
    near, here = Address("127.0.0.1", free_port()), Address("127.0.0.1", free_port())
    configuration = {
        "acceleration": "off",
        "services": {
            str(load): {"protocol": str(load), "endpoints": [str(server)]}
            for load in (Load.HTTP, Load.HTTP2)
        },
        "listeners": [
            {"listen": str(near), "protocol": "http2", "service": "http"},
            {"listen": str(here), "protocol": "http", "service": "http2"},
        ],
    }
    return Ours(configuration, {Load.HTTP2: near, Load.HTTP: here})


def _hooked(server: Address, *, acceleration: Any) -> Ours:
    routes = [
        {
            "match": {"destination": address.host, "ports": address.port},
            "action": "requests",
            "protocol": str(load),
        }
        for load, address in _CAPTURED.items()
    ]
    configuration = {
        "acceleration": acceleration,
        "services": _services(server),
        "requests": _RULES,
        "outbound": {"transport": "unix", "routes": routes},
    }
    return Ours(configuration, _CAPTURED)


# ---- The peers ----

_StartProxy = Callable[[Site, Address], AbstractContextManager[Mapping[Load, Proxy]]]


@contextmanager
def _pointed_at(site: Site, start: _StartProxy) -> Iterator[Way]:
    with site.server("127.0.0.1") as (address, server), start(site, address) as proxies:
        by_load = {load: proxy.address for load, proxy in proxies.items()}
        processes = next(iter(proxies.values())).processes
        yield Way(address, server, proxies=processes, by_load=by_load)


_NGINX = """
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
http {{
    # Nothing is written for a request.
    access_log off;
    # 1000 requests by default, then a connection is closed.
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    # 1m by default, which a long body is more than.
    client_max_body_size 0;
    # "the request body is sent to the proxied server immediately as it is received"
    proxy_request_buffering off;
    # No answer is written to a disk, where the client is slower than the server.
    proxy_max_temp_file_size 0;
    {buffers}
    upstream far {{
        server {destination};
        # "the maximum number of idle keepalive connections to upstream servers that are preserved
        # in the cache of each worker process"
        keepalive 512;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        # "an individual listening socket for each worker process"; the default backlog is 511.
        listen 127.0.0.1:{port} reuseport backlog=4096;
        location / {{
            proxy_pass http://far;
            # "for HTTP, the proxy_http_version directive should be set to 1.1 and the Connection
            # header field should be cleared"
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
    server {{
        listen 127.0.0.1:{http2_to_http_port} http2 reuseport backlog=4096;
        location / {{
            proxy_pass http://far;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
    # Its only way to speak HTTP/2 to a server, gRPC or not: a connection for each request under
    # way, which are kept.
    upstream far_http2 {{
        server {destination};
        keepalive 512;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{http2_port} http2 reuseport backlog=4096;
        location / {{ grpc_pass grpc://far_http2; }}
    }}
}}
"""
# Measured, long bodies are three times as fast with these as with those of 4k or 8k by default, and
# nothing else is slower.
_NGINX_BUFFERS = """
    client_body_buffer_size 1m;
    proxy_buffer_size 64k;
    proxy_buffers 8 256k;
    proxy_busy_buffers_size 1m;
"""


@contextmanager
def _nginx(site: Site, destination: Address) -> Iterator[Mapping[Load, Proxy]]:
    directory = site.new_directory("nginx")
    here, http2, to_http = (Address("127.0.0.1", free_port()) for _ in range(3))
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _NGINX.format(
            # As root it would make its workers "nobody".
            user="user root;" if os.geteuid() == 0 else "",
            directory=directory,
            workers=cpus(),
            files=2 * site.connections + 200,
            buffers="" if site.memory_matters else _NGINX_BUFFERS,
            port=here.port,
            http2_port=http2.port,
            http2_to_http_port=to_http.port,
            destination=destination,
        )
    )
    command: list[str | Path] = [
        find_program("nginx"),
        *("-e", directory / "error.log", "-c", configuration),
    ]
    with running(command, log=directory / "log", ready=lambda: accepts(here)) as process:
        processes = family(process, cpus())
        yield {
            Load.HTTP: Proxy(here, processes),
            Load.HTTP2: Proxy(http2, processes),
            Load.GRPC: Proxy(http2, processes),
            Load.HTTP2_TO_HTTP: Proxy(to_http, processes),
        }


_HAPROXY = """
global
    # One for each CPU, which is its default.
    nbthread {threads}
    # A connection takes two descriptors.
    maxconn {connections}
    # 16384 by default. Measured, long bodies are fastest with this one, and nothing else is slower.
    # With splicing they are slower.
    tune.bufsize {buffer}
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
    # "always": an idle connection to the server may take any client's request, the first one, too.
    http-reuse always
    # And no `log`: nothing is written for a request.
listen relay
    bind 127.0.0.1:{port}
    server far {destination}
listen http2
    bind 127.0.0.1:{http2_port} proto h2
    server far {destination} proto h2
listen http2-http
    bind 127.0.0.1:{http2_to_http_port} proto h2
    server far {destination}
"""


@contextmanager
def _haproxy(site: Site, destination: Address) -> Iterator[Mapping[Load, Proxy]]:
    directory = site.new_directory("haproxy")
    here, http2, to_http = (Address("127.0.0.1", free_port()) for _ in range(3))
    configuration = directory / "haproxy.cfg"
    configuration.write_text(
        _HAPROXY.format(
            threads=cpus(),
            connections=site.connections + 100,
            buffer=16384 if site.memory_matters else 65536,
            port=here.port,
            http2_port=http2.port,
            http2_to_http_port=to_http.port,
            destination=destination,
        )
    )
    command: list[str | Path] = [find_program("haproxy"), "-db", "-f", configuration]
    with running(command, log=directory / "log", ready=lambda: accepts(here)) as process:
        processes = family(process)
        yield {
            Load.HTTP: Proxy(here, processes),
            Load.HTTP2: Proxy(http2, processes),
            Load.GRPC: Proxy(http2, processes),
            Load.HTTP2_TO_HTTP: Proxy(to_http, processes),
        }


_ENVOY_HTTP2 = """
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}"""
_ENVOY_CLUSTER = """  - name: {name}{options}
    type: STATIC
    connect_timeout: 5s
    circuit_breakers:
      thresholds:
      - priority: DEFAULT
        max_connections: 1000000000
        max_pending_requests: 1000000000
        max_requests: 1000000000
        max_retries: 1000000000
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{socket_address: {{address: {far_host}, port_value: {far_port}}}}}"""
_ENVOY_LISTENER = """  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/{network}.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          codec_type: {codec}
          generate_request_id: false
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                # 15 s by default, from the end of the request.
                route: {{cluster: {cluster}, timeout: 0s}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              dynamic_stats: false"""
# By "What are best practices for benchmarking Envoy?": no circuit breaking, no request ids, no
# dynamic stats, "consider disabling all stats", no access log.
_ENVOY = """
static_resources:
  listeners:
{http_listeners}
  - name: dubbo
    address: {{socket_address: {{address: 127.0.0.1, port_value: {dubbo_port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.generic_proxy
        typed_config:
          "@type": type.googleapis.com/{generic}.v3.GenericProxy
          stat_prefix: dubbo
          codec_config:
            name: envoy.generic_proxy.codecs.dubbo
            typed_config:
              "@type": type.googleapis.com/{generic}.codecs.dubbo.v3.DubboCodecConfig
          filters:
          - name: envoy.filters.generic.router
            typed_config:
              "@type": type.googleapis.com/{generic}.router.v3.Router
              # An upstream connection for each downstream one, on which several requests are under
              # way. Else each has one request at a time: measured, a third of the rate where eight
              # are in flight, and the same with one.
              bind_upstream_connection: true
          route_config:
            name: dubbo
            routes:
              matcher_list:
                matchers:
                - predicate:
                    single_predicate:
                      input:
                        name: envoy.matching.generic_proxy.input.service
                        typed_config:
                          "@type": type.googleapis.com/{generic}.matcher.v3.ServiceMatchInput
                      value_match: {{exact: "com.example.Orders"}}
                  on_match:
                    action:
                      name: route
                      typed_config:
                        "@type": type.googleapis.com/{generic}.action.v3.RouteAction
                        cluster: far
  clusters:
{clusters}
stats_config: {{stats_matcher: {{reject_all: true}}}}
"""


def _envoy_configuration(here: Mapping[Load, Address], destination: Address) -> str:
    network = "envoy.extensions.filters.network"
    listeners = [
        _ENVOY_LISTENER.format(
            name=load, network=network, port=here[load].port, codec=codec, cluster=cluster
        )
        for load, codec, cluster in (
            (Load.HTTP, "HTTP1", "far"),
            (Load.HTTP2, "HTTP2", "far_http2"),
            (Load.HTTP2_TO_HTTP, "HTTP2", "far"),
        )
    ]
    clusters = [
        _ENVOY_CLUSTER.format(
            name=name, options=options, far_host=destination.host, far_port=destination.port
        )
        for name, options in (("far", ""), ("far_http2", _ENVOY_HTTP2))
    ]
    return _ENVOY.format(
        http_listeners="\n".join(listeners),
        clusters="\n".join(clusters),
        generic=f"{network}.generic_proxy",
        network=network,
        dubbo_port=here[Load.DUBBO].port,
    )


@contextmanager
def _envoy(site: Site, destination: Address) -> Iterator[Mapping[Load, Proxy]]:
    directory = site.new_directory("envoy")
    loads = (Load.HTTP, Load.DUBBO, Load.HTTP2, Load.HTTP2_TO_HTTP)
    here = {load: Address("127.0.0.1", free_port()) for load in loads}
    configuration = directory / "envoy.yaml"
    configuration.write_text(_envoy_configuration(here, destination))
    command: list[str | Path] = [
        find_program("envoy"),
        *("-c", configuration, "--concurrency", str(cpus())),
        # Nothing on a socket that other Envoys of this host have, too.
        *("--disable-hot-restart", "--log-level", "error"),
    ]

    def ready() -> bool:
        return all(accepts(address) for address in here.values())

    with running(command, log=directory / "log", ready=ready) as process:
        processes = family(process)
        here[Load.GRPC] = here[Load.HTTP2]
        yield {load: Proxy(address, processes) for load, address in here.items()}


# ---- All of them ----

REQUEST_PROXIES: tuple[Side, ...] = (
    ours(
        LISTENER,
        "`listeners:`, which the client is pointed at; no log, no privilege",
        _listeners,
        loads=_REQUESTS | _HTTP2,
    ),
    ours(
        LOGGED,
        "the same with a line in the access log for each request",
        functools.partial(_listeners, access_log={}),
        loads=_REQUESTS,
        variation=True,
    ),
    ours(
        MECHANISMS,
        "the same with rules, and all that they and services have for resilience but health "
        "checks; nothing of it strikes",
        _with_mechanisms,
        loads=_COSTS,
        variation=True,
    ),
    ours(
        TRACES,
        "the same with `tracing: {sample: 1%}` and a collector",
        _with_traces,
        loads=_COSTS,
        variation=True,
    ),
    ours(
        RELAYING_LISTENER,
        "a listener with `protocol: tcp`: our relay of bytes, without the hook",
        _relaying_listener,
        loads=frozenset({Load.HTTP}),
        variation=True,
    ),
    ours(
        TWO_SIDECARS,
        "client → sidecar → sidecar → server, each sidecar with one port for all services, as with "
        "takeover",
        _one_port,
        loads=_REQUESTS,
        sidecars=2,
    ),
    ours(
        HTTP2_BETWEEN,
        "the same with `protocol: http2` for what is between the two",
        _http2_between,
        loads=frozenset({Load.HTTP}),
        sidecars=2,
        variation=True,
    ),
    ours(
        HOOKED,
        "hook, transport `unix`, a route with `action: requests`; no privilege",
        functools.partial(_hooked, acceleration="off"),
        loads=_REQUESTS,
    ),
    ours(
        ACCELERATED,
        "the same with `acceleration: {mode: require, path: local, receive: true, "
        "blocking_sockets: true}`",
        functools.partial(
            _hooked,
            acceleration={
                "mode": "require",
                "path": "local",
                "receive": True,
                "blocking_sockets": True,
            },
        ),
        loads=_REQUESTS,
        variation=True,
    ),
    Side(
        "nginx, HTTP",
        Kind.PEER,
        "an HTTP proxy that the client is pointed at",
        functools.partial(_pointed_at, start=_nginx),
        settings="a worker for each CPU, reuseport, multi_accept, keepalive 512, "
        "proxy_request_buffering off, proxy_buffers 8 256k (4k where memory is measured)",
        programs=("nginx",),
        loads=_HTTP2 | {Load.HTTP},
    ),
    Side(
        "HAProxy, HTTP",
        Kind.PEER,
        "`mode http`, which the client is pointed at",
        functools.partial(_pointed_at, start=_haproxy),
        settings="a thread for each CPU, http-reuse always, tune.bufsize 65536 (the default where "
        "memory is measured)",
        programs=("haproxy",),
        loads=_HTTP2 | {Load.HTTP},
    ),
    Side(
        ENVOY,
        Kind.PEER,
        "its HTTP connection manager, and its generic proxy with the codec of Dubbo",
        functools.partial(_pointed_at, start=_envoy),
        settings="`--concurrency`: the CPUs; no circuit breakers, request ids or stats; "
        "bind_upstream_connection",
        programs=("envoy",),
        loads=_HTTP2 | {Load.HTTP, Load.DUBBO},
    ),
)
