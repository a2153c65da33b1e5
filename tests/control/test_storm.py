"""Very many connects of one hooked program, with a sidecar as users run it."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.conftest import RunningSidecar
from tests.hook.support import Programs, Result
from tests.launching import PYSIDECAR


@pytest.fixture
def refusing() -> Iterator[tuple[str, int]]:
    """An address at which nobody listens, nor will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


def storm(sidecar: RunningSidecar, directory: Path, *arguments: object) -> Result:
    program = Programs(directory)("storm")
    command = [*PYSIDECAR, "exec", "-c", sidecar.config_file, "--", program, *arguments]
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")
    return Result.parse(done.stdout)


def test_any_number_of_connects_that_fail_at_once_has_true_errnos(
    sidecar: RunningSidecar, tmp_path: Path, refusing: tuple[str, int]
) -> None:
    result = storm(sidecar, tmp_path, "at-once", 4000, *refusing)
    expected = {"begun": "4000", "failed": "4000", f"errno_{errno.ECONNREFUSED}": "4000"}
    assert result.values == expected


def test_memory_of_a_program_does_not_grow_with_its_connects(
    sidecar: RunningSidecar, tmp_path: Path, refusing: tuple[str, int]
) -> None:
    result = storm(sidecar, tmp_path, "in-turn", 40000, *refusing)
    assert result.number(f"errno_{errno.ECONNREFUSED}") == 40000
    assert result.number("after") - result.number("before") < 64
    assert result.number("after") < 256, "the whole program, libc included"
