"""Sessions by themselves, without what makes new ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from pysidecar.address import Address
from pysidecar.config import RegistryEntry
from pysidecar.registry import RegistryError, Session, make_registry
from pysidecar.registry.service import Instance, Registration, ServiceKey
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


class HasCertificate(Protocol):
    """A registry's server, which its clients give the certificate that it has itself."""

    address: Address
    certificate: Path
    key: Path


def check_tls(
    kind: str, server: HasCertificate, registration: Registration, problem: str | None
) -> None:
    """Each side of a session knows the other one; ``problem`` is what we say of a stranger, where
    that is known."""

    def entry(**tls: Path) -> RegistryEntry:
        named = {key: str(path) for key, path in tls.items()}
        return RegistryEntry.model_validate(
            {"type": kind, "address": str(server.address), "tls": named}
        )

    async def main() -> None:
        own = {"certificate": server.certificate, "key": server.key}
        async with session_at(entry(ca=server.certificate, **own)) as (session, told):
            await session.register(registration)
            await session.subscribe(registration.service)
            assert told.last[registration.service]
        with pytest.raises(RegistryError, match=problem):
            await make_registry(entry(**own)).open(Told())
        with pytest.raises(RegistryError):  # the server asks for one
            await make_registry(entry(ca=server.certificate)).open(Told())

    asyncio.run(main())


async def until(condition: Callable[[], Any], what: str = "it") -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)
