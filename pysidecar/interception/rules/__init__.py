"""The kernel's part of redirect and tproxy: packet rules, policy routing, and nothing else.

``Ruleset`` says what shall be; ``apply`` makes it so, ``delete`` removes it, ``show`` prints it.
"""

from __future__ import annotations

from pysidecar.interception.rules.apply import (
    BACKENDS,
    Conntrack,
    apply,
    conntrack,
    counters,
    delete,
    is_applied,
    problems,
    show,
)
from pysidecar.interception.rules.model import (
    DEFAULT_INBOUND_LISTEN,
    DEFAULT_OUTBOUND_LISTEN,
    INBOUND_MARK,
    OUTBOUND_MARK,
    Direction,
    InboundMode,
    InboundSettings,
    OutboundRedirectSettings,
    OwnTraffic,
    PortRange,
    RulesError,
    Ruleset,
)

__all__ = [
    "BACKENDS",
    "DEFAULT_INBOUND_LISTEN",
    "DEFAULT_OUTBOUND_LISTEN",
    "INBOUND_MARK",
    "OUTBOUND_MARK",
    "Conntrack",
    "Direction",
    "InboundMode",
    "InboundSettings",
    "OutboundRedirectSettings",
    "OwnTraffic",
    "PortRange",
    "RulesError",
    "Ruleset",
    "apply",
    "conntrack",
    "counters",
    "delete",
    "is_applied",
    "problems",
    "show",
]
