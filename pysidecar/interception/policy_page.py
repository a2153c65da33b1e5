"""The policy page: a small file that every hooked process maps read-only.

The layout is ``struct mosnhook_page`` of ``hook/contract.h``; this module writes it for the control
plane and reads it for ``pysidecar exec``.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pysidecar.address import Address
from pysidecar.config.values import WhenAway
from pysidecar.dataplane import ffi, lib
from pysidecar.files import remove_file

__all__ = [
    "RULES_CAPACITY",
    "PageStatus",
    "Policy",
    "PolicyPage",
    "State",
    "others_can_write",
    "page_path",
    "read_page",
]

RULES_CAPACITY: int = lib.MOSNHOOK_PAGE_SIZE - ffi.offsetof("struct mosnhook_page", "rules")
"""Bytes that the rules of a page may take."""

_READ_TRIES = 100
_MAX_U32 = 0xFFFFFFFF


class State(enum.IntEnum):
    """Whether the sidecar behind a page takes connections."""

    STARTING = lib.MOSNHOOK_STATE_STARTING
    SERVING = lib.MOSNHOOK_STATE_SERVING
    DRAINING = lib.MOSNHOOK_STATE_DRAINING
    GONE = lib.MOSNHOOK_STATE_GONE


_TRANSPORTS = {"unix": lib.MOSNHOOK_TRANSPORT_UNIX, "header": lib.MOSNHOOK_TRANSPORT_HEADER}
_WHEN_AWAY = {
    "refuse": lib.MOSNHOOK_AWAY_REFUSE,
    "direct": lib.MOSNHOOK_AWAY_DIRECT,
    "wait": lib.MOSNHOOK_AWAY_WAIT,
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What the page tells hooked processes. ``rules`` is compiled, see
    ``pysidecar.routing.table.hook_rules``; ``control_path`` is absolute; ``server_uid`` is the user
    whose the listeners are: to another's nothing is sent."""

    transport: str
    when_away: WhenAway
    control_path: Path
    listeners: Sequence[Address]
    parks: Sequence[Address]
    own: Sequence[Address]
    rules: bytes
    server_uid: int


@dataclass(frozen=True, slots=True)
class PageStatus:
    """What a page says of its sidecar. ``silent_for`` is in seconds."""

    state: State
    silent_for: float
    transport: str
    when_away: WhenAway

    @property
    def serving(self) -> bool:
        """Whether hooked processes find a sidecar."""
        return (
            self.state is State.SERVING
            and 0 <= self.silent_for * 1000 <= lib.MOSNHOOK_STALE_AFTER_MS
        )


def page_path(control_path: Path) -> Path:
    """The page's file: ``hook.policy`` beside ``hook.sock``."""
    name = control_path.name.removesuffix(".sock") + ".policy"
    return control_path.with_name(name)


