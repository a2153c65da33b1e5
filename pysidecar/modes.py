"""The modes: which ways of interception there are that need rules in the kernel.

This is their registration. A mode is a line here and a class in a module of
``pysidecar/interception/``; ``docs/extending.md`` says what is in it. The modules stand above the
configuration, which asks here what it may say: so they are named, and loaded when somebody asks for
one.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from typing import Any, Protocol, cast

from pysidecar.address import Address

__all__ = ["INBOUND", "OUTBOUND", "Mode", "inbound_mode", "outbound_mode"]

INBOUND = {
    "tproxy": "pysidecar.interception.tproxy:TransparentProxy",
    "redirect": "pysidecar.interception.redirect:InboundRedirect",
}
"""What ``inbound.mode`` can be."""

OUTBOUND = {
    "redirect": "pysidecar.interception.redirect:OutboundRedirect",
}
"""Which sections of ``outbound`` there can be."""


class Mode(Protocol):
    """What the configuration asks of a mode's class."""

    default_listen: tuple[Address, ...]
    """Of an inbound one."""

    def rules_of(
        self, section: Any, listen: Sequence[Address] = (), own_ports: Sequence[int] = ()
    ) -> Any:
        """What must be in the kernel, by the section ``inbound`` or ``outbound``. Raises
        ValueError for what cannot work."""


def inbound_mode(name: str) -> Mode:
    """One of ``INBOUND``."""
    return cast(Mode, pkgutil.resolve_name(INBOUND[name]))


def outbound_mode(name: str) -> Mode:
    """One of ``OUTBOUND``."""
    return cast(Mode, pkgutil.resolve_name(OUTBOUND[name]))
