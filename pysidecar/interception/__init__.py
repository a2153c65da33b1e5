"""Ways of getting an application's traffic here: one module a way, behind one interface."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pysidecar.address import Address

if TYPE_CHECKING:  # `pysidecar exec` needs none of them
    from pysidecar.config import Config
    from pysidecar.dataplane import DataPlane
    from pysidecar.interception.rules import Ruleset

__all__ = ["Interception"]


class Interception(abc.ABC):
    """One way. Its life: ``open``, ``attach``, ``serve``, any number of ``apply``, ``drain``,
    ``close``. Whatever ``open`` made, ``close`` removes, however far the start came."""

    @abc.abstractmethod
    def open(self) -> None:
        """Takes the addresses and files that it needs. Raises StartError with what is in the
        way."""

    @abc.abstractmethod
    def attach(self, data_plane: DataPlane) -> None:
        """Gives the listeners to a data plane that is not started yet."""

    @property
    @abc.abstractmethod
    def own_addresses(self) -> Sequence[Address]:
        """Where this way listens: as an original destination they would be a loop."""

    @abc.abstractmethod
    def serve(self, also_own: Sequence[Address]) -> None:
        """The data plane accepts: lets traffic come. ``also_own`` are the sidecar's other
        listeners, which are never captured. Raises StartError."""

    @property
    def ruleset(self) -> Ruleset | None:
        """What it needs in the kernel, if anything; ``pysidecar.interception.rules`` shows, applies
        and deletes it."""
        return None

    def check(self, config: Config) -> None:  # noqa: B027
        """Raises ValueError when ``apply`` could not take this configuration. In any thread, and
        before each ``apply``: what takes time is done here."""

    @abc.abstractmethod
    async def apply(self, config: Config) -> None:
        """A changed configuration takes effect. Raises StartError when it cannot, nothing having
        changed."""

    @abc.abstractmethod
    def drain(self) -> None:
        """Lets no new traffic come."""

    @abc.abstractmethod
    def close(self) -> None:
        """Removes everything. After a kill in the middle the next ``open`` copes with the rest."""

    @property
    @abc.abstractmethod
    def description(self) -> Sequence[str]:
        """For people: where it listens, a line each."""
