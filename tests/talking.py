"""Processes that do what they read, line by line."""

from __future__ import annotations

import subprocess
from types import TracebackType
from typing import Self


class Talking:
    """One that is spoken to by its standard streams; killed when it is left."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def write(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read(self) -> str:
        """The next line."""
        assert self.process.stdout
        return self.process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()
