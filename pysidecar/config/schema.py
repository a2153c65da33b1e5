"""The configuration's schema: what every key is called, means and defaults to.

``docs/configuration.md`` and the JSON schema are generated from here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pysidecar.address import Address
from pysidecar.config.values import (
    AddressText,
    Duration,
    EndpointText,
    FilePath,
    LoopbackText,
    Mode,
    NetworkText,
    Ports,
    SocketPath,
    WhenAway,
    WhenAwayText,
    parse_network,
)

__all__ = [
    "AccessLog",
    "Admin",
    "Config",
    "Exclude",
    "Match",
    "Outbound",
    "RouteEntry",
    "default_control_socket",
    "json_schema",
    "needs_restart",
    "section_of",
]

MAX_LISTENERS = 16  # MOSNHOOK_MAX_LISTENERS of hook/contract.h

# In a field's json_schema_extra: a change takes effect at the next start, not at a reload.
_AT_START: dict[str, Any] = {"restart": True}


def _one_or_many(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else [value]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        return {} if value is None else value  # a key whose lines are all commented out


class Admin(_Section):
    """The HTTP interface for people and monitoring."""

    listen: Annotated[AddressText, Field(json_schema_extra=_AT_START)] = Address("127.0.0.1", 15000)
    """Where `/ready`, `/connections`, `/config` and `/metrics` are served. There is no login: bind
    it to another address than loopback only where everyone who reaches it may read it. With port 0
    the kernel picks one; the log says which."""


class AccessLog(_Section):
    """One JSON object for each connection, written when it closes."""

    path: FilePath | None = None
    """File to append to, created with mode 0640; without it, standard output. Reopened at SIGHUP,
    as logrotate needs it."""


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

    action: Literal["relay", "refuse"] = "relay"
    """`relay` connects to an endpoint. `refuse` lets the application's connect fail with
    ECONNREFUSED."""

    endpoints: Annotated[tuple[EndpointText, ...], Field(min_length=1)] | None = None
    """Where to connect; when one refuses, the next is tried. Without it, the original
    destination."""

    balance: Literal["round_robin", "least_connections"] = "round_robin"
    """Which endpoint a connection tries first."""

    @model_validator(mode="after")
    def _consistent(self) -> RouteEntry:
        if self.action == "refuse" and self.endpoints:
            raise ValueError("expected no endpoints in a route that refuses")
        return self


class Outbound(_Section):
    """The connections that hooked applications open."""

    listen: Annotated[
        tuple[LoopbackText, ...],
        Field(min_length=1, max_length=MAX_LISTENERS, json_schema_extra=_AT_START),
    ] = (Address("127.0.0.1", 15001), Address("::1", 15001))
    """Loopback addresses for connections that begin with a PROXY v2 header. Each (source address,
    listener) pair carries about 28,000 connections: list several for more. The default's IPv6
    address is left out where the host has none. With port 0 the kernel picks one."""

    control_socket: Annotated[SocketPath | None, Field(json_schema_extra=_AT_START)] = None
    """Unix socket where hooked processes ask for their connections. The policy page, which they
    read, is the file beside it that ends in `.policy`. Default:
    `$XDG_RUNTIME_DIR/pysidecar/hook.sock`, else `/run/pysidecar/hook.sock` for root and
    `/tmp/pysidecar-<uid>/hook.sock` for everyone else."""

    control_socket_mode: Annotated[Mode, Field(json_schema_extra=_AT_START)] = 0o600
    """Permissions of the control socket: who may be hooked to this sidecar. Its read bits are the
    policy page's too, and a directory that is created for them is opened as far as needed."""

    transport: Literal["unix", "header"] = "unix"
    """How hooked processes hand over a connection. `unix`: over the control socket, so that
    `connect` fails with the upstream's true errno. `header`: over a listener with a PROXY v2
    header, so that another proxy that accepts PROXY v2 can take the sidecar's place."""

    when_away: WhenAwayText = WhenAway()
    """What a hooked `connect` does while no sidecar serves: `refuse` fails with ECONNREFUSED,
    `direct` connects past the sidecar, `wait:<duration>` waits for a sidecar and then refuses."""

    exclude: tuple[Exclude, ...] = (
        Exclude.model_validate("127.0.0.0/8"),
        Exclude.model_validate("::1/128"),
    )
    """Destinations that the hook leaves alone: networks, or mappings with `destination` and `ports`
    as in a route's `match`. `[]` captures loopback too; the sidecar's own listeners are never
    captured."""

    connect_timeout: Duration = 5.0
    """For connecting to each endpoint."""

    idle_timeout: Duration = 3600.0
    """A connection without a byte in either direction for this long is closed."""

    header_timeout: Duration = 5.0
    """For the whole PROXY header or control request to arrive."""

    routes: tuple[RouteEntry, ...] = ()
    """The first that matches decides. Without one: relay to the original destination."""

    @model_validator(mode="after")
    def _consistent(self) -> Outbound:
        fixed = [address for address in self.listen if address.port]
        for address in fixed:
            if fixed.count(address) > 1:
                raise ValueError(f"expected each address once in listen, not {address} again")
        for index, route in enumerate(self.routes):
            for endpoint in route.endpoints or ():
                if endpoint in fixed:
                    raise ValueError(
                        f"expected other endpoints in routes[{index}]: {endpoint} is the sidecar's "
                        "own listener"
                    )
        return self

    @property
    def control_path(self) -> Path:
        """The control socket, configured or default."""
        return self.control_socket or default_control_socket()


class Config(_Section):
    """The whole configuration."""

    admin: Admin = Admin()
    """The HTTP interface for people and monitoring."""

    access_log: AccessLog = AccessLog()
    """One JSON object for each connection, written when it closes."""

    outbound: Outbound = Outbound()
    """The connections that hooked applications open."""

    drain_timeout: Duration = 30.0
    """How long open connections may go on after SIGTERM."""

    workers: Annotated[int | None, Field(strict=True, ge=1, le=64, json_schema_extra=_AT_START)] = (
        None
    )
    """Threads that move bytes. Default: the number of CPUs that the sidecar may use, at most 8."""

    @property
    def worker_count(self) -> int:
        """Configured, or by the CPUs that this process may use."""
        return self.workers or min(8, len(os.sched_getaffinity(0)))

    def to_plain(self) -> dict[str, Any]:
        """As plain values, the way they are written in a file, with the defaults filled in."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        plain["outbound"]["control_socket"] = str(self.outbound.control_path)
        plain["workers"] = self.worker_count
        return plain


_NAMED_SECTIONS: list[type[BaseModel]] = [Admin, AccessLog, Outbound, RouteEntry, Match]


def json_schema() -> dict[str, Any]:
    """The JSON schema, with the defaults as a file spells them."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    sections: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (Config, schema),
        (Exclude, definitions["Exclude"]["anyOf"][1]),
    ]
    sections += [(s, definitions[s.__name__]) for s in _NAMED_SECTIONS]
    for section, part in sections:
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
    return Path(f"/tmp/pysidecar-{os.geteuid()}/hook.sock")


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
