"""Waiting for what nothing announces."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 40.0
"""Seconds after which something that should have happened is taken as not happening. Busy machines
take long for everything, so this says nothing about how fast it should be."""

_INTERVAL = 0.005


def eventually(
    ask: Callable[[], T | None], what: str | Callable[[], str] = "it", patience: float = PATIENCE
) -> T:
    """The first true answer. Fails where there is none in time; ``what`` is waited for then, in
    words, or a call that finds them."""
    deadline = time.monotonic() + patience
    while not (answer := ask()):
        if time.monotonic() > deadline:
            words = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {patience:g} s for {words}")
        time.sleep(_INTERVAL)
    return answer
