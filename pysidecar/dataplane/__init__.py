"""The byte mover: worker threads in C that accept, route, connect and relay.

Python never touches a byte of a connection. It opens the listeners, compiles the tables and takes
the reports; ``dataplane.h`` is the interface below this module.
"""

from __future__ import annotations

import enum
import errno
import itertools
import json
import os
import socket
import struct
from collections import namedtuple
from collections.abc import Collection, Container, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from pysidecar.address import Address
from pysidecar.dataplane._native import ffi, lib
from pysidecar.dataplane.layout import layout
from pysidecar.dataplane.requests import (
    FAILURES,
    REQUEST_BOUNDS,
    STATUS_CLASSES,
    Bound,
    EndpointSums,
    Flag,
    Protocol,
    RequestRecord,
    RequestTally,
    ServiceRole,
    ServiceSums,
    decode_request,
    read_endpoint,
    read_service,
    read_tally,
    unpack_requests,
)
from pysidecar.dataplane.services import PackedServices
from pysidecar.dataplane.spans import SpanRecord, native_tracing, read_spans
from pysidecar.dataplane.trace import STATIONS, Station, TraceEvent, decode_events
from pysidecar.direction import Direction

__all__ = [
    "DURATION_BOUNDS",
    "FAILURES",
    "HAS_HTTP2",
    "LINES_BYTES",
    "LOG_TEXTS",
    "REQUEST_BOUNDS",
    "SPAN_PIECE",
    "STATIONS",
    "STATUS_CLASSES",
    "Acceleration",
    "AccelerationError",
    "Action",
    "Balance",
    "Bound",
    "ConnectionPath",
    "ConnectionRecord",
    "Counters",
    "DataPlane",
    "DemandedService",
    "Direction",
    "EjectedEndpoint",
    "End",
    "EndpointSums",
    "Flag",
    "Kind",
    "Listener",
    "Outage",
    "PackedRoutes",
    "PackedServices",
    "Protocol",
    "RequestLimits",
    "RequestRecord",
    "RequestTally",
    "Route",
    "RouteTable",
    "Scope",
    "ServiceRole",
    "ServiceSums",
    "SpanRecord",
    "Station",
    "Tallies",
    "Timeouts",
    "TraceEvent",
    "Transport",
    "direct_works",
    "ffi",
    "http2_status",
    "lib",
    "pack_array",
    "pack_routes",
    "parking_works",
]

_PROGRAMS = Path(__file__).with_name("accelerate.bpf.o")
_NO_ROUTE = 0xFFFFFFFF
_UNKNOWN_UID = 0xFFFFFFFF
_BATCH = 512
_WANTED = 64
LINES_BYTES = int(lib.DP_LOG_BLOCK_BYTES)
"""Of the buffer that ``take_lines`` takes."""
TRACE_PIECE = 128
"""Most events that ``DataPlane.take_trace`` takes at a time: a millisecond's work to show them."""
WALK_PIECE = 64
"""Most connections that ``DataPlane.walk`` reads at a time: a millisecond's work to show them."""
MOST_OUTAGES = 1024
"""Most services that ``DataPlane.outages`` tells of."""
SPAN_PIECE = 512
"""Most spans that ``DataPlane.take_spans`` takes at a time."""
MOST_REQUESTS = 1000
"""That ``DataPlane.recent_requests``, ``failed_requests`` and ``slowest_requests`` give."""
_codes, _names = layout(ffi.typeof("struct dp_record"))
_RECORD = struct.Struct(f"={_codes}")
_Raw = namedtuple("_Raw", _names)  # type: ignore[misc]


class Transport(enum.IntEnum):
    """How a connection reached us, and with it how it says where it wanted to go."""

    UNIX = lib.DP_TRANSPORT_UNIX
    HEADER = lib.DP_TRANSPORT_HEADER
    REDIRECT = lib.DP_TRANSPORT_REDIRECT
    TPROXY = lib.DP_TRANSPORT_TPROXY
    LISTENER = lib.DP_TRANSPORT_LISTENER


assert Direction.OUTBOUND == lib.DP_OUTBOUND
assert Direction.INBOUND == lib.DP_INBOUND


class Action(enum.IntEnum):
    """What a route says."""

    RELAY = lib.DP_RELAY
    REFUSE = lib.DP_REFUSE
    DIRECT = lib.DP_DIRECT
    REQUESTS = lib.DP_REQUESTS


class Scope(enum.IntEnum):
    """Which rules a request is asked of."""

    OUTBOUND = lib.DP_SCOPE_OUTBOUND
    INBOUND = lib.DP_SCOPE_INBOUND
    PROVIDER = lib.DP_SCOPE_PROVIDER


