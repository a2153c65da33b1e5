"""Which of the applications that published something still listen."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict

from pysidecar.address import Address
from pysidecar.log import Mistakes
from pysidecar.registry.service import ServiceKey
from pysidecar.sock_diag import ListeningSocket, listening_sockets
from pysidecar.takeover.applications import is_owner
from pysidecar.takeover.table import Publication, ServiceTable

__all__ = ["Liveness"]

log = logging.getLogger(__name__)
_mistakes = Mistakes(log)

FORGET_AFTER = 3600.0
"""Seconds after which an application that does not listen is forgotten: when it starts again, it
publishes again."""


class Liveness:
    """Looks every ``interval`` seconds which sockets listen, and tells the table. Nobody is
    connected to."""

    def __init__(self, table: ServiceTable, interval: float = 0.5) -> None:
        self._table = table
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None
        self._gone: dict[tuple[ServiceKey, Address], float] = {}  # since when, of the dead
        self._fails = False

    def start(self) -> None:
        """Looks now, and from here on, in the running event loop."""
        self._timer = asyncio.get_running_loop().call_later(self._interval, self.start)
        try:
            self.look()
        except Exception as error:
            _mistakes.tell(
                error,
                "whether applications listen is not known, so those that end stay registered; it "
                "is looked at again",
            )

    def stop(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        """Once, at all of them."""
        publications = list(self._table.publications)
        listening = self._listening({each.address.port for each in publications})
        if listening is None:
            return
        changes: Counter[tuple[Address, int, bool]] = Counter()
        gone = {}
        now = time.monotonic()
        for each in publications:
            there = [one for one in listening[each.address.port] if one.accepts(each.address)]
            alive = is_owner(each.uid, each.address, there)
            if alive != each.alive:
                changes[each.address, each.uid, alive] += 1
            self._table.set_alive(each, alive, taken=bool(there) and not alive)
            if not alive:
                place = (each.service, each.address)
                gone[place] = self._gone.get(place, now)
                self._forget(each, now - gone[place])
        self._gone = gone
        _log(changes)

    def _listening(self, ports: set[int]) -> defaultdict[int, list[ListeningSocket]] | None:
        """By port; None where the kernel does not say: then all stays as it is."""
        by_port: defaultdict[int, list[ListeningSocket]] = defaultdict(list)
        if not ports:
            return by_port
        try:
            for found in listening_sockets(ports):
                by_port[found.address.port].append(found)
        except OSError as error:
            if not self._fails:
                log.warning("cannot see whether applications listen: %s", error.strerror)
            self._fails = True
            return None
        self._fails = False
        return by_port

    def _forget(self, publication: Publication, gone: float) -> None:
        """After a time; never what the configuration publishes."""
        if gone >= FORGET_AFTER and publication.uid >= 0:
            log.info(
                "%s at %s is forgotten: nobody listened for too long",
                publication.service,
                publication.address,
            )
            self._table.forget(publication)


def _log(changes: Counter[tuple[Address, int, bool]]) -> None:
    for (address, uid, alive), count in changes.items():
        whose = f"an application of user {uid}" if uid >= 0 else "an application"
        log.info(
            "%s %s at %s; services published there: %d",
            whose,
            "listens" if alive else "does not listen",
            address,
            count,
        )
