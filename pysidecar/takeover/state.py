"""The table on disk, for a sidecar that starts again: applications never repeat what they said."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import override

from pysidecar.address import Address
from pysidecar.background import in_background
from pysidecar.registry.service import Instance, ServiceKey
from pysidecar.takeover.table import Publication, ServiceTable, TableError, Watcher

__all__ = ["State", "default_path"]

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
"""Of the file. Instances are left out from where it would be larger."""

PAUSE = 1.0
"""Seconds from the end of a write to the next one, at least."""

_PROTOCOLS = ("bolt", "dubbo", "http")  # one that was newer may have known others
_PAUSE_FACTOR = 10  # as many times as long as a write took, where that is more
_PAUSE_AFTER_FAILURE = 10.0
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


class _RefusedError(Exception):
    """Why a file is not believed. ``aside``: it is our own, and is kept for people to look at."""

    def __init__(self, reason: str, *, aside: bool = False) -> None:
        super().__init__(reason)
        self.aside = aside


def _read(path: Path) -> _Content | None:
    """None where there is no file. Raises _RefusedError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _RefusedError("it is a symbolic link") from None
        raise _RefusedError(error.strerror or str(error)) from None
    try:
        _check(os.fstat(descriptor))
        with open(descriptor, "rb", closefd=False) as file:
            return _decode(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise _RefusedError(error.strerror or str(error)) from None
    finally:
        os.close(descriptor)


def _decode(data: bytes) -> _Content:
    """Raises _RefusedError."""
    try:
        return _CONTENT.validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise _RefusedError(reason, aside=True) from None


def _check(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _RefusedError("it is no file")
    if status.st_uid != os.geteuid():
        raise _RefusedError(f"it is of user {status.st_uid}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _RefusedError("others may write to it")
    if status.st_size > MAX_BYTES:
        raise _RefusedError(f"it has more than {MAX_BYTES} bytes", aside=True)


def _write(path: Path, data: bytes) -> None:
    """So that at each moment there is either what was there before, or all of this. Raises
    OSError."""
    temporary = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o600), "wb", buffering=0) as file:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class State(Watcher):
    """``restore`` first, then ``start``: from there on it watches the table, and writes. Nothing
    here raises: what goes wrong is in the log."""

    def __init__(self, table: ServiceTable, path: Path) -> None:
        self._table = table
        self._path = path
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._written = b""  # a digest of it
        self._fails = False  # to write, as the log says
        self._writer: asyncio.Task[None] | None = None

    def restore(self) -> None:
        """Publishes and subscribes what the file has; nothing of it is alive before somebody has
        looked. Before the table has anything else."""
        try:
            content = _read(self._path)
        except _RefusedError as error:
            log.warning("%s is not used, and nothing is known of before: %s", self._path, error)
            if error.aside:
                self._put_aside()
            return
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
        _done, late = await asyncio.wait([self._writer], timeout=_STOP_PATIENCE)
        if late:
            self._writer.cancel()
            log.warning("%s is not written: that takes too long", self._path)

    @override
    def changed(self) -> None:
        self._changed.set()

    async def _write_changes(self) -> None:
        while True:
            await _first(self._changed, self._stopped)
            if not self._changed.is_set():
                return
            self._changed.clear()
            pause = await self._write_now()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), pause)

    async def _write_now(self) -> float:
        """Seconds until the next one."""
        before = time.monotonic()
        content = self._content()
        try:
            self._written = await in_background(lambda: self._encode_and_write(content))
        except (OSError, ValueError) as error:
            if not self._fails:
                log.warning(
                    "cannot write %s, so a sidecar that starts again knows nothing of now: %s",
                    self._path,
                    getattr(error, "strerror", None) or error,
                )
            self._fails = True
            if not self._stopped.is_set():
                self._changed.set()
            return _PAUSE_AFTER_FAILURE
        if self._fails:
            log.warning("%s is written again", self._path)
        self._fails = False
        return max(PAUSE, _PAUSE_FACTOR * (time.monotonic() - before))

    def _encode_and_write(self, content: _Content) -> bytes:
        data = _encode(content)
        digest = hashlib.blake2b(data).digest()
        if digest != self._written:
            _write(self._path, data)
        return digest

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
