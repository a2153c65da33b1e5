"""Which way a connection goes."""

from __future__ import annotations

import enum

__all__ = ["Direction"]


class Direction(enum.IntEnum):
    """Whether the application opened the connection or serves it. The numbers are those of the data
    plane, which asserts it."""

    OUTBOUND = 0
    INBOUND = 1

    @property
    def word(self) -> str:
        """``outbound`` or ``inbound``."""
        return self.name.lower()
