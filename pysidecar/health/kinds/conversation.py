"""The interface of all kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

__all__ = ["MOST_BYTES", "Conversation", "Unserved", "Verdict"]

MOST_BYTES = 64 << 10
"""Of an answer: whoever says more is not asked any further."""


class Verdict(NamedTuple):
    """What came of a check: ``problem`` is None where the endpoint is well. ``keep``: the
    connection can be used for the next check."""

    problem: str | None
    keep: bool


class Unserved(Exception):
    """The endpoint ends the connection, and says that it has not seen what was asked last."""


class Conversation(ABC):
    """What is said on one connection, check after check."""

    @abstractmethod
    def ask(self) -> bytes:
        """Begins a check."""

    @abstractmethod
    def hear(self, data: bytes) -> Verdict | None:
        """What the endpoint says; None: there is more to come. Raises ValueError where that cannot
        be understood, or Unserved: then the connection is of no use any more."""

    def take_reply(self) -> bytes:
        """What is to be said to what was heard."""
        return b""
