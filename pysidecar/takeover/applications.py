"""What the applications of this host say, in whichever form: checked, and put into the table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field

from pysidecar.address import Address
from pysidecar.config import Takeover
from pysidecar.registry.service import ServiceKey
from pysidecar.sock_diag import ListeningSocket, listening_sockets
from pysidecar.takeover.bodies import BodyError
from pysidecar.takeover.table import Publication, ServiceTable

__all__ = ["Applications", "Offer", "Unpublish", "is_owner"]


Unpublish = Callable[[ServiceKey, int], Awaitable[None]]
"""Takes away what that user published of a service, as ``ServiceTable.unpublish``, and returns when
the application may hear that it is done. Raises TableError."""

_LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Offer:
    """A service, as an application says that it provides it. Its port is missing where the
    configuration has it."""

    service: ServiceKey
    port: int | None
    application: str = ""
    weight: int = 100
    warmup: float = 0.0
    started: float = 0.0
    metadata: dict[str, str] = field(default_factory=dict)


class Applications:
    """``own_ports`` are those of the sidecar: a service there would be called in a loop."""

    def __init__(
        self,
        table: ServiceTable,
        settings: Takeover,
        own_ports: Collection[int],
        unpublish: Unpublish | None,
    ) -> None:
        self._table = table
        self._unpublish = unpublish
        self._ports = settings.ports
        self._own_ports = own_ports

    def publish(self, offer: Offer, uid: int) -> None:
        """Raises BodyError and TableError."""
        port = self._port(offer)
        address, alive = _where(port, uid)
        publication = Publication(
            offer.service,
            address,
            uid,
            offer.application,
            offer.weight,
            offer.warmup,
            offer.started,
            tuple(sorted(offer.metadata.items())),
            alive,
        )
        self._table.publish(publication)
        if alive:
            self._forget_before(publication)

    def _forget_before(self, publication: Publication) -> None:
        """An application that started again at another port: what was at the one of before."""
        for each in self._table.published_of(publication.service):
            if each.uid == publication.uid and not each.alive:
                self._table.forget(each)

    async def unpublish(self, service: ServiceKey, uid: int) -> None:
        """It is no error that there is nothing: so it should be. Raises TableError."""
        if self._unpublish is not None:
            await self._unpublish(service, uid)
        else:
            self._table.unpublish(service, uid)

    def _port(self, offer: Offer) -> int:
        protocol = offer.service.protocol
        port = offer.port or self._ports.get(protocol)
        if port is None:
            raise BodyError(
                "port: expected a number from 1 to 65535, since takeover.application_ports has "
                f"none for {protocol}"
            )
        if port in self._own_ports:
            raise BodyError(f"port: expected an application's own, but {port} is the sidecar's")
        return port


def _where(port: int, uid: int) -> tuple[Address, bool]:
    """Where the user's application listens on a port, and whether it does already. Raises BodyError
    where it is somebody else's."""
    try:
        listening = listening_sockets({port})
    except OSError:  # the kernel does not say: whoever listens is taken for who says so
        return Address(_LOOPBACK[0], port), True
    hosts = dict.fromkeys([*_LOOPBACK, *(each.address.host for each in listening)])
    addresses = [Address(host, port) for host in hosts if host not in ("0.0.0.0", "::")]
    for address in addresses:
        if is_owner(uid, address, listening):
            return address, True
    if listening:
        others = ", ".join(str(each) for each in sorted({each.uid for each in listening}))
        raise BodyError(f"port: expected one of user {uid}, but {port} is of user {others}")
    return addresses[0], False


def is_owner(uid: int, address: Address, listening: Iterable[ListeningSocket]) -> bool:
    """Whether a connection to that address reaches a process of that user; of root and the
    configuration, whose uid is below 0: any process."""
    found = [each for each in listening if each.accepts(address)]
    if uid <= 0 or not found:
        return bool(found)
    best = max(each.rank for each in found)
    return all(each.uid == uid for each in found if each.rank == best)
