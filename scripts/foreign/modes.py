"""Ways of being hooked, each with everything captured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pysidecar.listeners import has_ipv6_loopback

__all__ = ["MODES", "Mode"]

_OFF = {"acceleration": {"mode": "off"}}
# Whatever may be accelerated is, from its first byte on.
_AT_ONCE = {"after_bytes": 1, "after_round_trips": 0}
# So that an IPv6 socket has an IPv6 address of its own, as with the defaults.
_LISTEN = ["127.0.0.1:0", *(["[::1]:0"] if has_ipv6_loopback() else [])]
_HEADER = {"outbound": {"transport": "header", "listen": _LISTEN}}
_DIRECT = {"outbound": {"routes": [{"action": "direct"}]}}
_REQUESTS = {"outbound": {"routes": [{"action": "requests", "detect_timeout": "1s"}]}}
_RECEIVING = _AT_ONCE | {"mode": "require", "receive": True}


@dataclass(frozen=True, slots=True)
class Mode:
    """Settings of a sidecar, over those of `pysidecar.testing.Sidecar`."""

    name: str
    settings: Mapping[str, Any]
    paths: frozenset[str]
    """The access log's `path` that at least one connection has to have taken."""

    @property
    def needs_bpf(self) -> bool:
        """Whether it can only run where a sidecar may accelerate."""
        return bool(self.settings["acceleration"].get("mode") == "require")


MODES = (
    Mode("unix", {"acceleration": _AT_ONCE}, frozenset({"relay"})),
    Mode("header", _OFF | _HEADER, frozenset({"relay"})),
    Mode("direct", _OFF | _DIRECT, frozenset({"direct"})),
    Mode("receive", {"acceleration": _RECEIVING}, frozenset({"full", "local"})),
    Mode(
        "blocking",
        {"acceleration": _RECEIVING | {"blocking_sockets": True}},
        frozenset({"full", "local"}),
    ),
    Mode("requests", _OFF | _REQUESTS, frozenset({"relay"})),
)
