"""Servers of one registry, of which any will do."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from pysidecar.address import Address, NamedAddress
from pysidecar.background import in_background
from pysidecar.registry import RegistryError

__all__ = ["Servers"]

T = TypeVar("T")

_OPEN_TIME: Final = 5.0  # seconds, for all servers together
_LEAST_TIME: Final = 1.5  # seconds, for one
_LOOKUP_TIME: Final = 2.0  # seconds of these, for all names
_MOST: Final = 16  # addresses of one name


class Servers:
    """Asks one after the other, first the one that answered last. ``first`` is the index of the one
    to begin with. Names are looked up each time: their addresses may be others by then."""

    def __init__(self, servers: Sequence[Address | NamedAddress], *, first: int = 0) -> None:
        self._servers = servers
        self._first = first
        self._lookups: dict[NamedAddress, asyncio.Task[list[Address] | RegistryError]] = {}
        """Those that nobody has used: of a resolver that takes longer than we wait, the next time
        does, and one that hangs has one of each name."""

    def __str__(self) -> str:
        """As they are configured."""
        return ",".join(map(str, self._servers))

    async def open(self, connect: Callable[[Address, str], Awaitable[T]]) -> T:
        """What ``connect`` returns for the first of them that answers, within 5 seconds. It gets
        an address, and the host as configured, which a certificate has to be for. It may raise
        RegistryError and OSError, and is cancelled where it takes too long. Raises RegistryError
        with what each of them said."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _OPEN_TIME
        problems: list[str] = []
        places = await self._places(problems)
        count = len(places)
        share = min(_OPEN_TIME, max(_OPEN_TIME / max(count, 1), _LEAST_TIME))
        for turn in range(count):
            address, name = places[at := (self._first + turn) % count]
            left = deadline - loop.time()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(min(left, share)):
                    opened = await connect(address, name)
            except TimeoutError:
                problems.append(f"{address}: no answer within {share:g} s")
            except OSError as error:
                problems.append(f"{address}: {os.strerror(error.errno or 0)}")
            except RegistryError as error:
                problems.append(f"{address}: {error}")
            else:
                self._first = at
                return opened
        self._first += 1
        raise RegistryError("; ".join(problems))

    async def _places(self, problems: list[str]) -> list[tuple[Address, str]]:
        """All addresses, and what there is to say of names without any."""
        named = [each for each in self._servers if isinstance(each, NamedAddress)]
        lookups = {each: self._look_up(each) for each in named}
        if lookups:
            await asyncio.wait(lookups.values(), timeout=_LOOKUP_TIME)
        places: dict[Address, str] = {}
        for server in self._servers:
            if isinstance(server, Address):
                places.setdefault(server, server.host)
                continue
            if not lookups[server].done():
                problems.append(f"{server}: no resolver answers within {_LOOKUP_TIME:g} s")
                continue
            self._lookups.pop(server, None)
            found = lookups[server].result()
            if isinstance(found, RegistryError):
                problems.append(f"{server}: {found}")
                continue
            for address in found:
                places.setdefault(address, server.host)
        return list(places.items())

    def _look_up(self, server: NamedAddress) -> asyncio.Task[list[Address] | RegistryError]:
        lookup = self._lookups.get(server)
        if lookup is None:
            lookup = asyncio.get_running_loop().create_task(_addresses_of(server))
            self._lookups[server] = lookup
        return lookup


async def _addresses_of(server: NamedAddress) -> list[Address] | RegistryError:
    """Does not raise, since it may be that nobody asks for the outcome any more."""
    try:
        found = await in_background(
            lambda: socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        )
    except OSError as error:
        return RegistryError(error.strerror or str(error))
    hosts = dict.fromkeys(str(name[0]) for *_, name in found)
    return [Address(host, server.port) for host in list(hosts)[:_MOST]]
