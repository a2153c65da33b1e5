"""Services that are not in the configuration: what takeover adds to the table of services."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pysidecar.address import Address
from pysidecar.registry.service import ServiceKey

__all__ = ["NOTHING_FOUND", "FoundService", "FoundServices", "Role"]


class Role(enum.Enum):
    """Whose side of a service the sidecar stands on."""

    SUBSCRIBED = "subscribed"
    """Applications here call it: by the consumer port, or captured."""

    PUBLISHED = "published"
    """An application here provides it: calls come by the provider port, or captured."""


@dataclass(frozen=True, slots=True)
class FoundService:
    """A service as the registry or an application told of it."""

    key: ServiceKey
    role: Role
    endpoints: tuple[tuple[Address, int], ...] = ()
    """With weights of at least 1, each address once."""

    await_ms: int = 0
    """Milliseconds for which a request waits for the first endpoint: who subscribes calls at once,
    and the registry has not told yet."""

    zones: tuple[str, ...] = ()
    """Where the endpoints are, in their order; empty: not known of any."""

    warming: frozenset[Address] = frozenset()
    """Endpoints whose weight grows since they are new."""


@dataclass(frozen=True, slots=True)
class FoundServices:
    """All of them. Those that have not changed are the same objects as in the table before, which
    is what makes a change of one among thousands cheap."""

    services: tuple[FoundService, ...] = ()
    """Each key once for each role."""

    passed: tuple[tuple[str, str, Address], ...] = ()
    """Protocol, name (each ``*`` stands for any characters) and the application's address: where
    calls at the provider port go whose service is not published."""


NOTHING_FOUND = FoundServices()
