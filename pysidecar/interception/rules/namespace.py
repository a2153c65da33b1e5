"""Working in another network namespace."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pysidecar.interception.rules.model import RulesError

__all__ = ["inside", "namespace_path"]

_NAMED = Path("/run/netns")  # where `ip netns add` puts them
_CLONE_NEWNET = 0x40000000  # <linux/sched.h>

_Result = TypeVar("_Result")


def namespace_path(name: str) -> Path:
    """The file of a namespace: its name, or a path such as ``/proc/1234/ns/net``."""
    return Path(name) if "/" in name else _NAMED / name


def inside(netns: str | None, work: Callable[[], _Result]) -> _Result:
    """Calls ``work`` in a network namespace, None being our own, and returns what it returns.

    A network namespace belongs to a thread, and what it starts and opens is in it: so it is a
    thread of its own that enters, and the rest of the process stays where it is. Raises RulesError
    when there is no such namespace or no permission, and whatever ``work`` raises.
    """
    if netns is None:
        return work()
    path = namespace_path(netns)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RulesError(
            f"cannot open the network namespace {netns} ({path}): {error.strerror}"
        ) from None
    results: list[_Result] = []
    errors: list[BaseException] = []

    def enter_and_work() -> None:
        try:
            _enter(handle, netns)
            results.append(work())
        except BaseException as error:  # raised again by the caller
            errors.append(error)

    try:
        thread = threading.Thread(target=enter_and_work, name=f"netns-{netns}")
        thread.start()
        thread.join()
    finally:
        os.close(handle)
    if errors:
        raise errors[0]
    return results[0]


def _enter(handle: int, netns: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
    if libc.setns(handle, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        hint = " (it needs CAP_SYS_ADMIN)" if error == 1 else ""
        raise RulesError(f"cannot enter the network namespace {netns}: {os.strerror(error)}{hint}")
