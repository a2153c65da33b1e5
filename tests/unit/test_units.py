"""The data plane's modules alone: each ``test_*.c`` here is a program around one of them, which is
linked with the folder that the module is in and those below it, and nothing else."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "unit"
# As what runs this test: see scripts/test-sanitizers.
PRELOADED = os.environ.get("LD_PRELOAD", "")
SANITIZE = (
    "address,undefined" if "libasan" in PRELOADED else "thread" if "libtsan" in PRELOADED else ""
)


def environment() -> dict[str, str]:
    """Of a program that has its sanitizer linked; without Python in it, it frees everything."""
    variables = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    variables["ASAN_OPTIONS"] = f"{variables.get('ASAN_OPTIONS', '')}:detect_leaks=1"
    return variables


def build(name: str) -> Path:
    program = BUILD / (SANITIZE.replace(",", "-") or "plain") / name
    command = [
        "make",
        "--silent",
        f"-j{os.cpu_count()}",
        "-f",
        "tests/unit/Makefile",
        f"SANITIZE={SANITIZE}",
    ]
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # the processes of pytest-xdist share the objects
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            [*command, str(program.relative_to(ROOT))], cwd=ROOT, env=environment(), check=True
        )
    return program


@pytest.mark.timeout(300)  # a compilation, and a busy machine
@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("test_*.c")))
def test_module(name: str) -> None:
    result = subprocess.run(
        [build(name)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        timeout=120,
    )
    assert result.returncode == 0, result.stdout
