"""Numbers for people."""

from __future__ import annotations

__all__ = ["format_age", "format_bytes", "format_count", "format_ms"]

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(count: float) -> str:
    """Such as ``17 B`` or ``1.5 MiB``."""
    unit = 0
    while count >= 1024 and unit < len(_BYTES) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {_BYTES[unit]}"


def format_age(seconds: float) -> str:
    """Such as ``250ms``, ``12.3s``, ``5m03s`` or ``2h05m``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def format_ms(milliseconds: float | None) -> str:
    """Such as ``0.25ms``, ``2.5ms`` or ``250ms``; of more than a second as ``format_age``. ``-``
    for None."""
    if milliseconds is None:
        return "-"
    if milliseconds >= 1000:
        return format_age(milliseconds / 1000)
    digits = 0 if milliseconds >= 100 else 1 if milliseconds >= 1 else 2
    return f"{milliseconds:.{digits}f}ms"


def format_count(count: float) -> str:
    """Such as ``0.25``, ``17`` or ``56,000``."""
    return f"{count:,.0f}" if count >= 10 or count == int(count) else f"{count:.2f}"
