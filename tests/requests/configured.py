"""A data plane whose services and rules are written as in a configuration."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from pysidecar.config import parse
from pysidecar.dataplane import (
    DataPlane,
    Listener,
    RequestRecord,
    ServiceSums,
    Timeouts,
    Transport,
)
from pysidecar.routing.services import ServiceNumbers, pack_services
from tests.dataplane.support import Plane, tcp_address
from tests.waiting import PATIENCE, eventually


class Configured(Plane):
    """With a listener for each port that the configuration's ``listeners`` name, which do not
    count: other ones are taken."""

    def __init__(self, text: str, *, workers: int = 2, timeouts: Timeouts | None = None) -> None:
        self.numbers = ServiceNumbers()

        def before_start(data: DataPlane) -> None:
            listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
            listener.setblocking(False)
            self.address = tcp_address(listener)
            data.add_listener(listener, Listener(Transport.LISTENER))
            self._set(data, text)

        super().__init__(workers=workers, timeouts=timeouts, before_start=before_start)

    def _set(self, data: DataPlane, text: str) -> None:
        data.set_services(pack_services(parse(text), self.numbers))

    def reload(self, text: str) -> None:
        """Another configuration."""
        self._set(self.data, text)

    def client(self) -> socket.socket:
        """A connection to the listener."""
        client = self.owned(socket.create_connection((self.address.host, self.address.port)))
        client.settimeout(PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def service(self, name: str) -> ServiceSums:
        """What its requests add up to."""
        [found] = [each for piece in self.data.services() for each in piece if each.name == name]
        return found

    def flags(self, name: str) -> dict[str, int]:
        """How many of its requests had each."""
        return {flag.name.lower(): n for flag, n in self.service(name).tally.flags.items()}

    def records(self) -> Iterator[RequestRecord]:
        """The latest requests that ended, the latest first."""
        for piece in self.data.recent_requests():
            yield from piece

    def next_record(self) -> RequestRecord:
        """The latest one, once there is one."""
        return eventually(lambda: next(self.records(), None), "an ended request")

    def is_quiet(self) -> bool:
        """Whether nothing is under way any more."""
        return all(
            each.tally.active == each.tally.pending == each.retries == 0
            for piece in self.data.services()
            for each in piece
        )

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self._running:
            eventually(self.is_quiet, "nothing under way")
        super().close()


def flag_names(record: RequestRecord) -> set[str]:
    """As the log writes them."""
    return {flag.name.lower() for flag in record.flags}