class ConnectionPath(enum.IntEnum):
    """The way that a connection's bytes take."""

    RELAY = lib.DP_PATH_RELAY
    LOCAL = lib.DP_PATH_LOCAL
    FULL = lib.DP_PATH_FULL
    DIRECT = lib.DP_PATH_DIRECT


class Balance(enum.IntEnum):
    """How a route or a service picks among its endpoints."""

    ROUND_ROBIN = lib.DP_ROUND_ROBIN
    LEAST_CONNECTIONS = lib.DP_LEAST_CONNECTIONS
    RANDOM = lib.DP_RANDOM
    LEAST_REQUESTS = lib.DP_LEAST_REQUESTS
    RING_HASH = lib.DP_RING_HASH
    MAGLEV = lib.DP_MAGLEV
    PEAK_EWMA = lib.DP_PEAK_EWMA


class End(enum.IntEnum):
    """Why a connection ended; ``NONE`` while it is open."""

    NONE = lib.DP_END_NONE
    EOF = lib.DP_END_EOF
    REFUSED_BY_ROUTE = lib.DP_END_REFUSED_BY_ROUTE
    UPSTREAM_CONNECT = lib.DP_END_UPSTREAM_CONNECT
    UPSTREAM_TIMEOUT = lib.DP_END_UPSTREAM_TIMEOUT
    DOWNSTREAM_RESET = lib.DP_END_DOWNSTREAM_RESET
    UPSTREAM_RESET = lib.DP_END_UPSTREAM_RESET
    IDLE_TIMEOUT = lib.DP_END_IDLE_TIMEOUT
    HEADER_TIMEOUT = lib.DP_END_HEADER_TIMEOUT
    HEADER_TRUNCATED = lib.DP_END_HEADER_TRUNCATED
    HEADER_MALFORMED = lib.DP_END_HEADER_MALFORMED
    HEADER_NO_ADDRESS = lib.DP_END_HEADER_NO_ADDRESS
    LOOP = lib.DP_END_LOOP
    DOWNSTREAM_GONE = lib.DP_END_DOWNSTREAM_GONE
    NO_RESOURCES = lib.DP_END_NO_RESOURCES
    DRAIN_LIMIT = lib.DP_END_DRAIN_LIMIT
    UNOBSERVED = lib.DP_END_UNOBSERVED
    LEFT = lib.DP_END_LEFT
    DENIED = lib.DP_END_DENIED
    TOO_MANY_WAIT = lib.DP_END_TOO_MANY_WAIT
    EXCLUDED = lib.DP_END_EXCLUDED
    OTHER_NAMESPACE = lib.DP_END_OTHER_NAMESPACE
    TOO_MANY_FDS = lib.DP_END_TOO_MANY_FDS
    UNDETECTED = lib.DP_END_UNDETECTED


_END_TEXT: dict[End, str] = {
    End.REFUSED_BY_ROUTE: "refused by a route",
    End.UPSTREAM_CONNECT: "upstream connect failed",
    End.UPSTREAM_TIMEOUT: "upstream connect timed out",
    End.DOWNSTREAM_RESET: "reset by the application",
    End.UPSTREAM_RESET: "reset by the upstream",
    End.IDLE_TIMEOUT: "idle timeout",
    End.HEADER_TIMEOUT: "no complete PROXY header or request in time",
    End.HEADER_TRUNCATED: "closed before the PROXY header or request was complete",
    End.HEADER_MALFORMED: "malformed PROXY header or request",
    End.HEADER_NO_ADDRESS: "PROXY header without an original destination",
    End.LOOP: "the original destination is a listener of this sidecar itself",
    End.DOWNSTREAM_GONE: "the application gave up before the upstream answered",
    End.NO_RESOURCES: "out of resources",
    End.DRAIN_LIMIT: "closed at the drain limit",
    End.UNOBSERVED: "ended unobserved; the bytes are those of the last look",
    End.DENIED: "the user may not use this sidecar (outbound.control_socket_mode)",
    End.TOO_MANY_WAIT: "too many connections of the user have not said where they want to go",
    End.EXCLUDED: "the destination is on loopback and excluded (outbound.exclude)",
    End.OTHER_NAMESPACE: "the application is in another network namespace",
    End.TOO_MANY_FDS: "connections of the user have all file descriptors that others can spare",
    End.UNDETECTED: "the first bytes are of no protocol that is understood",
    End.LEFT: "still open when the sidecar stopped; it goes on",
}


HAS_HTTP2 = bool(lib.dp_has_http2())
"""Whether the data plane was built with libnghttp2."""


def http2_status(block: bytes) -> int | None:
    """The status of an answer of HTTP/2, whose whole header block this is, of a peer that was told
    to keep no table of headers. None: it has none, or cannot be understood."""
    return int(lib.dp_http2_status(block, len(block))) or None


