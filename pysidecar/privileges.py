"""What a sidecar that was started as root keeps of it."""

from __future__ import annotations

import ctypes
import enum
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from pysidecar.config import Config

__all__ = ["Capability", "keep_only", "needed_capabilities"]


class Capability(enum.IntEnum):
    """Numbers of <linux/capability.h>."""

    NET_ADMIN = 12
    NET_RAW = 13
    SYS_RESOURCE = 24
    PERFMON = 38
    BPF = 39


_LAST_CAPABILITY = Path("/proc/sys/kernel/cap_last_cap")
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4


def needed_capabilities(config: Config) -> set[Capability]:
    """By what the configuration asks for, from the moment in which all listeners are open."""
    # For the pipes of very many bulk connections: see pipe-user-pages-soft in proc_sys_fs(5).
    needed = {Capability.SYS_RESOURCE}
    if config.inbound is not None or config.outbound.redirect is not None:
        # Marks, IP_TRANSPARENT, the rules and their counters.
        needed.add(Capability.NET_ADMIN)
        if config.manage_rules:
            needed.add(Capability.NET_RAW)  # as iptables-legacy asks the kernel
    if config.manage_rules:
        needed.add(Capability.NET_ADMIN)  # what an earlier sidecar left is removed
    if config.acceleration.wanted:
        needed |= {Capability.NET_ADMIN, Capability.BPF, Capability.PERFMON}
    return needed


def keep_only(kept: Iterable[Capability]) -> None:
    """The calling thread, and all threads and programs that it starts, have no other capability
    from here on, and get none by setuid programs. For root only; nothing changes for others."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    kept = set(kept)
    # Without CAP_SETPCAP the bounding set stays; it gives nothing back, with no_new_privs.
    for number in range(int(_LAST_CAPABILITY.read_text()) + 1):
        if number not in kept:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    _check(libc.capget(header, data))
    effective, permitted, _, effective_high, permitted_high, _ = struct.unpack("=6I", data.raw[:24])
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    sets = (effective & low, permitted & low, 0, effective_high & high, permitted_high & high, 0)
    _check(libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *sets))))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "cannot change the capabilities")
