"""The table on disk, for a sidecar that starts again: applications never repeat what they said."""

from __future__ import annotations

from pathlib import Path

from pysidecar.address import Address
from pysidecar.takeover.table import ServiceTable, Watcher

__all__ = ["State", "default_path"]


def default_path(control_socket: Path, api: Address) -> Path:
    """Beside the control socket."""
    return control_socket.with_name(f"takeover-{api.port}.json")


class State(Watcher):
    """``restore`` first, then ``start``: from there on it watches the table, and writes. Nothing
    here raises: what goes wrong is in the log."""

    def __init__(self, table: ServiceTable, path: Path) -> None:
        self._table = table
        self._path = path

    def restore(self) -> None:
        """Publishes and subscribes what the file has; nothing of it is alive before somebody has
        looked. Before the table has anything else."""

    def start(self) -> None:
        """Writes each change from here on, in the running event loop."""

    async def stop(self) -> None:
        """Writes what is not written yet, for at most some seconds, and ends."""
