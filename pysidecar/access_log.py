"""One JSON object for each connection and each request, a line each.

The data plane makes the lines (``api/log_line.c``, ``api/request_line.c``), and a thread of its own
writes them: a disk or a pipe that stalls delays the log and nothing else, and what does not fit its
bounded queue is counted and dropped.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from pysidecar.dataplane import ConnectionRecord, RequestRecord
from pysidecar.line_writer import LineWriter

__all__ = ["AccessLog", "describe_connection", "describe_request"]

log = logging.getLogger(__name__)

_STANDARD_OUTPUT = 1
_QUEUE_LIMIT = 32 << 20  # bytes
_CLOSE_PATIENCE = 5.0  # seconds for the last records to be written


def describe_connection(record: ConnectionRecord) -> dict[str, Any]:
    """The fields of ``/connections``, and of the access log, whose lines are what ``json.dumps``
    makes of this."""
    return {
        "time": _rfc3339(record.opened),
        "type": "connection",
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


def describe_request(record: RequestRecord, *, query: bool) -> dict[str, Any]:
    """The same for ``/requests``, and for lines of requests. With ``query``, HTTP's path has its
    query."""
    first_byte_ms = record.first_byte_ms
    trace = {"trace_id": record.trace_id, "span_id": record.span_id}
    return {
        "time": _rfc3339(record.began),
        "type": "request",
        "protocol": record.protocol.name.lower(),
        "direction": record.direction.name.lower(),
        "source": _text(record.source),
        "connection": record.connection,
        "service": record.service,
        "method": record.method,
        "path": record.path if query else record.path_without_query,
        "status": record.status,
        "upstream": _text(record.upstream),
        "attempts": record.attempts,
        "bytes_sent": record.bytes_sent,
        "bytes_received": record.bytes_received,
        "duration_ms": round(record.duration_ms, 3),
        "first_byte_ms": None if first_byte_ms is None else round(first_byte_ms, 3),
        "flags": [flag.name.lower() for flag in record.flags],
        **{name: value for name, value in trace.items() if value is not None},
    }


def _rfc3339(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: object) -> str | None:
    return None if value is None else str(value)


class AccessLog:
    """Appends to a file, or to standard output where the path is None.

    Losses are logged when they begin and when they end, and counted in ``lost_records``; the
    connections go on.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises OSError when the file cannot be opened."""
        self._path = path
        self._writer = LineWriter(
            _open(path),
            name="access-log",
            limit=_QUEUE_LIMIT,
            on_loss=lambda reason: log.error(
                "access log %s: %s; records are lost", self._name, reason
            ),
            on_recovery=lambda lost: log.warning(
                "access log %s: works again; %d records are lost", self._name, lost
            ),
        )

    def start(self) -> None:
        """Begins to write."""
        self._writer.start()

    @property
    def lost_records(self) -> int:
        """How many could not be written."""
        return self._writer.lost

    def write(self, lines: bytes) -> None:
        """Takes whole lines to be written; never blocks."""
        self._writer.write(lines)

    def fill(self, fill: Callable[[bytearray], int]) -> int:
        """Takes whole lines to be written, which ``fill`` stores in a buffer; never blocks. Returns
        how many bytes they have."""
        return self._writer.fill(fill)

    def reopen(self, path: Path | None) -> None:
        """Goes on in the file that has this name now. Raises OSError and goes on in the old one."""
        self._writer.replace(_open(path))
        self._path = path

    def close(self) -> None:
        """Writes what is queued, within a limit."""
        if not self._writer.close(_CLOSE_PATIENCE):
            log.error(
                "access log %s: its reader does not keep up; the last records are lost", self._name
            )

    @property
    def _name(self) -> str:
        return str(self._path or "on standard output")


def _open(path: Path | None) -> int:
    if path is None:
        return os.dup(_STANDARD_OUTPUT)
    # Not blocking, for a FIFO that nobody reads and a terminal that is stopped.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open(path, flags, 0o640)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "it is a FIFO that nobody reads, or a socket") from None
        raise
