"""The part of the schema that is about requests: services, the rules that choose one of them, and
listeners for them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pysidecar.config.endpoints import (
    Balance,
    BalanceText,
    HealthCheck,
    Locality,
    OutlierDetection,
    ZoneText,
)
from pysidecar.config.resilience import (
    GRPC_CONDITIONS,
    CircuitBreaker,
    Fault,
    Hedge,
    Mirror,
    Percent,
    RateLimit,
    Retries,
)
from pysidecar.config.section import AT_START, Section, one_or_many
from pysidecar.config.values import AddressText, Duration, DurationOrZero, EndpointText, is_token

__all__ = [
    "Balance",
    "FoundPolicy",
    "RequestLimits",
    "RequestMatch",
    "RequestRule",
    "Rewrite",
    "ServiceEntry",
    "ServiceListener",
    "ServicePattern",
    "ServicePolicy",
]

MAX_SERVICE_LISTENERS = 32
MAX_WEIGHT = 10_000

# ---- single values ----

_HOST = re.compile(r"(?:[A-Za-z0-9*_.~-]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]+\]", re.ASCII)
_HOST_AND_PORT = re.compile(r"((?:[A-Za-z0-9_.~-]+)|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", re.ASCII)
_PATH = re.compile(r"/[!$&'()+,\-./0-9:;=@A-Z_a-z~%]*", re.ASCII)
_MAX_TEXT = 512  # characters of a value; the data plane's texts together have at most 4 GiB
# What frames a message, or belongs to one connection: the sidecar writes it itself.
_OWN_HEADERS = frozenset(
    (
        *("connection", "content-length", "host", "http2-settings", "keep-alive"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    )
)


def _is_plain(value: Any, least: int = 1) -> bool:
    return isinstance(value, str) and least <= len(value) <= _MAX_TEXT and value.isprintable()


def parse_name(value: Any) -> str:
    """Of a service."""
    if not _is_plain(value) or " " in value:
        raise ValueError(
            f"expected the name of a service: a text of at most {_MAX_TEXT} characters without "
            "spaces"
        )
    return str(value)


def parse_pattern(value: Any) -> str:
    """A text that is compared; it may hold ``*``."""
    if not isinstance(value, str):
        raise ValueError('expected a text; a number needs quotes, such as "1.0"')
    if not _is_plain(value) or " " in value:
        raise ValueError(f"expected a text of at most {_MAX_TEXT} characters without spaces")
    return value


def parse_host_pattern(value: Any) -> str:
    """A host of requests, in lower case."""
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not _HOST.fullmatch(value):
        raise ValueError(
            'expected a host without a port, such as orders.example.com, "*.example.com" or '
            '"orders.*"'
        )
    return value.lower()


def parse_host_and_port(value: Any) -> str:
    """What is written into a Host header."""
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not _HOST_AND_PORT.fullmatch(value):
        raise ValueError("expected a host such as orders.example.com or orders.example.com:8080")
    return value


def parse_path(value: Any) -> str:
    """A path, or the beginning of one."""
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not _PATH.fullmatch(value):
        raise ValueError("expected a path such as /v2 or /v2/orders, without a query or *")
    return value


def parse_method(value: Any) -> str:
    """HTTP's are words of capital letters, others' are names of functions."""
    if not is_token(value, _MAX_TEXT):
        raise ValueError('expected a method such as GET, createOrder or "get*"')
    return value


def parse_header_name(value: Any) -> str:
    """A header, or a key of Bolt's header section."""
    if not is_token(value, _MAX_TEXT):
        raise ValueError("expected the name of a header such as x-env")
    return value


def parse_own_header_name(value: Any) -> str:
    """One that may be changed."""
    name = parse_header_name(value)
    if name.lower() in _OWN_HEADERS:
        raise ValueError("expected a header that is not part of the connection or its framing")
    return name


def parse_header_value(value: Any) -> str:
    """What is written into a header."""
    if isinstance(value, bool) or not isinstance(value, str):
        raise ValueError('expected a text; a number needs quotes, such as "1"')
    if not _is_plain(value, least=0) or value != value.strip():
        raise ValueError(
            f"expected a text of at most {_MAX_TEXT} characters on one line, without spaces at its "
            "ends"
        )
    return value


def parse_header_match(value: Any) -> Literal[True] | tuple[str, ...]:
    """``true``: the header is there; else the values that it may have."""
    if value is True:
        return True
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(each, str) for each in values):
        raise ValueError(
            'expected true, a text or a list of texts; a number needs quotes, such as "1"'
        )
    return tuple(parse_header_value(each) for each in values)


