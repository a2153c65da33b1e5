"""The connect hook's side of the sidecar, with a real data plane."""

from __future__ import annotations

import contextlib
import grp
import logging
import mmap
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.config import Config, parse
from pysidecar.dataplane import DataPlane, Timeouts, ffi, lib
from pysidecar.errors import StartError
from pysidecar.interception import hook
from pysidecar.interception.control_socket import ControlSocket
from pysidecar.interception.hook import ConnectHook
from pysidecar.interception.policy_page import State, page_path, read_page

ADMIN = Address("127.0.0.1", 15000)


def configured(directory: Path, more: str = "") -> Config:
    return parse(f"outbound: {{control_socket: {directory}/hook.sock, {more}}}")


@contextlib.contextmanager
def serving(config: Config) -> Iterator[ConnectHook]:
    connect_hook = ConnectHook(config)
    try:
        connect_hook.open()
        data_plane = DataPlane(workers=1, timeouts=Timeouts())
        try:
            connect_hook.attach(data_plane)
            data_plane.start()
            connect_hook.serve([ADMIN])
            yield connect_hook
        finally:
            data_plane.stop()
            data_plane.close()
    finally:
        connect_hook.close()


def test_before_it_serves_the_page_says_what_connects_do(tmp_path: Path) -> None:
    config = configured(tmp_path, "when_away: wait:3s")
    connect_hook = ConnectHook(config)
    try:
        connect_hook.open()
        status = read_page(page_path(tmp_path / "hook.sock"))
        assert status is not None
        assert status.state is State.STARTING
        assert status.when_away == config.outbound.when_away
    finally:
        connect_hook.close()


def test_the_page_names_every_listener(tmp_path: Path) -> None:
    config = configured(tmp_path, "listen: [127.0.0.1:0, 127.0.0.2:0], exclude: []")
    with serving(config) as connect_hook, page_path(tmp_path / "hook.sock").open("rb") as file:
        view = mmap.mmap(file.fileno(), lib.MOSNHOOK_PAGE_SIZE, prot=mmap.PROT_READ)
        page = ffi.from_buffer("struct mosnhook_page *", view)
        listeners = [Address.from_native(page.listeners[i]) for i in range(page.listener_count)]
        parks = [Address.from_native(page.parks[i]) for i in range(page.park_count)]
        assert listeners == list(connect_hook.listeners)
        assert [*listeners, *parks] == list(connect_hook.own_addresses)
        assert Address.from_native(page.own[0]) == ADMIN
        assert ffi.string(page.control_path) == bytes(tmp_path / "hook.sock")
    assert list(tmp_path.iterdir()) == []


def test_without_parks_the_header_transport_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hook, "parking_works", lambda _host: False)
    with serving(configured(tmp_path, "listen: [127.0.0.1:0]")):
        status = read_page(tmp_path / "hook.policy")
        assert status is not None
        assert (status.state, status.transport) == (State.SERVING, "header")
    assert "outbound.transport unix works as header here" in caplog.text
    assert "on 127.0.0.1 the kernel does not complete a simultaneous open" in caplog.text


def test_a_host_without_ipv6_serves_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(hook, "has_ipv6_loopback", lambda: False)
    opened: list[Address] = []

    def refuse(address: Address, key: str) -> None:
        opened.append(address)
        raise StartError(key)

    monkeypatch.setattr(hook, "open_listener", refuse)
    for more, tried in (
        ("transport: header", [Address("127.0.0.1", 15001)]),
        ("listen: ['[::1]:15001']", [Address("::1", 15001)]),  # asked for: not skipped
    ):
        opened.clear()
        connect_hook = ConnectHook(configured(tmp_path, more))
        with pytest.raises(StartError):
            connect_hook.open()
        connect_hook.close()
        assert opened == tried


@pytest.mark.parametrize(
    ("more", "parking", "expected"),
    [
        ("", True, False),
        ("transport: header", True, True),
        ("listen: [127.0.0.1:0]", True, True),
        ("", False, True),  # unix works as header
    ],
)
def test_there_are_listeners_only_where_something_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, parking: bool, expected: bool
) -> None:
    opened: list[Address] = []

    def open_listener(address: Address, key: str) -> socket.socket:
        opened.append(address)
        return socket.create_server(("127.0.0.1", 0))

    monkeypatch.setattr(hook, "open_listener", open_listener)
    monkeypatch.setattr(hook, "parking_works", lambda host: parking)
    connect_hook = ConnectHook(configured(tmp_path, more))
    connect_hook.open()
    try:
        assert bool(opened) == bool(connect_hook.listeners) == expected
        assert any("PROXY v2" in line for line in connect_hook.description) == expected
    finally:
        connect_hook.close()


def test_without_listeners_a_reload_cannot_change_to_header(tmp_path: Path) -> None:
    connect_hook = ConnectHook(configured(tmp_path, ""))
    connect_hook.open()
    try:
        with pytest.raises(ValueError, match=r"outbound\.transport: expected unix until a restart"):
            connect_hook.check(configured(tmp_path, "transport: header"))
    finally:
        connect_hook.close()


@pytest.mark.parametrize(
    ("mode", "uids", "everybody_else"),
    [
        (0o600, set(), False),
        (0o660, {"root", "daemon"}, False),
        (0o666, set(), True),
        (0o606, {"root", "daemon"}, True),  # all but the group
        (0o644, set(), False),  # to connect is to write
    ],
)
def test_whom_the_control_socket_lets_in_may_use_the_listeners(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    uids: set[str],
    everybody_else: bool,
) -> None:
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("g", "x", gid, ["daemon"])))
    control = ControlSocket(tmp_path / "hook.sock", mode)
    try:
        found, others = control.users
        assert others == everybody_else
        assert {pwd.getpwnam(name).pw_uid for name in uids if name != "root"} <= found
        assert bool(found) == bool(uids)
    finally:
        control.listener.close()
        control.remove()


def test_too_many_exclusions_are_an_error(tmp_path: Path) -> None:
    networks = ", ".join(f"10.{i >> 8}.{i & 255}.0/25" for i in range(20_000))
    config = configured(tmp_path, f"exclude: [{networks}]")
    with pytest.raises(ValueError, match=r"outbound\.exclude: expected fewer networks"):
        ConnectHook(config).check(config)


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    with (
        serving(configured(tmp_path / "a", "listen: [127.0.0.1:0]")) as first,
        pytest.raises(StartError, match="in use by this very process"),
        serving(configured(tmp_path / "b", f"listen: ['{first.listeners[0]}']")),
    ):
        pass
    assert list((tmp_path / "b").iterdir()) == []
