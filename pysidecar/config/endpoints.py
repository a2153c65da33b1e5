"""The part of the schema that is about a service's endpoints: which of them are passed over, and
how one is picked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from pysidecar.config.resilience import Percent
from pysidecar.config.section import Section
from pysidecar.config.values import Duration, is_token

__all__ = [
    "PLAIN_BALANCES",
    "Balance",
    "BalanceText",
    "HealthCheck",
    "Locality",
    "OutlierDetection",
    "ZoneText",
]

_MAX_TEXT = 255
_TARGET = re.compile(r"/[!$&'()*+,\-./0-9:;=?@A-Z_a-z~%]*", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9_.~-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?", re.ASCII)


def parse_zone(value: Any) -> str:
    """The name of a zone, as registries write it."""
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= _MAX_TEXT:
        raise ValueError(f"expected the name of a zone, of at most {_MAX_TEXT} characters")
    return value


ZoneText = Annotated[
    str,
    PlainValidator(parse_zone),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "kind": "name of a zone"}),
]


def _parse_target(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not _TARGET.fullmatch(value):
        raise ValueError("expected a path such as /health or /health?full=1")
    return value


def _parse_host(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not _HOST.fullmatch(value):
        raise ValueError("expected a host such as orders.example.com or orders.example.com:8080")
    return value


def _parse_service(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ValueError("expected the name of a gRPC service such as shop.Orders")
    return value


_Target = Annotated[
    str,
    PlainValidator(_parse_target),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "kind": "path"}),
]
_Host = Annotated[
    str,
    PlainValidator(_parse_host),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "kind": "host, perhaps with a port"}),
]
_Service = Annotated[
    str,
    PlainValidator(_parse_service),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "kind": "name of a service"}),
]
_Times = Annotated[int, Field(strict=True, ge=1, le=1000)]

_TYPES = {name: name for name in ("http", "grpc", "bolt", "dubbo")}


class HealthCheck(Section):
    """Each endpoint is asked now and then whether it is well; one that is not gets no requests."""

    type: Literal["http", "grpc", "bolt", "dubbo", "tcp"] | None = None
    """`http`: GET of `path`, which is to be answered with 200 to 299; in HTTP/2 where the service's
    `protocol` is `http2`, `grpc` or `tri`, else in HTTP/1.1. `grpc`: `grpc.health.v1.Health/Check`,
    to be answered with `SERVING`. `bolt` and `dubbo`: a heartbeat. `tcp`: that it can be connected.
    Default: by the service's `protocol`; with `http2`, `http` where there is a `path`, else `tcp`,
    and so with `tri`, whose servers answer no health checks unless they are told to."""

    path: _Target | None = None
    """With `http`, which needs it: what is asked for."""

    host: _Host | None = None
    """With `http` and `grpc`: the host that the request names. Default: the endpoint's address."""

    service: _Service | None = None
    """With `grpc`: the service that is asked about. Default: the server as a whole."""

    interval: Duration = 5.0
    """From one check of an endpoint to the next, a tenth more or less, or when that has ended. At
    least 100ms."""

    timeout: Duration = 1.0
    """For the answer, from the beginning of the connection."""

    unhealthy_after: _Times = 3
    """So many checks in a row that fail make an endpoint unhealthy; of one that never passed a
    check, the first."""

    healthy_after: _Times = 2
    """So many in a row that pass make an unhealthy endpoint healthy."""

    def kind(self, protocol: str) -> str:
        """What is asked of endpoints that speak this."""
        if self.type is None and protocol in ("http2", "tri"):
            return "tcp" if self.path is None else "http"
        return self.type or _TYPES.get(protocol, "tcp")

    @model_validator(mode="after")
    def _consistent(self) -> HealthCheck:
        if self.interval < 0.1:
            raise ValueError("expected an interval of at least 100ms")
        if self.type is not None:
            for key, kinds in (("path", ("http",)), ("host", ("http", "grpc"))):
                if getattr(self, key) is not None and self.type not in kinds:
                    raise ValueError(f"expected no {key} with type {self.type}")
            if self.service is not None and self.type != "grpc":
                raise ValueError(f"expected no service with type {self.type}")
            if self.type == "http" and self.path is None:
                raise ValueError("expected a path, such as /health, with type http")
        return self

    def misfit(self, protocol: str) -> str | None:
        """Why it does not fit a service of this protocol."""
        kind = self.kind(protocol)
        if kind == "http" and self.path is None:
            return (
                f"expected a path, such as /health, or another type (tcp), with protocol {protocol}"
            )
        if kind != "http" and self.path is not None:
            return f"expected no path with type {kind}, which protocol {protocol} has"
        if kind not in ("http", "grpc") and self.host is not None:
            return f"expected no host with type {kind}, which protocol {protocol} has"
        if kind != "grpc" and self.service is not None:
            return f"expected no service with type {kind}, which protocol {protocol} has"
        return None