def parse_targets(value: Any) -> dict[str, int]:
    """The name of a service, or names with weights."""
    if isinstance(value, str):
        return {parse_name(value): 1}
    if not isinstance(value, dict) or not value:
        raise ValueError(
            "expected the name of a service, or names with weights such as {orders: 90, "
            "orders-v2: 10}"
        )
    for name, weight in value.items():
        try:
            parse_name(name)
        except ValueError as error:
            raise ValueError(f"{error}, not {name!r}") from None
        if type(weight) is not int or not 0 <= weight <= MAX_WEIGHT:
            raise ValueError(f"expected a weight from 0 to {MAX_WEIGHT:,} for {name}")
    if not any(value.values()):
        raise ValueError("expected a weight above 0 for one of the services")
    return dict(value)


def _form(kind: str) -> tuple[PlainSerializer, WithJsonSchema]:
    return (
        PlainSerializer(str, return_type=str),
        WithJsonSchema({"type": "string", "kind": kind}),
    )


ServiceName = Annotated[str, PlainValidator(parse_name), *_form("name of a service")]
HeaderName = Annotated[str, PlainValidator(parse_header_name), *_form("name of a header")]
OwnHeaderName = Annotated[str, PlainValidator(parse_own_header_name), *_form("name of a header")]
HeaderValue = Annotated[str, PlainValidator(parse_header_value), *_form("text")]
HostText = Annotated[str, PlainValidator(parse_host_and_port), *_form("host, perhaps with a port")]
_Host = Annotated[str, PlainValidator(parse_host_pattern), *_form("host, perhaps with `*`")]
_Path = Annotated[str, PlainValidator(parse_path), *_form("path")]
_Method = Annotated[str, PlainValidator(parse_method), *_form("method, perhaps with `*`")]
ServicePattern = Annotated[str, PlainValidator(parse_pattern), *_form("service, perhaps with `*`")]
_Text = Annotated[str, PlainValidator(parse_pattern), *_form("text, perhaps with `*`")]

_Hosts = Annotated[
    Annotated[tuple[_Host, ...], Field(min_length=1)] | None,
    BeforeValidator(one_or_many, json_schema_input_type=_Host | list[_Host] | None),
]

_Paths = Annotated[
    Annotated[tuple[_Path, ...], Field(min_length=1)] | None,
    BeforeValidator(one_or_many, json_schema_input_type=_Path | list[_Path] | None),
]

_Methods = Annotated[
    Annotated[tuple[_Method, ...], Field(min_length=1)] | None,
    BeforeValidator(one_or_many, json_schema_input_type=_Method | list[_Method] | None),
]

_Services = Annotated[
    Annotated[tuple[ServicePattern, ...], Field(min_length=1)] | None,
    BeforeValidator(
        one_or_many, json_schema_input_type=ServicePattern | list[ServicePattern] | None
    ),
]

_Texts = Annotated[
    Annotated[tuple[_Text, ...], Field(min_length=1)] | None,
    BeforeValidator(one_or_many, json_schema_input_type=_Text | list[_Text] | None),
]

# ---- services ----


class ServiceEndpoint(Section):
    """Where requests of a service may go."""

    address: EndpointText
    """Where it listens."""

    weight: Annotated[int, Field(strict=True, ge=1, le=MAX_WEIGHT)] = 1
    """Its share, in proportion to the weights of the other endpoints."""

    zone: ZoneText | None = None
    """Where it is, see `locality`. Default: not known, which is no zone."""

    @model_validator(mode="before")
    @classmethod
    def _address_alone(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        mapping = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"type": "string"}, mapping], "kind": "address or mapping"}


class _ServicePlace(Section):
    """Where requests of a service go."""

    protocol: Literal["http", "http2", "grpc", "tri", "bolt", "dubbo", "tcp"]
    """What its endpoints speak: `http` is HTTP/1.1, `http2`, `grpc` and `tri` (Dubbo's triple) are
    HTTP/2 without TLS and without an upgrade, `bolt` is SOFABolt's versions 1 and 2, `dubbo` is
    Dubbo's own protocol. A client may speak another version of HTTP than the endpoints. With `tcp`
    nothing is understood: a listener relays connections to it."""

    endpoints: tuple[ServiceEndpoint, ...] = ()
    """Addresses, or mappings with `address` and `weight`. Without any, each request is answered
    with an error at once."""

    subscribe: ServiceName | None = None
    """The service's name at the registry, which tells its endpoints, instead of `endpoints` (see
    `docs/takeover.md`); of dubbo and tri `interface:version` or `group/interface:version`, where it
    has them. Needs the section `takeover`."""


