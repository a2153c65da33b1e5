"""What applications said since the state was written last: it is here before they are answered."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pysidecar.registry.service import ServiceKey
from pysidecar.takeover import own_files
from pysidecar.takeover.table import Publication

__all__ = ["Journal", "Said"]


@dataclass(frozen=True, slots=True)
class Said:
    """All that applications said of a service: it replaces what was known of that before."""

    service: ServiceKey
    publications: tuple[Publication, ...]
    uids: tuple[int, ...]
    """Who subscribed it."""


_SAID = TypeAdapter(Said)


class Journal:
    """A line for each, in a file of at most so many bytes and a little. Lines that the state has
    already do no harm: the last one of a service counts, and what the state knows of that is the
    same, or older."""

    def __init__(self, path: Path, most: int) -> None:
        self._path = path
        self._most = most
        self._lock = threading.Lock()  # of the file
        self._since_mark: list[bytes] = []

    def read(self) -> dict[ServiceKey, Said]:
        """Raises RefusedError. What was being written when the process was killed was not answered,
        and is left out."""
        data = own_files.read(self._path, 2 * self._most)
        found = {}
        for line in (data or b"").splitlines():
            with contextlib.suppress(ValidationError):
                said = _SAID.validate_json(line, strict=True)
                found[said.service] = said
        return found

    def append(self, said: Sequence[Said]) -> None:
        """In any thread. Raises OSError, ValueError and RefusedError."""
        # A line that the one before us did not finish ends with the first newline.
        lines = b"".join(b"\n" + _SAID.dump_json(each) for each in said) + b"\n"
        with self._lock:
            own_files.append(self._path, lines, self._most)
            self._since_mark.append(lines)

    def mark(self) -> None:
        """In the thread that has the table, which the state is now made of. Waits for nobody."""
        self._since_mark = []

    def restart(self) -> bool:
        """The state of ``mark`` is written: only what came since is kept. Whether there is any. In
        any thread. Raises OSError."""
        with self._lock:
            rest = b"".join(self._since_mark)
            if rest:
                own_files.write(self._path, rest)
            else:
                self._path.unlink(missing_ok=True)
        return bool(rest)
