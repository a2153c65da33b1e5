"""The sidecar's own log, on standard error: a terminal that is stopped or a pipe that nobody reads
costs lines, and never makes anybody wait."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from typing_extensions import override

from pysidecar.line_writer import LineWriter

__all__ = ["lost_lines", "non_blocking_log", "start_writing"]

_STANDARD_ERROR = 2
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_QUEUE_LIMIT = 1 << 20  # bytes
_CLOSE_PATIENCE = 1.0  # seconds for the last lines to be written


class _Handler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self.writer = LineWriter(
            os.dup(_STANDARD_ERROR),
            name="log",
            limit=_QUEUE_LIMIT,
            on_recovery=self._tell_losses,
        )

    def _tell_losses(self, lost: int) -> None:
        logging.getLogger(__name__).warning(
            "%d lines of this log are lost: standard error took none", lost
        )

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.writer.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)

    @override
    def close(self) -> None:
        self.writer.close(_CLOSE_PATIENCE)
        super().close()


_handlers: list[_Handler] = []


def start_writing() -> None:
    """What was logged up to now is written; see ``LineWriter.start``."""
    for handler in _handlers:
        handler.writer.start()


def lost_lines() -> int:
    """How many lines of this process's log were lost."""
    return sum(handler.writer.lost for handler in _handlers)


@contextmanager
def non_blocking_log(level: int) -> Iterator[None]:
    """Everything that is logged in here goes to standard error, as far as it takes it: from
    ``start_writing`` on, at the latest at the end."""
    root = logging.getLogger()
    handler = _Handler()
    _handlers.append(handler)
    root.addHandler(handler)
    before = root.level
    root.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()
        sys.stderr.flush()
