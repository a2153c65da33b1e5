"""What applications here provide and want, who said so, and what the registry tells of it.

Nothing here waits, listens or writes: the table is told, and tells who watches it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import methodcaller

from pysidecar.address import Address
from pysidecar.log import Mistakes
from pysidecar.registry.service import CALLS, GRPC_COMMON, Instance, ServiceKey

__all__ = [
    "CONFIGURATION",
    "MAX_PER_USER",
    "ON_DEMAND",
    "Publication",
    "ServiceTable",
    "TableError",
    "Watcher",
]

_mistakes = Mistakes(logging.getLogger(__name__))

MAX_PER_USER = 2048
"""Publications of one user, and as many subscriptions; root may have eight times as many."""

MAX_BYTES_PER_USER = 4 << 20
"""Of what one user says, as it is kept on disk; root may say eight times as much."""

MAX_BYTES = 24 << 20
"""Of what all users but root say. Each may have half of what the others leave, so that there is
something left for whoever comes. With root's it has to fit into the file of the state."""

_ROOT_SHARE = 8
_ENTRY_BYTES = 512  # that each publication and subscription counts for, beside its texts
_PAIR_BYTES = 8  # likewise each of the metadata

CONFIGURATION = -1
"""In the place of a uid: what the configuration itself publishes and subscribes. It may do what
root may."""

ON_DEMAND = -2
"""In the place of a uid: what is subscribed because it was called. Bounded as a user's."""

_ROOT = (0, CONFIGURATION)


class TableError(Exception):
    """Why a publication or subscription is not taken, for the application."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A service that an application here provides."""

    service: ServiceKey
    address: Address
    """Where the application listens."""

    uid: int
    """Whose process published it: only that user, or root, unpublishes it."""

    application: str = ""
    weight: int = 100
    warmup: float = 0.0  # seconds
    started: float = 0.0  # seconds since the epoch
    metadata: tuple[tuple[str, str], ...] = ()
    """For the registry."""

    alive: bool = True
    """Whether the application listens: one that does not is not in the registry."""

    leaving: bool = False
    """It is to be unpublished: it is not in the registry any more, and still served to those who
    have not heard of that."""

    taken: bool = False
    """Somebody else listens there in its place: nobody is served by it."""

    @property
    def is_offered(self) -> bool:
        """Whether it is to be in the registry."""
        return self.alive and not self.leaving


@dataclass(slots=True)
class _Subscribed:
    uids: set[int] = field(default_factory=set)
    instances: tuple[Instance, ...] = ()
    known: bool = False  # whether the registry, or the state of before, told of instances


class Watcher:
    """Who is told of changes, after each. The table may be read meanwhile, not changed."""

    def published(self, publication: Publication) -> None:
        """It is new, or another one with the same service and address was replaced by it."""

    def unpublished(self, publication: Publication) -> None:
        """It is gone."""

    def subscribed(self, service: ServiceKey) -> None:
        """The first one wants it."""

    def shared(self, service: ServiceKey) -> None:
        """Another one wants it, or does not any more, beside others."""

    def unsubscribed(self, service: ServiceKey) -> None:
        """Nobody wants it any more."""

    def pushed(self, service: ServiceKey) -> None:
        """It has other instances."""

    def changed(self) -> None:
        """Any of the above, after it."""


_CALLS = "calls of gRPC"
_TELL_CHANGED = methodcaller("changed")


