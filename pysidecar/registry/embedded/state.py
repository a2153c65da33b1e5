"""What a registry that starts again knows of before: SQLite, written by a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, NamedTuple

from pysidecar.address import Address
from pysidecar.errors import StartError
from pysidecar.registry.embedded import wire
from pysidecar.registry.embedded.store import Held
from pysidecar.registry.service import Registration, ServiceKey

__all__ = ["Remembered", "State"]

log = logging.getLogger(__name__)

_WRITE_PAUSE: Final = 0.02  # seconds in which changes come together
_RETRY_PAUSE: Final = 5.0  # seconds after a failure

_APPLICATION: Final = 0x70736372  # in the file's header: that it is one of these
_SCHEMA = """
CREATE TABLE IF NOT EXISTS held (
    service TEXT NOT NULL, address TEXT NOT NULL, instance TEXT NOT NULL,
    owner TEXT NOT NULL, trusted INTEGER NOT NULL, lease INTEGER NOT NULL, timeout REAL NOT NULL,
    PRIMARY KEY (service, address)
) WITHOUT ROWID
"""
_PUT = "INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM held WHERE service = ? AND address = ?"

_Key = tuple[str, str]
"""Service and address."""


class _Row(NamedTuple):
    service: str
    address: str
    instance: str
    owner: str
    trusted: int
    lease: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Remembered:
    """A registration of before."""

    registration: Registration
    text: str
    """As ``wire`` writes the instance."""

    owner: str
    trusted: bool
    lease: int
    timeout: float


class State:
    """A file. It may lag behind by some hundredths of a second, and more while it cannot be
    written: the registry itself goes on, and writes all of it once that can be."""

    def __init__(self, path: Path) -> None:
        """Raises StartError."""
        self._path = path
        self.database = _open(path)
        self._thread = ThreadPoolExecutor(1, "state")
        self._everything: Callable[[], Iterable[tuple[ServiceKey, Held]]]
        self._changes: dict[_Key, _Row | None] = {}
        self._whole = False  # everything is to be written anew
        self._writing: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def remembered(self) -> list[Remembered]:
        """What was there at the end; what cannot be read is left out, and said."""
        try:
            rows = self.database.execute("SELECT * FROM held ORDER BY lease").fetchall()
        except sqlite3.Error as error:
            raise StartError(f"cannot read {self._path}: {error}") from None
        found, unreadable = [], 0
        readers: defaultdict[str, wire.InstanceReader] = defaultdict(wire.InstanceReader)
        for row in rows:
            try:
                found.append(_remembered(_Row(*row), readers))
            except (ValueError, TypeError):
                unreadable += 1
        if unreadable:
            log.warning("%s: %d entries cannot be read", self._path, unreadable)
        return found

    def start(self, everything: Callable[[], Iterable[tuple[ServiceKey, Held]]]) -> None:
        """From here on ``put`` and ``delete`` are written. ``everything`` is asked after a
        failure."""
        self._everything = everything

    def put(self, service: ServiceKey, held: Held) -> None:
        """It is there from here on."""
        row = _row(service, held)
        self._change((row.service, row.address), row)

    def delete(self, service: ServiceKey, address: Address) -> None:
        """It is not there any more."""
        self._change((wire.text_of_service(service), str(address)), None)

    async def close(self) -> None:
        """Writes what is left, once."""
        self._closing.set()
        if self._writing is not None:
            await self._writing
        self._thread.shutdown()
        self.database.close()

    # ---- writing ----

    def _change(self, key: _Key, row: _Row | None) -> None:
        if not self._whole:
            self._changes[key] = row
        self._begin()

    def _begin(self) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        failed = False
        while self._changes or self._whole:
            await self._pause(_RETRY_PAUSE if failed else _WRITE_PAUSE)
            whole, changes = self._whole, self._changes
            work = partial(_save, self.database, changes)
            if whole:
                work = partial(_save_everything, self.database, list(self._everything()))
            self._whole, self._changes = False, {}
            problem = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            if problem:
                if not failed:
                    log.warning(
                        "cannot write %s: %s; the registry goes on without", self._path, problem
                    )
                self._whole, self._changes = True, {}
                if self._closing.is_set():
                    break
            elif failed:
                log.info("%s is written again", self._path)
            failed = bool(problem)
        self._writing = None

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()


def _save(database: sqlite3.Connection, changes: Mapping[_Key, _Row | None]) -> str:
    """All or nothing of it; why not."""
    try:
        with _transaction(database):
            database.executemany(_PUT, (row for row in changes.values() if row is not None))
            database.executemany(_DELETE, (key for key, row in changes.items() if row is None))
    except sqlite3.Error as error:
        return str(error)
    return ""


def _save_everything(
    database: sqlite3.Connection, everything: Sequence[tuple[ServiceKey, Held]]
) -> str:
    try:
        with _transaction(database):
            database.execute("DELETE FROM held")
            database.executemany(_PUT, (_row(service, held) for service, held in everything))
    except sqlite3.Error as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    with database:  # commits, or rolls back
        database.execute("BEGIN")
        yield


def _open(path: Path) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(
            path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=8
        )
    except OSError as error:
        raise StartError(f"cannot open {path}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise StartError(f"cannot open {path}: {error}") from None
    try:
        _prepare(database, path)
    except sqlite3.Error as error:
        database.close()
        busy = error.sqlite_errorname == "SQLITE_BUSY"
        reason = "another process uses it" if busy else str(error)
        raise StartError(
            f"cannot use {path} as the registry's state: {reason}; remove it, or give another "
            "--state"
        ) from None
    except StartError:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    tables = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    application = database.execute("PRAGMA application_id").fetchone()[0]
    if application != _APPLICATION and (tables or application):
        raise StartError(f"{path} is another program's database; give another --state")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")  # of a host that dies the last moments are lost
    database.execute(f"PRAGMA application_id = {_APPLICATION}")
    database.execute(_SCHEMA)


def _row(service: ServiceKey, held: Held) -> _Row:
    lease = held.lease
    return _Row(
        wire.text_of_service(service),
        str(held.instance.address),
        held.text,
        lease.owner,
        lease.trusted,
        lease.number,
        lease.timeout,
    )


@lru_cache(1024)
def _service(text: str) -> ServiceKey:
    return wire.read_service(json.loads(text))


def _remembered(row: _Row, readers: Mapping[str, wire.InstanceReader]) -> Remembered:
    """With readers by service."""
    timeout = float(row.timeout)
    if not wire.TIMEOUTS[0] <= timeout <= wire.TIMEOUTS[1]:
        raise ValueError("expected a timeout")
    return Remembered(
        Registration(
            _service(row.service),
            readers[row.service].read(json.loads(row.instance)),
        ),
        row.instance,
        str(row.owner),
        bool(row.trusted),
        int(row.lease),
        timeout,
    )
