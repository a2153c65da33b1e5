"""Rulesets of every kind, by name."""

from __future__ import annotations

from ipaddress import ip_network

from pysidecar.destinations import PortRange
from pysidecar.interception.redirect import (
    InboundRedirect,
    InboundRedirectRules,
    OutboundRedirectRules,
    OwnTraffic,
)
from pysidecar.interception.rules import Ruleset
from pysidecar.interception.tproxy import TproxyRules, TransparentProxy
from tests.interception.support import OUTBOUND_LISTEN

_TPROXY = TransparentProxy.default_listen

RULESETS: dict[str, Ruleset] = {
    "tproxy": TproxyRules(_TPROXY),
    "tproxy_ipv4": TproxyRules(_TPROXY[:1]),
    "tproxy_source": TproxyRules(
        _TPROXY,
        preserve_source=True,
        exclude_ports=(PortRange.single(22), PortRange(15000, 15005)),
    ),
    "redirect": InboundRedirectRules(InboundRedirect.default_listen),
    "outbound": OutboundRedirectRules(
        OUTBOUND_LISTEN,
        exclude_networks=(ip_network("10.0.0.0/24"), ip_network("fd00::/8")),
        exclude_ports=(PortRange.single(53),),
        own=OwnTraffic(uids=(1337,), gids=(1337,)),
    ),
}
