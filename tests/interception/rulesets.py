"""Rulesets of every kind, by name."""

from __future__ import annotations

from ipaddress import ip_network

from pysidecar.interception.rules import (
    DEFAULT_INBOUND_LISTEN,
    InboundMode,
    InboundSettings,
    OutboundRedirectSettings,
    OwnTraffic,
    PortRange,
    Ruleset,
)

_TPROXY = DEFAULT_INBOUND_LISTEN[InboundMode.TPROXY]
_REDIRECT = DEFAULT_INBOUND_LISTEN[InboundMode.REDIRECT]

RULESETS = {
    "tproxy": Ruleset(InboundSettings(InboundMode.TPROXY, _TPROXY)),
    "tproxy_ipv4": Ruleset(InboundSettings(InboundMode.TPROXY, _TPROXY[:1])),
    "tproxy_source": Ruleset(
        InboundSettings(
            InboundMode.TPROXY,
            _TPROXY,
            preserve_source=True,
            exclude_ports=(PortRange.single(22), PortRange(15000, 15005)),
        )
    ),
    "redirect": Ruleset(InboundSettings(InboundMode.REDIRECT, _REDIRECT)),
    "outbound": Ruleset(
        OutboundRedirectSettings(
            exclude_networks=(ip_network("10.0.0.0/24"), ip_network("fd00::/8")),
            exclude_ports=(PortRange.single(53),),
            own=OwnTraffic(uids=(1337,), gids=(1337,)),
        )
    ),
}
