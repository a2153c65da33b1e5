"""The sides of the benchmark: the direct connection, ours, and the peers.

One entry of `SIDES` is one side. A side starts its proxies with the settings that its own
documentation recommends for what is measured here, and says how a client goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pysidecar.address import Address
from scripts.bench.relays import RELAYS
from scripts.bench.request_proxies import REQUEST_PROXIES
from scripts.bench.side import EVERY_LOAD, Kind, Load, Ours, Side, direct, ours

__all__ = ["DIRECT", "NOT_CAPTURED", "RELAY", "SIDES"]

DIRECT = "direct"
RELAY = "relay unix"
NOT_CAPTURED = "not captured"


def _configured(configuration: Mapping[str, Any]) -> Callable[[Address], Ours]:
    """The same for every server."""
    return lambda server: Ours(configuration)


_ACCELERATED = {"mode": "require", "receive": True, "blocking_sockets": True}

SIDES: tuple[Side, ...] = (
    Side(DIRECT, Kind.DIRECT, "the client connects to the server", direct, loads=EVERY_LOAD),
    ours(
        RELAY,
        "hook, transport `unix`; no privilege",
        _configured({"acceleration": "off", "outbound": {"transport": "unix"}}),
        loads=frozenset({Load.BYTES, Load.HTTP, Load.BOLT, Load.DUBBO}),
    ),
    ours(
        "relay header",
        "hook, transport `header`; no privilege",
        _configured({"acceleration": "off", "outbound": {"transport": "header"}}),
    ),
    ours(
        "local",
        "hook, `acceleration: {mode: require, path: local, receive: true, blocking_sockets: true}`",
        _configured({"acceleration": {**_ACCELERATED, "path": "local"}}),
    ),
    ours(
        "full",
        "hook, `acceleration: {mode: require, receive: true, blocking_sockets: true}`",
        _configured({"acceleration": _ACCELERATED}),
    ),
    ours(
        "action direct",
        "hook, a route with `action: direct`",
        _configured({"acceleration": "off", "outbound": {"routes": [{"action": "direct"}]}}),
    ),
    ours(
        NOT_CAPTURED,
        "under the hook, but the destination is excluded (loopback is, by default)",
        _configured({"acceleration": "off", "outbound": {"exclude": ["127.0.0.0/8"]}}),
    ),
    *RELAYS,
    *REQUEST_PROXIES,
)
