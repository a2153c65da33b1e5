"""Which of the applications that published something still listen."""

from __future__ import annotations

from pysidecar.takeover.table import ServiceTable

__all__ = ["Liveness"]


class Liveness:
    """Looks every ``interval`` seconds, and tells the table."""

    def __init__(self, table: ServiceTable, interval: float = 0.5) -> None:
        self._table = table
        self._interval = interval

    def start(self) -> None:
        """Looks now, and from here on, in the running event loop."""

    def stop(self) -> None:
        """Looks no more."""
