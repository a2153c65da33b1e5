"""The part of the schema that is about takeover: the sidecar in the place of the application at a
registry."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from pysidecar.address import Address, NamedAddress
from pysidecar.config.requests import FoundPolicy, ServiceName, ServicePattern
from pysidecar.config.section import AT_START, Section, one_or_many
from pysidecar.config.values import (
    AddressText,
    ApiText,
    Duration,
    DurationOrZero,
    FilePath,
    HostText,
    parse_server,
)

__all__ = [
    "Credentials",
    "ProvidedService",
    "RegistryEntry",
    "RegistryTls",
    "Takeover",
    "WantedService",
]

_Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
_MAX_NAMES = 1024
_TRIPLE_PORT = 50051  # Dubbo's default


def parse_servers(value: Any) -> tuple[Address | NamedAddress, ...]:
    """``10.0.0.5:2181,zk.example:2181``, or a list of such."""
    parts = value or ()
    if isinstance(parts, str):
        parts = [part.strip() for part in parts.split(",")]
    if not isinstance(parts, list | tuple):
        raise ValueError("expected an address such as 10.0.0.5:2181, or several with commas")
    return tuple(
        part if isinstance(part, Address | NamedAddress) else parse_server(part) for part in parts
    )


_Servers = Annotated[
    tuple[Address | NamedAddress, ...],
    PlainValidator(parse_servers),
    PlainSerializer(lambda value: ",".join(str(each) for each in value), return_type=str),
    WithJsonSchema({"type": "string", "kind": "address, or several with commas"}),
]


class WantedService(Section):
    """A service at the registry."""

    service: ServiceName
    """Its name there: `interface:version` of bolt, the interface of dubbo and tri, the host of
    http, of grpc the full name of the service, as in `package.Service`."""

    protocol: Literal["bolt", "dubbo", "http", "grpc", "tri"]
    """What it speaks; `tri` is Dubbo's triple."""

    version: Annotated[str, Field(max_length=256)] = ""
    """Of dubbo and tri."""

    group: Annotated[str, Field(max_length=256)] = ""
    """Of dubbo and tri."""


class ProvidedService(WantedService):
    """A service that an application here provides."""

    port: _Port
    """Where the application listens, on loopback."""

    weight: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 100
    """Its share, in proportion to the weights of those elsewhere."""


class Takeover(Section):
    """Where the sidecar stands in for the application: see `docs/takeover.md`."""

    api: Annotated[ApiText, Field(json_schema_extra=AT_START)] = Address("127.0.0.1", 13330)
    """The mesh API, where applications say what they provide and want: SOFARPC's registry `mesh`,
    and anthunder. On loopback."""

    dubbo_api: Annotated[ApiText | None, Field(json_schema_extra=AT_START)] = None
    """The same in MOSN's form for Dubbo (`/pub`, `/sub`), which others write `127.0.0.1:22222`.
    Off without an address."""

    consumer: Annotated[
        tuple[AddressText, ...],
        BeforeValidator(one_or_many, json_schema_input_type=AddressText | list[AddressText]),
        Field(min_length=1, max_length=4, json_schema_extra=AT_START),
    ] = (Address("127.0.0.1", 12220),)
    """Where applications send their calls, of all services: each goes to the service that its
    header names. One address or several. One on 127.0.0.1 is listened on at `[::1]`, too, where
    there is IPv6: Dubbo never connects to 127.x."""

    provider: Annotated[AddressText, Field(json_schema_extra=AT_START)] = Address("0.0.0.0", 20881)
    """Where other sidecars' calls arrive, for what applications here provide. The registry is told
    its port."""

    advertise: Annotated[HostText | None, Field(json_schema_extra=AT_START)] = None
    """The address that the registry is told. Default: that of `provider`, or, where that is every
    address, the one from which this host reaches the registry."""

    application_ports: dict[Literal["bolt", "dubbo", "http", "grpc", "tri"], _Port] = {  # noqa: RUF012
        "bolt": 12200,
        "dubbo": 20880,
        "tri": 50051,
    }
    """Where the application itself listens on loopback, by protocol: for what is published without
    a port. Where `dubbo` has a port and `tri` is missing, that has 50051."""

    host_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] = "host"
    """HTTP: the header that names the service."""

    subscribe: Annotated[tuple[WantedService, ...], Field(max_length=_MAX_NAMES)] = ()
    """Services that applications here call without having subscribed them: those without an SDK.
    Each with `service`, `protocol`, and for dubbo and tri `version` and `group`."""

    publish: Annotated[tuple[ProvidedService, ...], Field(max_length=_MAX_NAMES)] = ()
    """Services that applications here provide without publishing them, likewise, with `port` and
    `weight`. They are registered as long as something listens on their port."""

    services: Annotated[dict[ServicePattern, FoundPolicy], Field(max_length=_MAX_NAMES)] = {}  # noqa: RUF012
    """How services that applications here call are treated, by name: retries, limits, health checks
    and the like, for those that have no entry under the configuration's own `services`. A name as
    `pysidecar services` shows it, such as `com.example.Orders` for all of its versions and groups,
    or `blue/com.example.Orders:1.0` for one; each `*` stands for any characters, and of HTTP names
    are without regard to case. Of several that match one counts, as a whole: that without `*`, or
    else the one with the most other characters."""

    pass_unknown: Annotated[
        Annotated[tuple[str, ...], Field(max_length=_MAX_NAMES)] | None,
        BeforeValidator(one_or_many, json_schema_input_type=str | list[str] | None),
    ] = None
    """Services that nobody published here, and whose calls are handed to the application all the
    same, at the port that `application_ports` has for their protocol; others are refused. Each `*`
    stands for any characters. Default: Dubbo's `org.apache.dubbo.metadata.MetadataService`, which
    consumers with Dubbo 3 ask for; and all of Dubbo's where the registry is `zookeeper` or
    `sofaregistry` (of tri: `zookeeper`), as long as nobody has published a Dubbo service (of tri or
    grpc) here: then providers register by themselves (see `pysidecar exec`). Beside that, health
    checks and reflection of gRPC reach the only application that published something of grpc or tri
    (see `docs/takeover.md`)."""

    on_demand: Annotated[bool, Field(strict=True)] = False
    """Whether a call for a service that nobody subscribed subscribes it, and waits for its
    endpoints for at most `on_demand_timeout`. Otherwise it is answered with an error at once."""

    on_demand_timeout: Duration = 2.0
    """See `on_demand`."""

    await_timeout: DurationOrZero = 2.0
    """How long a call waits where the service was subscribed and the registry has not told of its
    endpoints yet: SDKs call as soon as they have subscribed. `0s`: it is answered with an error at
    once."""

    state: Annotated[FilePath | None, Field(json_schema_extra=AT_START)] = None
    """The file that keeps what applications published and subscribed, for a sidecar that starts
    again: applications never repeat it. Default: `takeover-PORT.json`, with the port of `api`, in
    the directory of the control socket."""

    @property
    def ports(self) -> dict[str, int]:
        """The application's, by protocol."""
        ports = {str(protocol): port for protocol, port in self.application_ports.items()}
        if "dubbo" in ports:
            ports.setdefault("tri", _TRIPLE_PORT)
        return ports

    @property
    def listeners(self) -> list[tuple[str, list[Address]]]:
        """The addresses that are listened on, by key."""
        return [
            ("takeover.api", [self.api]),
            ("takeover.dubbo_api", [self.dubbo_api] if self.dubbo_api else []),
            ("takeover.consumer", list(self.consumer)),
            ("takeover.provider", [self.provider]),
        ]


