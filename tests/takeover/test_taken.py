"""A port that somebody else took is not called for the application that had it."""

from __future__ import annotations

import asyncio

from pysidecar.address import Address
from pysidecar.config import Config
from pysidecar.registry.service import ServiceKey
from pysidecar.routing.found import FoundServices, Role
from pysidecar.takeover.table import Publication
from pysidecar.takeover.takeover import Takeover

ECHO = ServiceKey("bolt", "Echo:1.0")
PUBLICATION = Publication(ECHO, Address("127.0.0.1", 12200), 1000)


def test_who_took_the_port_gets_no_calls() -> None:
    async def run() -> None:
        seen: list[FoundServices] = []

        def found(services: FoundServices) -> asyncio.Task[None]:
            seen.append(services)
            return asyncio.create_task(asyncio.sleep(0))

        takeover = Takeover(Config.model_validate({"takeover": {}}), {}, found)
        takeover.table.watch(takeover)

        async def served() -> list[Address]:
            await takeover.settled()
            (service,) = seen[-1].services
            assert (service.key, service.role) == (ECHO, Role.PUBLISHED)
            return [address for address, _ in service.endpoints]

        takeover.table.publish(PUBLICATION)
        assert await served() == [PUBLICATION.address]
        takeover.table.set_alive(PUBLICATION, False)  # it may be back before anybody looks again
        assert await served() == [PUBLICATION.address]
        takeover.table.set_alive(PUBLICATION, False, taken=True)
        assert await served() == []
        takeover.table.set_alive(PUBLICATION, True)
        assert await served() == [PUBLICATION.address]

    asyncio.run(run())
