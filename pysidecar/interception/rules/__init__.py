"""The kernel's part of interception: packet rules, policy routing, and nothing else.

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
    InboundRules,
    RulesError,
    Ruleset,
)

__all__ = [
    "BACKENDS",
    "Conntrack",
    "InboundRules",
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
