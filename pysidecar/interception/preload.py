"""Running a command under the connect hook: its environment, and whether LD_PRELOAD reaches it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from pysidecar.config.values import WhenAway

__all__ = ["hooked_environment", "unreachable_because", "without_hook"]

_HOOK_NAME = "libmosnhook"
_MAX_INTERPRETERS = 4  # as the kernel: a script's interpreter may be a script
_SHEBANG_BYTES = 256  # BINPRM_BUF_SIZE

_NO_PRELOAD = "its connections will not go through the sidecar"


def without_hook(preload: str) -> str:
    """LD_PRELOAD's value without the hook."""
    entries = re.split("[ :]", preload)
    return ":".join(
        entry for entry in entries if entry and not Path(entry).name.startswith(_HOOK_NAME)
    )


def hooked_environment(
    environment: Mapping[str, str], *, hook: Path, policy: Path, when_away: WhenAway
) -> dict[str, str]:
    """The environment of a hooked command. What is preloaded already stays, after the hook; a
    MOSNHOOK_WHEN_AWAY that is set stays, too. Raises ValueError for a hook path that LD_PRELOAD
    cannot hold."""
    if re.search("[ :]", str(hook)):
        raise ValueError(
            f"{hook}: LD_PRELOAD separates libraries by spaces and colons, so the hook's path must "
            "not contain any; install pysidecar elsewhere"
        )
    others = without_hook(environment.get("LD_PRELOAD", ""))
    return {
        "MOSNHOOK_WHEN_AWAY": when_away.environment_value,
        **environment,
        "LD_PRELOAD": f"{hook}:{others}" if others else str(hook),
        "MOSNHOOK_POLICY": str(policy),
    }


def unreachable_because(command: str, *, hook: Path, search_path: str | None = None) -> list[str]:
    """Why the hook will not see (all of) a command's connections, and what to do about it: a
    sentence each, none where all is well or the command cannot be looked at."""
    found = shutil.which(command, path=search_path)
    if found is None:
        return []
    reasons = list(_set_id_reasons(Path(found)))
    with suppress(OSError, ELFError, ValueError, AssertionError):
        program = _program(Path(found), search_path)
        if program != Path(found):
            reasons += _set_id_reasons(program)
        reasons += _binary_reasons(program, hook)
    return reasons


def _program(path: Path, search_path: str | None) -> Path:
    """The binary that runs in the end: a script's interpreter, and env's command."""
    for _ in range(_MAX_INTERPRETERS):
        with path.open("rb") as file:
            first = file.read(_SHEBANG_BYTES)
        if not first.startswith(b"#!"):
            break
        words = shlex.split(os.fsdecode(first[2:].split(b"\n", 1)[0]))
        if not words:
            break
        name = words[0]
        if Path(name).name == "env":
            arguments = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
            name = arguments[0] if arguments else name
        resolved = shutil.which(name, path=search_path)
        if resolved is None:
            break
        path = Path(resolved)
    return path


def _set_id_reasons(path: Path) -> Iterator[str]:
    """Whom the kernel runs in secure mode, where the loader ignores LD_PRELOAD with a path."""
    with suppress(OSError):
        status = path.stat()
        instead = f"{_NO_PRELOAD}; run it as its own user, with sudo before pysidecar exec"
        if status.st_mode & stat.S_ISUID and status.st_uid != os.getuid():
            yield f"{path} is setuid: the system ignores LD_PRELOAD for it, and {instead}"
        elif status.st_mode & stat.S_ISGID and status.st_gid != os.getgid():
            yield f"{path} is setgid: the system ignores LD_PRELOAD for it, and {instead}"
        elif os.getuid() != 0 and "security.capability" in os.listxattr(path):
            yield (
                f"{path} has file capabilities: the system ignores LD_PRELOAD for it, and "
                f"{_NO_PRELOAD}; run a copy of it without them (getcap shows them)"
            )


def _binary_reasons(path: Path, hook: Path) -> Iterator[str]:
    with path.open("rb") as file:
        elf = ELFFile(file)
        with suppress(OSError, ELFError), hook.open("rb") as hook_file:
            ours = ELFFile(hook_file)
            if (elf.elfclass, elf["e_machine"]) != (ours.elfclass, ours["e_machine"]):
                yield (
                    f"{path} is a program for another architecture ({elf.get_machine_arch()}, "
                    f"{elf.elfclass} bits) than the hook's ({ours.get_machine_arch()}, "
                    f"{ours.elfclass} bits), and {_NO_PRELOAD}; use a build of it for the latter"
                )
                return
        is_go = any(
            elf.get_section_by_name(name) is not None
            for name in (".note.go.buildid", ".go.buildinfo")
        )
        is_static = not any(segment["p_type"] == "PT_INTERP" for segment in elf.iter_segments())
        if is_go and is_static:
            yield (
                f"{path} is a static Go program: LD_PRELOAD does not apply to it, and "
                f"{_NO_PRELOAD}; point it at the sidecar by its own configuration, if it has any"
            )
        elif is_go:
            yield (
                f"{path} is a Go program: Go's own net package makes system calls without the C "
                "library, so that only connections made by C code (cgo) will go through the sidecar"
            )
        elif is_static:
            yield (
                f"{path} is statically linked: LD_PRELOAD does not apply to it, and {_NO_PRELOAD}; "
                "use a dynamically linked build of it"
            )
