"""The configuration's schema: what every key is called, means and defaults to.

``docs/configuration.md`` and the JSON schema are generated from here.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pysidecar.address import Address
from pysidecar.config.requests import (
    MAX_SERVICE_LISTENERS,
    RequestLimits,
    RequestMatch,
    RequestRule,
    Rewrite,
    ServiceEndpoint,
    ServiceEntry,
    ServiceListener,
    parse_name,
)
from pysidecar.config.resilience import (
    Backoff,
    CircuitBreaker,
    Fault,
    FaultAbort,
    FaultDelay,
    Hedge,
    Mirror,
    RateLimit,
    Retries,
)
from pysidecar.config.section import AT_START as _AT_START
from pysidecar.config.section import Section as _Section
from pysidecar.config.section import field_texts as _field_texts
from pysidecar.config.section import one_or_many as _one_or_many
from pysidecar.config.section import sections as _sections
from pysidecar.config.takeover import (
    Credentials,
    ProvidedService,
    RegistryEntry,
    RegistryTls,
    Takeover,
    WantedService,
)
from pysidecar.config.tracing import Tracing
from pysidecar.config.values import (
    AddressText,
    CgroupPath,
    Duration,
    DurationOrZero,
    EndpointText,
    FilePath,
    HostText,
    LoopbackText,
    Mode,
    NetworkText,
    Ports,
    SocketPath,
    WhenAway,
    WhenAwayText,
    parse_network,
)
from pysidecar.marks import OUTBOUND_MARK
from pysidecar.modes import INBOUND, OUTBOUND, inbound_mode, outbound_mode

__all__ = [
    "Acceleration",
    "AccessLog",
    "Admin",
    "Config",
    "Exclude",
    "Inbound",
    "Match",
    "Outbound",
    "Redirect",
    "RouteEntry",
    "default_control_socket",
    "json_schema",
    "needs_restart",
    "section_of",
]

MAX_LISTENERS = 16  # MOSNHOOK_MAX_LISTENERS of hook/contract.h


def _false_is_none(value: Any) -> Any:
    return None if value is False else value


class Admin(_Section):
    """The HTTP interface for people and monitoring."""

    listen: Annotated[AddressText, Field(json_schema_extra=_AT_START)] = Address("127.0.0.1", 15000)
    """Where `/ready`, `/connections`, `/services`, `/requests`, `/config` and `/metrics` are
    served. There is no login: bind it to another address than loopback only where everyone who
    reaches it may read it. With port 0 the kernel picks one; the log says which."""


class _ModeSection(_Section):
    """A section that may be given as its mode alone."""

    @model_validator(mode="before")
    @classmethod
    def _mode_alone(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        mapping = handler.resolve_ref_schema(handler(schema))
        mode = mapping["properties"]["mode"]
        modes = ", ".join(f"`{name}`" for name in mode["enum"])
        return {"anyOf": [mode, mapping], "kind": f"{modes} or mapping"}


class AccessLog(_ModeSection):
    """One JSON object for each connection, written when it closes, and one for each request,
    written when it ends. Their `type` tells them apart."""

    mode: Literal["on", "off"] = "on"
    """`off` writes nothing. Metrics, `/connections` and `/requests` know of everything
    nevertheless."""

    connections: Literal["on", "off"] = "on"
    """Whether connections are written, `"type": "connection"`."""

    requests: Literal["on", "off"] = "on"
    """Whether requests are written, `"type": "request"`: those of services, and of routes whose
    action is `requests`. See `docs/requests.md` for what is in them."""

    query: Annotated[bool, Field(strict=True)] = False
    """Whether the path of an HTTP request is written, and shown by `/requests`, with its query,
    where secrets may be."""

    path: FilePath | None = None
    """File to append to, created with mode 0640; without it, standard output. Reopened at SIGHUP,
    as logrotate needs it."""

    @property
    def writes_connections(self) -> bool:
        """Whether there are lines of them."""
        return self.mode == self.connections == "on"

    @property
    def writes_requests(self) -> bool:
        """Whether there are lines of them."""
        return self.mode == self.requests == "on"

    @property
    def writes(self) -> bool:
        """Whether there is a log at all."""
        return self.writes_connections or self.writes_requests


class Match(_Section):
    """Which connections a route is for, by their original destination."""

    destination: Annotated[
        Annotated[tuple[NetworkText, ...], Field(min_length=1)],
        BeforeValidator(_one_or_many, json_schema_input_type=NetworkText | list[NetworkText]),
    ] = (parse_network("0.0.0.0/0"), parse_network("::/0"))
    """One network or a list; a single address counts as a network. `0.0.0.0/0` is all of IPv4 and
    `::/0` all of IPv6; neither contains the other."""

    ports: Annotated[
        Annotated[tuple[Ports, ...], Field(min_length=1)] | None,
        BeforeValidator(_one_or_many, json_schema_input_type=Ports | list[Ports] | None),
    ] = None
    """Ports and ranges of ports, one or a list. Without it, every port."""


class Exclude(Match):
    """Destinations that the hook leaves alone."""

    @model_validator(mode="before")
    @classmethod
    def _network_alone(cls, value: Any) -> Any:
        if value is None or value == {}:
            raise ValueError("expected a network, or a mapping with destination, ports or both")
        return value if isinstance(value, dict | Exclude) else {"destination": value}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        mapping = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"type": "string"}, mapping], "kind": "network or mapping"}


class RouteEntry(_Section):
    """What to do with the connections that match."""

    match: Match = Match()
    """Which connections; without it, all."""

    action: Literal["relay", "direct", "refuse", "requests"] = "relay"
    """`relay` connects to an endpoint, and passes the bytes on. `direct` lets the application
    connect itself to the endpoint that is chosen for it, so that nothing is in the way of its
    bytes; the connection is shown and logged all the same (see `docs/paths/direct.md`). Only with
    transport `unix`; connections that come another way are relayed. `refuse` lets the application's
    connect fail with ECONNREFUSED. `requests` reads what the connection carries request by request:
    each goes to the service that `requests` names for it, and where no rule there matches, to the
    original destination (see `docs/requests.md`). The application's connect succeeds at once
    then."""

    endpoints: Annotated[tuple[EndpointText, ...], Field(min_length=1)] | None = None
    """Where to connect; when one refuses, the next is tried (`direct` leaves that to the
    application's next connect; see `outbound.ejection_time`). Without it, the original
    destination."""

    balance: Literal["round_robin", "least_connections"] = "round_robin"
    """Which endpoint a connection tries first: `round_robin` goes round, also from one reload to
    the next; `least_connections` takes the one of two random ones that has fewer connections,
    whichever route of the direction they came by."""

    protocol: Literal["auto", "http", "http2", "grpc", "bolt", "dubbo"] = "auto"
    """With `requests`: what the connections speak. `auto` finds out by the first bytes, for which
    it has to wait: of a protocol in which the server speaks first nothing passes until
    `detect_timeout`."""

    detect_timeout: Duration = 5.0
    """With `auto`: how long the first bytes may take to tell the protocol."""

    undetected: Literal["relay", "refuse"] = "relay"
    """With `auto`: what becomes of a connection whose protocol is not found out. `relay` passes its
    bytes on to the original destination, `refuse` closes it."""

    @model_validator(mode="after")
    def _consistent(self) -> RouteEntry:
        if self.action == "refuse" and self.endpoints:
            raise ValueError("expected no endpoints in a route that refuses")
        if self.action == "requests" and self.endpoints:
            raise ValueError(
                "expected no endpoints beside action: requests: those of services are meant"
            )
        for key in ("protocol", "detect_timeout", "undetected"):
            is_default = getattr(self, key) == type(self).model_fields[key].default
            if not is_default and self.action != "requests":
                raise ValueError(f"expected action: requests beside {key}")
        return self


def _check_endpoints(routes: tuple[RouteEntry, ...], own: list[Address]) -> None:
    for index, route in enumerate(routes):
        for endpoint in route.endpoints or ():
            if endpoint in own:
                raise ValueError(
                    f"expected other endpoints in routes[{index}]: {endpoint} is the sidecar's "
                    "own listener"
                )


_Id = Annotated[int, Field(strict=True, ge=0, le=0xFFFFFFFE)]
_Ids = Annotated[
    tuple[_Id, ...], BeforeValidator(_one_or_many, json_schema_input_type=_Id | list[_Id])
]


class Redirect(_Section):
    """Outbound connections of programs that cannot be hooked, by NAT rules."""

    listen: Annotated[
        tuple[LoopbackText, ...], Field(min_length=1, max_length=2, json_schema_extra=_AT_START)
    ] = (Address("127.0.0.1", 15002), Address("::1", 15002))
    """Where the rules send connections: 127.0.0.1, [::1] or both. The default's IPv6 address is
    left out where the host has none."""

    mark: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=0xFFFFFFFF)] | None,
        Field(json_schema_extra=_AT_START),
    ] = OUTBOUND_MARK
    """SO_MARK of the sidecar's own connections, by which the rules leave them alone; setting it
    needs CAP_NET_ADMIN. `null`: the sidecar is told by one of the following keys."""

    uids: Annotated[_Ids, Field(json_schema_extra=_AT_START)] = ()
    """Users whose connections are left alone, one number or a list: the sidecar runs as one of
    them."""

    gids: Annotated[_Ids, Field(json_schema_extra=_AT_START)] = ()
    """Groups whose connections are left alone, one number or a list."""

    cgroup: Annotated[CgroupPath | None, Field(json_schema_extra=_AT_START)] = None
    """A cgroup (v2) whose connections are left alone, such as
    `system.slice/pysidecar.service`."""

    @model_validator(mode="before")
    @classmethod
    def _true_is_default(cls, value: Any) -> Any:
        return {} if value is True else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        mapping = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"const": True}, mapping], "kind": "`true` or mapping"}


class Outbound(_Section):
    """The connections that the application opens."""

    listen: Annotated[
        tuple[LoopbackText, ...],
        Field(min_length=1, max_length=MAX_LISTENERS, json_schema_extra=_AT_START),
    ] = (Address("127.0.0.1", 15001), Address("::1", 15001))
    """Loopback addresses for connections that begin with a PROXY v2 header, from users who may use
    the control socket. Without this key there are none, unless `transport` is `header` or the
    kernel cannot do `unix`. Each (source address,
    listener) pair carries about 28,000 connections: list several for more. The default's IPv6
    address is left out where the host has none. With port 0 the kernel picks one."""

    control_socket: Annotated[SocketPath | None, Field(json_schema_extra=_AT_START)] = None
    """Unix socket where hooked processes ask for their connections. The policy page, which they
    read, is the file beside it that ends in `.policy`. Default:
    `$XDG_RUNTIME_DIR/pysidecar/hook.sock`, else `/run/pysidecar/hook.sock` for root and
    `/tmp/pysidecar-<uid>/hook.sock` for everyone else. Where another user has taken that name, it
    is `/tmp/pysidecar-<uid>.<random>/hook.sock`, and programs need the MOSNHOOK_POLICY that the log
    names (`pysidecar exec` sets it)."""

    control_socket_mode: Annotated[Mode, Field(json_schema_extra=_AT_START)] = 0o600
    """Permissions of the control socket: who may be hooked to this sidecar. They hold for
    connections with a PROXY v2 header, too, whose users the kernel tells. Its read bits are the
    policy page's too, and a directory that is created for them is opened as far as needed."""

    transport: Literal["unix", "header"] = "unix"
    """How hooked processes hand over a connection. `unix`: over the control socket, so that
    `connect` fails with the upstream's true errno. `header`: over a listener with a PROXY v2
    header, so that another proxy that accepts PROXY v2 can take the sidecar's place. A reload can
    change it to `header` if `listen` was given."""

    when_away: WhenAwayText = WhenAway()
    """What a hooked `connect` does while no sidecar serves: `refuse` fails with ECONNREFUSED,
    `direct` connects past the sidecar, `wait:<duration>` waits for a sidecar and then refuses;
    `wait` is `wait:30s`."""

    exclude: tuple[Exclude, ...] = (
        Exclude.model_validate("127.0.0.0/8"),
        Exclude.model_validate("::1/128"),
    )
    """Destinations that the hook leaves alone: networks, or mappings with `destination` and `ports`
    as in a route's `match`. Those on loopback the sidecar refuses, too, whoever asks for them. `[]`
    captures loopback; the sidecar's own listeners are never
    captured."""

    redirect: Annotated[
        Redirect | None,
        BeforeValidator(_false_is_none),
        Field(json_schema_extra=_AT_START),
    ] = None
    """Outbound connections of programs that cannot be hooked, such as static ones and Go's, by NAT
    rules (see `docs/interception.md`). `true` means the defaults of the keys below; without this
    key there is none. Connections within the host are left alone, and so is what `exclude` names,
    whose entries must then have either networks or ports. Without `manage_rules`, changing
    `exclude` takes a new `pysidecar rules apply`."""

    connect_timeout: Duration = 5.0
    """For connecting to each endpoint; inbound too."""

    ejection_time: DurationOrZero = 10.0
    """For this long after a connect to it failed, an endpoint is ejected: connections get another
    one of the route, unless all of them are ejected, too. It holds for all routes of the direction
    that name the endpoint. A connect that succeeds ends it; a reload does not, as long as a route
    names the endpoint. Failures that say nothing of the endpoint do not count, such as a lack of
    local ports, or an application that gives up before `connect_timeout`. `0s`: never; inbound
    too."""

    idle_timeout: Duration = 3600.0
    """A connection without a byte in either direction for this long is closed; inbound too."""

    header_timeout: Duration = 5.0
    """For the whole PROXY header or control request to arrive."""

    flush_timeout: Duration = 300.0
    """For a client of HTTP/2 to take 16 KiB of an answer that waits for it, or what there is of it:
    after this long, and a quarter more at most, the stream is reset; a connection that takes
    nothing at all is closed. Streams on which nothing waits are left alone; inbound too."""

    routes: tuple[RouteEntry, ...] = ()
    """The first that matches decides. Without one: relay to the original destination."""

    @model_validator(mode="after")
    def _consistent(self) -> Outbound:
        fixed = [address for address in self.listen if address.port]
        for address in fixed:
            if fixed.count(address) > 1:
                raise ValueError(f"expected each address once in listen, not {address} again")
        _check_endpoints(self.routes, fixed)
        for name in OUTBOUND:
            if getattr(self, name) is not None:
                outbound_mode(name).rules_of(self)
        return self

    @property
    def direct_routes(self) -> bool:
        """Whether a route says `direct`."""
        return any(route.action == "direct" for route in self.routes)

    @property
    def control_path(self) -> Path:
        """The control socket, configured or default."""
        return self.control_socket or default_control_socket()


_PortList = Annotated[
    Annotated[tuple[Ports, ...], Field(min_length=1)] | None,
    BeforeValidator(_one_or_many, json_schema_input_type=Ports | list[Ports] | None),
]


if TYPE_CHECKING:
    _InboundMode = str
else:
    _InboundMode = Literal[tuple(INBOUND)]


class Inbound(_Section):
    """The connections that others open to the application."""

    mode: Annotated[_InboundMode, Field(json_schema_extra=_AT_START)] = "tproxy"
    """How they get here. `tproxy`: unchanged, past connection tracking, for high load; the sidecar
    needs CAP_NET_ADMIN. `redirect`: by NAT, which costs an entry of the connection tracking table
    each; only changing the rules needs a capability."""

    listen: Annotated[
        Annotated[tuple[AddressText, ...], Field(min_length=1, max_length=2)] | None,
        Field(json_schema_extra=_AT_START),
    ] = None
    """Where the rules send connections: one address of each family; a family without one is left
    alone. Default: port 15006 on 127.0.0.1 and [::1] with `tproxy`, on 0.0.0.0 and [::] with
    `redirect`, which needs all addresses. The default's IPv6 address is left out where the host has
    none. Whoever connects to it directly is turned away."""

    ports: Annotated[_PortList, Field(json_schema_extra=_AT_START)] = None
    """Ports of the application whose connections are taken, one or a list. Without it, all."""

    exclude_ports: Annotated[_PortList, Field(json_schema_extra=_AT_START)] = None
    """Ports that are left alone, one or a list. The sidecar's own ones always are."""

    application_address: Annotated[
        Annotated[tuple[HostText, ...], Field(min_length=1, max_length=2)] | None,
        BeforeValidator(_one_or_many, json_schema_input_type=HostText | list[HostText] | None),
        Field(json_schema_extra=_AT_START),
    ] = None
    """Where the application is, on the port that the client asked for: an address, or one of each
    family. Without it, the address that the client asked for, so that nobody reaches through the
    sidecar what listens on loopback only. On loopback with `redirect` the application cannot tell
    its clients from programs on this host."""

    preserve_source: Annotated[bool, Field(strict=True, json_schema_extra=_AT_START)] = False
    """Whether the application sees the client's real address; the port is another one. Only with
    `tproxy`, and with an `application_address` on loopback. Endpoints of routes that are not on
    loopback see the sidecar."""

    routes: tuple[RouteEntry, ...] = ()
    """The first that matches decides, by the destination that the client asked for. Without one:
    relay to the application."""

    @model_validator(mode="after")
    def _consistent(self) -> Inbound:
        hosts = self.application_address or ()
        if len({":" in host for host in hosts}) < len(hosts):
            raise ValueError("expected at most one application_address of each family")
        on_loopback = {ip_address(host).is_loopback for host in hosts}
        if len(on_loopback) > 1:
            raise ValueError("expected application_address all on loopback, or none of them")
        inbound_mode(self.mode).rules_of(self)
        if self.preserve_source:
            self._check_preserved(on_loopback == {True})
        for index, route in enumerate(self.routes):
            if route.action == "direct":
                raise ValueError(
                    f"expected relay, refuse or requests in routes[{index}]: direct is for "
                    "outbound connections"
                )
            if route.action == "requests" and self.preserve_source:
                raise ValueError(
                    f"expected no action: requests in routes[{index}] beside preserve_source: "
                    "requests of several clients share a connection to the application"
                )
        _check_endpoints(self.routes, list(self.addresses))
        return self

    def _check_preserved(self, on_loopback: bool) -> None:
        if not on_loopback:
            # On the address that the client asked for, the client's connection to the sidecar and
            # the sidecar's to the application would differ in nothing but a port that the client
            # may use, too, for its next one.
            raise ValueError(
                'expected application_address: [127.0.0.1, "::1"] for preserve_source: elsewhere '
                "the client's own connections would get mixed up with those in its name"
            )
        families = {address.family for address in self.addresses}
        if any(
            (":" in str(self.application(family))) != (family == socket.AF_INET6)
            for family in families
        ):
            raise ValueError(
                "expected an application_address of each family that is listened on, since "
                "preserve_source cannot turn a client's address into the other one"
            )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The listeners, configured or default."""
        return self.listen or inbound_mode(self.mode).default_listen

    def application(self, family: socket.AddressFamily) -> str | None:
        """Where connections of this family go; None is where the client wanted to go."""
        hosts = self.application_address or (None,)
        same = [host for host in hosts if host and (":" in host) == (family == socket.AF_INET6)]
        return same[0] if same else hosts[0]


class Acceleration(_ModeSection):
    """Outbound connections of hooked applications, moved by BPF programs in the kernel: where
    `receive` is true."""

    mode: Annotated[Literal["auto", "off", "require"], Field(json_schema_extra=_AT_START)] = "auto"
    """`auto` relays where the kernel, the privileges (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON) or
    libbpf are missing, and says so once. `require` does not start then, and asks for `receive`."""

    path: Annotated[Literal["full", "local"], Field(json_schema_extra=_AT_START)] = "full"
    """`full` goes from the application's socket to the upstream's. `local` only replaces the TCP
    between application and sidecar, which still sees every byte; so it is the path of connections
    whose requests are read, whichever is configured."""

    after_bytes: Annotated[
        int, Field(strict=True, ge=0, le=2**63 - 1, json_schema_extra=_AT_START)
    ] = 131072
    """A connection is accelerated when so many bytes have passed, both directions together …"""

    after_round_trips: Annotated[
        int, Field(strict=True, ge=0, le=0xFFFFFFFF, json_schema_extra=_AT_START)
    ] = 8
    """… or so many requests and answers. Short connections are not worth the effort."""

    connections: Annotated[int, Field(strict=True, ge=1, le=2**20, json_schema_extra=_AT_START)] = (
        16384
    )
    """How many connections are accelerated at a time; further ones are relayed. The kernel sets
    memory aside for them, about 300 bytes for each."""

    receive: Annotated[bool, Field(strict=True, json_schema_extra=_AT_START)] = False
    """Whether connections are accelerated, although the application's receiving calls then differ
    in some ways from those on an ordinary socket: they are listed in `docs/acceleration.md`. The
    kernel replaces the receiving functions of every socket whose messages it redirects, so nothing
    is accelerated without it."""

    blocking_sockets: Annotated[bool, Field(strict=True, json_schema_extra=_AT_START)] = False
    """Whether sockets that are not in non-blocking mode are accelerated, too; asks for `receive`.
    On those the kernel may let a `recv` that waits end with EAGAIN. The hook waits on then, but it
    does not see what libc reads on its own, such as `fgets` from a socket."""

    @model_validator(mode="after")
    def _consistent(self) -> Acceleration:
        if self.mode == "off" or self.receive:
            return self
        for key, given in (
            ("mode: require", self.mode == "require"),
            ("blocking_sockets: true", self.blocking_sockets),
        ):
            if given:
                raise ValueError(
                    f"expected receive: true beside {key}: without it nothing is accelerated "
                    "(docs/acceleration.md says what it changes for the application)"
                )
        return self

    @property
    def wanted(self) -> bool:
        """Whether connections are to be accelerated, where that can be."""
        return self.mode != "off" and self.receive


_ServiceName = Annotated[str, PlainValidator(parse_name)]


class Config(_Section):
    """The whole configuration."""

    admin: Admin = Admin()
    """The HTTP interface for people and monitoring."""

    access_log: AccessLog = AccessLog()
    """One JSON object for each connection, written when it closes: `on`, `off`, or a mapping with
    the keys below."""

    outbound: Outbound = Outbound()
    """The connections that the application opens."""

    inbound: Annotated[Inbound | None, Field(json_schema_extra=_AT_START)] = None
    """The connections that others open to the application, brought here by rules in the kernel (see
    `docs/interception.md`). Without this section there are none."""

    services: dict[_ServiceName, ServiceEntry] = {}  # noqa: RUF012
    """Where requests go, by a name of your choice, which logs and metrics show (see
    `docs/requests.md`)."""

    requests: tuple[RequestRule, ...] = ()
    """Which requests go to which services: those of routes with `action: requests`, and of
    `listeners` without a `service`. The first that matches decides."""

    listeners: Annotated[tuple[ServiceListener, ...], Field(max_length=MAX_SERVICE_LISTENERS)] = ()
    """Addresses where clients connect by themselves: a proxy without interception. One is added or
    taken away by a restart only; what else is in an entry changes at a reload."""

    request_limits: RequestLimits = RequestLimits()
    """What a request or an answer may have at most."""

    tracing: Tracing | None = None
    """Requests are told of as spans to a collector of OpenTelemetry (see `docs/tracing.md`); needs
    `pip install 'pysidecar[tracing]'`. Without this section, what requests say of their traces
    passes through as it is."""

    takeover: Annotated[Takeover | None, Field(json_schema_extra=_AT_START)] = None
    """The sidecar registers, subscribes and is called in the place of the application (see
    `docs/takeover.md`). Without this section it does not."""

    registry: RegistryEntry = RegistryEntry()
    """Where `takeover` registers services and looks for them."""

    acceleration: Acceleration = Acceleration()
    """A shorter path through the kernel for the connections of hooked applications (see
    `docs/acceleration.md`): `auto`, `off` or `require`, or a mapping with the keys below."""

    manage_rules: Annotated[bool, Field(strict=True, json_schema_extra=_AT_START)] = False
    """Whether `pysidecar run` applies the rules that `inbound` and `outbound.redirect` need, and
    removes them when it stops; needs CAP_NET_ADMIN. It also removes, when it starts, what a killed
    sidecar left in this network namespace. Otherwise `pysidecar rules apply` does it, for example
    in an init container."""

    rules_backend: Annotated[
        Literal["nft", "iptables", "iptables-nft", "iptables-legacy"],
        Field(json_schema_extra=_AT_START),
    ] = "nft"
    """The program that changes rules. `iptables` is for hosts without nft, and is whichever of the
    two last ones the host calls so."""

    drain_timeout: Duration = 30.0
    """How long open connections may go on after SIGTERM."""

    core_dumps: Annotated[bool, Field(strict=True, json_schema_extra=_AT_START)] = False
    """Whether a crash may leave a core dump. Bytes of connections are in it."""

    workers: Annotated[int | None, Field(strict=True, ge=1, le=64, json_schema_extra=_AT_START)] = (
        None
    )
    """Threads that move bytes. Default: the number of CPUs that the sidecar may use, at most 8."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        listeners: dict[Address, str] = {}
        for key, addresses in (
            ("admin.listen", [self.admin.listen]),
            ("outbound.listen", self.outbound.listen),
            ("outbound.redirect.listen", self.outbound.redirect and self.outbound.redirect.listen),
            ("inbound.listen", self.inbound and self.inbound.addresses),
            *(self.takeover.listeners if self.takeover else ()),
            *(
                (f"listeners[{index}].listen", [listener.listen])
                for index, listener in enumerate(self.listeners)
            ),
        ):
            for address in addresses or ():
                if address.port and listeners.setdefault(address, key) != key:
                    raise ValueError(
                        f"expected another address in {key}: {address} is in {listeners[address]} "
                        "already"
                    )
        return self

    @property
    def worker_count(self) -> int:
        """Configured, or by the CPUs that this process may use."""
        return self.workers or min(8, len(os.sched_getaffinity(0)))

    def to_plain(self) -> dict[str, Any]:
        """As plain values, the way they are written in a file, with the defaults filled in."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        plain["outbound"]["control_socket"] = str(self.outbound.control_path)
        if self.inbound is not None:
            plain["inbound"]["listen"] = [str(address) for address in self.inbound.addresses]
        plain["workers"] = self.worker_count
        return plain


_NAMED_SECTIONS: list[type[BaseModel]] = [
    *(Admin, AccessLog, Outbound, Inbound, Acceleration),
    *(RouteEntry, Match, Exclude, Redirect),
    *(ServiceEntry, ServiceEndpoint, RequestRule, RequestMatch, Rewrite),
    *(CircuitBreaker, RateLimit, Retries, Backoff, Mirror, Hedge, Fault, FaultDelay, FaultAbort),
    *(ServiceListener, RequestLimits),
    Tracing,
    *(Takeover, WantedService, ProvidedService, RegistryEntry, Credentials, RegistryTls),
]


def _describe(part: dict[str, Any], kind: type[_Section]) -> None:
    """``part`` is of that section, and of the shorter forms that it may be given in."""
    *shorter, mapping = part.get("anyOf", [part])
    properties = mapping.get("properties", {})
    for name, text in _field_texts(kind).items():
        if name in properties:
            same = [each for each in shorter if each == properties[name]]
            for each in (*same, properties[name]):
                each.setdefault("description", text)


def json_schema() -> dict[str, Any]:
    """The JSON schema, with the defaults as a file spells them."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    for kind in _sections():
        _describe(schema if kind is Config else definitions.get(kind.__name__, {}), kind)
    parts: list[tuple[type[BaseModel], dict[str, Any]]] = [(Config, schema)]
    for named in _NAMED_SECTIONS:
        whole = definitions[named.__name__]
        # What may be given as something shorter, too, has the mapping as its last alternative.
        parts.append((named, whole.get("anyOf", [whole])[-1]))
    for section, part in parts:
        for name, value in section.model_construct().model_dump(mode="json").items():
            part["properties"][name]["default"] = value
    return schema


def default_control_socket() -> Path:
    """Where the control socket is when the configuration does not say. A runtime directory that
    belongs to someone else (kept by sudo) does not count."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        try:
            owner = os.stat(runtime).st_uid
        except OSError:
            owner = -1
        if owner == os.geteuid():
            return Path(runtime, "pysidecar", "hook.sock")
    if os.geteuid() == 0:
        return Path("/run/pysidecar/hook.sock")
    return _own_temporary_directory() / "hook.sock"


def _own_temporary_directory() -> Path:
    """``/tmp/pysidecar-<uid>``; where another user has taken that name, one that begins with it and
    a dot, which is made where there is none yet. Nobody can take all of those."""
    own = os.geteuid()
    plain = Path(f"/tmp/pysidecar-{own}")
    if not _is_taken(plain):
        return plain
    others = sorted(plain.parent.glob(f"{plain.name}.*"))
    found = next((directory for directory in others if not _is_taken(directory)), None)
    return found or Path(tempfile.mkdtemp(prefix=f"{plain.name}.", dir=plain.parent))


def _is_taken(directory: Path) -> bool:
    """By another user, or by something that is no directory: symbolic links are not followed."""
    try:
        status = os.lstat(directory)
    except OSError:
        return False
    return not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.geteuid())


def needs_restart(field: FieldInfo) -> bool:
    """Whether a reload cannot change the key."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("restart") is True


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field's type holds, also inside of tuples and optionals; or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := section_of(argument)) is not None:
            return found
    return None