class OutlierDetection(Section):
    """An endpoint that fails requests is ejected for a while: it gets none. As Envoy's
    `consecutive_5xx`."""

    consecutive_errors: _Times = 5
    """So many requests in a row that fail by the endpoint's fault: answers of class 5xx,
    connections that fail or are reset, answers that do not come in time or cannot be understood. An
    exception that the application itself returns (of Bolt, in a response of status 0; of Dubbo, in
    one of status 20) is none."""

    ejection_time: Duration = 30.0
    """The first time for so long, the second time twice as long, and so on, up to five minutes, or
    to this if it is longer. After each ten seconds without, one of these times is forgotten."""

    max_ejected: Percent = 10.0
    """Of the endpoints at most; but one always may be."""


class Locality(Section):
    """Which endpoints are preferred by where they are."""

    prefer: ZoneText
    """Endpoints in this zone get all requests while enough of them are available: from five in
    seven on. With fewer, endpoints elsewhere get the rest, as by Envoy's priorities. An endpoint's
    `zone` is in the configuration, or what the registry says."""


@dataclass(frozen=True, slots=True)
class Balance:
    """How an endpoint is picked; with ``ring_hash`` and ``maglev`` by the value of a header."""

    kind: str = "round_robin"
    header: str = ""

    def to_plain(self) -> Any:
        """As it is written."""
        return {self.kind: {"header": self.header}} if self.header else self.kind


PLAIN_BALANCES = ("round_robin", "random", "least_requests", "peak_ewma")
_HASHES = ("ring_hash", "maglev")


def parse_balance(value: Any) -> Balance:
    """A word, or a hash with a header."""
    if isinstance(value, Balance):
        return value
    if isinstance(value, str) and value in PLAIN_BALANCES:
        return Balance(value)
    if isinstance(value, dict) and len(value) == 1:
        kind, settings = next(iter(value.items()))
        header = settings.get("header") if isinstance(settings, dict) else None
        if kind in _HASHES and isinstance(header, str) and list(settings) == ["header"]:
            if not is_token(header, _MAX_TEXT):
                raise ValueError("expected the name of a header such as x-user")
            return Balance(kind, header.lower())
    raise ValueError(
        f"expected {', '.join(PLAIN_BALANCES)}, or ring_hash: {{header: NAME}} or maglev: "
        "{header: NAME} with the name of a header"
    )


def _hash_schema(kind: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [kind],
        "patternProperties": {
            f"^{kind}$": {
                "type": "object",
                "required": ["header"],
                "patternProperties": {"^header$": {"type": "string"}},
                "additionalProperties": False,
            }
        },
    }


BalanceText = Annotated[
    Balance,
    PlainValidator(parse_balance),
    PlainSerializer(Balance.to_plain),
    WithJsonSchema(
        {
            "anyOf": [{"enum": list(PLAIN_BALANCES)}, *map(_hash_schema, _HASHES)],
            "kind": f"{', '.join(f'`{name}`' for name in PLAIN_BALANCES)}, "
            "`ring_hash: {header: NAME}` or `maglev: {header: NAME}`",
        }
    ),
]
