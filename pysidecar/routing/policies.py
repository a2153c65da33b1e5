"""Which policy of the configuration counts for a service that was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pysidecar.config import FoundPolicy
from pysidecar.registry.service import ServiceKey

__all__ = ["Policies"]


class Policies:
    """Those of ``takeover.services``. Two with equal settings are equal."""

    def __init__(self, settings: Mapping[str, FoundPolicy]) -> None:
        self.settings = settings
        self._as_written = _Names(settings, str)
        self._folded = _Names(settings, str.lower)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policies) and self.settings == other.settings

    def __hash__(self) -> int:
        return hash(tuple(self.settings))

    def of(self, key: ServiceKey) -> str | None:
        """The name of the one that counts."""
        if not self.settings:
            return None
        names = self._folded if key.protocol == "http" else self._as_written
        return names.find((str(key), key.name))


class _Names:
    """``fold`` makes the same of what is the same."""

    def __init__(self, names: Mapping[str, object], fold: Callable[[str], str]) -> None:
        self._exact = {fold(name): name for name in names if "*" not in name}
        # What says most comes first.
        patterns = sorted(
            (name for name in names if "*" in name),
            key=lambda name: (-len(name.replace("*", "")), name),
        )
        self._patterns = [(fold(name).split("*"), name) for name in patterns]

    def find(self, wanted: tuple[str, ...]) -> str | None:
        """What any of these is called."""
        for each in wanted:
            if each in self._exact:
                return self._exact[each]
        return next(
            (
                name
                for parts, name in self._patterns
                if any(_is_like(each, parts) for each in wanted)
            ),
            None,
        )


def _is_like(text: str, parts: list[str]) -> bool:
    """Whether it consists of these, with anything between. In a time that does not grow with what
    could be between, as that of a regular expression does."""
    first, *middle, last = parts
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for part in middle:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True
