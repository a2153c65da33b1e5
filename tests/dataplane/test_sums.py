"""What the control plane reads of services and their endpoints."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from itertools import chain

from pysidecar.address import Address
from pysidecar.config import Config
from pysidecar.dataplane import DataPlane, Listener, Protocol, Timeouts, Transport
from pysidecar.routing.services import ServiceNumbers, pack_services
from tests.dataplane.support import Server, closed_address, tcp_address
from tests.waiting import PATIENCE, eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def set_services(data: DataPlane, numbers: ServiceNumbers, *endpoints: Sequence[object]) -> None:
    """``s0``, ``s1`` and so on; the listener is for the last one."""
    services = {
        f"s{index}": {"protocol": "http", "endpoints": each} for index, each in enumerate(endpoints)
    }
    listen = Address("127.0.0.1", 1)
    listeners = [{"listen": str(listen), "protocol": "http", "service": f"s{len(endpoints) - 1}"}]
    config = Config.model_validate({"services": services, "listeners": listeners})
    data.set_services(pack_services(config, numbers, [listen]))


def test_very_many_services_are_read_in_the_order_of_their_table() -> None:
    data = DataPlane(workers=2, timeouts=Timeouts())
    assert list(chain(*data.services())) == []
    assert list(chain(*data.endpoints())) == []
    unused: list[Sequence[object]] = [[]] * 3000
    set_services(data, ServiceNumbers(), *unused, ["10.0.0.1:80", "[fd00::1]:80"])
    found = list(chain(*data.services()))
    assert [each.name for each in found] == [f"s{index}" for index in range(3001)]
    assert len({each.number for each in found}) == 3001
    assert {each.protocol for each in found} == {Protocol.HTTP}
    endpoints = list(chain(*data.endpoints()))
    assert [each.address for each in endpoints] == [
        Address("10.0.0.1", 80),
        Address("fd00::1", 80),
    ]
    assert {each.service for each in endpoints} == {found[-1].number}
    assert list(chain(*data.services(only_used=True))) == []
    assert list(chain(*data.endpoints(only_used=True))) == []
    data.close()


def test_those_that_are_used_are_found_among_very_many(server: Server) -> None:
    """And what is known of them outlives a change of the others."""
    data = DataPlane(workers=2, timeouts=Timeouts())
    numbers = ServiceNumbers()
    unused: list[Sequence[object]] = [["10.0.0.1:80"]] * 3000
    dead = closed_address()
    used: Sequence[object] = [str(server.address), {"address": str(dead), "weight": 3}]
    set_services(data, numbers, *unused, used)
    listener = socket.create_server(("127.0.0.1", 0))
    address = tcp_address(listener)
    data.add_listener(listener, Listener(Transport.LISTENER))
    data.start()
    with socket.create_connection((address.host, address.port), PATIENCE) as client:
        upstream: socket.socket | None = None
        for _ in range(4):  # the dead endpoint has its turn
            client.sendall(GET)
            upstream = upstream or server.accept()
            request = b""
            while b"\r\n\r\n" not in request:
                request += upstream.recv(65536)
            upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
    eventually(lambda: [each.tally.active for each in chain(*data.services(only_used=True))] == [0])
    for _ in range(2):
        [service] = chain(*data.services(only_used=True))
        assert (service.name, service.tally.requests) == ("s3000", 4)
        assert service.tally.statuses[2] == 4
        assert service.tally.attempts > 4
        alive, refusing = chain(*data.endpoints(only_used=True))
        assert (alive.address, alive.weight, alive.ejected) == (server.address, 1, False)
        assert (alive.tally.requests, alive.tally.connections) == (4, 1)
        assert (refusing.address, refusing.weight, refusing.ejected) == (dead, 3, True)
        assert refusing.tally.requests == 0
        set_services(data, numbers, *[["10.0.0.2:80"]] * 3000, used)
    start = time.process_time()
    for _ in range(10):
        list(chain(*data.services(only_used=True), *data.endpoints(only_used=True)))
    assert time.process_time() - start < 1, "those that are not used cost next to nothing"
    data.stop()
    data.close()
