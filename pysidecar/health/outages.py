"""Says in the log that requests of a service go where they should not, for lack of endpoints that
are available, and when that is over."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pysidecar.dataplane import Outage

__all__ = ["OutageLog"]

log = logging.getLogger(__name__)

_MOST_LINES = 20  # each time


class OutageLog:
    """Is told of all outages, again and again."""

    def __init__(self) -> None:
        self._told: dict[int, Outage] = {}

    def look(self, outages: Sequence[Outage]) -> None:
        """A line for each service whose requests are concerned and were not, or the other way
        round."""
        concerned = {each.number: each for each in outages if each.panic or each.available == 0}
        lines = [
            (logging.WARNING, _words(outage))
            for number, outage in concerned.items()
            if number not in self._told or self._told[number].panic != outage.panic
        ]
        lines += [
            (logging.INFO, f"{outage.name}: enough of its endpoints are available again")
            for number, outage in self._told.items()
            if number not in concerned
        ]
        for level, line in lines[:_MOST_LINES]:
            log.log(level, "%s", line)
        if len(lines) > _MOST_LINES:
            log.warning("the same of %d more services: see /services", len(lines) - _MOST_LINES)
        self._told = concerned


def _words(outage: Outage) -> str:
    found = f"{outage.name}: {outage.available} of its {outage.endpoints} endpoints are available"
    if outage.panic:
        return (
            f"{found}, less than its healthy_panic_threshold of {outage.percent:g}%: requests go "
            "to all of them"
        )
    return f"{found}: requests are answered with an error (healthy_panic_threshold is 0%)"
