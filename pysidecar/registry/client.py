"""What is the same for every registry: what we want of it, and that it comes about."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from pysidecar.address import Address
from pysidecar.registry import Pushed, Registry, RegistryError, Session
from pysidecar.registry.known import Known
from pysidecar.registry.service import Instance, Registration, ServiceKey
from pysidecar.text import printable

__all__ = ["RegistryClient"]

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.1  # seconds until something that failed is tried again
LONGEST_PAUSE: Final = 3.0  # seconds; all has to be back within 10 of the registry's return
MOST_CALLS: Final = 64
"""At a time: more do not make a registry faster, and one that is slow is not buried."""
CALL_TIMEOUT: Final = 10.0  # seconds; a session notices by itself, and earlier, that it is lost
OPEN_TIMEOUT: Final = 6.0  # seconds: what a session may take, and a little
CLOSE_TIMEOUT: Final = 3.0  # seconds
SETTLE_TIME: Final = 10.0
"""Seconds of a new session in which an instance that was there before and is not now is kept: a
registry that restarted with nothing has it again when its own sidecar is back, which takes no
longer."""
_SURE: Final = 1.0  # seconds that a session without a successful call lasts until the log says so
_COMPLAINT_PAUSE: Final = 10.0  # seconds from one line about failed calls to the next
_MOST_WORDS: Final = 300  # characters of a reason

_Place = tuple[ServiceKey, Address]
_Key = _Place | ServiceKey
"""Of what is wanted: a registration's place, or the service of a subscription."""


@dataclass(slots=True)
class _Backoff:
    """How long to wait after each of several failures."""

    failures: int = 0

    def next(self) -> float:
        longest = min(FIRST_PAUSE * 2.0**self.failures, LONGEST_PAUSE)
        self.failures = min(self.failures + 1, 16)
        return random.uniform(longest / 2, longest)  # not all of a registry's clients at once


