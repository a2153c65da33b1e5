"""Work beside the event loop, which goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

__all__ = ["in_background", "release", "spare_collections", "without_collector"]

T = TypeVar("T")

_SWITCH_INTERVAL = 0.0005  # seconds, ten times as often as usual
_RELEASED_AT_ONCE = 200
_YOUNG = 10_000  # objects more than before, at which the collector looks at the youngest
_OLDER = (10, 20)  # looks at the youngest for one at older ones, and likewise at all


_before: list[float] = []
"""The interval between switches that counts again when the last one ends; one entry for each."""


@contextlib.contextmanager
def _handing_over_often() -> Iterator[None]:
    """In the event loop, where several may overlap."""
    _before.append(_before[0] if _before else sys.getswitchinterval())
    sys.setswitchinterval(min(_before[0], _SWITCH_INTERVAL))
    try:
        yield
    finally:
        before = _before.pop()
        if not _before:
            sys.setswitchinterval(before)


async def in_background(work: Callable[[], T]) -> T:
    """Does it in a thread that hands the interpreter over often, so that the loop answers at once.

    Nobody waits for the thread when the process ends, or when this call is cancelled.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(act: Callable[[], None]) -> None:
        if not future.done():
            act()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            outcome = error
            act: Callable[[], None] = lambda: future.set_exception(outcome)  # noqa: E731
        else:
            act = lambda: future.set_result(result)  # noqa: E731
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, act)

    with _handing_over_often():
        threading.Thread(target=run, name="background", daemon=True).start()
        return await future


def spare_collections() -> None:
    """Has the garbage collector look at all objects far less often than by default: each such look
    stops all threads, for a tenth of a second where a registry tells of 100,000 instances, and
    what it would find are few cycles, of exceptions and connections."""
    gc.set_threshold(_YOUNG, *_OLDER)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """For what makes very many objects without cycles, such as reading a configuration. What there
    is afterwards the garbage collector never looks at again: each look would stop all threads."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def release(items: list[object]) -> None:
    """Empties the list a little at a time: freeing very many objects at once would stop all
    threads. Expects to have the only references to them."""
    while items:
        del items[-_RELEASED_AT_ONCE:]
        time.sleep(0)
