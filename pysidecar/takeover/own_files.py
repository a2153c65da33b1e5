"""Files of the sidecar's own that nobody else may have touched."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

__all__ = ["RefusedError", "append", "read", "write"]


class RefusedError(Exception):
    """Why a file is not believed. ``aside``: it is our own, and is kept for people to look at."""

    def __init__(self, reason: str, *, aside: bool = False) -> None:
        super().__init__(reason)
        self.aside = aside


def read(path: Path, most: int) -> bytes | None:
    """All of it, which has at most so many bytes; None where there is no file. Raises
    RefusedError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RefusedError("it is a symbolic link") from None
        raise RefusedError(error.strerror or str(error)) from None
    try:
        _check(os.fstat(descriptor), most)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most + 1)
    except OSError as error:
        raise RefusedError(error.strerror or str(error)) from None
    finally:
        os.close(descriptor)


def _check(status: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError("it is no file")
    if status.st_uid != os.geteuid():
        raise RefusedError(f"it is of user {status.st_uid}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RefusedError("others may write to it")
    if status.st_size > most:
        raise RefusedError(f"it has more than {most} bytes", aside=True)


def write(path: Path, data: bytes) -> None:
    """So that at each moment there is either what was there before, or all of this. Raises
    OSError."""
    temporary = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(descriptor)
    _sync_directory(path.parent)


def append(path: Path, data: bytes, most: int) -> None:
    """To what is there, which has at most so many bytes before. It is there after a loss of power,
    too. Raises OSError and RefusedError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        status = os.fstat(descriptor)
        _check(status, most)
        _write_all(descriptor, data)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    if not status.st_size:  # it may be new
        _sync_directory(path.parent)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