class Credentials(Section):
    """Who we are to a registry."""

    username: Annotated[str, Field(min_length=1, max_length=256)]
    """A name."""

    password_file: FilePath
    """A file whose first line is the password; only its owner may read it."""


class RegistryTls(Section):
    """How a registry is spoken to."""

    ca: FilePath | None = None
    """Certificates that sign the registry's own, as PEM. Default: the system's."""

    certificate: FilePath | None = None
    """Ours, as PEM; needs `key`."""

    key: FilePath | None = None
    """The key of `certificate`, as PEM."""

    @model_validator(mode="after")
    def _consistent(self) -> RegistryTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("expected certificate and key together")
        return self


class RegistryEntry(Section):
    """Where services are registered and looked for."""

    type: Annotated[
        Literal["embedded", "sofaregistry", "zookeeper", "etcd"], Field(json_schema_extra=AT_START)
    ] = "embedded"
    """`embedded` is for one machine and for trying out; `sofaregistry`, `zookeeper` (in Dubbo's
    layout) and `etcd` are for everything larger."""

    address: Annotated[_Servers, Field(json_schema_extra=AT_START)] = ()
    """Of the registry, or of its servers, with commas. Only `embedded` can do without: then it is
    inside this sidecar. Of `sofaregistry` the session server's HTTP port, usually 9603. A
    name instead of an IP address is looked up whenever a session is begun; all of its addresses
    count, and with `tls` the certificate has to be for the name."""

    session_timeout: Annotated[Duration, Field(json_schema_extra=AT_START)] = 10.0
    """How long the registry keeps what we registered after it has heard nothing from us, where it
    can be told."""

    credentials: Annotated[Credentials | None, Field(json_schema_extra=AT_START)] = None
    """Of `zookeeper` and `etcd`."""

    tls: Annotated[RegistryTls | None, Field(json_schema_extra=AT_START)] = None
    """Of `zookeeper` and `etcd`: without this section they are spoken to in the clear."""

    zone: Annotated[str, Field(max_length=256, json_schema_extra=AT_START)] = ""
    """Where this host is, such as a data center's name: instances in the same zone are preferred
    while enough of them are available, see `docs/endpoints.md`."""

    @model_validator(mode="after")
    def _consistent(self) -> RegistryEntry:
        if not self.address and self.type != "embedded":
            raise ValueError(f"expected an address: {self.type} runs elsewhere")
        if self.type in ("embedded", "sofaregistry"):
            for key in ("credentials", "tls"):
                if getattr(self, key) is not None:
                    raise ValueError(f"expected no {key}: {self.type} has none")
        return self
