"""Errors that the command line shows without a traceback."""

from __future__ import annotations

__all__ = ["StartError"]


class StartError(Exception):
    """Why the sidecar cannot start; the text says what is in its way and what to do."""
