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

__all__ = ["Mistakes", "lost_lines", "non_blocking_log", "start_writing"]

_STANDARD_ERROR = 2
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_QUEUE_LIMIT = 1 << 20  # bytes
_CLOSE_PATIENCE = 1.0  # seconds for the last lines to be written
_MOST_MISTAKES = 100


class Mistakes:
    """Errors of the sidecar's own that nobody expected: whoever meets one tells of it here, and
    goes on. Each is in the log once, with its traceback."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._told: set[tuple[type[Exception], str, int]] = set()

    def tell(self, error: Exception, effect: str) -> None:
        """``effect``: what does not work now, and what makes it work again."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = ("", 0) if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        mistake = (type(error), *place)
        if mistake in self._told or len(self._told) >= _MOST_MISTAKES:
            self._logger.debug("once more: %s: %s", type(error).__name__, error)
            return
        self._told.add(mistake)
        self._logger.error(
            "an error of pysidecar itself, please report it with these lines: %s",
            effect,
            exc_info=error,
        )


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
