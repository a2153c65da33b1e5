"""Running a command under the connect hook: its environment, and whether LD_PRELOAD reaches it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pysidecar.config.values import WhenAway

__all__ = ["hooked_environment", "unreachable_because", "without_hook"]

# elftools is imported where it is needed: not in a sidecar.

_HOOK_NAME = "libmosnhook"
_MAX_INTERPRETERS = 4  # as the kernel: a script's interpreter may be a script
_SHEBANG_BYTES = 256  # BINPRM_BUF_SIZE

_NO_PRELOAD = "its connections will not go through the sidecar"

# What comes first of the libraries of a program that GCC, or clang with a shared runtime, has built
# with AddressSanitizer.
_ASAN_RUNTIMES = ("libasan.so", "libclang_rt.asan")
_ASAN_ORDER = "verify_asan_link_order=0"

# Commands that have somebody else start the program, who does not know this environment.
_START_ELSEWHERE = ("at", "batch", "docker", "machinectl", "nerdctl", "podman", "systemd-run")
# Commands that may start it with another view of the file system.
_SHOW_OTHER_FILES = (
    *("bwrap", "chroot", "firejail", "flatpak", "nsenter", "proot", "systemd-nspawn", "unshare"),
)
_OFTEN_HIDDEN = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))


def without_hook(preload: str) -> str:
    """LD_PRELOAD's value without the hook."""
    entries = re.split("[ :]", preload)
    return ":".join(
        entry for entry in entries if entry and not Path(entry).name.startswith(_HOOK_NAME)
    )


def hooked_environment(
    environment: Mapping[str, str],
    *,
    hook: Path,
    policy: Path,
    when_away: WhenAway,
    awaited: Sequence[int] = (),
) -> dict[str, str]:
    """The environment of a hooked command. What is preloaded already stays, after the hook; a
    MOSNHOOK_WHEN_AWAY that is set stays, too. ``awaited`` are ports of the sidecar on loopback for
    which ``when_away`` holds, too, although loopback is excluded. Raises ValueError for a hook path
    that LD_PRELOAD cannot hold."""
    if re.search("[ :]", str(hook)):
        raise ValueError(
            f"{hook}: LD_PRELOAD separates libraries by spaces and colons, so the hook's path must "
            "not contain any; install pysidecar elsewhere"
        )
    others = without_hook(environment.get("LD_PRELOAD", ""))
    return {
        "MOSNHOOK_WHEN_AWAY": when_away.environment_value,
        **({"MOSNHOOK_AWAIT": ",".join(map(str, awaited))} if awaited else {}),
        **environment,
        "LD_PRELOAD": f"{hook}:{others}" if others else str(hook),
        "MOSNHOOK_POLICY": str(policy),
    }


def unreachable_because(
    command: str, *, hook: Path, search_path: str | None = None, asan_options: str = ""
) -> list[str]:
    """Why the hook will not see (all of) a command's connections, or keeps it from starting, and
    what to do about it: a sentence each, none where all is well or the command cannot be looked at.
    ``asan_options`` is the ASAN_OPTIONS that it gets."""
    from elftools.common.exceptions import ELFError

    found = shutil.which(command, path=search_path)
    if found is None:
        return []
    reasons = [*_set_id_reasons(Path(found)), *_launcher_reasons(Path(found).name, hook)]
    with suppress(OSError, ELFError, ValueError, AssertionError):
        program = _program(Path(found), search_path)
        if program != Path(found):
            reasons += _set_id_reasons(program)
        reasons += _binary_reasons(program, hook)
        if _ASAN_ORDER not in asan_options:
            reasons += _sanitizer_reasons(program)
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


def _launcher_reasons(name: str, hook: Path) -> Iterator[str]:
    if name in _START_ELSEWHERE:
        yield (
            f"{name} has the program started by somebody else, who does not get this environment, "
            f"and {_NO_PRELOAD}; give LD_PRELOAD={hook} and MOSNHOOK_POLICY to the program itself"
        )
    if name in _SHOW_OTHER_FILES:
        often = ", as is often so below " + str(hook.parent) if _is_often_hidden(hook) else ""
        yield (
            f"{name} may show the program other files: if {hook} is not among them{often}, "
            f"{_NO_PRELOAD}; bind it to the same path there, and the sidecar's directory too"
        )


def _is_often_hidden(hook: Path) -> bool:
    return any(hook.is_relative_to(directory) for directory in _OFTEN_HIDDEN)


def _sanitizer_reasons(path: Path) -> Iterator[str]:
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        tags: list[Any] = [  # which have their value as an attribute of its name
            tag
            for segment in ELFFile(file).iter_segments("PT_DYNAMIC")
            if isinstance(segment, DynamicSegment)
            for tag in segment.iter_tags("DT_NEEDED")
        ]
        needed = [tag.needed for tag in tags]
    if any(name.startswith(_ASAN_RUNTIMES) for name in needed):
        yield (
            f"{path} is built with AddressSanitizer, which does not start behind a preloaded "
            f"library; set ASAN_OPTIONS={_ASAN_ORDER}"
        )


def _binary_reasons(path: Path, hook: Path) -> Iterator[str]:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

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
