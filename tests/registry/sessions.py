"""Sessions by themselves, without what makes new ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from pysidecar.config import RegistryEntry
from pysidecar.registry import Session, make_registry
from pysidecar.registry.service import Instance, ServiceKey
from tests.waiting import PATIENCE


class Told:
    """What a session pushed last, by service."""

    def __init__(self) -> None:
        self.last: dict[ServiceKey, list[Instance]] = {}

    def __call__(self, service: ServiceKey, instances: Sequence[Instance]) -> None:
        self.last[service] = list(instances)


@contextlib.asynccontextmanager
async def session_at(entry: RegistryEntry) -> AsyncIterator[tuple[Session, Told]]:
    told = Told()
    session = await make_registry(entry).open(told)
    try:
        yield session, told
    finally:
        await session.close()


async def until(condition: Callable[[], Any], what: str = "it") -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)
