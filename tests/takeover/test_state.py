"""What a sidecar that starts again knows of before."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.errors import StartError
from pysidecar.lock_file import LockFile
from pysidecar.registry.service import Instance, ServiceKey
from pysidecar.takeover import own_files
from pysidecar.takeover import state as states
from pysidecar.takeover.journal import Journal, Said
from pysidecar.takeover.state import State
from pysidecar.takeover.table import Publication, ServiceTable
from tests.users import USERS, needs_root
from tests.waiting import PATIENCE, eventually

CONFIGURATION = -1  # in the place of a uid
ECHO = ServiceKey("bolt", "Echo:1.0")
DUBBO = ServiceKey("dubbo", "Echo", "1.0", "blue")
PUBLICATION = Publication(
    ECHO, Address("127.0.0.1", 12200), 1000, "prov", 50, 30.0, 1.5, (("p", "1"), ("v", "ä\n"))
)
INSTANCES = (
    Instance(Address("10.0.0.7", 20881), 50, 1.5, 30.0, "zone", (("p", "1"),)),
    Instance(Address("fd00::7", 20881)),
)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "PAUSE", 0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "takeover-13330.json"


def fill(table: ServiceTable) -> None:
    table.publish(PUBLICATION)
    table.subscribe(ECHO, 1000)
    table.subscribe(ECHO, 0)
    table.push(ECHO, INSTANCES)
    table.subscribe(DUBBO, 1000)


def written(
    path: Path,
    change: Callable[[ServiceTable], None] = fill,
    then: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """By a sidecar to whose table this is done, and which then stops."""

    async def run() -> None:
        table = ServiceTable()
        state = State(table, path)
        state.restore()
        state.start()
        change(table)
        if then is not None:
            await then()
        await state.stop()

    asyncio.run(run())


def test_two_sidecars_do_not_share_a_file(path: Path) -> None:
    first, second = State(ServiceTable(), path), State(ServiceTable(), path)
    release = first.claim()
    with pytest.raises(StartError, match=r"takeover\.state\) is in use by this very process"):
        second.claim()
    release()
    second.claim()()
    assert list(path.parent.iterdir()) == []


def test_a_lock_that_cannot_be_made_hinders_nothing(path: Path) -> None:
    State(ServiceTable(), path / "nowhere").claim()()


@needs_root
def test_a_lock_of_another_user_hinders_nothing(path: Path) -> None:
    theirs = LockFile(lock := path.with_name(f"{path.name}.lock"))
    os.chown(lock, USERS[0], -1)
    State(ServiceTable(), path).claim()()
    theirs.release()


def restored(path: Path) -> ServiceTable:
    async def run() -> ServiceTable:
        table = ServiceTable()
        State(table, path).restore()
        return table

    return asyncio.run(run())


def watch_writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What somebody tries to write."""
    seen: list[bytes] = []
    write = own_files.write

    def watch(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            seen.append(data)
        write(path, data)

    monkeypatch.setattr(own_files, "write", watch)
    return seen


def is_empty(table: ServiceTable) -> bool:
    return not list(table.publications) and not list(table.subscriptions)


def test_everything_is_known_again_but_not_alive(path: Path) -> None:
    written(path)
    table = restored(path)
    (publication,) = table.publications
    assert not publication.alive
    assert publication == replace(PUBLICATION, alive=False)
    assert list(table.subscriptions) == [
        (ECHO, frozenset({0, 1000}), INSTANCES),
        (DUBBO, frozenset({1000}), ()),
    ]
    assert table.is_known(ECHO)
    assert not table.is_known(DUBBO)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_what_the_configuration_publishes_is_its_own(path: Path) -> None:
    written(
        path, lambda table: table.publish(Publication(ECHO, INSTANCES[0].address, CONFIGURATION))
    )
    assert is_empty(restored(path))


def test_what_is_taken_back_is_not_known_again(path: Path) -> None:
    written(path)

    def take_back(table: ServiceTable) -> None:
        table.unpublish(ECHO, 1000)
        table.unsubscribe(DUBBO, 1000)

    written(path, take_back)
    table = restored(path)
    assert not list(table.publications)
    assert [service for service, _, _ in table.subscriptions] == [ECHO]


def test_it_is_written_while_the_sidecar_runs(path: Path) -> None:
    async def until_there() -> None:
        async with asyncio.timeout(PATIENCE):
            while not path.exists():
                await asyncio.sleep(0.001)

    written(path, then=until_there)


def test_changes_that_come_together_are_written_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "PAUSE", 3600.0)
    writes = watch_writes(monkeypatch)

    def change(table: ServiceTable) -> None:
        for number in range(1000):
            table.subscribe(ServiceKey("http", f"host{number}"), 1000)

    written(path, change)
    assert len(writes) == 1
    assert len(list(restored(path).subscriptions)) == 1000


