"""The policy page as hooked processes read it."""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pysidecar.address import Address
from pysidecar.config.values import WhenAway
from pysidecar.dataplane import ffi, lib
from pysidecar.interception.policy_page import (
    RULES_CAPACITY,
    Policy,
    PolicyPage,
    State,
    page_path,
    read_page,
)
from pysidecar.routing.rules import compile_rules

POLICY = Policy(
    transport="header",
    when_away=WhenAway("wait", 2.5),
    control_path=Path("/run/x/hook.sock"),
    listeners=[Address("127.0.0.1", 15001), Address("::1", 15001)],
    parks=[Address("127.0.0.1", 4000)],
    own=[Address("127.0.0.1", 15000)],
    rules=compile_rules([]),
    server_uid=1337,
)


def as_a_hook_maps_it(path: Path) -> Any:
    """``struct mosnhook_page *``, read-only."""
    with path.open("rb") as file:
        return ffi.from_buffer(
            "struct mosnhook_page *",
            mmap.mmap(file.fileno(), lib.MOSNHOOK_PAGE_SIZE, prot=mmap.PROT_READ),
        )


def test_everything_published_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "hook.policy"
    PolicyPage(path, socket_mode=0o600).publish(POLICY, State.SERVING)
    page = as_a_hook_maps_it(path)
    assert (page.magic, page.version) == (lib.MOSNHOOK_MAGIC, lib.MOSNHOOK_VERSION)
    assert page.sequence % 2 == 0
    assert page.state == lib.MOSNHOOK_STATE_SERVING
    assert page.transport == lib.MOSNHOOK_TRANSPORT_HEADER
    assert (page.when_away, page.wait_ms) == (lib.MOSNHOOK_AWAY_WAIT, 2500)
    assert ffi.string(page.control_path) == b"/run/x/hook.sock"
    listeners = [Address.from_native(page.listeners[i]) for i in range(page.listener_count)]
    parks = [Address.from_native(page.parks[i]) for i in range(page.park_count)]
    own = [Address.from_native(page.own[i]) for i in range(page.own_count)]
    assert (listeners, parks, own) == (POLICY.listeners, POLICY.parks, POLICY.own)
    assert page.rules.size == len(POLICY.rules)
    assert page.server_uid == 1337


def test_a_status_is_what_was_published(tmp_path: Path) -> None:
    path = tmp_path / "hook.policy"
    page = PolicyPage(path, socket_mode=0o600)
    page.publish(POLICY, State.SERVING)
    status = read_page(path)
    assert status is not None
    assert status.serving
    assert (status.transport, status.when_away) == ("header", WhenAway("wait", 2.5))
    page.set_state(State.DRAINING)
    status = read_page(path)
    assert status is not None
    assert not status.serving


def test_a_new_page_is_none_before_it_says_something(tmp_path: Path) -> None:
    """Else a process would take it that nothing is excluded, and that nobody waits."""
    path = tmp_path / "hook.policy"
    page = PolicyPage(path, socket_mode=0o600)
    assert read_page(path) is None
    page.publish(POLICY, State.STARTING)
    status = read_page(path)
    assert status is not None
    assert (status.state, status.when_away) == (State.STARTING, WhenAway("wait", 2.5))


def test_a_silent_sidecar_does_not_serve(tmp_path: Path) -> None:
    path = tmp_path / "hook.policy"
    page = PolicyPage(path, socket_mode=0o600)
    page.publish(POLICY, State.SERVING)
    raw = ffi.from_buffer("struct mosnhook_page *", page.buffer)
    raw.alive_ns -= (lib.MOSNHOOK_STALE_AFTER_MS + 1) * 1_000_000
    status = read_page(path)
    assert status is not None
    assert not status.serving


@pytest.mark.parametrize("cut_off", [False, True])
def test_an_existing_page_is_taken_over_in_place(tmp_path: Path, cut_off: bool) -> None:
    """What a running process has mapped goes on being the page, also when the last writer was
    killed in the middle of writing."""
    path = tmp_path / "hook.policy"
    first = PolicyPage(path, socket_mode=0o600)
    first.publish(POLICY, State.SERVING)
    mapped = as_a_hook_maps_it(path)
    raw = ffi.from_buffer("struct mosnhook_page *", first.buffer)
    raw.elsewhere = 1
    if cut_off:
        raw.sequence |= 1
    before = mapped.sequence
    second = PolicyPage(path, socket_mode=0o644)
    assert mapped.state == lib.MOSNHOOK_STATE_STARTING
    assert mapped.sequence % 2 == 0
    assert mapped.sequence != before
    assert mapped.elsewhere == 1  # direct connections outlive the sidecar
    second.publish(POLICY, State.SERVING)
    assert mapped.state == lib.MOSNHOOK_STATE_SERVING
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def short(path: Path) -> None:
    path.write_bytes(b"short")


