"""Files that are ours to remove."""

from __future__ import annotations

import logging
from pathlib import Path

__all__ = ["remove_file"]

log = logging.getLogger(__name__)


def remove_file(path: Path) -> None:
    """Removes it, if it is there; where that cannot be, the log says so, and the rest goes on."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error.strerror)
