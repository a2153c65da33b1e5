"""Texts that others choose."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """Without what a terminal would obey: a process picks its name, and control characters of ASCII
    or Latin-1 and changes of the direction of writing must not reach whoever looks at it."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