DURATION_BOUNDS = tuple(bound / 1e9 for bound in lib.dp_duration_bounds_ns)
"""Seconds: from a request on loopback to connections of a pool that live for a day."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds."""

    connect: float = 5.0
    idle: float = 3600.0
    header: float = 5.0
    ejection: float = 10.0  # 0: none
    flush: float = 300.0


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a message may have at most: bytes of an HTTP request line, of a head with its line, its
    fields, and bytes of a frame of Bolt or Dubbo."""

    line_bytes: int = 8 * 1024
    head_bytes: int = 64 * 1024
    fields: int = 100
    frame_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Listener:
    """What is true of all connections of a listener.

    ``mark`` is the SO_MARK of the upstream sockets (0: none; needs CAP_NET_ADMIN).
    Connections to the application, that is on loopback or at the original destination's address,
    come from the client's address with ``preserve_source``, or else from ``application_sources``
    (IPv4, IPv6), and then have the ``application_mark`` instead; both need CAP_NET_ADMIN too.
    ``application`` replaces the address, not the port, of original destinations. ``number``, with
    ``Transport.LISTENER``: its place among the entrances of the table of services.
    """

    transport: Transport
    direction: Direction = Direction.OUTBOUND
    mark: int = 0
    preserve_source: bool = False
    application_mark: int = 0
    application_sources: tuple[str | None, str | None] = (None, None)
    application: str | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """One route; no endpoints means the original destination. With the same ``key`` (64 bits) as
    in the table before it goes on with its turns; None: the key is its place in the table.
    The last three are for ``Action.REQUESTS``: what the connection speaks, and with
    ``Protocol.AUTO`` how many seconds the first bytes may take to tell, and what becomes of it
    where they do not."""

    action: Action = Action.RELAY
    balance: Balance = Balance.ROUND_ROBIN
    endpoints: tuple[Address, ...] = ()
    key: int | None = None
    protocol: Protocol = Protocol.AUTO
    detect: float = 5.0
    undetected: Action = Action.RELAY


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Compiled rules (see ``pysidecar.routing.rules``) whose numbers index ``routes``."""

    rules: bytes
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True)
class PackedRoutes:
    """A route table in the data plane's own form, which takes time to make; see ``pack_routes``."""

    rules: bytes
    routes: bytes
    endpoints: bytes


def pack_array(kind: str, items: Sequence[Any]) -> bytes:
    """An array of C structs, each given as a tuple. By ``struct``, which takes a third of the time
    that cffi does, and piece by piece, because other threads stand still meanwhile."""
    pack = struct.Struct(f"={layout(ffi.typeof(kind))[0]}").pack
    pieces = (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))
    return b"".join([b"".join(itertools.starmap(pack, piece)) for piece in pieces])


def pack_routes(table: RouteTable) -> PackedRoutes:
    """For ``DataPlane.set_routes``, in any thread."""
    routes: list[tuple[int, ...]] = []
    endpoints: list[tuple[bytes, int, int, int]] = []
    for place, route in enumerate(table.routes):
        key = place if route.key is None else route.key
        routes.append(
            (
                *(key, route.action, route.balance, len(endpoints), len(route.endpoints)),
                *(route.protocol, round(route.detect * 1000), route.undetected),
            )
        )
        endpoints.extend(endpoint.to_native() for endpoint in route.endpoints)
    return PackedRoutes(
        table.rules,
        pack_array("struct dp_route", routes),
        pack_array("struct mosnhook_address", endpoints),
    )


class ConnectionRecord(NamedTuple):
    """One connection, live (``end`` is ``NONE``) or closed. Bytes as the application sees them:
    ``bytes_sent`` went to the upstream. ``rtt_ms`` is the smoothed round-trip time to the upstream,
    where it was measured."""

    id: int
    opened: datetime
    duration_ms: float
    transport: Transport
    direction: Direction
    action: Action
    path: ConnectionPath
    end: End
    source: Address | None
    original_destination: Address | None
    upstream: Address | None
    bytes_sent: int
    bytes_received: int
    rtt_ms: float | None
    pid: int | None
    uid: int | None
    process: str | None
    route: int | None
    errno: int

    @property
    def error(self) -> str | None:
        """What went wrong, with the errno's name, or None."""
        text = _END_TEXT.get(self.end)
        if text is None:
            return None
        if self.errno:
            return f"{text}: {errno.errorcode.get(self.errno, self.errno)}"
        return text


Kind = tuple[Direction, Transport, Action]


