"""Where a registry's servers are, by address and by name."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pysidecar.address import Address, NamedAddress
from pysidecar.registry import RegistryError
from pysidecar.registry.servers import Servers

Asked = list[tuple[Address, str]]


def resolver(**hosts: list[str]) -> Callable[..., Any]:
    """In the place of the system's, which knows no name with several addresses."""

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        if host not in hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (each, port)) for each in hosts[host]]

    return look_up


def ask(servers: Servers, *, answers: str = "") -> Asked:
    """All that were asked, until the one of this host answered."""
    asked: Asked = []

    async def connect(address: Address, verify: str) -> None:
        asked.append((address, verify))
        if address.host != answers:
            raise RegistryError("no")

    asyncio.run(servers.open(connect))
    return asked


def test_all_addresses_of_a_name_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolver(zk=["10.0.0.1", "10.0.0.2", "10.0.0.1"]))
    servers = Servers([Address("10.0.0.9", 1), NamedAddress("zk", 2181)])
    asked = ask(servers, answers="10.0.0.2")
    assert asked == [
        (Address("10.0.0.9", 1), "10.0.0.9"),
        (Address("10.0.0.1", 2181), "zk"),
        (Address("10.0.0.2", 2181), "zk"),
    ]
    assert ask(servers, answers="10.0.0.2") == asked[-1:]  # the last one that answered
    assert str(servers) == "10.0.0.9:1,zk:2181"


def test_a_name_is_looked_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers([NamedAddress("zk", 1)])
    for host in ("10.0.0.1", "10.0.0.2"):
        monkeypatch.setattr(socket, "getaddrinfo", resolver(zk=[host]))
        assert ask(servers, answers=host) == [(Address(host, 1), "zk")]


def test_a_name_that_is_not_known_hinders_no_other() -> None:
    servers = Servers([NamedAddress("nowhere.invalid", 1), NamedAddress("localhost", 2)])
    assert ask(servers, answers="127.0.0.1")[-1] == (Address("127.0.0.1", 2), "localhost")
    with pytest.raises(RegistryError, match=r"^nowhere\.invalid:1: .+; 127\.0\.0\.1:2: no$"):
        ask(Servers([NamedAddress("nowhere.invalid", 1), Address("127.0.0.1", 2)]))


def test_a_resolver_that_hangs_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    asked = []

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        hangs.wait()
        return []

    async def main() -> None:
        async def connect(address: Address, _: str) -> Address:
            return address

        servers = Servers([NamedAddress("zk", 1)])
        for _ in range(2):
            with pytest.raises(RegistryError, match="zk:1: no resolver answers within"):
                await servers.open(connect)
        servers = Servers([NamedAddress("zk", 1), there := Address("10.0.0.1", 1)])
        assert await servers.open(connect) == there

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("pysidecar.registry.servers._LOOKUP_TIME", 0.05)
    try:
        asyncio.run(main())
    finally:
        hangs.set()
    assert asked == ["zk", "zk"]


def test_what_a_slow_resolver_says_counts_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def look_up(*_: Any, **__: Any) -> list[Any]:
        answers.wait()
        return resolver(zk=["10.0.0.1"])("zk", 1)  # type: ignore[no-any-return]

    async def main() -> None:
        async def connect(address: Address, _: str) -> Address:
            return address

        servers = Servers([NamedAddress("zk", 1)])
        with pytest.raises(RegistryError, match="no resolver answers"):
            await servers.open(connect)
        (late,) = servers._lookups.values()
        answers.set()
        await late
        answers.clear()
        try:
            assert await servers.open(connect) == Address("10.0.0.1", 1)
        finally:
            answers.set()

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("pysidecar.registry.servers._LOOKUP_TIME", 0.05)
    asyncio.run(main())