class ServiceTable:
    """Services by key. ``limit`` is per user, see MAX_PER_USER."""

    def __init__(self, limit: int = MAX_PER_USER) -> None:
        self._limit = limit
        self._published: dict[ServiceKey, dict[Address, Publication]] = {}
        self._called: dict[tuple[str, str], set[ServiceKey]] = {}
        """What is published of gRPC and Bolt, by that and name."""
        self._subscribed: dict[ServiceKey, _Subscribed] = {}
        self._counts: Counter[tuple[str, int]] = Counter()  # by what and whose
        self._bytes: Counter[int] = Counter()  # by whose
        self._all_bytes = 0  # but root's
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        """From here on it is told."""
        self._watchers.append(watcher)

    # ---- what applications say ----

    def publish(self, publication: Publication) -> None:
        """Adds it, or replaces the one with the same service and address. What one user published
        no other one joins, but root: calls would go to a stranger. Raises TableError."""
        service, address = publication.service, publication.address
        before = self._published.get(service, {}).get(address)
        if before == publication:
            return
        _check_owner(service, self._owners(service), publication.uid)
        _check_owner(service, self._rivals(service) - {publication.uid}, publication.uid)
        size = _size_of_publication(publication)
        size_before = 0 if before is None else _size_of_publication(before)
        own = before is not None and before.uid == publication.uid
        more, bytes_more = (0, size - size_before) if own else (1, size)
        self._check_room(publication.uid, "published", more, bytes_more)
        if before is not None:
            self._hold("published", before.uid, -1, -size_before)
        self._hold("published", publication.uid, 1, size)
        self._published.setdefault(service, {})[address] = publication
        self._note_published(service)
        self._tell(methodcaller("published", publication))

    def unpublish(self, service: ServiceKey, uid: int, address: Address | None = None) -> bool:
        """Takes away all that this user published of it (root: all), or only what is at that
        address. False: there was nothing. Raises TableError where it is only others'."""
        found = self._published.get(service, {})
        own = [
            each
            for each in found.values()
            if uid in (0, each.uid) and address in (None, each.address)
        ]
        if not own:
            _check_owner(service, self._owners(service), uid)
        for each in own:
            del found[each.address]
            self._hold("published", each.uid, -1, -_size_of_publication(each))
        if not found:
            self._published.pop(service, None)
            self._note_published(service)
        for each in own:
            self._tell(methodcaller("unpublished", each))
        return bool(own)

    def begin_unpublish(self, service: ServiceKey, uid: int) -> list[Publication]:
        """All that ``unpublish`` would take away is leaving, until that, or until it is published
        again. Raises TableError."""
        found = self._published.get(service, {})
        own = [each for each in found.values() if uid in (0, each.uid)]
        if not own:
            _check_owner(service, self._owners(service), uid)
        leaving = [replace(each, leaving=True) for each in own]
        for each in leaving:
            found[each.address] = each
            self._tell(methodcaller("published", each))
        return leaving

    def end_unpublish(self, publications: Iterable[Publication]) -> None:
        """Takes away those that are still leaving."""
        for each in publications:
            found = self._published.get(each.service, {}).get(each.address)
            if found is not None and found.leaving and found.uid == each.uid:
                self.unpublish(each.service, each.uid, each.address)

    def set_alive(self, publication: Publication, alive: bool, *, taken: bool = False) -> None:
        """Whether its application listens, or somebody else. One that is not published any more is
        left alone."""
        of_service = self._published.get(publication.service, {})
        before = of_service.get(publication.address)
        if before is None or (before.alive, before.taken) == (alive, taken):
            return
        of_service[publication.address] = after = replace(before, alive=alive, taken=taken)
        self._tell(methodcaller("published", after))

    def forget(self, publication: Publication) -> None:
        """Takes it away, and no other one of the same service."""
        service, address = publication.service, publication.address
        found = self._published.get(service, {}).pop(address, None)
        if found is None:
            return
        self._hold("published", found.uid, -1, -_size_of_publication(found))
        if not self._published[service]:
            del self._published[service]
            self._note_published(service)
        self._tell(methodcaller("unpublished", found))

    def subscribe(self, service: ServiceKey, uid: int) -> None:
        """This user wants it. Raises TableError."""
        entry = self._subscribed.get(service)
        if entry is not None and uid in entry.uids:
            return
        size = _size_of_service(service)
        self._check_room(uid, "subscribed", 1, size)
        self._hold("subscribed", uid, 1, size)
        if entry is not None:
            entry.uids.add(uid)
            self._tell(methodcaller("shared", service))
            return
        self._subscribed[service] = _Subscribed({uid})
        self._tell(methodcaller("subscribed", service))

    def demand(self, service: ServiceKey) -> None:
        """It was called, and nobody wants it. What was called and never found makes way, the oldest
        first: else calls for names that mean nothing would end this for all others. Raises
        TableError."""
        try:
            self.subscribe(service, ON_DEMAND)
        except TableError:
            found = (
                key
                for key, entry in self._subscribed.items()
                if ON_DEMAND in entry.uids and not entry.instances
            )
            useless = next(found, None)
            if useless is None:
                raise
            self.unsubscribe(useless, ON_DEMAND)
            self.subscribe(service, ON_DEMAND)

    def unsubscribe(self, service: ServiceKey, uid: int) -> bool:
        """This user does not want it any more. False: did not before."""
        entry = self._subscribed.get(service)
        if entry is None or uid not in entry.uids:
            return False
        entry.uids.discard(uid)
        self._hold("subscribed", uid, -1, -_size_of_service(service))
        if not entry.uids:
            del self._subscribed[service]
        self._tell(methodcaller("shared" if entry.uids else "unsubscribed", service))
        return True

    # ---- what the registry says ----

    def push(self, service: ServiceKey, instances: Sequence[Instance]) -> None:
        """All instances of it. For one that nobody wants any more: nothing."""
        entry = self._subscribed.get(service)
        if entry is None:
            return
        pushed = tuple(instances)
        if entry.known and entry.instances == pushed:
            return
        entry.instances, entry.known = pushed, True
        self._tell(methodcaller("pushed", service))

    # ---- reading ----

    @property
    def publications(self) -> Iterator[Publication]:
        """In the order in which they came."""
        return iter([each for found in self._published.values() for each in found.values()])

    @property
    def subscriptions(self) -> Iterator[tuple[ServiceKey, frozenset[int], tuple[Instance, ...]]]:
        """What is wanted, by whom, and what is known of it."""
        for service, entry in list(self._subscribed.items()):
            yield service, frozenset(entry.uids), entry.instances

    def published_of(self, service: ServiceKey) -> Iterator[Publication]:
        """Those of one service."""
        return iter(list(self._published.get(service, {}).values()))

    def is_subscribed(self, service: ServiceKey) -> bool:
        """Whether anybody wants it."""
        return service in self._subscribed

    def users_of(self, service: ServiceKey) -> frozenset[int]:
        """Who wants it."""
        entry = self._subscribed.get(service)
        return frozenset(entry.uids) if entry is not None else frozenset()

    def instances_of(self, service: ServiceKey) -> tuple[Instance, ...]:
        """What is known of it."""
        entry = self._subscribed.get(service)
        return entry.instances if entry is not None else ()

    def counts(self, uid: int) -> tuple[int, int]:
        """How many services this user has published, and subscribed."""
        return self._counts["published", uid], self._counts["subscribed", uid]

    def is_known(self, service: ServiceKey) -> bool:
        """Whether anybody told of its instances, be it that there is none."""
        entry = self._subscribed.get(service)
        return entry is not None and entry.known

    # ---- rules ----

    def _owners(self, service: ServiceKey) -> set[int]:
        return {each.uid for each in self._published.get(service, {}).values()}

    def _rivals(self, service: ServiceKey) -> set[int]:
        """Who publishes what the same calls may be meant for: grpc and tri are one on the wire, and
        health checks are about all of it. Calls of Bolt do not say the group."""
        family = _family(service)
        if family is None:
            return set()
        common = family == _CALLS and service.name in GRPC_COMMON
        of_all = (place for place in self._called if place[0] == family)
        return {
            uid
            for place in (of_all if common else ((family, service.name),))
            for each in self._called.get(place, ())
            if common or (each != service and _may_be_taken_for(each, service))
            for uid in self._owners(each)
        }

    def _note_published(self, service: ServiceKey) -> None:
        """It is there, or there is nothing of it any more."""
        family = _family(service)
        if family is None:
            return
        place = (family, service.name)
        keys = self._called.setdefault(place, set())
        if service in self._published:
            keys.add(service)
        else:
            keys.discard(service)
        if not keys:
            del self._called[place]

    def _check_room(self, uid: int, what: str, more: int, bytes_more: int) -> None:
        """Raises TableError where this user may not say so much more."""
        share = _ROOT_SHARE if uid in _ROOT else 1
        who = "on demand there are" if uid == ON_DEMAND else f"user {uid} has"
        count = self._counts[what, uid]
        if more and count >= self._limit * share:
            raise TableError(f"{who} {what} {count} services already, the limit")
        room = MAX_BYTES_PER_USER * share
        if uid not in _ROOT:
            room = min(room, (MAX_BYTES - self._all_bytes + self._bytes[uid]) // 2)
        if bytes_more > 0 and self._bytes[uid] + bytes_more > room:
            raise TableError(f"{who} {self._bytes[uid]} bytes of services already, the limit")

    def _hold(self, what: str, uid: int, more: int, bytes_more: int) -> None:
        self._counts[what, uid] += more
        self._bytes[uid] += bytes_more
        if uid not in _ROOT:
            self._all_bytes += bytes_more
        if not self._counts[what, uid]:
            del self._counts[what, uid]
        if not self._bytes[uid]:
            del self._bytes[uid]

    def _tell(self, tell: Callable[[Watcher], None]) -> None:
        """Each of them, whatever becomes of the others."""
        for watcher in self._watchers:
            for call in (tell, _TELL_CHANGED):
                try:
                    call(watcher)
                except Exception as error:
                    _mistakes.tell(
                        error,
                        "one change of a service is not registered, not called or not kept on disk "
                        "until it changes again or the sidecar is restarted",
                    )


def _check_owner(service: ServiceKey, owners: set[int], uid: int) -> None:
    if owners and uid > 0 and uid not in owners:
        whose = "by the configuration" if owners == {CONFIGURATION} else "by another user"
        raise TableError(f"{service} is published {whose}")


def _family(service: ServiceKey) -> str | None:
    """Of protocols whose calls may be meant for several services; None: it is none of those."""
    if service.protocol in CALLS:
        return _CALLS
    return service.protocol if service.protocol == "bolt" else None


def _may_be_taken_for(one: ServiceKey, other: ServiceKey) -> bool:
    """Of one family and name."""
    return one.protocol != other.protocol or one.protocol == "bolt"


def _size_of_service(service: ServiceKey) -> int:
    return _ENTRY_BYTES + sum(map(_size, (service.name, service.version, service.group)))


def _size_of_publication(publication: Publication) -> int:
    return (
        _size_of_service(publication.service)
        + _size(publication.application)
        + sum(_PAIR_BYTES + _size(key) + _size(text) for key, text in publication.metadata)
    )


def _size(text: str) -> int:
    """In JSON: what it has are printable characters."""
    return len(text.encode("utf-8", "replace")) + text.count('"') + text.count("\\")
