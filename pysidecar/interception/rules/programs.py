"""Running nft and iptables: argument lists, input on stdin, never a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from pysidecar.interception.rules.model import RulesError

__all__ = ["find", "run"]

# Longer than iptables waits for its lock; a program that needs more hangs.
_TIMEOUT = 30.0
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # often missing in the PATH of a service


def find(program: str) -> str | None:
    """The program's path, or None."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(program, path=f"{path}:{_SYSTEM_PATH}")


def run(
    arguments: Sequence[str], stdin: str = "", *, lock: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end. Raises RulesError when it cannot be run; its exit status is for
    the caller.

    The program holds ``lock`` too: should we be killed, nobody else changes rules while it still
    does.
    """
    path = find(arguments[0])
    if path is None:
        raise RulesError(f"the program {arguments[0]} is not installed, or not in PATH")
    try:
        return subprocess.run(
            [path, *arguments[1:]],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
            pass_fds=() if lock is None else (lock,),
            env={"PATH": _SYSTEM_PATH, "LC_ALL": "C"},  # nothing of ours, such as LD_PRELOAD
        )
    except subprocess.TimeoutExpired:
        raise RulesError(f"{path} did not finish within {_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise RulesError(f"cannot run {path}: {error.strerror}") from None
