"""The configuration: its schema, and reading it from a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from pysidecar.config.endpoints import HealthCheck
from pysidecar.config.loading import ConfigError, Problem, load, parse
from pysidecar.config.requests import (
    FoundPolicy,
    RequestMatch,
    RequestRule,
    Rewrite,
    ServiceEntry,
    ServiceListener,
    ServicePolicy,
)
from pysidecar.config.schema import (
    Config,
    Exclude,
    Inbound,
    Match,
    Outbound,
    Redirect,
    RouteEntry,
    default_control_socket,
    json_schema,
    needs_restart,
)
from pysidecar.config.takeover import ProvidedService, RegistryEntry, Takeover, WantedService
from pysidecar.config.tracing import Tracing

__all__ = [
    "Config",
    "ConfigError",
    "Exclude",
    "FoundPolicy",
    "HealthCheck",
    "Inbound",
    "Match",
    "Outbound",
    "Problem",
    "ProvidedService",
    "Redirect",
    "RegistryEntry",
    "RequestMatch",
    "RequestRule",
    "Rewrite",
    "RouteEntry",
    "ServiceEntry",
    "ServiceListener",
    "ServicePolicy",
    "Takeover",
    "Tracing",
    "WantedService",
    "default_control_socket",
    "json_schema",
    "load",
    "parse",
    "restart_keys",
]


def restart_keys(old: Config, new: Config) -> list[str]:
    """The keys that differ and only count at the next start, such as ``outbound.listen``."""
    return list(_restart_keys(old, new, ""))


def _restart_keys(old: BaseModel, new: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, BaseModel) and isinstance(after, BaseModel):
            yield from _restart_keys(before, after, f"{prefix}{name}.")
        elif needs_restart(field) and before != after:
            yield f"{prefix}{name}"
        elif name == "listeners" and _addresses(before) != _addresses(after):
            yield f"{prefix}{name}[].listen"


def _addresses(listeners: Iterable[ServiceListener]) -> list[str]:
    """In no order: they are told apart by their addresses."""
    return sorted(str(listener.listen) for listener in listeners)
