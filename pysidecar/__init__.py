"""Getting an application's traffic through its sidecar."""

from __future__ import annotations

from pathlib import Path


def hook_path() -> Path:
    """The connect hook, ``libmosnhook.so``, to be loaded with ``LD_PRELOAD``."""
    return Path(__file__).with_name("libmosnhook.so")