class ServicePolicy(Section):
    """How requests of a service are spread, how many there may be at a time, and what becomes of
    them when it fails."""

    balance: BalanceText = Balance()
    """Which endpoint a request goes to, each by weight: `round_robin` goes round, `random` takes
    any, `least_requests` takes the one of two random ones that has fewer requests under way, and
    `peak_ewma` the one of two that is likely to answer sooner: by how long its answers took lately,
    where slow ones count at once, times its requests under way. `ring_hash` and `maglev` send
    requests whose header has the same value to the same endpoint, for as long as it is there, and
    few of them to another one when others come or go (`maglev` spreads them more evenly, and moves
    a few more); requests without the header go to any. Endpoints that could not be connected lately
    (see `outbound.ejection_time`) are passed over while there are others."""

    health_check: HealthCheck | None = None
    """Asks the endpoints whether they are well. Default: nobody asks."""

    outlier_detection: OutlierDetection | None = None
    """Ejects endpoints that fail requests. Default: only what cannot be connected is passed over,
    see `outbound.ejection_time`."""

    healthy_panic_threshold: Percent = 50.0
    """Where a smaller share of the endpoints is available, neither unhealthy nor ejected, all of
    them get requests: those that are left would not bear them alone. As Envoy's. With `0%` never:
    where none is available, each request is answered with an error."""

    slow_start: DurationOrZero = 0.0
    """An endpoint that comes while the sidecar runs, or is healthy again, gets a tenth of its share
    at first, and all of it after this time. Not with `ring_hash` and `maglev`, nor where the
    registry says how it warms up. `0s`: at once."""

    locality: Locality | None = None
    """Which endpoints are preferred by where they are. Default: none; of a service with
    `subscribe`: those in `registry.zone`."""

    timeout: DurationOrZero = 0.0
    """For a request to be answered, from its head to the answer's last byte, unless its rule has
    another timeout. A shorter one in the request itself (Bolt, Dubbo) counts. `0s`: none."""

    read_timeout: DurationOrZero = 60.0
    """For an endpoint to send something, of HTTP after each byte of it or of the request, of Bolt
    and Dubbo the whole answer. It ends requests to an endpoint that has stopped, and no long
    download. `0s`: none."""

    idle_timeout: Duration = 60.0
    """A connection to an endpoint on which no request is under way for this long is closed."""

    connections: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1024
    """Connections to its endpoints at most, all workers together."""

    pending: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 1024
    """Requests that wait for a connection at most, all workers together; further ones are answered
    with an error at once."""

    circuit_breaker: CircuitBreaker | None = None
    """How much may be under way, all workers together."""

    rate_limit: RateLimit | None = None
    """How many requests it gets in a time, all workers together."""

    retries: Retries | None = None
    """When a request that failed is sent again. Without it, only where its connection could not be
    made or had ended before (see `docs/requests.md`)."""

    @model_validator(mode="after")
    def _unite_limits(self) -> Self:
        """Those of ``circuit_breaker`` are the service's."""
        for key in ("connections", "pending"):
            limit = getattr(self.circuit_breaker, key, None)
            if limit is None:
                continue
            if key in self.model_fields_set and getattr(self, key) != limit:
                raise ValueError(f"expected {key} once: it is in circuit_breaker, too")
            self.__dict__[key] = limit  # the model is frozen for everybody else
        return self


class FoundPolicy(ServicePolicy):
    """Of services that are found, whatever they speak."""

    def check(self, protocol: str) -> HealthCheck | None:
        """How endpoints that speak this are asked. HTTP has no path that every server knows."""
        if self.health_check is None or self.health_check.misfit(protocol) is None:
            return self.health_check
        return self.health_check.model_copy(update={"type": "tcp"})

    @model_validator(mode="after")
    def _independent(self) -> FoundPolicy:
        check = self.health_check
        if check is None or check.type is not None:
            return self
        for key in ("path", "host", "service"):
            if getattr(check, key) is not None:
                raise ValueError(
                    f"expected a type beside {key} in health_check: the services may speak any "
                    "protocol"
                )
        return self


