"""Whether a sidecar goes on while somebody is hostile: for its applications, and for itself."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil

from tests.takeover.test_flow import CONSUMER, Pod


@dataclass
class Watched:
    """What was seen while it was watched."""

    answered: int = 0
    failed: list[object] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    """Seconds for which the control plane did not answer."""

    resident: list[int] = field(default_factory=list)
    """Bytes, now and then."""

    @property
    def longest_pause(self) -> float:
        return max(self.pauses)


@contextlib.contextmanager
def watching(pod: Pod, service: str) -> Iterator[Watched]:
    """Calls that service, one call after the other, and asks the control plane meanwhile."""
    seen, done = Watched(), threading.Event()
    process = psutil.Process(pod.sidecar.pid)

    def call() -> None:
        client = http.client.HTTPConnection(pod.host, CONSUMER, timeout=20)
        while not done.is_set():
            try:
                client.request("GET", "/", headers={"Host": service})
                answer = client.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                seen.failed.append(error)
                client.close()
                continue
            if answer.status == 200:
                seen.answered += 1
            else:
                seen.failed.append((answer.status, answer.getheader("x-sidecar-reason")))
        client.close()

    def ask() -> None:
        admin = http.client.HTTPConnection(
            pod.sidecar.admin.host, pod.sidecar.admin.port, timeout=20
        )
        while not done.wait(0.01):
            began = time.monotonic()
            admin.request("GET", "/ready")
            admin.getresponse().read()
            seen.pauses.append(time.monotonic() - began)
            seen.resident.append(process.memory_info().rss)
        admin.close()

    with _threads(call, ask):
        try:
            yield seen
        finally:
            done.set()


@contextlib.contextmanager
def _threads(*works: Callable[[], None]) -> Iterator[None]:
    """Which have ended afterwards; the first error in one is raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