class RegistryClient:
    """Keeps what we want registered and watched, and brings it about by one session after the
    other: whatever fails is tried again, and after each return of the registry all of it is said
    anew. No call here waits or fails.

    ``pushed`` is told of at most MAX_INSTANCES of a service, and of so many of all services as
    there is room for, each address once, without ports and weights that cannot be. While the
    registry is away it is told nothing: what it was told before counts, and in the first
    SETTLE_TIME of the next session nothing is taken from that, except what this session told of
    before.
    """

    def __init__(self, registry: Registry, pushed: Pushed) -> None:
        self._registry = registry
        self._known = Known(pushed)
        self._wanted: dict[_Place, Registration] = {}
        self._watched: dict[ServiceKey, None] = {}
        self._session: Session | None = None
        self._said: dict[_Place, Registration] = {}
        """What the registry may have of us, be it by a session that is lost: it is removed by the
        next one where it is wanted no more."""
        self._taken: dict[_Place, Registration] = {}  # in this session
        self._watching: dict[ServiceKey, bool | None] = {}  # in this session; None: not certain
        self._due: OrderedDict[_Key, None] = OrderedDict()
        self._calls: dict[_Key, asyncio.Task[None]] = {}
        self._changed: set[_Key] = set()  # while a call of it is under way
        self._again: dict[_Key, asyncio.TimerHandle] = {}
        self._backoffs: dict[_Key, _Backoff] = {}
        self._removal = asyncio.Event()  # set and replaced when the registry has removed one
        self._running: asyncio.Task[None] | None = None
        self._words = _Words(registry.description)

    # ---- what is wanted ----

    def start(self) -> None:
        """Begins to connect, in the running event loop."""
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Takes everything back that was registered, for at most some seconds, and ends."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
        self._words.state = "stopped"

    def register(self, registration: Registration) -> None:
        """One of the same service and address replaces it."""
        place = _place(registration)
        self._wanted[place] = registration
        self._look_at(place)

    def unregister(self, registration: Registration) -> None:
        """Nothing is wanted any more of that service at that address."""
        place = _place(registration)
        self._wanted.pop(place, None)
        self._look_at(place)

    async def unregistered(self, registrations: Sequence[Registration], timeout: float) -> None:
        """Unregisters those, and returns when the registry has removed them, or after ``timeout``
        seconds."""
        for registration in registrations:
            self.unregister(registration)
        places = {_place(registration) for registration in registrations}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while any(place in self._said and place not in self._wanted for place in places):
                    await self._removal.wait()

    def subscribe(self, service: ServiceKey, known: Sequence[Instance] = ()) -> None:
        """It is pushed from here on. ``known`` is what a process before this one was told last, and
        treated as if this one had been: it is not pushed for that."""
        if service in self._watched:
            return
        self._watched[service] = None
        self._known.add(service, known)
        self._look_at(service)

    def unsubscribe(self, service: ServiceKey) -> None:
        """Not any more."""
        if service in self._watched:
            del self._watched[service]
            self._known.remove(service)
            self._look_at(service)

    @property
    def state(self) -> str:
        """For people: ``connected``, or why not."""
        return self._words.state

    @property
    def instances(self) -> int:
        """Of all services together."""
        return self._known.count

    @property
    def cut(self) -> int:
        """Services of which the registry tells of more instances than are kept."""
        return self._known.cut

    def is_cut(self, service: ServiceKey) -> bool:
        """Whether it is one of those."""
        return self._known.is_cut(service)

    def is_registered(self, registration: Registration) -> bool:
        """Whether the registry has taken it, in the session that there is now."""
        return self._taken.get(_place(registration)) == registration

    # ---- sessions ----

    async def _run(self) -> None:
        backoff = _Backoff()
        while True:
            began = asyncio.get_running_loop().time()
            reason = await self._serve_session()
            self._words.away(reason)
            if asyncio.get_running_loop().time() - began > LONGEST_PAUSE:
                backoff = _Backoff()
            await asyncio.sleep(backoff.next())

    async def _serve_session(self) -> str:
        """From the attempt to connect until it is lost: why."""
        opened: list[Session] = []

        def pushed(service: ServiceKey, instances: Sequence[Instance]) -> None:
            if opened and opened[0] is self._session and service in self._watched:
                self._known.push(service, instances)

        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                session = await self._registry.open(pushed)
        except TimeoutError:
            return f"no answer within {OPEN_TIMEOUT:g} s"
        except RegistryError as error:
            return str(error)
        except Exception as error:
            return _mistake(error)
        opened.append(session)
        try:
            self._begin(session)
            return await session.closed()
        except Exception as error:
            return _mistake(error)
        finally:
            await self._end(session)

    def _begin(self, session: Session) -> None:
        self._session = session
        loop = asyncio.get_running_loop()
        self._known.begin(loop.time() + SETTLE_TIME)
        self._words.connected(loop)
        keys: list[_Key] = [*self._said, *self._wanted, *self._watched]
        for key in keys:
            self._look_at(key)

    async def _end(self, session: Session) -> None:
        self._session = None
        self._known.end()
        self._words.lost()
        for timer in self._again.values():
            timer.cancel()
        for call in self._calls.values():
            call.cancel()
        for pending in (self._again, self._calls, self._changed, self._due, self._backoffs):
            pending.clear()
        self._taken.clear()
        self._watching.clear()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await session.close()

    # ---- calls ----

    def _look_at(self, key: _Key) -> None:
        """Makes a call of it as soon as there is room for one, if it needs any."""
        if self._session is None:
            return
        if (timer := self._again.pop(key, None)) is not None:
            timer.cancel()
        if key in self._calls:
            self._changed.add(key)
        elif self._is_due(key):
            self._due[key] = None
            self._make_calls()
        else:  # who changes their mind before a slow registry was asked leaves nothing behind
            self._due.pop(key, None)

    def _is_due(self, key: _Key) -> bool:
        """Whether the registry does not have what is wanted."""
        if isinstance(key, ServiceKey):
            return self._watching.get(key, False) is not (key in self._watched)
        wanted = self._wanted.get(key)
        return key in self._said if wanted is None else self._taken.get(key) != wanted

    def _make_calls(self) -> None:
        while self._due and len(self._calls) < MOST_CALLS:
            key, _ = self._due.popitem(last=False)
            call = self._next_call(key)
            if call is not None:
                task = asyncio.get_running_loop().create_task(self._make(key, call))
                self._calls[key] = task

    def _next_call(self, key: _Key) -> Callable[[], Awaitable[None]] | None:
        """What has to be done next, so that the registry has what is wanted."""
        assert self._session is not None
        if not self._is_due(key):
            return None
        if isinstance(key, ServiceKey):
            return partial(self._watch, self._session, key, key in self._watched)
        wanted = self._wanted.get(key)
        if wanted is None:
            return partial(self._unregister, self._session, self._said[key])
        self._said[key] = wanted
        return partial(self._register, self._session, wanted)

    async def _make(self, key: _Key, call: Callable[[], Awaitable[None]]) -> None:
        session = self._session
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                await call()
        except TimeoutError:
            problem = f"no answer within {CALL_TIMEOUT:g} s"
        except RegistryError as error:
            problem = str(error)
        except Exception as error:
            problem = _mistake(error)
        else:
            problem = ""
        if session is not self._session:
            return  # it was cancelled meanwhile, and did not care
        del self._calls[key]
        changed = key in self._changed
        self._changed.discard(key)
        if problem and not changed:
            pause = self._backoffs.setdefault(key, _Backoff()).next()
            loop = asyncio.get_running_loop()
            self._again[key] = loop.call_later(pause, self._try_again, key, problem)
        else:
            self._backoffs.pop(key, None)
        if not problem:
            self._words.succeeded()
        if changed:
            self._due[key] = None
        self._make_calls()

    def _try_again(self, key: _Key, problem: str) -> None:
        """The session is still there, so that call alone failed: the log says it now."""
        self._words.failed(key if isinstance(key, ServiceKey) else key[0], problem)
        self._look_at(key)

    async def _register(self, session: Session, wanted: Registration) -> None:
        place = _place(wanted)
        self._taken.pop(place, None)
        await session.register(wanted)
        if session is self._session:
            self._taken[place] = wanted

    async def _unregister(self, session: Session, said: Registration) -> None:
        place = _place(said)
        self._taken.pop(place, None)
        await session.unregister(said)
        if session is self._session:
            del self._said[place]
            self._removal.set()
            self._removal = asyncio.Event()

    async def _watch(self, session: Session, service: ServiceKey, wanted: bool) -> None:
        self._watching[service] = None
        await (session.subscribe if wanted else session.unsubscribe)(service)
        if session is not self._session:
            return
        if wanted:
            self._watching[service] = True
        else:
            del self._watching[service]