def be_slow(monkeypatch: pytest.MonkeyPatch, latest: float) -> None:
    """Writes take long, so that each waits until nothing changes for hours, or until then."""
    monkeypatch.setattr(states, "_PAUSE_FACTOR", 0)
    monkeypatch.setattr(states, "_LULL_FACTOR", 1e9)
    monkeypatch.setattr(states, "_LONGEST_LULL", 3600.0)
    monkeypatch.setattr(states, "_LATEST", latest)


async def _written_first(path: Path) -> None:
    """The first write does not wait: how long one takes is known after it."""
    await asyncio.to_thread(eventually, path.exists)


def test_a_write_that_takes_long_waits_no_longer_than_until_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_slow(monkeypatch, 3600.0)
    seen = watch_writes(monkeypatch)

    async def run() -> None:
        table = ServiceTable()
        state = State(table, path)
        state.start()
        table.subscribe(DUBBO, 1000)
        await _written_first(path)
        before = len(seen)
        for number in range(3):
            table.push(DUBBO, INSTANCES[: number % 2 + 1])
            await asyncio.sleep(0.05)
        assert len(seen) == before
        await state.stop()

    asyncio.run(run())
    assert len(seen) == 2
    assert list(restored(path).subscriptions) == [(DUBBO, frozenset({1000}), INSTANCES[:1])]


def test_a_write_that_takes_long_comes_although_all_goes_on_changing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_slow(monkeypatch, 0.1)
    seen = watch_writes(monkeypatch)

    async def run() -> None:
        table = ServiceTable()
        state = State(table, path)
        state.start()
        table.subscribe(DUBBO, 1000)
        await _written_first(path)
        async with asyncio.timeout(PATIENCE):
            turn = 0
            while len(seen) < 3:
                turn += 1
                table.push(DUBBO, INSTANCES[: turn % 2 + 1])
                await asyncio.sleep(0.002)
        await state.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-10],
        lambda text: b"",
        lambda text: b"\0" * len(text),
        lambda text: text.replace(b'"version":1', b'"version":2', 1),
        lambda text: text.replace(b'"uid":1000', b'"uid":"1000"'),
        lambda text: text.replace(b'"port":12200', b'"port":null'),
        lambda text: b"[]",
        lambda text: b"[" * 100_000,
    ],
)
def test_a_file_that_is_damaged_is_put_aside(
    path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    written(path)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    assert is_empty(restored(path))
    assert str(path) in caplog.text
    assert not path.exists()
    assert path.with_name(f"{path.name}.bad").read_bytes() == damaged
    written(path)
    assert not is_empty(restored(path))


def test_a_file_that_is_too_large_is_put_aside(path: Path) -> None:
    path.touch(0o600)
    os.truncate(path, states.MAX_BYTES + 1)
    assert is_empty(restored(path))
    assert path.with_name(f"{path.name}.bad").exists()


def test_a_link_is_not_followed(path: Path) -> None:
    real = path.with_name("real")
    written(real)
    path.symlink_to(real)
    assert is_empty(restored(path))
    before = real.read_bytes()
    written(path, lambda table: table.subscribe(DUBBO, 1000))
    assert real.read_bytes() == before
    assert not path.is_symlink()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_read(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    assert is_empty(restored(path))


@needs_root
def test_another_users_file_is_not_believed(path: Path) -> None:
    written(path)
    os.chown(path, USERS[0], -1)
    assert is_empty(restored(path))


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_not_believed(path: Path, mode: int) -> None:
    written(path)
    path.chmod(mode)
    assert is_empty(restored(path))


def test_without_a_directory_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "_PAUSE_AFTER_FAILURE", 0.001)
    directory = tmp_path / "none"
    path = directory / "takeover.json"
    attempts = watch_writes(monkeypatch)

    async def until_written() -> None:
        async with asyncio.timeout(PATIENCE):
            while len(attempts) < 5:
                await asyncio.sleep(0.001)
            directory.mkdir()
            while not path.exists():
                await asyncio.sleep(0.001)

    written(path, then=until_written)
    assert caplog.text.count("cannot write") == 1
    assert caplog.text.count("is written again") == 1
    assert not is_empty(restored(path))


def test_what_a_newer_sidecar_knew_is_left_out(path: Path) -> None:
    newer = replace(ECHO, protocol="triple")

    def change(table: ServiceTable) -> None:
        fill(table)
        table.publish(replace(PUBLICATION, service=newer))
        table.subscribe(newer, 1000)

    written(path, change)
    table = restored(path)
    assert table.is_subscribed(ECHO)
    assert not table.is_subscribed(newer)
    assert not list(table.published_of(newer))


def test_instances_that_are_too_many_are_left_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "MAX_BYTES", 20_000)

    def change(table: ServiceTable) -> None:
        fill(table)
        table.push(DUBBO, [Instance(Address("10.0.0.1", port)) for port in range(1, 1000)])

    written(path, change)
    assert path.stat().st_size < states.MAX_BYTES
    table = restored(path)
    assert table.instances_of(ECHO) == INSTANCES
    assert table.is_subscribed(DUBBO)
    assert not table.is_known(DUBBO)


