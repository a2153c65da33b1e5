"""The control socket's path: who may use it, and that only one sidecar does."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
import struct
from pathlib import Path

from pysidecar.errors import StartError
from pysidecar.files import remove_file
from pysidecar.listeners import describe_process
from pysidecar.lock_file import InUseError, LockFile

__all__ = ["ControlSocket"]

_BACKLOG = 4096  # requests that wait while the data plane is busy


class ControlSocket:
    """A listening SOCK_SEQPACKET socket, and the lock beside it that keeps two sidecars from
    starting on one path at once."""

    def __init__(self, path: Path, mode: int) -> None:
        """Raises StartError when another sidecar is there or the path cannot be used."""
        self.path = path
        self._lock: LockFile | None = None
        try:
            _ensure_directory(path.parent, mode)
            self._lock = LockFile(path.with_name(f"{path.name}.lock"))
            self._remove_stale()
            self.listener = _listen(path, mode)
        except OSError as error:
            self.remove()
            raise StartError(
                f"cannot make the control socket {path} (outbound.control_socket): {error.strerror}"
            ) from None
        except InUseError as error:
            raise StartError(self._in_use_by(error.pid)) from None
        except StartError:
            self.remove()
            raise

    @property
    def users(self) -> tuple[set[int], bool]:
        """Whom the permissions let in besides owner and root, as far as that can be told by uid:
        these and nobody else, or (True) all but these."""
        status = os.stat(self.path)
        group = bool(status.st_mode & stat.S_IWGRP)
        others = bool(status.st_mode & stat.S_IWOTH)
        return (set() if group == others else _members(status.st_gid), others)

    def remove(self) -> None:
        """Removes socket and lock, if they are ours."""
        if self._lock is not None:
            if hasattr(self, "listener"):
                remove_file(self.path)
            self._lock.release()
            self._lock = None

    def _remove_stale(self) -> None:
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            raise StartError(
                f"cannot make the control socket {self.path} (outbound.control_socket): "
                "there is a file that is not a socket"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(self.path))
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:  # nobody listens: left by a kill
                    self.path.unlink()
                    return
                if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                    raise
                raise StartError(self._in_use_by(None)) from None
            size = struct.calcsize("3i")
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            raise StartError(self._in_use_by(struct.unpack("3i", credentials)[0]))

    def _in_use_by(self, pid: int | None) -> str:
        return (
            f"the control socket {self.path} (outbound.control_socket) is in use by "
            f"{describe_process(pid)}; stop it, or configure another path"
        )


def _members(gid: int) -> set[int]:
    """The users of a group."""
    names: list[str] = []
    with contextlib.suppress(KeyError):
        names = grp.getgrgid(gid).gr_mem
    return {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid or user.pw_name in names}


def _ensure_directory(directory: Path, mode: int) -> None:
    """Makes the last directory where it is missing, open to those whom ``mode`` lets in. One that
    we would share with somebody untrusted is refused: whoever can rename in it can pose as us."""
    wanted = 0o700 | (0o050 if mode & 0o070 else 0) | (0o005 if mode & 0o007 else 0)
    try:
        os.mkdir(directory, 0o700)
        os.chmod(directory, wanted)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise StartError(
            f"the directory {directory.parent} does not exist; make it, or configure another "
            "outbound.control_socket"
        ) from None
    status = os.stat(directory)
    if not {status.st_uid, os.lstat(directory).st_uid} <= {0, os.geteuid()}:
        raise StartError(
            f"the directory {directory} belongs to another user; configure "
            "outbound.control_socket in a directory of your own"
        )
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise StartError(
            f"the directory {directory} lets everyone replace files; configure "
            "outbound.control_socket in a directory that does not"
        )


def _listen(path: Path, mode: int) -> socket.socket:
    listener = socket.socket(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        # Linux takes the socket's own mode, less the umask, for the file: so it is never wider than
        # configured, not even for an instant. The second call gives back what the umask took.
        os.fchmod(listener.fileno(), mode)
        listener.bind(str(path))
        os.chmod(path, mode)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