class Tallies(NamedTuple):
    """Sums over all connections, but for kinds and ends that there were none of.

    ``durations`` has a number for each of ``DURATION_BOUNDS``, of connections that lasted no longer
    than that, but longer than the one before, and one for those that lasted longer than all;
    ``duration`` is the sum in seconds. ``lines_dropped`` were not taken by ``take_lines`` in time.
    """

    open: Mapping[Kind, int]
    closed: Mapping[Kind, int]
    ends: Mapping[End, int]
    durations: Sequence[int]
    duration: float
    lines_dropped: int


class EjectedEndpoint(NamedTuple):
    """One that gets no connections for now, since a connect to it failed."""

    direction: Direction
    route: int
    endpoint: Address


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums since the start; see ``struct dp_counters``."""

    accepted: int
    closed: int
    bytes_sent: int
    bytes_received: int
    bytes_spliced: int
    connect_failures: int
    accept_pauses: int
    streams_refused: int
    streams_not_taken: int
    buffers: int
    connection_bytes: int
    fds_used: int
    fds_budget: int
    fds_limit: int
    full: int


@dataclass(frozen=True, slots=True)
class Acceleration:
    """When a connection's bytes take a shorter path, and which (``FULL`` or ``LOCAL``):
    after so many bytes in both directions together, or so many round trips. ``blocking_sockets``:
    also when the application blocks in ``recv``. ``connections``: at a time, no more."""

    path: ConnectionPath = ConnectionPath.FULL
    after_bytes: int = 128 * 1024
    after_round_trips: int = 8
    blocking_sockets: bool = False
    connections: int = 16384


class DemandedService(NamedTuple):
    """A service as requests name it; version and group are Dubbo's. ``triple``: with gRPC, a client
    of Dubbo's asks."""

    protocol: Protocol
    name: str
    version: str
    group: str
    triple: bool = False


class Outage(NamedTuple):
    """A service, by its number, of whose endpoints only some are available; ``panic``: less than
    ``percent``, so that all get requests."""

    number: int
    name: str
    endpoints: int
    available: int
    panic: bool
    percent: float


class AccelerationError(Exception):
    """Why connections cannot be accelerated here; the text says what is missing."""


