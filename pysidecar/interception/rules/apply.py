"""Showing, applying and deleting rulesets, whatever their backend."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pysidecar.direction import Direction
from pysidecar.interception.rules.iptables import IpTables
from pysidecar.interception.rules.model import RulesError, Ruleset
from pysidecar.interception.rules.namespace import inside
from pysidecar.interception.rules.nft import Nft
from pysidecar.interception.rules.routing import Routing, describe

__all__ = [
    "BACKENDS",
    "Conntrack",
    "apply",
    "conntrack",
    "counters",
    "delete",
    "is_applied",
    "problems",
    "show",
]

_LOCK = Path("/run/pysidecar/rules.lock")
_CONNTRACK = Path("/proc/sys/net/netfilter")  # of the calling thread's network namespace
_CAP_NET_ADMIN = 12  # <linux/capability.h>
_CAP_NET_RAW = 13
_SIOCGIFFLAGS = 0x8913  # <linux/sockios.h>
_IFF_UP = 1


class _Backend(Protocol):
    """Renders and applies rulesets, in the network namespace of the calling thread."""

    def render(self, ruleset: Ruleset) -> str: ...

    def problems(self, ruleset: Ruleset) -> list[str]: ...

    def is_applied(self, ruleset: Ruleset) -> bool: ...

    def apply(self, ruleset: Ruleset, lock: int) -> None: ...

    def counters(self, direction: Direction) -> Mapping[str, tuple[int, int]]: ...


BACKENDS = ("nft", "iptables", "iptables-nft", "iptables-legacy")
"""``iptables`` is whichever of the following two the host calls so."""


@dataclass(frozen=True, slots=True)
class Conntrack:
    """How full a namespace's connection tracking table is."""

    entries: int
    limit: int


def show(ruleset: Ruleset, backend: str = "nft") -> str:
    """Exactly what ``apply`` sends to the backend's program, and the routing that it changes by
    netlink as the commands that would do the same."""
    lines = describe(ruleset.policy_rules)
    text = "".join(f"{line}\n" for line in ["# routing, by netlink:", *lines]) if lines else ""
    header = "# nft -f -\n" if backend == "nft" else ""
    return f"{text}{header}{_backend(backend).render(ruleset)}"


def problems(ruleset: Ruleset, backend: str = "nft", netns: str | None = None) -> list[str]:
    """Why ``apply`` could not work here, a sentence each; empty when it can. Changes nothing."""
    try:
        return inside(netns, lambda: _problems(ruleset, backend))
    except RulesError as error:
        return [str(error)]


def is_applied(ruleset: Ruleset, backend: str = "nft", netns: str | None = None) -> bool:
    """Whether these rules are in force, complete and unchanged. Raises RulesError."""
    return inside(netns, lambda: _is_applied(ruleset, backend))


def apply(ruleset: Ruleset, backend: str = "nft", netns: str | None = None) -> bool:
    """Brings the rules of a direction into force, in place of whatever we had there before.

    Returns whether anything changed. Raises RulesError that says what is in the way, the host being
    as before.
    """
    with _locked() as lock:
        return inside(netns, lambda: _apply(ruleset, backend, lock))


def delete(directions: Iterable[Direction] = tuple(Direction), netns: str | None = None) -> bool:
    """Removes all that was ever applied in these directions, by any backend, and only that.

    Returns whether there was anything. Raises RulesError.
    """
    with _locked() as lock:
        return inside(netns, lambda: _delete(tuple(directions), lock))


def counters(
    direction: Direction, backend: str = "nft", netns: str | None = None
) -> Mapping[str, tuple[int, int]]:
    """Packets and bytes of a direction since its rules were applied, by purpose; empty without
    rules. ``connections`` and ``refused`` count first packets. Raises RulesError."""
    return inside(netns, lambda: _backend(backend).counters(direction))


