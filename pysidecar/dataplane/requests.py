"""Requests: what is known of one, and what those of a service and of an endpoint add up to."""

from __future__ import annotations

import enum
import operator
import struct
from collections import namedtuple
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pysidecar.address import Address
from pysidecar.dataplane._native import ffi, lib
from pysidecar.dataplane.layout import layout
from pysidecar.direction import Direction

__all__ = [
    "FAILURES",
    "REQUEST_BOUNDS",
    "STATUS_CLASSES",
    "Bound",
    "EndpointSums",
    "Flag",
    "Protocol",
    "RequestRecord",
    "RequestTally",
    "ServiceRole",
    "ServiceSums",
    "decode_request",
    "read_endpoint",
    "read_service",
    "read_tally",
    "unpack_request",
    "unpack_requests",
]

_codes, _names = layout(ffi.typeof("struct dp_request"))
_REQUEST = struct.Struct(f"={_codes}")
_Raw = namedtuple("_Raw", _names)  # type: ignore[misc]
_TALLY = struct.Struct(f"={ffi.sizeof('struct dp_tally') // 8}Q")


class Protocol(enum.IntEnum):
    """What a connection, a listener or a service speaks. ``AUTO``: its first bytes tell."""

    TCP = lib.DP_TCP
    HTTP = lib.DP_HTTP1
    BOLT = lib.DP_BOLT
    DUBBO = lib.DP_DUBBO
    HTTP2 = lib.DP_HTTP2
    GRPC = lib.DP_GRPC
    AUTO = lib.DP_AUTO

    @property
    def family(self) -> Protocol:
        """By which requests are routed: that of all versions of HTTP is ``HTTP``."""
        return Protocol.HTTP if self in (Protocol.HTTP2, Protocol.GRPC) else self


class ServiceRole(enum.IntEnum):
    """How a service came into the table: by the configuration, or because an application here calls
    or provides it."""

    CONFIGURED = lib.DP_ROLE_CONFIGURED
    SUBSCRIBED = lib.DP_ROLE_SUBSCRIBED
    PUBLISHED = lib.DP_ROLE_PUBLISHED


class Bound(enum.IntEnum):
    """What is bounded of a service."""

    CONNECTIONS = lib.DP_BOUND_CONNECTIONS
    PENDING = lib.DP_BOUND_PENDING
    REQUESTS = lib.DP_BOUND_REQUESTS
    RATE = lib.DP_BOUND_RATE


class Flag(enum.IntEnum):
    """What happened to a request."""

    NO_ROUTE = lib.DP_FLAG_NO_ROUTE
    NO_ENDPOINT = lib.DP_FLAG_NO_ENDPOINT
    CONNECT_FAILED = lib.DP_FLAG_CONNECT_FAILED
    CONNECT_TIMEOUT = lib.DP_FLAG_CONNECT_TIMEOUT
    TIMEOUT = lib.DP_FLAG_TIMEOUT
    UPSTREAM_RESET = lib.DP_FLAG_UPSTREAM_RESET
    OVERLOAD = lib.DP_FLAG_OVERLOAD
    MALFORMED_REQUEST = lib.DP_FLAG_MALFORMED_REQUEST
    MALFORMED_RESPONSE = lib.DP_FLAG_MALFORMED_RESPONSE
    REFUSED = lib.DP_FLAG_REFUSED
    LOOP = lib.DP_FLAG_LOOP
    RATE_LIMITED = lib.DP_FLAG_RATE_LIMITED
    FAULT_ABORT = lib.DP_FLAG_FAULT_ABORT
    DRAIN_LIMIT = lib.DP_FLAG_DRAIN_LIMIT
    DOWNSTREAM_CLOSED = lib.DP_FLAG_DOWNSTREAM_CLOSED
    RETRIED = lib.DP_FLAG_RETRIED
    SERVICE_ERROR = lib.DP_FLAG_SERVICE_ERROR
    UPGRADED = lib.DP_FLAG_UPGRADED
    RETRY_LIMITED = lib.DP_FLAG_RETRY_LIMITED
    RETRY_UNKEPT = lib.DP_FLAG_RETRY_UNKEPT
    HEDGED = lib.DP_FLAG_HEDGED
    MIRRORED = lib.DP_FLAG_MIRRORED
    FAULT_DELAY = lib.DP_FLAG_FAULT_DELAY
    LIMIT_PENDING = lib.DP_FLAG_LIMIT_PENDING
    LIMIT_REQUESTS = lib.DP_FLAG_LIMIT_REQUESTS
    PANIC = lib.DP_FLAG_PANIC
    UNAVAILABLE = lib.DP_FLAG_UNAVAILABLE
    OTHER_ZONE = lib.DP_FLAG_OTHER_ZONE
    EJECTED = lib.DP_FLAG_EJECTED
    NOT_TAKEN = lib.DP_FLAG_NOT_TAKEN