class DataPlane:
    """The workers and their tables. For one control thread; only ``stop`` blocks.

    Open listeners and set the page and routes first, then ``start``. Errors of the C side are
    raised as ``OSError`` with their errno.
    """

    def __init__(self, *, workers: int, timeouts: Timeouts) -> None:
        self._dp: Any = lib.dp_create(workers, _timeouts(timeouts))
        if self._dp == ffi.NULL:
            raise OSError(ffi.errno, f"cannot create the data plane: {os.strerror(ffi.errno)}")
        self._records: Any = ffi.new("struct dp_record[]", _BATCH)
        self._events: Any = ffi.new("struct dp_trace_event[]", TRACE_PIECE)
        self._page: Any = None

    def add_listener(self, listener: socket.socket, settings: Listener) -> None:
        """Takes over a listening socket: SOCK_SEQPACKET for ``Transport.UNIX``, else TCP."""
        listener.setblocking(False)
        raw: dict[str, Any] = {
            "transport": settings.transport,
            "direction": settings.direction,
            "mark": settings.mark,
            "preserve_source": settings.preserve_source,
            "application_mark": settings.application_mark,
            "application_source": [_host(source) for source in settings.application_sources],
            "application": _host(settings.application),
            "number": settings.number,
        }
        _check(
            lib.dp_add_listener(self._dp, listener.detach(), ffi.new("struct dp_listener *", raw)),
            "cannot add a listener",
        )

    def add_park(self, host: str) -> Address:
        """Opens a park on a free port of a loopback address and says where it is."""
        raw = ffi.new("struct mosnhook_address *", Address(host, 0).to_native())
        _check(lib.dp_add_park(self._dp, raw), f"cannot open a park on {host}")
        park = Address.from_native(raw)
        assert park is not None
        return park

    def accelerate(self, settings: Acceleration) -> None:
        """Connections are accelerated from now on. Before ``start``; raises AccelerationError."""
        if not _PROGRAMS.exists():
            raise AccelerationError(
                "pysidecar was built without it: clang or libbpf's headers were missing"
            )
        reason = ffi.new("char[]", lib.DP_REASON_SIZE)
        raw = ffi.new(
            "struct dp_acceleration *",
            {
                "path": settings.path,
                "blocking_sockets": settings.blocking_sockets,
                "after_round_trips": settings.after_round_trips,
                "connections": settings.connections,
                "after_bytes": settings.after_bytes,
            },
        )
        result = lib.dp_accelerate(self._dp, os.fsencode(_PROGRAMS), raw, reason)
        if text := ffi.string(reason).decode("utf-8", "replace"):
            raise AccelerationError(text)
        _check(result, "cannot accelerate connections")

    def set_clients(self, uids: Collection[int], everybody_else: bool) -> None:
        """Who may use listeners for ``Transport.HEADER`` besides root and our own user: ``uids``,
        or all but these. Before ``start``."""
        raw = ffi.new("uint32_t[]", list(uids))
        _check(lib.dp_set_clients(self._dp, everybody_else, raw, len(uids)), "clients")

    def set_own_addresses(self, addresses: Sequence[Address]) -> None:
        """Addresses that are never an upstream by original destination: it would be a loop."""
        raw = ffi.new("struct mosnhook_address[]", [a.to_native() for a in addresses])
        _check(lib.dp_set_own_addresses(self._dp, raw, len(addresses)), "own addresses")

    def set_page(self, page: Any) -> None:
        """The mapped policy page (a writable buffer) for the sign of life and other news."""
        self._page = ffi.from_buffer("struct mosnhook_page *", page, require_writable=True)
        lib.dp_set_page(self._dp, self._page)

    def set_routes(
        self, table: RouteTable | PackedRoutes, direction: Direction = Direction.OUTBOUND
    ) -> None:
        """Replaces the route table of one direction; connections that are open keep the endpoint
        they have."""
        self._set_table(direction, table)

    def set_excluded(self, table: RouteTable | PackedRoutes) -> None:
        """Replaces what is refused to outbound connections on loopback: what matches any route."""
        self._set_table(lib.DP_EXCLUDED, table)

    def _set_table(self, which: int, table: RouteTable | PackedRoutes) -> None:
        packed = pack_routes(table) if isinstance(table, RouteTable) else table
        rules = ffi.from_buffer(packed.rules)
        routes = ffi.from_buffer("struct dp_route[]", packed.routes)
        endpoints = ffi.from_buffer("struct mosnhook_address[]", packed.endpoints)
        _check(
            lib.dp_set_routes(
                self._dp,
                which,
                ffi.cast("struct mosnhook_rules *", rules),
                routes,
                len(routes),
                endpoints,
                len(endpoints),
            ),
            "cannot set the route table",
        )

    def set_services(self, table: PackedServices) -> None:
        """Replaces the table of services; requests under way keep the service they have."""
        raw, kept = table.to_native()
        _check(lib.dp_set_services(self._dp, raw), "cannot set the services")
        del kept

    def set_health(self, health: Iterable[tuple[int, Address, bool]]) -> None:
        """What health checks say: number of the service, endpoint, whether it is healthy. It counts
        from the next request on, and for as long as a table has the endpoint."""
        raw = pack_array(
            "struct dp_health",
            [(*address.to_native(), number, healthy) for number, address, healthy in health],
        )
        array = ffi.from_buffer("struct dp_health[]", raw)
        lib.dp_set_health(self._dp, array, len(array))

    def outages(self) -> list[Outage]:
        """Services of which some endpoints are not available, at most 1,024."""
        found = ffi.new("struct dp_outage[]", MOST_OUTAGES)
        count = min(int(lib.dp_outages(self._dp, found, MOST_OUTAGES)), MOST_OUTAGES)
        return [
            Outage(
                each.number,
                ffi.unpack(each.name, each.name_size).decode("utf-8", "backslashreplace"),
                each.endpoints,
                each.available,
                bool(each.panic),
                100 * each.panic_share / lib.DP_SHARES,
            )
            for each in found[0:count]
        ]

    def take_wanted(self) -> list[DemandedService]:
        """Services that requests wait for, since no rule leads to one, and that were not taken yet;
        some perhaps twice. Requests go on when a table leads them there."""
        raw = ffi.new("struct dp_wanted[]", _WANTED)
        found: list[DemandedService] = []
        while count := lib.dp_take_wanted(self._dp, raw, _WANTED):
            found.extend(_wanted(each) for each in raw[0:count])
        return found

    def set_request_limits(self, limits: RequestLimits) -> None:
        """Before ``start``."""
        raw = ffi.new(
            "struct dp_request_limits *",
            (limits.line_bytes, limits.head_bytes, limits.fields, limits.frame_bytes),
        )
        _check(lib.dp_set_request_limits(self._dp, raw), "request limits")

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """For all timers that start from now on."""
        lib.dp_set_timeouts(self._dp, _timeouts(timeouts))

    def keep_descriptors(self, count: int) -> None:
        """Leaves as many more to the control plane. Before ``start``."""
        lib.dp_keep_fds(self._dp, count)

    def start(self) -> None:
        """Starts the workers: from here on connections are accepted."""
        _check(lib.dp_start(self._dp), "cannot start the workers")

    @property
    def event_fd(self) -> int:
        """Readable when connections have closed, or the data plane has become full or is no longer
        so, since ``clear_event``."""
        return int(lib.dp_event_fd(self._dp))

    def clear_event(self) -> None:
        """Before looking at what is new."""
        lib.dp_clear_event(self._dp)

    def keep_closed(self, count: int) -> None:
        """Each worker keeps at least so many connections for ``take_closed``, else 1,024. Before
        ``start``."""
        _check(lib.dp_keep_closed(self._dp, count), "cannot keep closed connections")

    def log(
        self, connections: bool = True, *, requests: bool = False, queries: bool = False
    ) -> None:
        """Whether a line of the access log is made of each connection that closes, and of each
        request that ends (with ``queries``, its path with its query); at first not."""
        kinds = (
            (lib.DP_LOG_CONNECTIONS if connections else 0)
            | (lib.DP_LOG_REQUESTS if requests else 0)
            | (lib.DP_LOG_QUERIES if queries else 0)
        )
        _check(lib.dp_log(self._dp, LOG_TEXTS, kinds), "cannot log")

    def take_lines(self, buffer: bytearray) -> int:
        """Stores some of the lines that were made since the last call, of `LINES_BYTES` at most.
        Returns how many bytes they have; 0: that were all."""
        assert len(buffer) >= LINES_BYTES
        return int(lib.dp_take_lines(self._dp, ffi.from_buffer(buffer)))

    def take_closed(self) -> list[ConnectionRecord]:
        """Connections that closed since the last call, each once, those that closed first at the
        beginning; of very many the latest, see ``keep_closed``."""
        taken: list[Any] = []
        while count := lib.dp_take_closed(self._dp, self._records, _BATCH):
            taken.extend(_unpack(self._records, count))
        taken.sort(key=lambda raw: raw.opened_ns + raw.duration_ns)
        return [_record(raw) for raw in taken]

    def tallies(self) -> Tallies:
        """What all connections add up to; costs the same however many there are."""
        raw = ffi.new("struct dp_tallies *")
        lib.dp_read_tallies(self._dp, raw)
        return Tallies(
            open=_by_kind(raw.open),
            closed=_by_kind(raw.closed),
            ends={end: int(raw.ends[end]) for end in End if raw.ends[end]},
            durations=tuple(raw.durations),
            duration=raw.duration_us / 1e6,
            lines_dropped=int(raw.lines_dropped),
        )

    def snapshot(self) -> list[ConnectionRecord]:
        """The live connections, with their counters as of now."""
        live = lib.dp_snapshot(self._dp, self._records, 0)
        room = max(1, live)
        records = ffi.new("struct dp_record[]", room)
        live = lib.dp_snapshot(self._dp, records, room)
        return _read_records(records, min(live, room))

    def walk(self) -> Generator[list[ConnectionRecord], None, None]:
        """The live connections in pieces, each with its counters as of when it is asked for: for
        whoever does something else in between. What closes meanwhile is left out, what opens
        meanwhile is not looked for, and none comes twice."""
        walk = lib.dp_walk_begin(self._dp)
        if walk == ffi.NULL:
            raise MemoryError
        try:
            records = ffi.new("struct dp_record[]", WALK_PIECE)
            while count := lib.dp_walk_next(walk, records, WALK_PIECE):
                yield _read_records(records, count)
        finally:
            lib.dp_walk_end(walk)

    def recent_requests(self) -> Generator[list[RequestRecord], None, None]:
        """The latest requests that ended, the latest first, in pieces; see ``walk``."""
        return self._requests(lib.dp_recent_requests)

    def failed_requests(self) -> Generator[list[RequestRecord], None, None]:
        """The latest of those that failed, likewise."""
        return self._requests(lib.dp_failed_requests)

    def slowest_requests(self) -> Generator[list[RequestRecord], None, None]:
        """The slowest requests that ended in the last five minutes, the slowest first, in pieces;
        without those that became tunnels."""
        return self._requests(lib.dp_slowest_requests)

    def _requests(self, read: Any) -> Generator[list[RequestRecord], None, None]:
        requests = ffi.new("struct dp_request[]", MOST_REQUESTS)
        raws = unpack_requests(requests, read(self._dp, requests, MOST_REQUESTS))
        for start in range(0, len(raws), WALK_PIECE):
            yield [decode_request(raw) for raw in raws[start : start + WALK_PIECE]]

    def set_tracing(self, forms: Sequence[str], sample: Fraction) -> None:
        """Requests are traced from now on, as they say it in these forms (see ``TRACE_FORMS``), and
        a share of those that begin a trace is sampled; without forms, none, as at first."""
        raw = native_tracing(list(forms), sample)
        _check(lib.dp_set_tracing(self._dp, raw), "cannot trace")

    def take_spans(self) -> tuple[list[SpanRecord], int]:
        """Some of those of requests that ended since the last call, and how many are lost, since
        they came faster than they were taken. For one thread at a time, whichever."""
        spans = ffi.new("struct dp_span[]", SPAN_PIECE)
        missed = ffi.new("uint64_t *")
        count = lib.dp_take_spans(self._dp, spans, SPAN_PIECE, missed)
        return read_spans(spans, count), int(missed[0])

    def unserved(self) -> RequestTally:
        """What the requests that reached no service add up to."""
        raw = ffi.new("struct dp_tally *")
        lib.dp_read_unserved(self._dp, raw)
        return read_tally(raw[0])

    def services(self, *, only_used: bool = False) -> Generator[list[ServiceSums], None, None]:
        """Services in the order of their table, in pieces, of which some may be empty; see
        ``walk``. One that a reload puts elsewhere meanwhile may come twice or not at all.
        ``only_used``: those that no request has reached are left out, which takes next to nothing
        for them."""
        sums = ffi.new("struct dp_service_sums[]", WALK_PIECE)
        place = ffi.new("struct dp_place *", {"only_used": only_used})
        while not place.ended:
            count = lib.dp_read_services(self._dp, place, sums, WALK_PIECE)
            yield [read_service(each) for each in sums[0:count]]

    def endpoints(
        self, *, only_used: bool = False, of: Container[int] | None = None
    ) -> Generator[list[EndpointSums], None, None]:
        """The endpoints of the services, likewise; those that are ejected count as used. ``of``:
        only those of services with these numbers."""
        sums = ffi.new("struct dp_endpoint_sums[]", WALK_PIECE)
        place = ffi.new("struct dp_place *", {"only_used": only_used})
        while not place.ended:
            count = lib.dp_read_endpoints(self._dp, place, sums, WALK_PIECE)
            yield [
                read_endpoint(each) for each in sums[0:count] if of is None or each.service in of
            ]

    def trace(self, on: bool) -> None:
        """Whether workers note what happens to connections, for ``take_trace``; at first not."""
        _check(lib.dp_trace(self._dp, on), "cannot trace")

    def take_trace(self) -> tuple[list[TraceEvent], int]:
        """Some of the events since the last call, those of a connection in order; and how many are
        lost, since they came faster than they were taken. No worker waits for this."""
        missed = ffi.new("uint64_t *")
        count = lib.dp_take_trace(self._dp, self._events, TRACE_PIECE, missed)
        return list(decode_events(self._events, count)), int(missed[0])

    @property
    def live(self) -> int:
        """The number of live connections."""
        return int(lib.dp_snapshot(self._dp, self._records, 0))

    @property
    def passing(self) -> int:
        """The number of live connections whose bytes pass the data plane: not direct ones."""
        return int(lib.dp_passing(self._dp))

    @property
    def drained(self) -> bool:
        """Whether, after ``drain``, all that waited at the listeners are live connections."""
        return bool(lib.dp_drained(self._dp))

    @property
    def loads(self) -> list[int]:
        """The number of live connections of each worker."""
        raw = ffi.new("uint64_t[]", int(lib.dp_loads(self._dp, ffi.NULL, 0)))
        lib.dp_loads(self._dp, raw, len(raw))
        return list(raw)

    def ejected(self) -> list[EjectedEndpoint]:
        """Endpoints that are ejected now."""
        room = int(lib.dp_ejected(self._dp, ffi.NULL, 0))
        raw = ffi.new("struct dp_ejected[]", room)
        count = min(room, int(lib.dp_ejected(self._dp, raw, room)))
        return [_ejected(each) for each in raw[0:count]]

    def counters(self) -> Counters:
        """Sums over all workers."""
        raw = ffi.new("struct dp_counters *")
        lib.dp_read_counters(self._dp, raw)
        return Counters(**{name: int(getattr(raw, name)) for name in Counters.__slots__})

    def drain(self) -> None:
        """Closes the listeners; live connections go on."""
        lib.dp_drain(self._dp)

    def stop(self) -> None:
        """Aborts what is still open and ends the workers; ``take_closed`` still works."""
        lib.dp_stop(self._dp)

    def close(self) -> None:
        """Frees everything; call ``stop`` first. The object is of no use afterwards."""
        if self._dp is not None:
            lib.dp_destroy(self._dp)
            self._dp = None
            self._page = None


