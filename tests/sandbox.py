"""A kernel without something: what it says is left, for one thread and the processes it starts."""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_NETLINK_SOCK_DIAG = 4
_SOCKET_CALL = {"x86_64": 41, "aarch64": 198}  # the number of socket(2)

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_UNLESS_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of the classic BPF
_NUMBER, _ARGUMENTS = 0, 16  # offsets in struct seccomp_data


def without_sock_diag(act: Callable[[], T]) -> T:
    """Does it where the kernel has no NETLINK_SOCK_DIAG. Threads and processes that it starts are
    there, too, and stay."""
    with ThreadPoolExecutor(1, initializer=_deny_sock_diag) as pool:
        return pool.submit(act).result()


def _deny_sock_diag() -> None:
    """For this thread, by seccomp: as where the module is missing."""
    wanted = (
        (_NUMBER, _SOCKET_CALL[platform.machine()]),
        (_ARGUMENTS, socket.AF_NETLINK),
        (_ARGUMENTS + 2 * 8, _NETLINK_SOCK_DIAG),
    )
    code: list[tuple[int, int, int, int]] = []
    for index, (offset, value) in enumerate(wanted):
        to_allow = 2 * (len(wanted) - index) - 1
        code += [(_LOAD, 0, 0, offset), (_JUMP_UNLESS_EQUAL, 0, to_allow, value)]
    code += [(_RETURN, 0, 0, _ERRNO | errno.EPROTONOSUPPORT), (_RETURN, 0, 0, _ALLOW)]
    instructions = b"".join(struct.pack("HBBI", *each) for each in code)
    buffer = ctypes.create_string_buffer(instructions)
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, None)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program)


def _prctl(option: int, value: int, pointer: bytes | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_ulong(value), ctypes.c_char_p(pointer), None, None)
    if libc.prctl(option, *arguments) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
