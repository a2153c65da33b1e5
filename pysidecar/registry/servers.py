"""Servers of one registry, of which any will do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from pysidecar.address import Address
from pysidecar.registry import RegistryError

__all__ = ["Servers"]

T = TypeVar("T")

_OPEN_TIME: Final = 5.0  # seconds, for all servers together
_LEAST_TIME: Final = 1.5  # seconds, for one


class Servers:
    """Asks one after the other, first the one that answered last. ``first`` is the index of the one
    to begin with."""

    def __init__(self, addresses: Sequence[Address], *, first: int = 0) -> None:
        self._addresses = addresses
        self._first = first

    def __str__(self) -> str:
        """As they are configured."""
        return ",".join(map(str, self._addresses))

    async def open(self, connect: Callable[[Address], Awaitable[T]]) -> T:
        """What ``connect`` returns for the first of them that answers, within 5 seconds. It may
        raise RegistryError and OSError, and is cancelled where it takes too long. Raises
        RegistryError with what each of them said."""
        count = len(self._addresses)
        share = min(_OPEN_TIME, max(_OPEN_TIME / count, _LEAST_TIME))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _OPEN_TIME
        problems: list[str] = []
        for turn in range(count):
            at = (self._first + turn) % count
            left = deadline - loop.time()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(min(left, share)):
                    opened = await connect(self._addresses[at])
            except TimeoutError:
                problems.append(f"{self._addresses[at]}: no answer within {share:g} s")
            except (OSError, RegistryError) as error:
                problems.append(f"{self._addresses[at]}: {error}")
            else:
                self._first = at
                return opened
        self._first = (self._first + 1) % count
        raise RegistryError("; ".join(problems))