class ServiceEntry(ServicePolicy, _ServicePlace):
    """Where requests go, and how many at a time."""

    mirror: Mirror | None = None
    """Another service that gets copies of its requests."""

    @model_validator(mode="after")
    def _consistent(self) -> ServiceEntry:
        if self.balance.header and self.protocol in ("dubbo", "tcp"):
            raise ValueError(
                f"expected another balance than {self.balance.kind}: there are no headers with "
                f"protocol {self.protocol}"
            )
        if self.protocol == "tcp" and (
            self.outlier_detection is not None or self.balance.kind == "peak_ewma"
        ):
            key = "outlier_detection" if self.outlier_detection else "peak_ewma"
            raise ValueError(f"expected no {key} with protocol tcp: there are no answers to go by")
        if self.retries and self.protocol not in ("grpc", "http2"):
            self._expect_no_status_of_grpc(self.retries)
        if self.health_check and (problem := self.health_check.misfit(self.protocol)):
            raise ValueError(problem)
        if self.subscribe and (self.endpoints or self.protocol == "tcp"):
            raise ValueError(
                "expected subscribe without endpoints, in a service whose requests are understood"
            )
        addresses = [endpoint.address for endpoint in self.endpoints]
        for address in addresses if len(set(addresses)) < len(addresses) else ():
            if addresses.count(address) > 1:
                raise ValueError(f"expected each address once in endpoints, not {address} again")
        if self.protocol == "tcp":
            self._expect_bytes()
        return self

    def _expect_no_status_of_grpc(self, retries: Retries) -> None:
        for condition in retries.on:
            if condition in GRPC_CONDITIONS:
                raise ValueError(
                    f"expected no {condition}, a status of gRPC, in retries.on with protocol "
                    f"{self.protocol}"
                )

    def _expect_bytes(self) -> None:
        """Nothing that is about requests."""
        for key in ("retries", "rate_limit", "mirror"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"expected no {key} with protocol tcp, whose requests are not understood"
                )


# ---- rules ----

_HeaderMatch = Annotated[
    Any,
    PlainValidator(parse_header_match),
    PlainSerializer(lambda value: value if value is True else list(value)),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": True},
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
            ]
        }
    ),
]


class RequestMatch(Section):
    """Which requests a rule is for. All that is given must match; of a list, one entry."""

    host: _Hosts = None
    """HTTP: the host that the request names, without its port and without regard to case. Each `*`
    stands for any characters. One or a list."""

    path_prefix: _Paths = None
    """HTTP: how the path begins, in whole segments: `/v2` and `/v2/` match `/v2`, `/v2/x` and
    `/v2?x`, but not `/v2x`. The path is compared as it was sent; nothing in it is decoded. One or a
    list."""

    path: _Paths = None
    """HTTP: the whole path, without its query. One or a list."""

    method: _Methods = None
    """HTTP's method, such as `POST`, or the function that Bolt and Dubbo call. One or a list."""

    headers: dict[HeaderName, _HeaderMatch] = Field(default_factory=dict)
    """HTTP, and Bolt's header section: by name, which is compared without regard to case, the
    value, a list of values, or `true` where any will do."""

    service: _Services = None
    """Bolt, Dubbo, gRPC: the service that the request is for, such as `com.example.Orders:1.0`, or
    without its version for all of them. Each `*` stands for any characters. One or a list. Of gRPC
    it is what the path names, in rules for services of `grpc`, `tri` or `http2`."""

    version: _Texts = None
    """Bolt, Dubbo and its triple: the service's version. One or a list."""

    group: _Texts = None
    """Dubbo and its triple: the service's group. One or a list."""

    @model_validator(mode="after")
    def _consistent(self) -> RequestMatch:
        if self.path and self.path_prefix:
            raise ValueError("expected path or path_prefix, not both")
        return self


class Rewrite(Section):
    """How a request is changed on its way."""

    host: HostText | None = None
    """HTTP: the host that the service sees."""

    path_prefix: _Path | None = None
    """HTTP: replaces the part of the path that `match.path_prefix` or `match.path` compared; stands
    before the whole path where there is neither. There is always one `/` between."""

    set_headers: dict[OwnHeaderName, HeaderValue] = Field(default_factory=dict)
    """HTTP, Bolt: headers that replace those of the same name, or are added."""

    remove_headers: Annotated[
        tuple[OwnHeaderName, ...],
        BeforeValidator(
            lambda value: () if value is None else one_or_many(value),
            json_schema_input_type=OwnHeaderName | list[OwnHeaderName],
        ),
    ] = ()
    """HTTP, Bolt: headers that are left out, one name or a list."""

    original_destination_header: OwnHeaderName | None = None
    """HTTP, Bolt: a header that tells the service where the client wanted to go, as `10.0.0.7:8080`
    or `[fd00::7]:8080`. What the client wrote there is replaced."""


