"""Lines for a file, a pipe or a terminal that may stall: whoever hands them over never waits."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["LineWriter"]

_BATCH = 256 * 1024  # bytes that are written at a time
_SMALL = _BATCH // 2  # bytes that are copied rather than keep a buffer for themselves
_SPARE_BUFFERS = 4
_NEWLINE = 0x0A


class LineWriter:
    """A thread that writes lines to a descriptor, from a bounded queue.

    What does not fit the queue, or cannot be written, is dropped and counted in ``lost``. The
    thread waits for the descriptor with ``poll`` and writes no more than it takes at once, so that
    it can be given another one, or be ended, while nobody reads.

    ``on_loss`` is called when losses begin, with the reason, and ``on_recovery`` when they have
    ended, with their number: by whichever thread notices.
    """

    def __init__(
        self,
        fd: int,
        *,
        name: str,
        limit: int,
        on_loss: Callable[[str], object] = lambda reason: None,
        on_recovery: Callable[[int], object] = lambda lost: None,
    ) -> None:
        """Owns the descriptor from here on. With ``limit`` bytes, the queue is full. Nothing is
        written before ``start``."""
        self.lost = 0
        self._limit = limit
        self._on_loss = on_loss
        self._on_recovery = on_recovery
        self._lock = threading.Lock()
        self._queue: deque[bytes | memoryview] = deque()
        self._queued = 0  # bytes: to count the lines takes longer than to copy them
        self._replacement: int | None = None
        self._deadline: float | None = None  # set: the thread ends when all is written, or then
        self._lost_now = 0  # since losses began
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pending = memoryview(b"")  # no longer in the queue, not written
        self._spare: deque[bytearray] = deque(maxlen=_SPARE_BUFFERS)
        self._buffer: bytearray | None = None  # of what is pending, if that is a buffer's
        self._cut = False  # the beginning of the first pending line was written
        self._rest = b""  # the end of a line of which that is all that was not lost
        self._take(fd)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins to write; once. The thread gets the privileges that the calling one has now."""
        if self._thread.ident is None:
            self._thread.start()

    def write(self, lines: bytes) -> None:
        """Takes whole lines to be written, each with its newline; all of them, or none where the
        queue is full. Never blocks."""
        self._put(lines)

    def fill(self, fill: Callable[[bytearray], int]) -> int:
        """Takes whole lines that ``fill`` stores at the beginning of a buffer of `_BATCH` bytes,
        like ``write``. Returns what ``fill`` does: how many bytes these are.

        Buffers are used again: where there are many lines, fresh memory for each block costs more
        than writing it."""
        buffer = self._spare.pop() if self._spare else bytearray(_BATCH)
        size = fill(buffer)
        lines = memoryview(buffer)[:size]
        if size > _SMALL and self._put(lines):
            return size
        if 0 < size <= _SMALL:
            self._put(bytes(lines))
        self._spare.append(buffer)
        return size

    def _put(self, lines: bytes | memoryview) -> bool:
        with self._lock:
            full = self._queued >= self._limit
            if not full:
                self._queue.append(lines)
                self._queued += _held(lines)
        os.eventfd_write(self._wake, 1)
        if full:
            self._count_lost(bytes(lines).count(b"\n"), "its reader does not keep up")
        return not full

    def replace(self, fd: int) -> None:
        """Goes on with another descriptor, which it owns from here on; closes the one before."""
        with self._lock:
            if self._replacement is not None:
                os.close(self._replacement)
            self._replacement = fd
        os.eventfd_write(self._wake, 1)

    def close(self, patience: float) -> bool:
        """Writes what is queued, for so many seconds at most. Returns whether that was all."""
        self.start()
        with self._lock:
            self._deadline = time.monotonic() + patience
        os.eventfd_write(self._wake, 1)
        self._thread.join(patience + 1)  # a disk, unlike a pipe, cannot be polled
        with self._lock:
            left = b"".join((self._pending, *self._queue)).count(b"\n")
            self.lost += left
        return left == 0 and not self._thread.is_alive()

    def _count_lost(self, lost: int, reason: str) -> None:
        if not lost:
            return
        with self._lock:
            self.lost += lost
            began = self._lost_now == 0
            self._lost_now += lost
        if began:
            self._on_loss(reason)

    def _end_loss(self) -> None:
        with self._lock:
            lost, self._lost_now = self._lost_now, 0
        if lost:
            self._on_recovery(lost)

    # ---- The thread ----

    def _run(self) -> None:
        while True:
            if self._replacement is not None:
                self._replace()
            if not self._pending:
                self._pending = self._next_batch()
            if self._can_write():
                self._write()
            elif self._is_over():
                break
        os.close(self._fd)

    def _take(self, fd: int) -> None:
        self._fd = fd
        # What a pipe that polls as writable takes without blocking; other writers may share it.
        at_once = not os.get_blocking(fd) or stat.S_ISREG(os.fstat(fd).st_mode)
        self._most = sys.maxsize if at_once else select.PIPE_BUF

    def _replace(self) -> None:
        with self._lock:
            fd, self._replacement = self._replacement, None
        os.close(self._fd)
        assert fd is not None
        self._take(fd)
        if self._cut:
            pending = bytes(self._pending)
            self._pending = memoryview(pending[pending.find(b"\n") + 1 :])
            self._cut = False
            self.lost += 1
        self._rest = b""

    def _next_batch(self) -> memoryview:
        if self._buffer is not None:
            self._spare.append(self._buffer)
            self._buffer = None
        with self._lock:
            batch = self._take_batch()
            self._queued -= sum(map(_held, batch))
        if not batch:
            return memoryview(b"")
        rest, self._rest = self._rest, b""
        self._cut = bool(rest)
        if len(batch) == 1 and not rest:
            lines = memoryview(batch[0])
            self._buffer = lines.obj if isinstance(lines.obj, bytearray) else None
            return lines
        return memoryview(b"".join((rest, *batch)))

    def _take_batch(self) -> list[bytes | memoryview]:
        """What comes next: a buffer alone, so that it need not be copied, or several texts."""
        batch: list[bytes | memoryview] = []
        size = 0
        while self._queue and size < _BATCH:
            if batch and not isinstance(self._queue[0], bytes):
                break
            batch.append(self._queue.popleft())
            size = _BATCH if not isinstance(batch[-1], bytes) else size + len(batch[-1])
        return batch

    def _can_write(self) -> bool:
        """Waits until the descriptor takes bytes, or (False) there is something else to do."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._pending:
            poll.register(self._fd, select.POLLOUT)
        timeout = None
        if self._deadline is not None:
            left = self._deadline - time.monotonic() if self._pending else 0
            timeout = max(0.0, left) * 1000
        ready = {fd for fd, _ in poll.poll(timeout)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return self._fd in ready

    def _is_over(self) -> bool:
        if self._deadline is None or self._replacement is not None:
            return False
        return time.monotonic() >= self._deadline or not (self._pending or self._queue)

    def _write(self) -> None:
        try:
            written = os.write(self._fd, self._pending[: self._most])
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                self._lose_pending(str(error.strerror))
            return
        self._cut = self._pending[written - 1] != _NEWLINE
        self._pending = self._pending[written:]
        if not self._pending and not self._queue:
            self._end_loss()

    def _lose_pending(self, reason: str) -> None:
        pending = bytes(self._pending)
        kept = pending.find(b"\n") + 1 if self._cut else 0
        self._rest = pending[:kept]  # to be written before anything else, so that lines stay whole
        self._pending = memoryview(b"")
        self._cut = False
        self._count_lost(pending.count(b"\n", kept), reason)


def _held(lines: bytes | memoryview) -> int:
    """Bytes of memory that they take: with a buffer, all of that."""
    return len(lines) if isinstance(lines, bytes) else _BATCH