def link(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(bytes(lib.MOSNHOOK_PAGE_SIZE))
    path.symlink_to(victim)


def second_name(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(bytes(lib.MOSNHOOK_PAGE_SIZE))
    path.hardlink_to(victim)


@pytest.mark.parametrize("make", [short, link, second_name])
def test_a_file_that_is_not_ours_is_replaced_and_not_written(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "hook.policy"
    make(path)
    PolicyPage(path, socket_mode=0o600).publish(POLICY, State.SERVING)
    status = read_page(path)
    assert status is not None
    assert status.serving
    assert not path.is_symlink()
    victim = path.with_name("victim")
    if victim.exists():
        assert not any(victim.read_bytes())
    left = {entry.name for entry in tmp_path.iterdir()} - {"hook.policy", "victim"}
    assert left == set()


def test_a_page_begins_at_a_random_number(tmp_path: Path) -> None:
    sequences = set()
    for _ in range(3):
        path = tmp_path / "hook.policy"
        PolicyPage(path, socket_mode=0o600)
        sequences.add(as_a_hook_maps_it(path).sequence)
        path.unlink()
    assert len(sequences) == 3


def test_removal_tells_running_processes(tmp_path: Path) -> None:
    path = tmp_path / "hook.policy"
    page = PolicyPage(path, socket_mode=0o600)
    page.publish(POLICY, State.SERVING)
    mapped = as_a_hook_maps_it(path)
    page.remove()
    assert mapped.state == lib.MOSNHOOK_STATE_GONE
    assert not path.exists()
    assert read_page(path) is None


@pytest.mark.parametrize(
    ("socket_mode", "page_mode"), [(0o600, 0o600), (0o660, 0o640), (0o666, 0o644)]
)
def test_who_may_use_the_socket_may_read_the_page(
    tmp_path: Path, socket_mode: int, page_mode: int
) -> None:
    path = tmp_path / "hook.policy"
    PolicyPage(path, socket_mode=socket_mode)
    assert stat.S_IMODE(path.stat().st_mode) == page_mode


def test_a_reader_never_sees_half_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "hook.policy"
    page = PolicyPage(path, socket_mode=0o600)
    small = Policy("unix", WhenAway("refuse"), Path("/a"), [], [], [], compile_rules([]), 0)
    page.publish(small, State.SERVING)
    mapped = as_a_hook_maps_it(path)
    done = threading.Event()

    def write() -> None:
        for i in range(300):
            page.publish(POLICY if i % 2 else small, State.SERVING)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        sequence = mapped.sequence
        view = (ffi.string(mapped.control_path), mapped.listener_count, mapped.wait_ms)
        if sequence % 2 == 0 and mapped.sequence == sequence:
            seen.add(view)
    writer.join()
    assert seen <= {(b"/a", 0, 0), (b"/run/x/hook.sock", 2, 2500)}


def test_a_foreign_or_missing_file_is_no_page(tmp_path: Path) -> None:
    path = tmp_path / "hook.policy"
    assert read_page(path) is None
    path.write_bytes(b"x")
    assert read_page(path) is None
    path.write_bytes(bytes(lib.MOSNHOOK_PAGE_SIZE))
    assert read_page(path) is None


def test_the_layout_has_room_for_rules() -> None:
    assert RULES_CAPACITY > 1_000_000
    assert ffi.sizeof("struct mosnhook_page") + 0 <= lib.MOSNHOOK_PAGE_SIZE


@pytest.mark.parametrize(
    ("socket", "page"), [("/run/p/hook.sock", "/run/p/hook.policy"), ("/x/s", "/x/s.policy")]
)
def test_the_page_is_beside_the_socket(socket: str, page: str) -> None:
    assert page_path(Path(socket)) == Path(page)
    assert os.path.dirname(page) == os.path.dirname(socket)


@pytest.mark.parametrize(
    "damage", [("state", 9), ("transport", 9), ("when_away", 9), ("version", 99), ("sequence", 1)]
)
def test_a_page_that_says_nonsense_is_none(tmp_path: Path, damage: tuple[str, int]) -> None:
    path = tmp_path / "hook.policy"
    page = PolicyPage(path, socket_mode=0o600)
    page.publish(POLICY, State.SERVING)
    setattr(ffi.from_buffer("struct mosnhook_page *", page.buffer), *damage)
    assert read_page(path) is None


def test_a_page_that_others_can_write_is_none(tmp_path: Path) -> None:
    path = tmp_path / "hook.policy"
    PolicyPage(path, socket_mode=0o600).publish(POLICY, State.SERVING)
    assert read_page(path) is not None
    for mode in (0o660, 0o602):
        path.chmod(mode)
        assert read_page(path) is None


def test_a_sign_of_life_in_the_future_does_not_serve(tmp_path: Path) -> None:
    path = tmp_path / "hook.policy"
    page = PolicyPage(path, socket_mode=0o600)
    page.publish(POLICY, State.SERVING)
    ffi.from_buffer("struct mosnhook_page *", page.buffer).alive_ns += 3600 * 10**9
    status = read_page(path)
    assert status is not None
    assert not status.serving