# Of very many rules, and pydantic would copy a default that has a mapping in it.
_EVERY_REQUEST = RequestMatch()
_AS_IT_IS = Rewrite()


class RequestRule(Section):
    """Which requests go to which services."""

    match: RequestMatch = Field(default_factory=lambda: _EVERY_REQUEST)
    """Which requests, of those in the protocol of the services; without it, all of them."""

    services: Annotated[
        dict[str, int],
        PlainValidator(parse_targets),
        PlainSerializer(lambda targets: targets, return_type=dict[str, int]),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "additionalProperties": {
                            "type": "integer",
                            "minimum": 0,
                            "maximum": MAX_WEIGHT,
                        },
                        "minProperties": 1,
                    },
                ],
                "kind": "name of a service, or names with weights",
            }
        ),
    ]
    """The name of one under `services`; or several with weights, such as `{orders: 90, orders-v2:
    10}`, each of which gets its share of the requests. All of one protocol."""

    rewrite: Rewrite = Field(default_factory=lambda: _AS_IT_IS)
    """How a request is changed on its way. Of Dubbo, nothing can be."""

    timeout: Duration | None = None
    """For a request to be answered, instead of the service's."""

    idempotent: Annotated[bool, Field(strict=True)] = False
    """Whether all of these requests may be done twice, whatever their method: they may be sent
    again after a failure that leaves open what was done (see `services.NAME.retries`), and
    hedged."""

    hedge: Hedge | None = None
    """A second attempt while the first one is still under way, of requests that are idempotent."""

    fault: Fault | None = None
    """Failures on purpose, of some of the requests."""


# ---- listeners ----


class ServiceListener(Section):
    """Where clients connect by themselves, without interception."""

    listen: Annotated[AddressText, Field(json_schema_extra=AT_START)]
    """Its address. Whoever reaches it can use the services. With port 0 the kernel picks one; the
    log says which."""

    protocol: Literal["auto", "http", "http2", "grpc", "bolt", "dubbo", "tcp"] | None = None
    """What clients speak. `auto` finds out by their first bytes. Default: that of `service`, else
    `auto`."""

    service: ServiceName | None = None
    """Where all requests go, or with `tcp` all connections. Without it, by the rules in
    `requests`."""

    direction: Annotated[Literal["outbound", "inbound"], Field(json_schema_extra=AT_START)] = (
        "outbound"
    )
    """Whose requests these are, as the access log and traces say it: those of applications here, or
    those of others for an application here."""

    detect_timeout: Duration = 5.0
    """With `auto`: how long the first bytes may take to tell the protocol."""

    undetected: Literal["refuse"] = "refuse"
    """With `auto`: what becomes of a connection whose protocol is not found out. There is no
    original destination to relay it to."""

    @model_validator(mode="after")
    def _consistent(self) -> ServiceListener:
        if self.protocol == "tcp" and self.service is None:
            raise ValueError("expected a service beside protocol: tcp, which has no requests")
        if self.protocol == "auto" and self.service is not None:
            raise ValueError(
                "expected no protocol: auto beside a service, whose protocol is what clients speak"
            )
        return self


class RequestLimits(Section):
    """What a request or an answer may have at most."""

    line_bytes: Annotated[int, Field(strict=True, ge=256, le=65536, json_schema_extra=AT_START)] = (
        8192
    )
    """Of an HTTP request line, with method and path; a longer one is answered with 414."""

    head_bytes: Annotated[
        int, Field(strict=True, ge=1024, le=1 << 20, json_schema_extra=AT_START)
    ] = 65536
    """Of the line and headers of an HTTP message together; more are answered with 431."""

    fields: Annotated[int, Field(strict=True, ge=1, le=128, json_schema_extra=AT_START)] = 100
    """Headers of an HTTP message; more are answered with 431."""

    frame_bytes: Annotated[
        int, Field(strict=True, ge=1024, le=1 << 30, json_schema_extra=AT_START)
    ] = 16 << 20
    """Of a frame of Bolt or Dubbo, each of which is held in memory as a whole. A larger one ends
    its connection."""

    @model_validator(mode="after")
    def _consistent(self) -> RequestLimits:
        if self.line_bytes > self.head_bytes:
            raise ValueError("expected head_bytes of at least line_bytes, which it contains")
        return self