def parking_works(host: str) -> bool:
    """Whether this kernel completes a parked socket on this loopback address, by trying it."""
    result = lib.dp_parking_works(
        ffi.new("struct mosnhook_address *", Address(host, 0).to_native())
    )
    _check(min(result, 0), f"cannot try parking on {host}")
    return bool(result)


def direct_works() -> None:
    """Raises OSError where the kernel does not say what becomes of direct connections."""
    _check(lib.dp_direct_works(), "NETLINK_SOCK_DIAG")


def _host(host: str | None) -> tuple[bytes, int, int, int]:
    """A ``struct mosnhook_address`` without a port; all zero for None."""
    return Address(host, 0).to_native() if host is not None else (bytes(16), 0, 0, 0)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")


def _timeouts(timeouts: Timeouts) -> Any:
    def milliseconds(seconds: float) -> int:
        return min(max(1, round(seconds * 1000)), 0xFFFFFFFF)

    return ffi.new(
        "struct dp_timeouts *",
        {
            "connect_ms": milliseconds(timeouts.connect),
            "idle_ms": milliseconds(timeouts.idle),
            "header_ms": milliseconds(timeouts.header),
            "ejection_ms": milliseconds(timeouts.ejection) if timeouts.ejection else 0,
            "flush_ms": milliseconds(timeouts.flush),
        },
    )


