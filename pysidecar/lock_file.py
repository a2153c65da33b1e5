"""A file that says that one process uses what it stands beside."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pysidecar.files import remove_file

__all__ = ["InUseError", "LockFile"]


class InUseError(Exception):
    """Another process has it: ``pid``, where that is known."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(f"{path} is locked")
        self.pid = pid


class LockFile:
    """Locked by the kernel, so that nothing is left of a process that was killed."""

    def __init__(self, path: Path) -> None:
        """Raises InUseError and OSError."""
        self._path = path
        self._lock = _take(path)

    def release(self) -> None:
        """Removes it."""
        # While we still hold it: whoever waits for this inode finds that its name is gone.
        remove_file(self._path)
        os.close(self._lock)


def _take(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
                return lock
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).strip()
            os.close(lock)
            raise InUseError(path, int(holder) if holder.isdigit() else None) from None
        except FileNotFoundError:
            pass  # its holder left between our open and our lock: again
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
