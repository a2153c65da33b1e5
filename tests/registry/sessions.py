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

    def entry(tls: dict[str, Path], host: str = server.address.host) -> RegistryEntry:
        named = {key: str(path) for key, path in tls.items()}
        address = f"{host}:{server.address.port}"
        return RegistryEntry.model_validate({"type": kind, "address": address, "tls": named})

    async def main() -> None:
        own = {"certificate": server.certificate, "key": server.key}
        both = {"ca": server.certificate, **own}
        async with session_at(entry(both)) as (session, told):
            await session.register(registration)
            await session.subscribe(registration.service)
            assert told.last[registration.service]
        for wrong, said in (
            (entry(own), problem),
            (entry(both, "localhost"), problem),  # it is for an address, and no name
            (entry({"ca": server.certificate}), ""),  # the server asks for one
        ):
            assert (said or "") in await refusal(wrong)

    async def refusal(wrong: RegistryEntry) -> str:
        while True:
            with pytest.raises(RegistryError) as raised:
                await make_registry(wrong).open(Told())
            if "no answer within" not in str(raised.value):  # busy machines take their time
                return str(raised.value)

    asyncio.run(main())


async def until(condition: Callable[[], Any], what: str = "it") -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)