FAILURES = tuple(flag for flag in Flag if flag <= Flag.DOWNSTREAM_CLOSED)
"""Of these a request has one at most."""

STATUS_CLASSES = ("none", *(f"{hundreds}xx" for hundreds in range(1, lib.DP_STATUS_CLASSES)))
"""The words for ``RequestRecord.status_class``; ``none``: no answer was sent."""

REQUEST_BOUNDS: tuple[float, ...] = tuple(bound / 1e9 for bound in lib.dp_request_bounds_ns)
"""Seconds: from an answer on loopback to one that keeps people waiting."""


class RequestRecord(NamedTuple):
    """One request that ended. Bytes are the client's: ``bytes_sent`` of the request,
    ``bytes_received`` of the answer, each with its head. ``connection`` is the ``id`` of a
    ConnectionRecord, ``path`` has HTTP's query, ``status`` is None where no answer was sent.
    ``trace_id`` is in hexadecimal digits, None where it belongs to no trace; ``span_id`` is the
    sidecar's own, None where it was not sampled."""

    connection: int
    began: datetime
    duration_ms: float
    first_byte_ms: float | None
    bytes_sent: int
    bytes_received: int
    source: Address | None
    upstream: Address | None
    status: int | None
    status_class: int
    flags: tuple[Flag, ...]
    attempts: int
    protocol: Protocol
    direction: Direction
    service: str | None
    method: str | None
    path: str | None
    trace_id: str | None = None
    span_id: str | None = None

    @property
    def path_without_query(self) -> str | None:
        """HTTP's without what follows its question mark; other protocols' as it is."""
        if self.path is None or self.protocol.family is not Protocol.HTTP:
            return self.path
        return self.path.partition("?")[0] or None

    @property
    def failed(self) -> bool:
        """Whether the way or the service is at fault, or nobody waited for the answer."""
        return self.status_class == 5 or any(
            flag in FAILURES or flag is Flag.SERVICE_ERROR for flag in self.flags
        )


class RequestTally(NamedTuple):
    """Sums of requests that ended; but ``active`` are under way, ``connections`` upstream
    connections that are open, and ``pending`` requests that wait for one.

    ``statuses``, ``durations`` and ``duration`` are by status class (see STATUS_CLASSES):
    ``durations`` has a number for each of REQUEST_BOUNDS, of requests that took no longer than
    that, but longer than the one before, and one for those beyond all; ``duration`` is a sum in
    seconds. ``attempts`` are upstreams that requests were sent to."""

    active: int
    statuses: Sequence[int]
    flags: Mapping[Flag, int]
    failures: int
    attempts: int
    bytes_sent: int
    bytes_received: int
    durations: Sequence[Sequence[int]]
    duration: Sequence[float]
    connections: int
    pending: int

    @property
    def requests(self) -> int:
        """All that ended."""
        return sum(self.statuses)

    def plus(self, other: RequestTally) -> RequestTally:
        """Of both together."""
        return RequestTally(
            active=self.active + other.active,
            statuses=_sum(self.statuses, other.statuses),
            flags={
                flag: self.flags.get(flag, 0) + other.flags.get(flag, 0)
                for flag in Flag
                if flag in self.flags or flag in other.flags
            },
            failures=self.failures + other.failures,
            attempts=self.attempts + other.attempts,
            bytes_sent=self.bytes_sent + other.bytes_sent,
            bytes_received=self.bytes_received + other.bytes_received,
            durations=tuple(map(_sum, self.durations, other.durations)),
            duration=tuple(map(operator.add, self.duration, other.duration)),
            connections=self.connections + other.connections,
            pending=self.pending + other.pending,
        )


def _sum(one: Sequence[int], other: Sequence[int]) -> Sequence[int]:
    return tuple(map(operator.add, one, other))


class ServiceSums(NamedTuple):
    """A service, and what its requests add up to since the start. ``number`` names it for as long
    as the data plane runs. ``available`` of its ``endpoints`` are neither unhealthy nor ejected;
    ``panic``: these are so few that all get requests."""

    number: int
    name: str
    protocol: Protocol
    tally: RequestTally
    role: ServiceRole = ServiceRole.CONFIGURED
    retries: int = 0
    """Requests that are sent again, or wait for that, now."""
    reached: tuple[Bound, ...] = ()
    """Bounds that are reached now: what comes beyond has to wait or is refused."""
    endpoints: int = 0
    available: int = 0
    panic: bool = False


class EndpointSums(NamedTuple):
    """An endpoint of the service with that number, and what its requests add up to for as long as
    the service has it. ``weight`` is 1 where all of the service weigh the same.

    ``ejected``: it could not be connected; ``unhealthy``: health checks say so; ``ejected_for``:
    seconds for which it gets no requests, since they failed. ``other_zone``: others are
    preferred."""

    service: int
    address: Address
    weight: int
    ejected: bool
    tally: RequestTally
    unhealthy: bool = False
    ejected_for: float = 0.0
    other_zone: bool = False

    @property
    def available(self) -> bool:
        """Whether it gets requests, where the others can be connected."""
        return not self.unhealthy and not self.ejected_for


