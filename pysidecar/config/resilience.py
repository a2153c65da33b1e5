"""The part of the schema that says what becomes of requests when services fail or are too slow:
retries, limits, faults, mirrors."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from pysidecar.config.section import Section, one_or_many
from pysidecar.config.values import Duration, format_duration

__all__ = [
    "GRPC_CONDITIONS",
    "Backoff",
    "CircuitBreaker",
    "Fault",
    "FaultAbort",
    "FaultDelay",
    "Hedge",
    "Mirror",
    "Percent",
    "RateLimit",
    "Retries",
]

MOST_RETRIES = 10
_MOST_A_SECOND = 10_000_000
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,4})?)%", re.ASCII)
_PERCENT_EXPECTED = "expected a share from 0% to 100%, such as 20% or 0.5%"
_CONDITIONS = (
    *("connect_failure", "refused_stream", "reset_before_request", "reset_before_response"),
    *("gateway_error", "5xx", "retriable_4xx"),
)
GRPC_CONDITIONS = {
    "cancelled": 1,
    "deadline_exceeded": 4,
    "resource_exhausted": 8,
    "internal": 13,
    "unavailable": 14,
}
"""Statuses of gRPC."""
_NAMES = (*_CONDITIONS, *GRPC_CONDITIONS)
_MOST_STATUS = 599

# ---- single values ----


def parse_percent(value: Any) -> float:
    """A number, or one with a percent sign behind it; at most four decimals count."""
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if match:
        value = float(match[1])
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError(_PERCENT_EXPECTED)
    return round(float(value), 4)


def format_percent(value: float) -> str:
    """As ``parse_percent`` reads it back."""
    return f"{value:.4f}".rstrip("0").rstrip(".") + "%"


Percent = Annotated[
    float,
    PlainValidator(parse_percent),
    PlainSerializer(format_percent, return_type=str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 100},
                {"type": "string", "pattern": r"^\d{1,3}(\.\d{1,4})?%$"},
            ],
            "kind": "percentage",
        }
    ),
]


def parse_condition(value: Any) -> str:
    """Why a request is sent again: a word, or the status of an answer."""
    if isinstance(value, str) and value in _NAMES:
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}", value, re.ASCII):
        value = int(value)
    if type(value) is int and 1 <= value <= _MOST_STATUS:
        return str(value)
    raise ValueError(f"expected {', '.join(_NAMES)}, or the status of an answer such as 503")


_Condition = Annotated[
    str,
    PlainValidator(parse_condition),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(_NAMES)},
                {"type": "string", "pattern": r"^\d{1,3}$"},
                {"type": "integer", "minimum": 1, "maximum": _MOST_STATUS},
            ],
            "kind": f"{', '.join(f'`{name}`' for name in _NAMES)} or a status",
        }
    ),
]

# ---- of services ----


class Backoff(Section):
    """How long a retry waits."""

    base: Duration = 0.025
    """The first retry waits for a random time below this, the second one below three times as long,
    the third below seven times, and so on."""

    max: Duration | None = None
    """No retry waits for longer. Default: ten times `base`."""

    @model_validator(mode="after")
    def _consistent(self) -> Backoff:
        if self.max is not None and self.max < self.base:
            raise ValueError(f"expected a max of at least base, {format_duration(self.base)}")
        return self

    @property
    def longest(self) -> float:
        """Seconds."""
        return 10 * self.base if self.max is None else self.max


class Retries(Section):
    """When a request that failed is sent again."""

    attempts: Annotated[int, Field(strict=True, ge=1, le=MOST_RETRIES)] = 1
    """How often at most, besides the first time. Endpoints that were not tried yet come first."""

    on: Annotated[
        Annotated[tuple[_Condition, ...], Field(min_length=1)],
        BeforeValidator(one_or_many, json_schema_input_type=_Condition | list[_Condition]),
    ] = ("connect_failure", "refused_stream", "reset_before_response")
    """What is a reason, one or a list. Nothing of the request can have been done after
    `connect_failure`, `refused_stream` (HTTP/2 refuses it, or Bolt and Dubbo say that their threads
    are used up) and `reset_before_request` (the connection ends before a byte of it was sent).
    Something may have been done after `reset_before_response` (the connection ends without an
    answer, or `per_try_timeout` is over), `gateway_error` (any of these, or 502, 503 or 504), `5xx`
    (any of these, or a status from 500 on), `retriable_4xx` (409), `cancelled`, `internal`,
    `deadline_exceeded`, `resource_exhausted`, `unavailable` (statuses of gRPC), or the status of an
    answer as its protocol numbers it, such as 503. Then a request is only sent again if it is
    idempotent, by its method or as its rule says."""

    per_try_timeout: Duration | None = None
    """For the answer to begin, each time; `timeout` is for all times together."""

    backoff: Backoff = Backoff()
    """How long a retry waits before it is sent."""

    budget: Percent = 20.0
    """How many of the service's requests that are under way may be retries. Those beyond
    it are not sent: the request fails as it did. `circuit_breaker.retries` are possible always."""


class CircuitBreaker(Section):
    """How much of a service may be under way, all workers together."""

    connections: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    """Another way to write `connections` of the service."""

    pending: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] | None = None
    """Another way to write `pending` of the service."""

    requests: Annotated[int, Field(strict=True, ge=1, le=10_000_000)] | None = None
    """Requests under way at most, with those that wait; further ones are answered with an error at
    once. Default: any number."""

    retries: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 3
    """Retries under way or waiting that are possible however few requests there are, see
    `retries.budget`."""


class RateLimit(Section):
    """How many requests a service gets in a time, all workers together. Further ones are answered
    with an error at once: 429, or what Bolt and Dubbo have for it."""

    requests: Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
    """So many."""

    per: Duration = 1.0
    """In this time; they are not counted by intervals, but come back one by one."""

    burst: Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)] | None = None
    """So many may come at once when there were none for long. Default: `requests`."""

    @model_validator(mode="after")
    def _consistent(self) -> RateLimit:
        if self.requests > self.per * _MOST_A_SECOND:
            raise ValueError(f"expected at most {_MOST_A_SECOND:,} requests a second")
        if self.most_at_once / self.requests * self.per > 86400 * 365:
            raise ValueError("expected a burst that comes back within a year")
        return self

    @property
    def most_at_once(self) -> int:
        """The burst."""
        return self.requests if self.burst is None else self.burst


class Mirror(Section):
    """Another service that gets copies of requests; what it answers is dropped."""

    to: Annotated[str, Field(min_length=1, max_length=512)]
    """The name of a service of the same protocol."""

    percent: Percent = 100.0
    """Of how many requests, chosen at random."""


# ---- of rules ----


class FaultDelay(Section):
    """Requests that are held."""

    fixed: Duration
    """For so long, before they are sent."""

    percent: Percent = 100.0
    """Of how many requests, chosen at random."""


class FaultAbort(Section):
    """Requests that are answered with an error, and not sent."""

    status: Annotated[int, Field(strict=True, ge=1, le=_MOST_STATUS)]
    """HTTP: from 200 to 599. Bolt and Dubbo: their own, below 256, or any of HTTP for a server
    that fails."""

    percent: Percent = 100.0
    """Of how many requests, chosen at random."""


class Fault(Section):
    """Failures on purpose, to see what clients make of them. A request that is held may be answered
    with an error afterwards."""

    delay: FaultDelay | None = None
    """Requests that are held."""

    abort: FaultAbort | None = None
    """Requests that are answered with an error, and not sent."""


class Hedge(Section):
    """A second attempt while the first one is still under way; the first good answer counts."""

    after: Duration
    """Without an answer for so long, a request that is idempotent, by its method or as the rule
    says, is sent to another endpoint, too."""
