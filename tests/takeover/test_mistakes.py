"""What goes wrong in the sidecar itself costs as little as can be, and is tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pysidecar import sidecar as sidecars
from pysidecar.address import Address
from pysidecar.config import parse
from pysidecar.log import Mistakes
from pysidecar.registry.service import Instance, ServiceKey
from pysidecar.routing.found import FoundServices
from pysidecar.sidecar import Sidecar
from pysidecar.takeover import liveness
from pysidecar.takeover import table as tables
from pysidecar.takeover import takeover as takeovers
from pysidecar.takeover.endpoints import Endpoints
from pysidecar.takeover.liveness import Liveness
from pysidecar.takeover.table import Publication, ServiceTable, Watcher
from pysidecar.takeover.takeover import Takeover
from tests.waiting import PATIENCE

ECHO, OTHER = ServiceKey("bolt", "Echo:1.0"), ServiceKey("bolt", "Other:1.0")
THERE = Instance(Address("10.0.0.7", 20881))
PUBLICATION = Publication(ECHO, Address("127.0.0.1", 12200), 1000)


class Broken(Exception):
    pass


@pytest.fixture(autouse=True)
def _nothing_is_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake is in the log once, of a process."""
    for module in (liveness, sidecars, tables, takeovers):
        monkeypatch.setattr(module, "_mistakes", Mistakes(logging.getLogger(module.__name__)))
    monkeypatch.setattr(takeovers, "_PAUSE_AFTER_MISTAKE", 0.01)


def fail(*_: object) -> None:
    raise Broken


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_watcher_that_fails_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Watcher):
        published = subscribed = changed = fail  # type: ignore[assignment]

    class Seen(Watcher):
        count = 0

        def changed(self) -> None:
            self.count += 1

    table, seen = ServiceTable(), Seen()
    table.watch(Failing())
    table.watch(seen)
    table.publish(PUBLICATION)
    table.subscribe(ECHO, 1000)
    table.subscribe(OTHER, 1000)
    assert seen.count == 3
    assert table.is_subscribed(OTHER)
    assert caplog.text.count("an error of pysidecar itself") == 1
    assert "Broken" in caplog.text


def takeover(tmp_path: Path, found: list[FoundServices]) -> Takeover:
    def tell(services: FoundServices) -> asyncio.Task[None]:
        found.append(services)
        return asyncio.create_task(asyncio.sleep(0))

    made = Takeover(parse(f"takeover: {{state: {tmp_path}/state.json}}"), {}, tell)
    made.table.watch(made)
    return made


def test_a_service_that_cannot_be_built_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[FoundServices] = []

    def served(key: ServiceKey) -> bool:
        return any(each.key == key and each.endpoints for each in found[-1].services)

    async def run() -> None:
        made = takeover(tmp_path, found)
        select = made._endpoints.select

        def broken(instances: object, *rest: object) -> object:
            if instances == (THERE, THERE):
                fail()
            return select(instances, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(Endpoints, "select", lambda _, *rest: broken(*rest))
        for key, instances in ((ECHO, (THERE, THERE)), (OTHER, (THERE,))):
            made.table.subscribe(key, 1000)
            made.table.push(key, instances)
        await until(lambda: found and served(OTHER))
        assert not served(ECHO)
        monkeypatch.setattr(Endpoints, "select", lambda _, *rest: select(*rest))
        await until(lambda: served(ECHO))  # though nothing has changed

    asyncio.run(run())
    assert caplog.text.count("an error of pysidecar itself") == 1


def test_what_cannot_be_told_is_told_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[FoundServices] = []

    async def run() -> None:
        made = takeover(tmp_path, found)
        tell = made._found
        made._found = fail  # type: ignore[assignment]
        made.table.subscribe(ECHO, 1000)
        await until(lambda: made._timer is not None)
        await made.settled()
        made._found = tell
        await until(lambda: found)

    asyncio.run(run())


def test_whether_applications_listen_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        table = ServiceTable()
        table.publish(PUBLICATION)
        looking = Liveness(table, interval=0.001)
        with monkeypatch.context() as broken:
            broken.setattr(liveness, "is_owner", fail)
            looking.start()
            await asyncio.sleep(0.02)
        await until(lambda: not any(each.alive for each in table.publications))
        looking.stop()

    asyncio.run(run())
    assert caplog.text.count("an error of pysidecar itself") == 1


@pytest.mark.parametrize("what", ["make", "set"])
def test_services_that_cannot_be_set_are_set_later(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    config = parse(
        f"admin: {{listen: '127.0.0.1:0'}}\n"
        f"outbound: {{control_socket: {tmp_path}/run/hook.sock}}\n"
        f"takeover: {{api: '127.0.0.1:0', consumer: '127.0.0.1:0', provider: '127.0.0.1:0'}}\n"
    )
    monkeypatch.setattr(sidecars, "_FIRST_RETRY", 0.01)
    caplog.set_level(logging.WARNING)

    def names(sidecar: Sidecar) -> set[str]:
        return {each.name for piece in sidecar.services() for each in piece}

    async def run() -> None:
        sidecar = Sidecar(config)
        await sidecar.start()
        try:
            assert sidecar._takeover is not None
            with monkeypatch.context() as broken:
                if what == "make":
                    broken.setattr(sidecars, "pack_services", fail)
                else:
                    broken.setattr(sidecar._data_plane, "set_services", fail)
                sidecar._takeover.table.subscribe(ECHO, 1000)
                await until(lambda: "an error of pysidecar itself" in caplog.text)
                assert str(ECHO) not in names(sidecar)
            await until(lambda: str(ECHO) in names(sidecar))  # though nothing has changed
        finally:
            await sidecar.stop()

    asyncio.run(run())
    assert caplog.text.count("an error of pysidecar itself") == 1


def test_a_registry_that_nothing_uses_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(takeover: str) -> None:
        sidecar = Sidecar(
            parse(
                f"admin: {{listen: '127.0.0.1:0'}}\n"
                f"outbound: {{control_socket: {tmp_path}/run/hook.sock}}\n"
                f"registry: {{type: embedded, address: '127.0.0.1:1'}}\n{takeover}"
            )
        )
        await sidecar.start()
        await sidecar.stop()

    caplog.set_level(logging.WARNING)
    ports = "{api: '127.0.0.1:0', consumer: '127.0.0.1:0', provider: '127.0.0.1:0'}"
    asyncio.run(run(f"takeover: {ports}"))
    assert "registry is not used" not in caplog.text
    asyncio.run(run(""))
    assert "registry is not used: it is for takeover" in caplog.text