_PROTOCOLS = tuple(Protocol)
_SERVICE_ROLES = tuple(ServiceRole)
_DIRECTIONS = tuple(Direction)
_CLASSES: int = lib.DP_STATUS_CLASSES
_BUCKETS: int = lib.DP_REQUEST_BOUNDS + 1
# Where each field of struct dp_tally is, in words.
_AT = {name: field.offset // 8 for name, field in ffi.typeof("struct dp_tally").fields}
assert [name for name, _ in ffi.typeof("struct dp_tally").fields] == [
    *("active", "statuses", "flags", "failures", "attempts", "bytes", "durations", "duration_us"),
    *("connections", "pending"),
]


def read_tally(raw: Any) -> RequestTally:
    """From a ``struct dp_tally``."""
    words = _TALLY.unpack(ffi.buffer(ffi.addressof(raw)))
    flags, durations, sums = _AT["flags"], _AT["durations"], _AT["duration_us"]
    return RequestTally(
        active=words[_AT["active"]],
        statuses=words[_AT["statuses"] : _AT["statuses"] + _CLASSES],
        flags={flag: words[flags + flag] for flag in Flag if words[flags + flag]},
        failures=words[_AT["failures"]],
        attempts=words[_AT["attempts"]],
        bytes_sent=words[_AT["bytes"]],
        bytes_received=words[_AT["bytes"] + 1],
        durations=tuple(
            words[start : start + _BUCKETS]
            for start in range(durations, durations + _CLASSES * _BUCKETS, _BUCKETS)
        ),
        duration=tuple(us / 1e6 for us in words[sums : sums + _CLASSES]),
        connections=words[_AT["connections"]],
        pending=words[_AT["pending"]],
    )


def read_service(raw: Any) -> ServiceSums:
    """From a ``struct dp_service_sums``."""
    return ServiceSums(
        raw.number,
        ffi.unpack(raw.name, raw.name_size).decode("utf-8", "backslashreplace"),
        _PROTOCOLS[raw.protocol],
        read_tally(raw.tally),
        _SERVICE_ROLES[raw.role],
        raw.retries,
        tuple(bound for bound in Bound if raw.reached >> bound & 1) if raw.reached else (),
        raw.endpoints,
        raw.available,
        bool(raw.panic),
    )


def read_endpoint(raw: Any) -> EndpointSums:
    """From a ``struct dp_endpoint_sums``."""
    address = Address.from_native(raw.address)
    assert address is not None
    return EndpointSums(
        raw.service,
        address,
        raw.weight,
        bool(raw.ejected),
        read_tally(raw.tally),
        bool(raw.unhealthy),
        raw.ejected_ms / 1000,
        bool(raw.other_zone),
    )


def unpack_request(data: Any, start: int) -> Any:
    """The ``struct dp_request`` that is there in a buffer, for ``decode_request``."""
    return _Raw._make(_REQUEST.unpack_from(data, start))


def unpack_requests(requests: Any, count: int) -> list[Any]:
    """An array of ``struct dp_request``, for ``decode_request``, which takes longer."""
    data = ffi.buffer(requests, count * _REQUEST.size)
    return [_Raw._make(fields) for fields in _REQUEST.iter_unpack(data)]


def decode_request(raw: Any) -> RequestRecord:
    """One of ``unpack_requests``."""
    return RequestRecord(
        connection=raw.connection,
        began=datetime.fromtimestamp(raw.began_ns / 1e9, UTC),
        duration_ms=raw.duration_ns / 1e6,
        first_byte_ms=raw.first_byte_ns / 1e6 or None,
        bytes_sent=raw.bytes_sent,
        bytes_received=raw.bytes_received,
        source=Address.from_packed(raw.source_ip, raw.source_port, raw.source_scope_id),
        upstream=Address.from_packed(raw.upstream_ip, raw.upstream_port, raw.upstream_scope_id),
        status=raw.status if raw.answered else None,
        status_class=raw.status_class,
        flags=_flags(raw.flags),
        attempts=raw.attempts,
        protocol=_PROTOCOLS[raw.protocol],
        direction=_DIRECTIONS[raw.direction],
        service=_text(raw.service),
        method=_text(raw.method),
        path=_text(raw.path),
        trace_id=_digits(raw.trace_id),
        span_id=_digits(raw.span_id),
    )


def _digits(number: bytes) -> str | None:
    return number.hex() if any(number) else None


def _flags(bits: int) -> tuple[Flag, ...]:
    return tuple(flag for flag in Flag if bits >> flag & 1) if bits else ()


def _text(padded: bytes) -> str | None:
    return padded.partition(b"\0")[0].decode("utf-8", "backslashreplace") or None
