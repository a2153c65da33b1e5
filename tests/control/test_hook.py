"""The connect hook's side of the sidecar, with a real data plane."""

from __future__ import annotations

import contextlib
import logging
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.config import Config, parse
from pysidecar.dataplane import DataPlane, Timeouts, ffi, lib
from pysidecar.errors import StartError
from pysidecar.interception import hook
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
        ("", [Address("127.0.0.1", 15001)]),
        ("listen: ['[::1]:15001']", [Address("::1", 15001)]),  # asked for: not skipped
    ):
        opened.clear()
        connect_hook = ConnectHook(configured(tmp_path, more))
        with pytest.raises(StartError):
            connect_hook.open()
        connect_hook.close()
        assert opened == tried


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
