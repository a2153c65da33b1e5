"""The mesh API over a table, served by another thread, so that clients may block."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol, TypeVar

import uvloop

from pysidecar.address import Address
from pysidecar.config import Takeover
from pysidecar.takeover.api import MeshApi
from pysidecar.takeover.table import ServiceTable
from tests.waiting import PATIENCE

T = TypeVar("T")


class Api(Protocol):
    """What is served."""

    address: Address

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Served:
    """One that runs."""

    def __init__(self, table: ServiceTable, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        self.table = table
        self.api = api
        self.address = api.address
        self._loop = loop

    def call(self, act: Callable[[], T]) -> T:
        """In the thread that has the table."""

        async def run() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE)

    def post(self, path: str, body: object) -> dict[str, Any]:
        """On a connection of its own; bytes are sent as they are."""
        with closing(self.connect()) as connection:
            return post(connection, path, body)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address.host, self.address.port, timeout=PATIENCE)

    def socket(self) -> socket.socket:
        return socket.create_connection((self.address.host, self.address.port), PATIENCE)

    def exchange(self, request: bytes) -> bytes:
        """All that is answered to these bytes, until the end."""
        with self.socket() as client:
            client.sendall(request)
            received = b""
            while data := client.recv(65536):
                received += data
        return received


def post(connection: http.client.HTTPConnection, path: str, body: object) -> dict[str, Any]:
    """Its answer, of status 200."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "text/plain"})
    response = connection.getresponse()
    text = response.read()
    assert response.status == 200, text
    answer: dict[str, Any] = json.loads(text)
    return answer


def make_mesh_api(table: ServiceTable, listener: socket.socket) -> MeshApi:
    return MeshApi(table, Takeover(), listener, own_ports=[20881])


@contextmanager
def serving_api(
    make: Callable[[ServiceTable, socket.socket], Api] = make_mesh_api,
) -> Iterator[Served]:
    """A table that no registry knows, behind an API."""
    ready = threading.Event()
    served: list[Served] = []
    ends: list[asyncio.Event] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        table = ServiceTable()
        api = make(table, socket.create_server(("127.0.0.1", 0), backlog=1024))
        await api.start()
        served.append(Served(table, api, loop))
        ends.append(asyncio.Event())
        ready.set()
        await ends[0].wait()
        await api.stop()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield served[0]
    finally:
        served[0].call(ends[0].set)
        thread.join(PATIENCE)
        assert not thread.is_alive()