def _wanted(raw: Any) -> DemandedService:
    name, version, group = (
        _decoded(ffi.string(text)) for text in (raw.name, raw.version, raw.group)
    )
    return DemandedService(Protocol(raw.protocol), name, version, group, bool(raw.triple))


def _decoded(text: Any) -> str:
    return bytes(text).decode("utf-8", "backslashreplace")


def _ejected(raw: Any) -> EjectedEndpoint:
    endpoint = Address.from_native(raw.endpoint)
    assert endpoint is not None
    return EjectedEndpoint(Direction(raw.direction), raw.route, endpoint)


_TRANSPORTS = tuple(Transport)
_DIRECTIONS = tuple(Direction)
_ACTIONS = tuple(Action)
_PATHS = tuple(ConnectionPath)
_ENDS = tuple(End)


def _by_kind(counts: Any) -> dict[Kind, int]:
    return {
        (direction, transport, action): int(count)
        for direction in Direction
        for transport in Transport
        for action in Action
        if (count := counts[direction][transport][action])
    }


def _read_records(records: Any, count: int) -> list[ConnectionRecord]:
    return [_record(raw) for raw in _unpack(records, count)]


def _unpack(records: Any, count: int) -> list[Any]:
    """All of them at once: one by one through cffi, reading would take longer than relaying."""
    data = ffi.buffer(records, count * _RECORD.size)
    return [_Raw._make(fields) for fields in _RECORD.iter_unpack(data)]


