"""The part of the schema that is about traces."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from pysidecar.config.section import Section, one_or_many
from pysidecar.config.values import FilePath, is_token

__all__ = ["Secret", "Tracing"]

_MAX_HEADERS = 32
_MAX_TEXT = 1024
_PERCENTAGE = re.compile(r"(\d{1,3}(?:\.\d{1,10})?)%", re.ASCII)
_MAX_HEADER_NAME = 128
_HEADER_VALUE = re.compile(r"[ -~]{1,1024}", re.ASCII)


class Secret(str):
    """A text that is shown nowhere."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def parse_percentage(value: Any) -> Fraction:
    """A share of all, from 0 to 1, exactly as it is written."""
    match = _PERCENTAGE.fullmatch(value) if isinstance(value, str) else None
    share = Fraction(match[1]) / 100 if match else None
    if share is None or share > 1:
        raise ValueError("expected a percentage from 0% to 100%, such as 1% or 0.1%")
    return share


def format_percentage(share: Fraction) -> str:
    """The spelling that ``parse_percentage`` reads back."""
    text = f"{float(share * 100):.10f}".rstrip("0").rstrip(".")
    return f"{text}%"


Percentage = Annotated[
    Fraction,
    PlainValidator(parse_percentage),
    PlainSerializer(format_percentage, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^\d{1,3}(\.\d{1,10})?%$", "kind": "percentage"}),
]


def parse_collector(value: Any) -> str:
    """A URL; its path only counts over HTTP."""
    expected = "expected the URL of a collector such as http://127.0.0.1:4318"
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ValueError(expected)
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or " " in value:
        raise ValueError(expected)
    if "@" in parts.netloc:
        raise ValueError("expected no user and password in the URL: put them in headers")
    if parts.query or parts.fragment:
        raise ValueError(f"{expected}, without ? and #")
    return value


CollectorText = Annotated[
    str, PlainValidator(parse_collector), WithJsonSchema({"type": "string", "kind": "URL"})
]


def parse_headers(value: Any) -> dict[str, Secret]:
    """No message has a value in it."""
    if not isinstance(value, dict) or len(value) > _MAX_HEADERS:
        raise ValueError(f"expected at most {_MAX_HEADERS} headers, each with its value")
    for name, text in value.items():
        if not is_token(name, _MAX_HEADER_NAME):
            raise ValueError("expected names of headers such as authorization")
        if not isinstance(text, str) or not _HEADER_VALUE.fullmatch(text):
            raise ValueError(
                f"expected a text of at most {_MAX_TEXT} ASCII characters as value of {name}"
            )
    return {name.lower(): Secret(text) for name, text in value.items()}


Headers = Annotated[
    dict[str, Secret],
    PlainValidator(parse_headers),
    PlainSerializer(lambda headers: dict.fromkeys(headers, "***"), return_type=dict[str, str]),
    WithJsonSchema(
        {"type": "object", "additionalProperties": {"type": "string"}, "kind": "mapping"}
    ),
]


def parse_service_name(value: Any) -> str:
    """What applications are called."""
    if not isinstance(value, str) or not 0 < len(value) <= 256 or not value.isprintable():
        raise ValueError("expected a name such as orders, of at most 256 characters")
    return value


def parse_attributes(value: Any) -> dict[str, str]:
    """Texts by name."""
    if (
        not isinstance(value, dict)
        or len(value) > _MAX_HEADERS
        or not all(isinstance(text, str) and 0 < len(text) <= _MAX_TEXT for text in value.values())
        or not all(0 < len(name) <= 128 and name.isprintable() for name in value)
    ):
        raise ValueError(
            f"expected at most {_MAX_HEADERS} attributes such as deployment.environment.name: "
            "production, whose values are texts"
        )
    return dict(value)


Attributes = Annotated[
    dict[str, str],
    PlainValidator(parse_attributes),
    WithJsonSchema(
        {"type": "object", "additionalProperties": {"type": "string"}, "kind": "mapping"}
    ),
]

Form = Literal["w3c", "b3", "b3multi", "sofa"]


class Tracing(Section):
    """Spans of the requests that pass, for a collector of OpenTelemetry."""

    otlp: Annotated[CollectorText, Field(json_schema_extra={"secret": True})]
    """Where spans are sent. Over HTTP, `/v1/traces` follows unless the URL has a path. `https` uses
    the system's certificates, or `ca`."""

    protocol: Literal["http", "grpc"] = "http"
    """How they are sent: OTLP with protobuf over HTTP, whose usual port is 4318, or over gRPC,
    4317."""

    sample: Percentage = Fraction(1, 100)
    """Which part of new traces is sampled, so that their spans are sent: by the id of the trace, as
    OpenTelemetry's `TraceIdRatioBased`, so that all who have the same part sample the same traces.
    Of a trace that somebody else began, his decision holds. `0%` begins none."""

    service_name: Annotated[str, PlainValidator(parse_service_name, json_schema_input_type=str)] = (
        "pysidecar"
    )
    """What the spans are of: the resource attribute `service.name`. The name of the application
    that the sidecar stands beside is a good one."""

    propagate: Annotated[
        Annotated[tuple[Form, ...], Field(min_length=1, max_length=4)],
        BeforeValidator(one_or_many, json_schema_input_type=Form | list[Form]),
    ] = ("w3c", "sofa")
    """How requests say to which trace they belong, what counts most first: `w3c` is `traceparent`
    and `tracestate`, `b3` Zipkin's header `b3`, `b3multi` its headers `X-B3-TraceId` and so on,
    `sofa` SOFATracer's headers of Bolt. Each of them is read, and written where a span begins."""

    headers: Annotated[Headers, Field(json_schema_extra={"secret": True})] = {}  # noqa: RUF012
    """Sent to the collector with the spans, such as `authorization`. Their values are shown
    nowhere."""

    resource: Attributes = {}  # noqa: RUF012
    """Further resource attributes, such as `deployment.environment.name: production`."""

    spans_per_second: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 1000
    """How many spans are sent at most, about, since making them takes the control plane's time.
    Those beyond are dropped, and counted."""

    ca: FilePath | None = None
    """Certificates that sign the collector's own, as PEM. Default: the system's."""

    @model_validator(mode="after")
    def _consistent(self) -> Tracing:
        if len(set(self.propagate)) != len(self.propagate):
            raise ValueError("expected each form once in propagate")
        if self.ca is not None and not self.otlp.startswith("https:"):
            raise ValueError("expected a URL with https in otlp beside ca")
        if self.protocol == "grpc" and urlsplit(self.otlp).path not in ("", "/"):
            raise ValueError("expected no path in otlp with protocol: grpc")
        return self
