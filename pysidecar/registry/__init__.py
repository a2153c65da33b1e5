"""Registries: one module a kind, behind one interface, and imported only where it is used.

A module has one ``Session``, which is a single connection to the registry, and one ``Registry``,
which opens it. What is to be registered and watched, retries, and what becomes of endpoints
while a registry is away, is the same for all of them: ``pysidecar.registry.client``.
"""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pysidecar.errors import StartError
from pysidecar.registry.service import Instance, Registration, ServiceKey

if TYPE_CHECKING:
    from pysidecar.config import RegistryEntry

__all__ = ["Pushed", "Registry", "RegistryError", "Session", "make_registry"]

Pushed = Callable[[ServiceKey, Sequence[Instance]], None]
"""Told of all instances of a service, each time that they change, and once after ``subscribe``
even if there is none. Never blocks and never raises."""

MAX_INSTANCES = 20_000
"""Of one service; a registry that tells of more is cut there, with a warning."""

MAX_ALL_INSTANCES = 200_000
"""Of all services together."""

MAX_ALL_CHARACTERS = 32 << 20
"""In what all of them say beside their addresses: zones and metadata."""


class RegistryError(Exception):
    """What went wrong between us and a registry, for people. Never holds a secret."""


class Session(abc.ABC):
    """One connection to a registry, in the sidecar's event loop, which nothing here blocks.

    Each coroutine raises RegistryError: when the session is lost, then ``closed`` returns, too;
    else only that call failed (an argument that this registry cannot take), and it goes on.
    All that was registered by it goes away with it, at the latest after the registry's own timeout.
    """

    @abc.abstractmethod
    async def register(self, registration: Registration) -> None:
        """Returns when the registry has taken it. One of the same service and address replaces
        what was registered before, without a gap."""

    @abc.abstractmethod
    async def unregister(self, registration: Registration) -> None:
        """Returns when the registry has removed it; one that is not there is no error."""

    @abc.abstractmethod
    async def subscribe(self, service: ServiceKey) -> None:
        """From here on the instances of that service are pushed."""

    @abc.abstractmethod
    async def unsubscribe(self, service: ServiceKey) -> None:
        """They are not pushed any more."""

    @abc.abstractmethod
    async def closed(self) -> str:
        """Returns when the session is lost: why, for people."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Ends it, and so what it registered, at once where the registry can. Never raises."""


class Registry(abc.ABC):
    """One kind of registry, as it is configured."""

    spread = 0.5
    """Seconds after which others have heard of a change that the registry has taken."""

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """For people, without secrets: such as ``zookeeper at 10.0.0.5:2181``."""

    @abc.abstractmethod
    async def open(self, pushed: Pushed) -> Session:
        """A new session, within 5 seconds. Raises RegistryError."""


_MODULES = {
    "embedded": "pysidecar.registry.embedded",
    "sofaregistry": "pysidecar.registry.sofaregistry",
    "zookeeper": "pysidecar.registry.zookeeper",
    "etcd": "pysidecar.registry.etcd",
}
"""Each has a function ``make(entry)``. A new registry is a module, a line here and its settings in
``pysidecar.config.takeover``."""


def make_registry(entry: RegistryEntry) -> Registry:
    """Raises StartError where a package is missing that this kind needs."""
    try:
        module = importlib.import_module(_MODULES[entry.type])
    except ModuleNotFoundError as error:
        raise StartError(
            f"registry.type {entry.type} needs the package {error.name}: "
            f"pip install 'pysidecar[{entry.type}]'"
        ) from None
    registry: Registry = module.make(entry)
    return registry
