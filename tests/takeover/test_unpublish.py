"""Unpublishing again and again, by applications that are impatient or mean harm."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from pysidecar.address import Address
from pysidecar.config import parse
from pysidecar.registry.service import ServiceKey
from pysidecar.routing.found import FoundServices
from pysidecar.takeover.table import Publication
from pysidecar.takeover.takeover import Takeover
from tests.interop.servers import free_port
from tests.takeover.hostile_registry import HostileRegistry
from tests.waiting import PATIENCE

ORDERS = ServiceKey("http", "orders")


@contextlib.asynccontextmanager
async def _takeover(registry: str) -> AsyncIterator[Takeover]:
    async def applied() -> None:
        pass

    def found(_: FoundServices) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(applied())

    config = parse(
        "takeover: {api: '127.0.0.1:0', state: /proc/nowhere}\n"
        f"registry: {{type: embedded, address: '{registry}'}}"
    )
    takeover = Takeover(config, {}, found)
    takeover.open()
    takeover.restore()
    await takeover.start()
    try:
        yield takeover
    finally:
        await takeover.stop()
        takeover.close()


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def _publish(takeover: Takeover, listener: socket.socket) -> None:
    takeover.table.publish(Publication(ORDERS, Address(*listener.getsockname()), 0))


def test_who_unpublishes_twice_waits_for_the_first_time(listener: socket.socket) -> None:
    async def main(registry: HostileRegistry) -> None:
        async with _takeover(str(registry.address)) as takeover:
            _publish(takeover, listener)
            async with asyncio.timeout(PATIENCE):
                while takeover.status["registered"] == 0:
                    await asyncio.sleep(0.01)
            first, second = (asyncio.ensure_future(takeover.unpublish(ORDERS, 0)) for _ in range(2))
            await second  # consumers elsewhere have heard of it, and not before
            assert first.done()
            assert not list(takeover.table.published_of(ORDERS))

    with listener, HostileRegistry() as registry:
        asyncio.run(main(registry))


def test_while_the_registry_is_away_what_is_unpublished_costs_one_task(
    listener: socket.socket,
) -> None:
    async def main() -> None:
        async with _takeover(f"127.0.0.1:{free_port()}") as takeover:
            before = len(asyncio.all_tasks())
            for _ in range(30):
                _publish(takeover, listener)
                await takeover.unpublish(ORDERS, 0)
            assert len(asyncio.all_tasks()) < before + 10

    with listener:
        asyncio.run(main())
