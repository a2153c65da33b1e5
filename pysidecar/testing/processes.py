"""Processes that are started for a while."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

__all__ = ["end_process"]


def end_process(
    process: subprocess.Popen[Any], patience: float, stop: signal.Signals = signal.SIGTERM
) -> bool:
    """Ends it with ``stop``, or else, after ``patience`` seconds, with SIGKILL; False for that."""
    process.send_signal(stop)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True