class PolicyPage:
    """The page for writing. An existing file is taken over in place, because running processes
    have it mapped: after a kill -9 of its writer they see the new one without looking for it."""

    def __init__(self, path: Path, *, socket_mode: int) -> None:
        """Opens the file, in state STARTING; a new one is no page before the first ``publish``. It
        is readable for those who may read the control socket. Raises OSError."""
        self.path = path
        mode = 0o600 | (socket_mode & 0o444)
        fd = _open_existing(path, mode)
        if fd is None:
            fd = _create(path, mode)
        try:
            self._map = mmap.mmap(fd, lib.MOSNHOOK_PAGE_SIZE)
        finally:
            os.close(fd)
        self._page: Any = ffi.from_buffer("struct mosnhook_page *", self._map)
        with self._writing():
            self._page.state = State.STARTING
            # Nobody else writes this before the data plane starts. What a file survived (a reboot,
            # where it is not on a tmpfs) must not look like a sign of life. `elsewhere` stays:
            # direct connections outlive a sidecar.
            self._page.alive_ns = time.monotonic_ns()
            self._page.ticket = secrets.token_bytes(lib.MOSNHOOK_TICKET_SIZE)

    @property
    def buffer(self) -> mmap.mmap:
        """The mapping, for the data plane's sign of life."""
        return self._map

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The seqlock: the sequence is odd in here. It is odd already where the writer before was
        killed half-way; everything is consistent again after our own writing, which is complete."""
        lib.dp_page_begin(self._page)
        yield
        lib.dp_page_end(self._page)

    def publish(self, policy: Policy, state: State) -> None:
        """Writes everything at once."""
        page = self._page
        with self._writing():
            page.transport = _TRANSPORTS[policy.transport]
            page.when_away = _WHEN_AWAY[policy.when_away.mode]
            page.server_uid = policy.server_uid
            page.wait_ms = min(round(policy.when_away.wait * 1000), _MAX_U32)
            page.control_path = os.fsencode(policy.control_path).ljust(
                lib.MOSNHOOK_PATH_SIZE, b"\0"
            )
            for name, addresses in (
                ("listener", policy.listeners),
                ("park", policy.parks),
                ("own", policy.own),
            ):
                array = page.own if name == "own" else getattr(page, f"{name}s")
                for index, address in enumerate(addresses):
                    array[index] = address.to_native()
                setattr(page, f"{name}_count", len(addresses))
            ffi.memmove(ffi.addressof(page, "rules"), policy.rules, len(policy.rules))
            page.state = state
            page.version = lib.MOSNHOOK_VERSION
            page.magic = lib.MOSNHOOK_MAGIC

    def set_state(self, state: State) -> None:
        """Changes the state alone."""
        with self._writing():
            self._page.state = state

    def remove(self) -> None:
        """Tells running processes that the sidecar is gone, and removes the file. The mapping stays
        until the object goes: the data plane may still write to it."""
        self.set_state(State.GONE)
        remove_file(self.path)


def _open_existing(path: Path, mode: int) -> int | None:
    """The file of an earlier sidecar, if it can be trusted to be one."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    status = os.fstat(fd)
    if (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and status.st_nlink == 1
        and status.st_size == lib.MOSNHOOK_PAGE_SIZE
    ):
        os.fchmod(fd, mode)
        return fd
    os.close(fd)
    return None


def _create(path: Path, mode: int) -> int:
    """A new file that appears under its name when it is complete."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        os.ftruncate(fd, lib.MOSNHOOK_PAGE_SIZE)
        # A random start, so that a page that replaces another under a reader's eyes differs.
        sequence = secrets.randbits(32) & ~1
        offset = ffi.offsetof("struct mosnhook_page", "sequence")
        os.pwrite(fd, bytes(ffi.buffer(ffi.new("uint32_t *", sequence))), offset)
        os.fchmod(fd, mode)
        os.rename(temporary, path)
    except BaseException:
        os.close(fd)
        os.unlink(temporary)
        raise
    return fd


def others_can_write(status: os.stat_result) -> bool:
    """Whether others than its owner can write to the file, so that no hook follows it."""
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def read_page(path: Path) -> PageStatus | None:
    """What the page says; None where there is none, or none that a hook would accept."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size != lib.MOSNHOOK_PAGE_SIZE or others_can_write(status):
                return None
            view = mmap.mmap(file.fileno(), lib.MOSNHOOK_PAGE_SIZE, prot=mmap.PROT_READ)
    except OSError:
        return None
    page = ffi.from_buffer("struct mosnhook_page *", view)
    for _ in range(_READ_TRIES):
        sequence = page.sequence
        if sequence & 1:
            time.sleep(0.001)
            continue
        if page.magic != lib.MOSNHOOK_MAGIC or page.version != lib.MOSNHOOK_VERSION:
            return None
        state, silent_ns = page.state, time.monotonic_ns() - page.alive_ns
        transport, when_away, wait_ms = page.transport, page.when_away, page.wait_ms
        if page.sequence == sequence:
            try:
                return PageStatus(
                    state=State(state),
                    silent_for=silent_ns / 1e9,
                    transport=_name(_TRANSPORTS, transport),
                    when_away=WhenAway(_name(_WHEN_AWAY, when_away), wait_ms / 1000),  # type: ignore[arg-type]
                )
            except ValueError:
                return None
    return None


def _name(names: dict[str, int], value: int) -> str:
    for name, number in names.items():
        if number == value:
            return name
    raise ValueError(value)