_WRITER = """
import asyncio, sys
from pathlib import Path
from pysidecar.registry.service import ServiceKey
from pysidecar.takeover import state as states
from pysidecar.takeover.table import ServiceTable
states.PAUSE = states._PAUSE_FACTOR = states._LONGEST_LULL = 0

async def run():
    table = ServiceTable(limit=1 << 20)
    state = states.State(table, Path(sys.argv[1]))
    state.start()
    for number in range(1 << 20):
        table.subscribe(ServiceKey("http", f"host{number}"), 0)
        await asyncio.sleep(0)

asyncio.run(run())
"""


def test_a_kill_leaves_a_whole_file(path: Path) -> None:
    seen = 0
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, path])
        try:
            for _ in range(3):  # it is in the middle of the next one then
                wait_for_a_write(path)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        table = restored(path)
        seen += len(list(table.subscriptions))
        assert not path.with_name(f"{path.name}.bad").exists()
    assert seen


_SPEAKER = """
import asyncio, sys
from pathlib import Path
from pysidecar.registry.service import ServiceKey
from pysidecar.takeover import state as states
from pysidecar.takeover.table import ServiceTable
states.PAUSE = float(sys.argv[2])
states._LONGEST_LULL = 0.0

async def run():
    table = ServiceTable(limit=1 << 20)
    state = states.State(table, Path(sys.argv[1]))
    state.restore()
    state.start()
    for number in range(1 << 20):
        service = ServiceKey("http", f"host{number}")
        table.subscribe(service, number % 2)
        table.subscribe(service, 2)
        if number % 3:
            table.unsubscribe(service, 2)
        if state.noted is not None:
            await state.noted
        print(number, flush=True)

asyncio.run(run())
"""


@pytest.mark.parametrize("pause", ["3600", "0"])
def test_what_was_answered_is_known_after_a_kill(path: Path, pause: str) -> None:
    """Whether or not the file was written meanwhile."""
    with subprocess.Popen(
        [sys.executable, "-c", _SPEAKER, path, pause], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for number in range(200):
            assert int(process.stdout.readline()) == number
        process.kill()
        answered = 200 + len(process.stdout.readlines())
    table = restored(path)
    for number in range(answered):
        users = table.users_of(ServiceKey("http", f"host{number}"))
        assert users == {number % 2} | ({2} if number % 3 == 0 else set())


def test_what_was_answered_is_known_after_a_loss_of_power(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which leaves what was in the file, and the file in its directory, when these were synced."""
    journal = path.with_name(f"{path.name}.journal")
    left: list[bytes] = []
    files: list[set[str]] = []
    sync, sync_directory = os.fdatasync, own_files._sync_directory

    def synced(descriptor: int) -> None:
        sync(descriptor)
        if journal.exists() and os.path.samestat(os.fstat(descriptor), journal.stat()):
            left.append(journal.read_bytes())

    def synced_directory(directory: Path) -> None:
        sync_directory(directory)
        files.append({each.name for each in directory.iterdir()})

    monkeypatch.setattr(os, "fdatasync", synced)
    monkeypatch.setattr(own_files, "_sync_directory", synced_directory)
    monkeypatch.setattr(states, "PAUSE", 3600.0)

    async def run() -> None:
        table = ServiceTable()
        state = State(table, path)
        state.start()
        for number in range(3):
            table.subscribe(ServiceKey("http", f"host{number}"), 1)
            assert state.noted is not None
            await state.noted
            assert b"host%d" % number in left[-1]
            assert journal.name in set().union(*files)
        await state.stop()

    asyncio.run(run())


def test_a_line_that_was_not_finished_is_left_out(path: Path) -> None:
    journal = Journal(path.with_name(f"{path.name}.journal"), states.MAX_BYTES)
    journal.append([Said(ECHO, (), (1000,))])
    with path.with_name(f"{path.name}.journal").open("ab") as file:
        file.write(b'\n{"service":{"protocol":"bo')
    journal.append([Said(DUBBO, (PUBLICATION,), ())])
    table = restored(path)
    assert table.users_of(ECHO) == {1000}
    assert [each.address for each in table.publications] == [PUBLICATION.address]


@needs_root
def test_another_users_journal_is_neither_believed_nor_written(path: Path) -> None:
    journal = path.with_name(f"{path.name}.journal")
    Journal(journal, states.MAX_BYTES).append([Said(ECHO, (), (1000,))])
    os.chown(journal, USERS[0], -1)
    before = journal.read_bytes()
    assert is_empty(restored(path))
    written(path, lambda table: table.subscribe(DUBBO, 1000))
    assert [service for service, *_ in restored(path).subscriptions] == [DUBBO]
    assert not journal.exists() or journal.read_bytes() == before


def wait_for_a_write(path: Path) -> None:
    def number() -> int:
        return path.stat().st_ino if path.exists() else 0

    before = number()
    eventually(lambda: number() != before)
