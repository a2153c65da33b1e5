"""How many file descriptors are left for connections, told before they are used up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from pysidecar.dataplane import Counters

__all__ = ["RAISE_LIMIT", "Room"]

log = logging.getLogger(__name__)

RAISE_LIMIT = "Raise it: ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of a container"

_SCARCE_FROM = 0.8  # of those that there are
_QUIET = 60.0  # seconds between two lines: at the limit it may change many times a second


class Room:
    """Watches the descriptors of the data plane, whose counters it asks for."""

    def __init__(
        self,
        counters: Callable[[], Counters],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters = counters
        self._clock = clock
        self._told_at: float | None = None
        self._told_full = False

    def describe(self) -> dict[str, Any]:
        """``state`` is ``enough``, ``scarce`` (from four fifths on) or ``full``: new connections
        fail. Of the latter two a ``warning`` for people says what can be done."""
        counters = self._counters()
        state = "enough"
        if counters.full:
            state = "full"
        elif counters.fds_used >= _SCARCE_FROM * counters.fds_budget:
            state = "scarce"
        description: dict[str, Any] = {
            "state": state,
            "used": counters.fds_used,
            "available": counters.fds_budget,
            "limit": counters.fds_limit,
        }
        if state != "enough":
            description["warning"] = _warning(counters)
        return description

    def look(self) -> None:
        """Logs that there are none left, and that there are some again: each at most once a
        minute."""
        counters = self._counters()
        if bool(counters.full) == self._told_full:
            return
        now = self._clock()
        if counters.full:
            if self._told_at is not None and now - self._told_at < _QUIET:
                return
            self._told_at = now
            log.warning("%s", _warning(counters))
        else:
            log.info(
                "connections are accepted again: %d of %d file descriptors are in use",
                counters.fds_used,
                counters.fds_budget,
            )
        self._told_full = bool(counters.full)


def _warning(counters: Counters) -> str:
    what = (
        "out of file descriptors: new connections fail, as outbound.when_away says"
        if counters.full
        else "file descriptors are getting scarce: without any, new connections fail"
    )
    return (
        f"{what}. Connections use {counters.fds_used} of {counters.fds_budget}; the process's "
        f"limit is {counters.fds_limit}. {RAISE_LIMIT}"
    )