def conntrack(netns: str | None = None) -> Conntrack | None:
    """The connection tracking table of a namespace; None where the kernel has not loaded it.

    From nf_conntrack_count and nf_conntrack_max, see the kernel's nf_conntrack-sysctl.rst. Raises
    RulesError when there is no such namespace.
    """

    def read() -> Conntrack | None:
        try:
            return Conntrack(
                entries=int((_CONNTRACK / "nf_conntrack_count").read_text()),
                limit=int((_CONNTRACK / "nf_conntrack_max").read_text()),
            )
        except (OSError, ValueError):
            return None

    return inside(netns, read)


def _backend(name: str) -> _Backend:
    if name not in BACKENDS:
        raise ValueError(f"expected one of {', '.join(BACKENDS)}, not {name!r}")
    return Nft() if name == "nft" else IpTables(name.removeprefix("iptables"))


def _problems(ruleset: Ruleset, backend: str) -> list[str]:
    found = _missing_capabilities(backend)
    if found:
        return found  # nothing could be tried without them
    if socket.AF_INET6 in ruleset.by_family:
        disabled = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        try:
            if disabled.read_text().strip() != "0":
                return [
                    "IPv6 is disabled (net.ipv6.conf.lo.disable_ipv6): enable it, or listen on an "
                    "IPv4 address only"
                ]
        except OSError:
            return ["this kernel has no IPv6: listen on an IPv4 address only"]
    if not _loopback_is_up():
        return ["the loopback interface is down: ip link set lo up"]
    return _backend(backend).problems(ruleset)


def _missing_capabilities(backend: str) -> list[str]:
    effective = 0
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    needed = {"CAP_NET_ADMIN": _CAP_NET_ADMIN}
    if backend != "nft":
        needed["CAP_NET_RAW"] = _CAP_NET_RAW  # iptables-legacy asks the kernel by a raw socket
    return [
        f"the capability {name} is missing: run as root, or give it to the process"
        for name, number in needed.items()
        if not effective & 1 << number
    ]


def _loopback_is_up() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH22x", b"lo", 0)
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
    flags: int = struct.unpack_from("16sH", answer)[1]
    return bool(flags & _IFF_UP)


def _is_applied(ruleset: Ruleset, backend: str) -> bool:
    if not _backend(backend).is_applied(ruleset):
        return False
    if ruleset.direction is Direction.INBOUND:
        with Routing() as routing:
            return routing.is_applied(ruleset.policy_rules)
    return True


def _apply(ruleset: Ruleset, backend: str, lock: int) -> bool:
    found = _problems(ruleset, backend)
    if found:
        raise RulesError(f"cannot apply the {ruleset.direction.word} rules: {'; '.join(found)}")
    if _is_applied(ruleset, backend):
        return _delete_other_backends(ruleset.direction, backend, lock)
    with Routing() as routing:
        with contextlib.ExitStack() as rollback:
            # The routing comes first: it does nothing without the rules.
            for undo in routing.add(ruleset.policy_rules):
                rollback.callback(undo)
            _backend(backend).apply(ruleset, lock)
            rollback.pop_all()
        if ruleset.direction is Direction.INBOUND:
            routing.remove_others(ruleset.policy_rules)
    _delete_other_backends(ruleset.direction, backend, lock)
    return True


def _delete_other_backends(direction: Direction, backend: str, lock: int) -> bool:
    if backend == "nft":
        return IpTables().delete([direction], lock)
    removed = Nft().delete([direction], lock)
    others = IpTables(backend.removeprefix("iptables"))
    return others.delete([direction], lock, others_only=True) or removed


def _delete(directions: tuple[Direction, ...], lock: int) -> bool:
    missing = _missing_capabilities("nft")
    if missing:
        raise RulesError(f"cannot delete rules: {missing[0]}")
    removed = Nft().delete(directions, lock)
    removed |= IpTables().delete(directions, lock)
    if Direction.INBOUND in directions:
        with Routing() as routing:
            removed |= routing.remove_others(())
    return removed


@contextlib.contextmanager
def _locked() -> Iterator[int]:
    """One change of rules at a time on this host. The lock goes with its holder, however it ends:
    with the process and the programs that it has started."""
    try:
        _LOCK.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise RulesError(
            f"cannot open {_LOCK}: {error.strerror}; changing rules needs root"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)
