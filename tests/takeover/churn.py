"""Two pods and very many services that come and go, and what should be seen of them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pysidecar.registry.client import SETTLE_TIME
from tests.takeover.test_flow import CONSUMER, PROVIDER, Pod
from tests.waiting import eventually

HEARD = 2.0
"""Seconds after which a change has to have reached everybody."""


class Applications:
    """Servers that say their names, all in one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: set[asyncio.Server] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def start(self, name: str, port: int = 0) -> asyncio.Server:
        """On loopback."""
        server = asyncio.start_server(
            lambda reader, writer: _answer(name, reader, writer), "127.0.0.1", port
        )
        started = asyncio.run_coroutine_threadsafe(server, self._loop).result(10)
        self._servers.add(started)
        return started

    def stop(self, server: asyncio.Server) -> None:
        """Nobody listens there any more; who is connected stays so."""
        self._servers.discard(server)
        asyncio.run_coroutine_threadsafe(_close(server), self._loop).result(10)

    def close(self) -> None:
        """Ends all."""
        for server in list(self._servers):
            self.stop(server)
        asyncio.run_coroutine_threadsafe(_end_others(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _close(server: asyncio.Server) -> None:
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock)
    # What was accepted in this turn becomes a connection of a server that is open: with one that is
    # closed, asyncio (3.11) forgets it, unclosed.
    await asyncio.sleep(0)
    server.close()


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _answer(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            body = name.encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
        pass
    finally:
        writer.close()


@dataclass(slots=True)
class Provided:
    """A service at one pod. ``place`` keeps the port while nobody listens there."""

    place: socket.socket
    server: asyncio.Server | None = None
    published: bool = False

    @property
    def port(self) -> int:
        """The same for as long as the test runs."""
        return int(self.place.getsockname()[1])


def _place() -> socket.socket:
    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    # Only now: a server may listen there, and nobody else gets it from the kernel.
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return place


@dataclass(slots=True)
class Calls:
    """What became of requests."""

    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class World:
    """``step`` changes something at random, as long as the pods live; ``check`` looks whether both
    sidecars know of all that. Service 0 to 4 are provided by both pods and wanted all the time."""

    STEADY = 5

    def __init__(self, pods: Sequence[Pod], count: int, seed: int) -> None:
        self.pods = pods
        self.random = random.Random(seed)
        self.calls = Calls()
        self.disturbed = 0.0
        """When requests were last given a reason to fail; infinite: they are just now."""
        self.services = [f"service-{number}" for number in range(count)]
        self._applications = Applications()
        self._provided: dict[tuple[int, str], Provided] = {}
        self._wanted: set[tuple[int, str]] = set()
        self._changed = dict.fromkeys(self.services, 0.0)  # when it may have been missed last
        self._busy: set[str] = set()
        self._workers = ThreadPoolExecutor(8)
        self._done = threading.Event()
        self._callers: list[threading.Thread] = []
        for service in self.services[: self.STEADY]:
            for place in (0, 1):
                self._provide(place, service)
                self._want(place, service)

    # ---- changes ----

    def step(self) -> None:
        """One change, in another thread: an unpublish takes its time."""
        service = self.random.choice(self.services[self.STEADY :])
        place = self.random.randrange(2)
        what = self.random.choice((self._toggle, self._toggle, self._stumble, self._toggle_wanted))
        if service not in self._busy:
            self._busy.add(service)
            self._workers.submit(self._change, what, place, service)

    def _change(self, what: Any, place: int, service: str) -> None:
        try:
            what(place, service)
        except Exception as error:
            self.calls.wrong.append(f"{what.__name__} of {service}: {error!r}")
        finally:
            self._busy.discard(service)

    def settle(self) -> None:
        """Returns when no change is under way."""
        eventually(lambda: not self._busy)

    def _toggle(self, place: int, service: str) -> None:
        provided = self._provided.get((place, service))
        if provided is None or not provided.published:
            self._provide(place, service)
        else:
            self._leave(place, service)

    def _provide(self, place: int, service: str) -> None:
        provided = self._provided.get((place, service))
        if provided is None:
            provided = self._provided[place, service] = Provided(_place())
        self._listen(place, service, provided)
        self.pods[place].publish(service, provided.port)
        provided.published = True
        self._note_if_first(service)

    def _listen(self, place: int, service: str, provided: Provided) -> None:
        if provided.server is None:
            provided.server = self._applications.start(f"{service}@{place}", provided.port)

    def _leave(self, place: int, service: str) -> None:
        """In order: nobody notices who can call another one."""
        provided = self._provided[place, service]
        others = self._provided.get((1 - place, service))
        if not (others and others.published and others.server):
            self._changed[service] = float("inf")
        answer = self.pods[place].say(
            "/services/unpublish", serviceName=service, protocolType="http"
        )
        assert answer["success"], answer
        provided.published = False
        if provided.server is not None:
            self._applications.stop(provided.server)
            provided.server = None

    def _stumble(self, place: int, service: str) -> None:
        """It stops without a word, or is back."""
        provided = self._provided.get((place, service))
        if provided is None:
            return
        if provided.server is None:
            self._listen(place, service, provided)
            self._note_if_first(service)
            return
        self._changed[service] = float("inf")
        self._applications.stop(provided.server)
        provided.server = None
        others = self._provided.get((1 - place, service))
        if others and others.published and others.server:
            self._changed[service] = time.monotonic()

    def _note_if_first(self, service: str) -> None:
        if self._changed[service] == float("inf"):
            self._changed[service] = time.monotonic()

    def _toggle_wanted(self, place: int, service: str) -> None:
        if (place, service) in self._wanted:
            self._wanted.discard((place, service))
            self._changed[service] = float("inf")
            body = {"serviceName": service, "protocolType": "http"}
            assert self.pods[place].say("/services/unsubscribe", **body)["success"]
            self._changed[service] = time.monotonic()
        else:
            self._want(place, service)

    def _want(self, place: int, service: str) -> None:
        self._changed[service] = max(self._changed[service], time.monotonic())
        self.pods[place].subscribe(service)
        self._wanted.add((place, service))

    # ---- requests ----

    def start_calls(self, threads: int = 3) -> None:
        """Until ``close``."""
        for number in range(threads):
            caller = threading.Thread(target=self._call, args=(number,))
            self._callers.append(caller)
            caller.start()

    def _call(self, number: int) -> None:
        choose = random.Random(number)
        while not self._done.is_set():
            wanted = [each for each in list(self._wanted) if choose.random() < 0.3]
            place, service = wanted[0] if wanted else (0, self.services[0])
            self._call_once(place, service)

    def _call_once(self, place: int, service: str) -> None:
        began, before = time.monotonic(), self._changed[service]
        expected = (
            (place, service) in self._wanted
            and any(
                each.published and each.server
                for each in (self._provided.get((at, service)) for at in (0, 1))
                if each
            )
            and began - before > 3 * HEARD
            and began - self.disturbed > SETTLE_TIME + 3 * HEARD
        )
        try:
            status, text = _get(self.pods[place].host, service)
        except OSError as error:
            status, text = 0, repr(error)
        if status == 200:
            self.calls.answered += 1
            if text.partition("@")[0] != service:
                self.calls.wrong.append(f"{service} was answered by {text}")
        elif expected and self._changed[service] == before and self.disturbed < began:
            self.calls.failed.append(f"{service} at {place}: {status} {text}")

    # ---- what should be seen ----

    def differences(self, *, missing: bool = False) -> list[str]:
        """Between what both sidecars know and what is true. ``missing``: only what should be known
        or registered and is not, whatever there is beside."""
        return [text for text, is_missing in self._differences() if is_missing or not missing]

    def _differences(self) -> Iterator[tuple[str, bool]]:
        for place, pod in enumerate(self.pods):
            seen = {
                (each["role"], each["service"]): each
                for each in pod.sidecar.admin_json("/services")
            }
            for service in self.services:
                is_published, is_listening = self._is_provided(place, service)
                entry = seen.get(("published", service))
                if (entry is not None) != is_published:
                    yield f"{place}: {service} is published: {entry}", is_published
                elif entry and (entry["registered"], entry["publications"][0]["listens"]) != (
                    is_listening,
                    is_listening,
                ):
                    yield f"{place}: {service} is to be {is_listening}: {entry}", is_listening
                endpoints = seen.get(("subscribed", service), {}).get("endpoints")
                addresses = None if endpoints is None else {each["address"] for each in endpoints}
                expected = self._expected(place, service)
                if addresses != expected:
                    text = f"{place}: {service} has {addresses} and not {expected}"
                    yield text, not (expected or set()) <= (addresses or set())

    def _is_provided(self, place: int, service: str) -> tuple[bool, bool]:
        provided = self._provided.get((place, service))
        published = provided is not None and provided.published
        return published, bool(published and provided and provided.server)

    def _expected(self, place: int, service: str) -> set[str] | None:
        if (place, service) not in self._wanted:
            return None
        expected = set()
        for at, pod in enumerate(self.pods):
            if self._is_provided(at, service)[1]:
                own = f"127.0.0.1:{self._provided[at, service].port}"
                expected.add(own if at == place else f"{pod.host}:{PROVIDER}")
        return expected

    def check(self, patience: float) -> None:
        """Both know everything, sooner or later; and requests were answered as they should."""
        self.settle()
        eventually(lambda: not self.differences(), lambda: "\n".join(self.differences()), patience)
        assert not self.calls.wrong, self.calls.wrong
        assert not self.calls.failed, self.calls.failed

    def check_back(self, patience: float) -> None:
        """All that should be known and registered is, by then; what is gone may be there yet."""
        self.settle()
        eventually(
            lambda: not self.differences(missing=True),
            lambda: "\n".join(self.differences(missing=True)),
            patience,
        )

    def close(self) -> None:
        """Ends all."""
        self._done.set()
        for each in self._callers:
            each.join()
        self._workers.shutdown()
        for provided in self._provided.values():
            provided.place.close()
        self._applications.close()


def _get(host: str, service: str) -> tuple[int, str]:
    client = http.client.HTTPConnection(host, CONSUMER, timeout=10)
    try:
        client.request("GET", "/", headers={"Host": service})
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    except http.client.HTTPException as error:
        raise OSError(repr(error)) from None
    finally:
        client.close()


@contextlib.contextmanager
def world(pods: Sequence[Pod], count: int, seed: int) -> Iterator[World]:
    """Closed at the end."""
    made = World(pods, count, seed)
    try:
        yield made
    finally:
        made.close()
