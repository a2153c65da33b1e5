"""What registries pushed, made fit for everybody else, and kept over the loss of a session."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from pysidecar.address import Address
from pysidecar.registry import MAX_INSTANCES, Pushed
from pysidecar.registry.room import NOTHING, Room, Share
from pysidecar.registry.service import Instance, ServiceKey
from pysidecar.text import printable

__all__ = ["MAX_WEIGHT", "Known", "cleaned"]

log = logging.getLogger(__name__)

MAX_WEIGHT: Final = 10_000
"""What a registry says beyond is taken for this."""
_MAX_WARMUP: Final = 86400.0  # seconds
_COMPLAINT_PAUSE: Final = 10.0  # seconds from one line about too many instances to the next

_Instances = dict[Address, Instance]


@dataclass(slots=True)
class _Service:
    told: _Instances = field(default_factory=dict)
    """What others were told last."""
    pushed: _Instances | None = None
    """What the registry pushed last in this session."""
    missing: _Instances = field(default_factory=dict)
    """Those of before this session that it has not told of."""
    share: Share = NOTHING
    """What ``told`` takes of the room."""


class Known:
    """The instances of each service, of which ``pushed`` is told: see RegistryClient."""

    def __init__(self, pushed: Pushed, room: Room | None = None) -> None:
        self._pushed = pushed
        self._room = room or Room()
        self._services: dict[ServiceKey, _Service] = {}
        self._cut: set[ServiceKey] = set()
        self._settling = True  # until all that was known before had the time to come back
        self._timer: asyncio.TimerHandle | None = None
        self._next_complaint = -math.inf

    @property
    def count(self) -> int:
        """Instances of all services."""
        return self._room.taken.instances

    @property
    def cut(self) -> int:
        """Services of which the registry tells of more than is kept."""
        return len(self._cut)

    def is_cut(self, service: ServiceKey) -> bool:
        """Whether it is one of those."""
        return service in self._cut

    def add(self, service: ServiceKey, known: Sequence[Instance]) -> None:
        """It is watched from here on; these are what was known before."""
        self._services[service] = entry = _Service()
        self._keep(service, entry, cleaned(known))
        if self._settling:
            entry.missing = dict(entry.told)

    def remove(self, service: ServiceKey) -> None:
        """It is not watched any more."""
        entry = self._services.pop(service, None)
        if entry is not None:
            self._room.give_back(entry.share)
            self._cut.discard(service)

    def begin(self, settled: float) -> None:
        """A session begins, which tells of everything by then, in the loop's time."""
        self._timer = asyncio.get_running_loop().call_at(settled, self._settle)

    def end(self) -> None:
        """It is lost; all that is known counts until the next one tells of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._settling = True
        for entry in self._services.values():
            entry.pushed = None
            entry.missing = dict(entry.told)

    def push(self, service: ServiceKey, instances: Sequence[Instance]) -> None:
        """What the registry has now. Never raises."""
        entry = self._services.get(service)
        if entry is None:
            return
        try:
            entry.pushed = cleaned(instances)
            if entry.missing:
                for address in entry.pushed:
                    entry.missing.pop(address, None)
            self._tell(service, entry, too_many=len(instances) > MAX_INSTANCES)
        except Exception:
            log.exception("cannot take what the registry says of %s", service)

    def _settle(self) -> None:
        self._timer, self._settling = None, False
        for service, entry in list(self._services.items()):
            lacking, entry.missing = entry.missing, {}
            if lacking and entry.pushed is not None:
                log.info("%s: %d of before are not back", service, len(lacking))
                self._tell(service, entry)

    def _tell(self, service: ServiceKey, entry: _Service, *, too_many: bool = False) -> None:
        assert entry.pushed is not None
        wanted = entry.pushed
        if entry.missing:
            both = {**entry.pushed, **entry.missing}
            wanted = dict(islice(both.items(), MAX_INSTANCES))
        self._keep(service, entry, wanted, too_many=too_many)
        if len(entry.told) < len(wanted):  # nor is the rest kept here
            entry.pushed = {
                address: each for address, each in entry.pushed.items() if address in entry.told
            }
        try:
            self._pushed(service, list(entry.told.values()))
        except Exception:
            log.exception("cannot use what the registry says of %s", service)

    def _keep(
        self, service: ServiceKey, entry: _Service, wanted: _Instances, *, too_many: bool = False
    ) -> None:
        self._room.give_back(entry.share)
        entry.told, entry.share = self._room.take(wanted)
        if entry.told is wanted and not too_many:
            self._cut.discard(service)
            return
        self._cut.add(service)
        now = time.monotonic()
        if now >= self._next_complaint:
            self._next_complaint = now + _COMPLAINT_PAUSE
            log.warning(
                "the registry tells of more than can be kept: of %s %d instances are; of all "
                "services together there are %d; services of which something is left out: %d",
                printable(str(service)),
                len(entry.told),
                self.count,
                len(self._cut),
            )


def cleaned(instances: Sequence[Instance]) -> _Instances:
    """By address, the last one of each; at most MAX_INSTANCES, and only what can be."""
    return {
        each.address: _possible(each)
        for each in islice(instances, MAX_INSTANCES)
        if 0 < each.address.port <= 0xFFFF
    }


def _possible(instance: Instance) -> Instance:
    if (
        0 <= instance.weight <= MAX_WEIGHT
        and 0 <= instance.started < math.inf
        and 0 <= instance.warmup <= _MAX_WARMUP
    ):
        return instance
    return replace(
        instance,
        weight=min(max(instance.weight, 0), MAX_WEIGHT),
        started=instance.started if 0 <= instance.started < math.inf else 0.0,
        warmup=min(instance.warmup, _MAX_WARMUP) if instance.warmup > 0 else 0.0,
    )
