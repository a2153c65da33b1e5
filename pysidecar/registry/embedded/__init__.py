"""The registry for one machine and for trying out: inside the sidecar, or in a process of its own
that sidecars connect to (``pysidecar registry``; its protocol: ``docs/takeover.md``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysidecar.registry import Registry

if TYPE_CHECKING:
    from pysidecar.config import RegistryEntry

__all__ = ["make"]


def make(entry: RegistryEntry) -> Registry:
    """Without an address one that only this process has."""
    if not entry.address:
        from pysidecar.registry.embedded.inside import InsideRegistry

        return InsideRegistry()
    from pysidecar.registry.embedded.remote import RemoteRegistry

    return RemoteRegistry(entry.address, entry.session_timeout)