class _Words:
    """What the log says of the registry: once that it is away and why, once that it is back."""

    def __init__(self, description: str) -> None:
        self.state = "connecting"
        self._description = description
        self._told_away = False
        self._told_connected = False
        self._timer: asyncio.TimerHandle | None = None
        self._next_complaint = 0.0
        self._silent = 0

    def connected(self, loop: asyncio.AbstractEventLoop) -> None:
        self.state = "connected"
        self._timer = loop.call_later(_SURE, self.succeeded)

    def succeeded(self) -> None:
        """The session is of use, and not only open."""
        if self._told_connected:
            return
        self._told_connected = True
        log.info("%s is %s", self._description, "back" if self._told_away else "connected")
        self._told_away = False

    def lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def away(self, reason: str) -> None:
        """Until ``connected``; the log hears of it once."""
        self.state = f"away: {_short(reason)}"
        self._told_connected = False
        if not self._told_away:
            self._told_away = True
            log.warning(
                "%s is away: %s; what is known of services stays, and what is provided here is "
                "registered when it is back",
                self._description,
                _short(reason),
            )

    def failed(self, service: ServiceKey, problem: str) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._next_complaint:
            self._silent += 1
            return
        more = f"; {self._silent} more calls failed since the last such line" * bool(self._silent)
        log.warning(
            "%s, service %s: %s; it is tried again%s",
            self._description,
            _short(str(service)),
            _short(problem),
            more,
        )
        self._silent = 0
        self._next_complaint = now + _COMPLAINT_PAUSE


def _place(registration: Registration) -> _Place:
    return (registration.service, registration.instance.address)


def _mistake(error: Exception) -> str:
    """Of a module that should have raised RegistryError."""
    log.debug("a registry's module failed", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _short(text: str) -> str:
    """What another process says can be long, and meant for a terminal."""
    text = printable(text)
    return text if len(text) <= _MOST_WORDS else f"{text[:_MOST_WORDS]}…"
