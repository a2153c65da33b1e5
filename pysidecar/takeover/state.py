"""The table on disk, for a sidecar that starts again: applications never repeat what they said."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import override

from pysidecar.address import Address
from pysidecar.background import in_background
from pysidecar.errors import StartError
from pysidecar.listeners import describe_process
from pysidecar.lock_file import InUseError, LockFile
from pysidecar.log import Mistakes
from pysidecar.registry.service import Instance, ServiceKey
from pysidecar.takeover import own_files
from pysidecar.takeover.journal import Journal, Said
from pysidecar.takeover.own_files import RefusedError
from pysidecar.takeover.table import Publication, ServiceTable, TableError, Watcher

__all__ = ["State", "default_path"]

log = logging.getLogger(__name__)
_mistakes = Mistakes(log)

MAX_BYTES = 64 << 20
"""Of the file. Instances are left out from where it would be larger."""

PAUSE = 1.0
"""Seconds from the end of a write to the next one, at least."""

_PROTOCOLS = ("bolt", "dubbo", "http", "grpc", "tri")  # one that was newer may have known others
_PAUSE_FACTOR = 10  # as many times as long as a write took, where that is more
_PAUSE_AFTER_FAILURE = 10.0
# A write that takes long waits until nothing has changed for so many times as long as the last one
# took: seconds within these limits, and no longer than the last one here in all.
_LULL_FACTOR = 5
_SHORTEST_LULL = 0.05
_LONGEST_LULL = 0.5
_LATEST = 2.0
_STOP_PATIENCE = 3.0  # seconds for the last write


def default_path(control_socket: Path, api: Address) -> Path:
    """Beside the control socket."""
    return control_socket.with_name(f"takeover-{api.port}.json")


# ---- what is in the file ----


@dataclass(frozen=True, slots=True)
class _Subscription:
    service: ServiceKey
    uids: tuple[int, ...]
    instances: tuple[Instance, ...] | None
    """None: nobody told of any."""


@dataclass(frozen=True, slots=True)
class _Content:
    version: Literal[1]
    publications: tuple[Publication, ...]
    subscriptions: tuple[_Subscription, ...]


_PUBLICATION = TypeAdapter(Publication)
_SUBSCRIPTION = TypeAdapter(_Subscription)
_CONTENT = TypeAdapter(_Content)


def _encode(content: _Content) -> bytes:
    """Piece by piece, since each holds up the other threads."""
    publications = b",\n".join(map(_PUBLICATION.dump_json, content.publications))
    room = MAX_BYTES - len(publications)
    subscriptions = b",\n".join(_encode_subscriptions(content, room))
    return b'{"version":%d,\n"publications":[\n%b\n],\n"subscriptions":[\n%b\n]}\n' % (
        content.version,
        publications,
        subscriptions,
    )


def _encode_subscriptions(content: _Content, room: int) -> Iterator[bytes]:
    for each in content.subscriptions:
        try:
            text = _SUBSCRIPTION.dump_json(each)
        except PydanticSerializationError:  # a registry may have what is no Unicode
            text = b""
        if not text or len(text) > room:
            text = _SUBSCRIPTION.dump_json(replace(each, instances=None))
        room -= len(text)
        yield text


# ---- the file ----


def _read(path: Path) -> _Content | None:
    """None where there is no file. Raises RefusedError."""
    data = own_files.read(path, MAX_BYTES)
    return None if data is None else _decode(data)


def _decode(data: bytes) -> _Content:
    """Raises RefusedError."""
    try:
        return _CONTENT.validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise RefusedError(reason, aside=True) from None


def _with(content: _Content, journal: Mapping[ServiceKey, Said]) -> _Content:
    """And what was said since."""
    instances = {each.service: each.instances for each in content.subscriptions}
    return _Content(
        content.version,
        (
            *(each for each in content.publications if each.service not in journal),
            *(each for said in journal.values() for each in said.publications),
        ),
        (
            *(each for each in content.subscriptions if each.service not in journal),
            *(
                _Subscription(said.service, said.uids, instances.get(said.service))
                for said in journal.values()
                if said.uids
            ),
        ),
    )


class State(Watcher):
    """``claim`` and ``restore`` first, then ``start``: from there on it watches the table, and
    writes. What applications say is in a journal at once (see ``noted``), all that is known a
    little later in the file. Only ``claim`` raises: what goes wrong later is in the log."""

    def __init__(self, table: ServiceTable, path: Path) -> None:
        self._table = table
        self._path = path
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._written = b""  # a digest of it
        self._fails = False  # to write, as the log says
        self._took = 0.0  # the last write, in seconds
        self._changed_at = -math.inf
        self._writer: asyncio.Task[None] | None = None
        self._journal = Journal(path.with_name(f"{path.name}.journal"), MAX_BYTES)
        self._said: dict[ServiceKey, None] = {}  # of which the journal does not have the latest
        self._next: asyncio.Future[None] | None = None  # when it has these
        self._current: asyncio.Future[None] | None = None  # of those that are being written
        self._noting: asyncio.Task[None] | None = None

    def claim(self) -> Callable[[], None]:
        """Nobody else is to use the file, which each would write over the other's. Returns what
        ends this. Raises StartError."""
        path = self._path.with_name(f"{self._path.name}.lock")
        try:
            return LockFile(path).release
        except InUseError as error:
            # In a directory that others write to, one of theirs is no reason not to start.
            with contextlib.suppress(OSError):
                if path.lstat().st_uid == os.geteuid():
                    raise StartError(
                        f"{self._path} (takeover.state) is in use by "
                        f"{describe_process(error.pid)}; stop it, or configure another path"
                    ) from None
        except OSError as error:  # as what is to be written, which is in the log
            log.debug("%s: %s", path, error)
        return lambda: None

    def restore(self) -> None:
        """Publishes and subscribes what the file has; nothing of it is alive before somebody has
        looked. Before the table has anything else."""
        content = self._read()
        if content is None:
            return
        refused = 0
        for publication in content.publications:
            if publication.service.protocol not in _PROTOCOLS:
                refused += 1
                continue
            try:
                self._table.publish(replace(publication, alive=False, taken=False))
            except TableError:
                refused += 1
        for subscription in content.subscriptions:
            refused += self._subscribe(subscription)
        log.info(
            "known of before, from %s: %d services published, %d subscribed%s",
            self._path,
            len(content.publications),
            len(content.subscriptions),
            f"; {refused} of them are not taken" if refused else "",
        )

    def _read(self) -> _Content | None:
        content = None
        try:
            content = _read(self._path)
        except RefusedError as error:
            log.warning("%s is not used, and nothing is known of before: %s", self._path, error)
            if error.aside:
                self._put_aside()
        try:
            journal = self._journal.read()
        except RefusedError as error:
            log.warning("%s.journal is not used: %s", self._path, error)
            return content
        if not journal:
            return content
        self._changed.set()  # so that the file has it, too
        return _with(content or _Content(1, (), ()), journal)

    def _subscribe(self, subscription: _Subscription) -> int:
        """How often it was refused."""
        refused = 0
        if subscription.service.protocol not in _PROTOCOLS:
            return len(subscription.uids)
        for uid in subscription.uids:
            try:
                self._table.subscribe(subscription.service, uid)
            except TableError:
                refused += 1
        if subscription.instances is not None:
            self._table.push(subscription.service, subscription.instances)
        return refused

    def _put_aside(self) -> None:
        try:
            self._path.replace(self._path.with_name(f"{self._path.name}.bad"))
        except OSError as error:
            log.warning("%s cannot be put aside: %s", self._path, error.strerror)

    def start(self) -> None:
        """Writes each change from here on, in the running event loop."""
        self._table.watch(self)
        self._writer = asyncio.get_running_loop().create_task(self._write_changes())

    async def stop(self) -> None:
        """Writes what is not written yet, for at most some seconds, and ends."""
        self._stopped.set()
        if self._writer is None:
            return
        writing = [each for each in (self._writer, self._noting) if each is not None]
        _done, late = await asyncio.wait(writing, timeout=_STOP_PATIENCE)
        for each in late:
            each.cancel()
        if self._writer in late:
            log.warning("%s is not written: that takes too long", self._path)

    @override
    def changed(self) -> None:
        self._changed_at = time.monotonic()
        self._changed.set()

    @override
    def published(self, publication: Publication) -> None:
        if publication.uid >= 0:
            self._note(publication.service)

    @override
    def unpublished(self, publication: Publication) -> None:
        if publication.uid >= 0:
            self._note(publication.service)

    @override
    def subscribed(self, service: ServiceKey) -> None:
        self._note(service)

    @override
    def shared(self, service: ServiceKey) -> None:
        self._note(service)

    @override
    def unsubscribed(self, service: ServiceKey) -> None:
        self._note(service)

    # ---- the journal ----

    @property
    def noted(self) -> asyncio.Future[None] | None:
        """Done when a sidecar that is killed then knows all that was said up to now, or the log
        says why not; None: so it is already."""
        return self._next or self._current

    def _note(self, service: ServiceKey) -> None:
        loop = asyncio.get_running_loop()
        self._said[service] = None
        if self._next is None:
            self._next = loop.create_future()
        if self._noting is None:
            self._noting = loop.create_task(self._note_all())

    async def _note_all(self) -> None:
        """What comes while a piece is written makes one more."""
        try:
            while self._next is not None:
                self._current, self._next = self._next, None
                services, self._said = self._said, {}
                try:
                    said = [self._all_said(service) for service in services]
                    await in_background(partial(self._journal.append, said))
                except (OSError, ValueError, RefusedError) as error:
                    self._complain(error)
                except Exception as error:
                    _mistakes.tell(error, "what is said is on disk a second later")
                finally:
                    self._current.set_result(None)
                    self._current = None
        finally:
            self._noting = None

    def _all_said(self, service: ServiceKey) -> Said:
        return Said(
            service,
            tuple(
                replace(each, alive=False, taken=False)
                for each in self._table.published_of(service)
                if each.uid >= 0 and not each.leaving
            ),
            tuple(self._table.users_of(service)),
        )

    # ---- the file ----

    async def _write_changes(self) -> None:
        while True:
            await _first(self._changed, self._stopped)
            if not self._changed.is_set():
                return
            await self._wait_for_lull()
            self._changed.clear()
            await self._sleep(await self._write_now())

    async def _wait_for_lull(self) -> None:
        """Requests are to go where all that changes says, before it is written beside that."""
        lull = min(_LONGEST_LULL, _LULL_FACTOR * self._took)
        latest = time.monotonic() + _LATEST
        while lull >= _SHORTEST_LULL and not self._stopped.is_set():
            left = min(self._changed_at + lull, latest) - time.monotonic()
            if left <= 0:
                break
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        """As far as there is time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def _write_now(self) -> float:
        """Seconds until the next one."""
        before = time.monotonic()
        try:
            self._journal.mark()
            content = self._content()
            if await in_background(lambda: self._encode_and_write(content)):
                self._changed.set()
        except Exception as error:
            if isinstance(error, OSError | ValueError):
                self._complain(error)
            else:
                _mistakes.tell(error, f"{self._path} is not as things are; it is written again")
            if not self._stopped.is_set():
                self._changed.set()
            return _PAUSE_AFTER_FAILURE
        if self._fails:
            log.warning("%s is written again", self._path)
        self._fails = False
        self._took = time.monotonic() - before
        return max(PAUSE, _PAUSE_FACTOR * self._took)

    def _complain(self, error: Exception) -> None:
        if not self._fails:
            log.warning(
                "cannot write %s, so a sidecar that starts again knows nothing of now: %s",
                self._path,
                getattr(error, "strerror", None) or error,
            )
        self._fails = True

    def _encode_and_write(self, content: _Content) -> bool:
        """Whether the journal has more."""
        data = _encode(content)
        digest = hashlib.blake2b(data).digest()
        if digest != self._written:
            own_files.write(self._path, data)
            self._written = digest
        return self._journal.restart()

    def _content(self) -> _Content:
        """All but what the configuration publishes, which knows it itself; of what it subscribes
        the instances have to be kept, too."""
        return _Content(
            1,
            tuple(each for each in self._table.publications if each.uid >= 0 and not each.leaving),
            tuple(
                _Subscription(
                    service, tuple(uids), instances if self._table.is_known(service) else None
                )
                for service, uids, instances in self._table.subscriptions
            ),
        )


async def _first(*events: asyncio.Event) -> None:
    """Returns when one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