def _record(raw: Any) -> ConnectionRecord:
    return ConnectionRecord(
        id=raw.id,
        opened=datetime.fromtimestamp(raw.opened_ns / 1e9, UTC),
        duration_ms=raw.duration_ns / 1e6,
        transport=_TRANSPORTS[raw.transport],
        direction=_DIRECTIONS[raw.direction],
        action=_ACTIONS[raw.action],
        path=_PATHS[raw.path],
        end=_ENDS[raw.end],
        source=Address.from_packed(raw.source_ip, raw.source_port, raw.source_scope_id),
        original_destination=Address.from_packed(
            raw.original_destination_ip,
            raw.original_destination_port,
            raw.original_destination_scope_id,
        ),
        upstream=Address.from_packed(raw.upstream_ip, raw.upstream_port, raw.upstream_scope_id),
        bytes_sent=raw.bytes_sent,
        bytes_received=raw.bytes_received,
        rtt_ms=raw.rtt_us / 1000 or None,
        pid=raw.pid or None,
        uid=None if raw.uid == _UNKNOWN_UID else raw.uid,
        process=raw.command.partition(b"\0")[0].decode("utf-8", "backslashreplace") or None,
        route=None if raw.route == _NO_ROUTE else raw.route,
        errno=raw.error,
    )


# ---- The words of the access log ----

_texts: dict[str, Any] = {}  # what LOG_TEXTS points to


def _text(text: str) -> Any:
    return _texts.setdefault(text, ffi.new("char[]", json.dumps(text)[1:-1].encode()))


def _log_texts() -> Any:
    def names(kind: type[enum.IntEnum]) -> list[Any]:
        return [_text(member.name.lower()) for member in kind]

    texts = ffi.new(
        "struct dp_log_texts *",
        {
            "directions": names(Direction),
            "transports": names(Transport),
            "actions": names(Action),
            "paths": names(ConnectionPath),
            "protocols": names(Protocol),
        },
    )
    for flag in Flag:
        texts.flags[flag] = _text(flag.name.lower())
    for end, text in _END_TEXT.items():
        texts.ends[end] = _text(text)
    for number, name in errno.errorcode.items():
        if number < lib.DP_ERRNOS:
            texts.errnos[number] = _text(name)
    return texts


LOG_TEXTS = _log_texts()
"""``struct dp_log_texts``: for the whole life of the process."""
