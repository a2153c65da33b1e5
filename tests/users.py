"""Other users of this host, and programs that they run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

USERS = (65533, 65534)
"""Two who have nothing to do with whoever runs the tests."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")

# Before the script: it begins as we do, and has what it imports, since Python itself may be in
# somebody's home.
_BECOME = """
import array, os, socket, sys
user, *groups = map(int, sys.argv.pop(1).split(","))
os.setgroups(groups)
os.setresgid(user, user, user)
os.setresuid(user, user, user)
"""
_EXECUTE = "os.execvp(sys.argv[1], sys.argv[1:])"


@contextmanager
def open_directory() -> Iterator[Path]:
    """One that everybody can look into, unlike those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="users-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def start_script(
    user: int, script: str, *arguments: object, groups: Sequence[int] = ()
) -> subprocess.Popen[str]:
    """A Python script of that user, whose only groups are their own and ``groups``."""
    who = ",".join(map(str, (user, *groups)))
    return subprocess.Popen(
        [sys.executable, "-c", _BECOME + script, who, *map(str, arguments)],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_program(user: int, *command: object, groups: Sequence[int] = ()) -> subprocess.Popen[str]:
    """Any other program. Variables of its environment: by ``env``."""
    return start_script(user, _EXECUTE, *command, groups=groups)
