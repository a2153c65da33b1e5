"""Which policy of the configuration counts for a service that was found."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pysidecar.config import FoundPolicy
from pysidecar.registry.service import ServiceKey

__all__ = ["Policies"]


class Policies:
    """Those of ``takeover.services``. Two with equal settings are equal."""

    def __init__(self, settings: Mapping[str, FoundPolicy]) -> None:
        self.settings = settings
        self._exact = {name: name for name in settings if "*" not in name}
        self._patterns = [
            (re.compile(re.escape(name).replace(r"\*", ".*"), re.DOTALL), name)
            for name in sorted(settings.keys() - self._exact.keys(), key=_order)
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policies) and self.settings == other.settings

    def __hash__(self) -> int:
        return hash(tuple(self.settings))

    def of(self, key: ServiceKey) -> str | None:
        """The name of the one that counts."""
        if not self.settings:
            return None
        names = (str(key), key.name)
        for name in names:
            if name in self._exact:
                return name
        return next(
            (found for pattern, found in self._patterns if any(map(pattern.fullmatch, names))),
            None,
        )


def _order(name: str) -> tuple[int, str]:
    """What says most comes first."""
    return -len(name.replace("*", "")), name
