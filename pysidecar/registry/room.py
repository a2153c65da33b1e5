"""How much of what registries tell is kept in memory: bounded, whoever asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from pysidecar.address import Address
from pysidecar.registry import MAX_ALL_CHARACTERS, MAX_ALL_INSTANCES
from pysidecar.registry.service import Instance

__all__ = ["FAIR", "NOTHING", "Room", "Share"]

FAIR: Final = 16
"""Instances that each service has in any case, so that one that is large takes nobody's all."""

_Instances = dict[Address, Instance]


@dataclass(frozen=True, slots=True)
class Share:
    """What a service takes of the room."""

    instances: int = 0
    characters: int = 0


NOTHING: Final = Share()


class Room:
    """What all services take together. It may be exceeded by FAIR instances of each service, and of
    those only by their addresses."""

    def __init__(
        self, instances: int = MAX_ALL_INSTANCES, characters: int = MAX_ALL_CHARACTERS
    ) -> None:
        self._most = Share(instances, characters)
        self.taken = NOTHING

    def give_back(self, share: Share) -> None:
        """What ``take`` returned before."""
        self._add(share, -1)

    def take(self, wanted: _Instances) -> tuple[_Instances, Share]:
        """As many of them as there is room for: ``wanted`` itself, if it is all of them."""
        instances = max(self._most.instances - self.taken.instances, FAIR)
        characters = max(self._most.characters - self.taken.characters, 0)
        share = Share(len(wanted), _characters(wanted))
        if share.instances > instances or share.characters > characters:
            wanted = _cut(wanted, instances, characters)
            share = Share(len(wanted), _characters(wanted))
        self._add(share, 1)
        return wanted, share

    def _add(self, share: Share, sign: int) -> None:
        self.taken = Share(
            self.taken.instances + sign * share.instances,
            self.taken.characters + sign * share.characters,
        )


def _cut(wanted: Mapping[Address, Instance], instances: int, characters: int) -> _Instances:
    kept: _Instances = {}
    for address, instance in wanted.items():
        if len(kept) >= instances:
            break
        size = _size(instance)
        if size > characters:
            instance, size = replace(instance, zone="", metadata=()), 0
        characters -= size
        kept[address] = instance
    return kept


def _characters(instances: Mapping[Address, Instance]) -> int:
    """Neighbours mostly share their metadata, which are looked at once then."""
    characters, size = 0, 0
    metadata: tuple[tuple[str, str], ...] = ()
    for each in instances.values():
        if each.metadata is not metadata:
            metadata = each.metadata
            size = sum(len(key) + len(value) for key, value in metadata)
        characters += len(each.zone) + size
    return characters


def _size(instance: Instance) -> int:
    return len(instance.zone) + sum(len(key) + len(value) for key, value in instance.metadata)
