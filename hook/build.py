"""Compiles the connect hook, ``libmosnhook.so``.

Usable without anything installed: ``setup.py`` calls it at build time, the tests call it for their
own copies, and ``python hook/build.py OUTPUT`` does the same by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

_COMMON = (
    "-std=gnu11 -O2 -g -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror"
    # A cancelled thread is unwound through our frames.
    " -fasynchronous-unwind-tables"
    " -Wl,-z,now -Wl,-z,relro -Wl,-z,nodelete -Wl,-z,noexecstack"
).split()

# One and the same library for programs of glibc and of musl: it links to neither, and uses nothing
# that a libc would have to bring (stack protector, fortified functions).
_FREESTANDING = (
    "-nostdlib -nostartfiles -ffreestanding -fno-stack-protector -U_FORTIFY_SOURCE"
    " -Wl,-z,defs -Wl,--gc-sections"
).split()

_SANITIZED = (
    "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer".split()
)


def sources() -> list[Path]:
    """The C files that make the hook."""
    return sorted(HERE.glob("*.c"))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RuntimeError(f"cannot compile the hook: no compiler {command[0]!r}") from error
    if done.returncode != 0:
        raise RuntimeError(f"cannot compile the hook: {' '.join(command)}\n{done.stderr}")
    return done.stdout


def build(output: Path, *, sanitize: bool = False, cc: str | None = None) -> None:
    """Compiles the hook to ``output``.

    ``sanitize`` makes the variant with AddressSanitizer and UBSan, which is for glibc and needs
    libasan preloaded before it. ``cc`` is the compiler, by default ``$CC`` or gcc. Raises
    ``RuntimeError`` with the compiler's own words.
    """
    compiler = (cc or os.environ.get("CC") or "gcc").split()
    kind = list(_SANITIZED if sanitize else _FREESTANDING)
    if not sanitize and _run([*compiler, "-dumpmachine"]).startswith("aarch64"):
        kind.append("-mno-outline-atomics")  # atomics as instructions, not as calls of libgcc
    command = [
        *compiler,
        *_COMMON,
        *kind,
        f"-Wl,--version-script={HERE / 'mosnhook.map'}",
        "-Wl,-soname,libmosnhook.so",
        "-o",
        str(output),
        *map(str, sources()),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    _run(command)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
