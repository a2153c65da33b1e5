"""One JSON object for each connection, a line each.

Written by a thread of its own: a disk or a pipe that stalls delays the log and nothing else, and
what does not fit its bounded queue is counted and dropped.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from pysidecar.dataplane import ConnectionRecord

__all__ = ["AccessLog", "describe_connection"]

log = logging.getLogger(__name__)

_STANDARD_OUTPUT = 1
_QUEUE_LIMIT = 65536  # records: some 50 MiB, or ten seconds at full speed
_BATCH = 1024  # records a write
_CLOSE_PATIENCE = 5.0  # seconds for the last records to be written

_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each record


def describe_connection(record: ConnectionRecord) -> dict[str, Any]:
    """The fields of the access log and of ``/connections``."""
    return {
        "time": _rfc3339(record.opened),
        "direction": record.direction.name.lower(),
        "transport": record.transport.name.lower(),
        "source": _text(record.source),
        "original_destination": _text(record.original_destination),
        "upstream": _text(record.upstream),
        "action": record.action.name.lower(),
        "path": record.path.name.lower(),
        "bytes_sent": record.bytes_sent,
        "bytes_received": record.bytes_received,
        "rtt_ms": record.rtt_ms,
        "duration_ms": round(record.duration_ms, 3),
        "pid": record.pid,
        "uid": record.uid,
        "process": record.process,
        "error": record.error,
    }


def _rfc3339(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: object) -> str | None:
    return None if value is None else str(value)


class AccessLog:
    """Appends to a file, or to standard output where the path is None.

    Errors of the disk are logged when they begin and when they end, and counted in
    ``lost_records``; the connections go on.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises OSError when the file cannot be opened."""
        self.lost_records = 0
        self._queue: deque[ConnectionRecord] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failing = False
        self._path = path
        self._replacement: int | None = None  # the writer's next file
        self._fd = _open(path)
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def write(self, records: Iterable[ConnectionRecord]) -> None:
        """Takes records to be written; never blocks."""
        with self._changed:
            for record in records:
                if len(self._queue) >= _QUEUE_LIMIT:
                    self.lost_records += 1
                else:
                    self._queue.append(record)
            self._changed.notify()

    def reopen(self, path: Path | None) -> None:
        """Goes on in the file that has this name now. Raises OSError and goes on in the old one."""
        fd = _open(path)
        with self._changed:
            if self._replacement is not None:
                os.close(self._replacement)
            self._replacement = fd
            self._path = path
            self._changed.notify()

    def close(self) -> None:
        """Writes what is queued, within a limit."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_PATIENCE)
        if self._thread.is_alive():
            log.error("access log %s: still blocked; its last records are lost", self._name)

    @property
    def _name(self) -> str:
        return str(self._path or "on standard output")

    # ---- The writer's thread ----

    def _run(self) -> None:
        while batch := self._next_batch():
            lines = "".join(_json(describe_connection(record)) + "\n" for record in batch)
            self._append(lines.encode())
        os.close(self._fd)

    def _next_batch(self) -> list[ConnectionRecord]:
        """Waits for records; none means the end."""
        with self._changed:
            while True:
                if self._replacement is not None:
                    os.close(self._fd)
                    self._fd, self._replacement = self._replacement, None
                if self._queue or self._closing:
                    break
                self._changed.wait()
            return [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))]

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            with self._changed:
                # Whole records; the one that was cut off counts as lost.
                self.lost_records += bytes(view).count(b"\n")
            if not self._failing:
                log.error("access log %s: %s; records are lost", self._name, error.strerror)
            self._failing = True
            return
        if self._failing:
            log.info("access log %s: works again", self._name)
        self._failing = False


def _open(path: Path | None) -> int:
    if path is None:
        return os.dup(_STANDARD_OUTPUT)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
