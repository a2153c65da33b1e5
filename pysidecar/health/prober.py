"""The sockets of the checks, all of them in one ``epoll`` that the event loop watches.

asyncio's streams take a quarter of a millisecond for each check, which is half of a processor for
10,000 endpoints every five seconds. Here a check is a system call to send and one to receive on a
connection that stays open, and the loop is woken once for all that came meanwhile
(``make bench-scale NAME=health``)."""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
import os
import random
import select
import socket
import struct
from collections import deque
from collections.abc import Callable

from pysidecar.address import Address
from pysidecar.health.kinds.conversation import MOST_BYTES, Conversation, Unserved, Verdict
from pysidecar.socket_options import mark_option

__all__ = ["Prober", "Target"]

_PAUSE = 0.02  # seconds between two looks at what is due: so that a look finds several
_BATCH = 128  # checks and events at a time: a few milliseconds
_JITTER = 0.1  # of the interval, more or less
_READ_BYTES = 16 << 10
# A connection on which nothing is said is aborted, as HAProxy does it: no TIME_WAIT for each check.
_ABORT = struct.pack("ii", 1, 0)
_LOCAL_SHORTAGE = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC),
    errno.EADDRNOTAVAIL,
)


class Target:
    """An endpoint that is asked. ``converse`` begins a conversation on a new connection; None:
    nothing is said, to be connected is all. ``told`` hears of each check: None, or the problem."""

    __slots__ = (
        "_began",
        "_connected",
        "_conversation",
        "_entry",
        "_heard_bytes",
        "_reused",
        "_socket",
        "_under_way",
        "address",
        "converse",
        "interval",
        "is_removed",
        "timeout",
        "told",
    )

    def __init__(
        self,
        address: Address,
        *,
        interval: float,
        timeout: float,
        converse: Callable[[], Conversation] | None,
        told: Callable[[str | None], None],
    ) -> None:
        self.address = address
        self.interval = interval
        self.timeout = timeout
        self.converse = converse
        self.told = told
        self.is_removed = False
        self._socket: socket.socket | None = None
        self._conversation: Conversation | None = None
        self._connected = False
        self._reused = False
        self._under_way = False
        self._began = 0.0
        self._entry = -1  # that is not out of date
        self._heard_bytes = 0  # since it was asked last


class Prober:
    """Checks targets from ``add`` on until ``remove``. ``most`` connections are open at a time;
    further checks wait until one is free. ``mark``: SO_MARK of the sockets, 0 for none."""

    def __init__(self, *, most: int, mark: int = 0) -> None:
        self._most = most
        self._mark = mark
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._targets: dict[int, Target] = {}  # by descriptor
        # When a target is looked at. The latest of each counts, by its number.
        self._times: list[tuple[float, int, Target]] = []
        self._numbers = itertools.count()
        self._waiting: deque[Target] = deque()  # for a connection
        # To be connected is all, and looked at each pause: most are connected by then, without a
        # turn of epoll for each.
        self._connecting: list[tuple[Target, socket.socket]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._random = random.Random()
        self._removed = 0
        self.late = 0
        """Checks that had to wait since all connections were in use."""
        self._loop.add_reader(self._epoll.fileno(), self._on_events)

    @property
    def connections(self) -> int:
        """That are open."""
        return len(self._targets)

    def add(self, target: Target) -> None:
        """Checks it soon: within an interval, so that not all are checked at once."""
        self._push(self._loop.time() + self._random.uniform(0, target.interval), target)
        self._schedule()

    def remove(self, target: Target) -> None:
        """Never checks it again, nor tells of it."""
        target.is_removed = True
        self._removed += 1
        self._close(target)
        if self._removed > len(self._times) // 2:
            self._times = [each for each in self._times if not each[2].is_removed]
            heapq.heapify(self._times)
            self._waiting = deque(each for each in self._waiting if not each.is_removed)
            self._removed = 0

    def close(self) -> None:
        """Ends all of it."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        for target in list(self._targets.values()):
            self._close(target)
        self._times.clear()
        self._connecting.clear()
        self._epoll.close()

    # ---- time ----

    def _push(self, when: float, target: Target) -> None:
        target._entry = next(self._numbers)
        heapq.heappush(self._times, (when, target._entry, target))

    def _schedule(self) -> None:
        """After each ``_push``, at the latest when all that came has been dealt with."""
        at_once = self._waiting or self._connecting
        if not self._times and not at_once:
            return
        due = 0.0 if at_once else self._times[0][0]
        at = max(due, self._loop.time() + _PAUSE)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._look_at_connecting()
        now = self._loop.time()
        for _ in range(_BATCH):
            if not self._times or self._times[0][0] > now:
                break
            _, number, target = heapq.heappop(self._times)
            if target.is_removed:
                self._removed = max(0, self._removed - 1)
            elif number == target._entry:
                self._look_at(target, now)
        self._serve_waiting()

    def _look_at(self, target: Target, now: float) -> None:
        """At its deadline, or when its next check is due."""
        if target._under_way:
            self._close(target)
            self._end(target, f"no answer within {target.timeout:g} s")
        elif target._socket is None and len(self._targets) >= self._most:
            self.late += 1
            self._waiting.append(target)
        else:
            self._begin(target, now)

    def _begin(self, target: Target, now: float) -> None:
        target._began = now
        target._under_way = True
        target._heard_bytes = 0
        target._reused = target._socket is not None
        if target._reused:
            self._ask(target)
        else:
            self._connect(target)
        if target._under_way and target.converse is not None:
            self._push(now + target.timeout, target)

    def _serve_waiting(self) -> None:
        now = self._loop.time()
        for _ in range(_BATCH):
            if not self._waiting or len(self._targets) >= self._most:
                break
            target = self._waiting.popleft()
            if not target.is_removed:
                self._begin(target, now)
        self._schedule()

    # ---- one check ----

    def _connect(self, target: Target) -> None:
        address = target.address
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            made = target._socket = socket.socket(address.family, kind)
            self._targets[made.fileno()] = target
            target._connected = False
            if self._mark:
                mark_option(self._mark).set(made)
            error = made.connect_ex((address.host, address.port))
        except OSError as failure:
            error = failure.errno or errno.EIO
        if error == 0:
            self._on_connected(target, registered=False)
        elif error != errno.EINPROGRESS:
            self._fail(target, error)
        elif target.converse is None:
            self._connecting.append((target, made))
        else:
            self._watch(target, made)

    def _watch(self, target: Target, made: socket.socket) -> None:
        """Until it is connected, or is not."""
        try:
            self._epoll.register(made, select.EPOLLOUT)
        except OSError as failure:  # ENOSPC: this user watches very much
            self._fail(target, failure.errno or errno.EIO)

    def _look_at_connecting(self) -> None:
        """To connect once more says how it went. Who is not connected yet is waited for."""
        connecting, self._connecting = self._connecting, []
        for target, made in connecting:
            if target._socket is not made:  # removed meanwhile
                continue
            address = target.address
            error = made.connect_ex((address.host, address.port))
            if error == 0:
                self._on_connected(target, registered=False)
            elif error == errno.EALREADY:
                self._push(target._began + target.timeout, target)
                self._watch(target, made)
            else:
                self._fail(target, error)

    def _on_connected(self, target: Target, *, registered: bool) -> None:
        assert target._socket is not None
        target._connected = True
        if target.converse is None:
            target._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            self._close(target)
            self._end(target, None)
            return
        target._conversation = target.converse()
        if registered:
            self._epoll.modify(target._socket, select.EPOLLIN)
        else:
            self._epoll.register(target._socket, select.EPOLLIN)
        self._ask(target)

    def _ask(self, target: Target) -> None:
        assert target._conversation is not None
        self._say(target, target._conversation.ask())

    def _say(self, target: Target, data: bytes) -> None:
        assert target._socket is not None
        try:
            sent = target._socket.send(data)
        except OSError as error:
            self._ended(target, error.errno or errno.EIO)
            return
        if sent < len(data):
            self._ended(target, errno.EAGAIN)

    def _on_events(self) -> None:
        for descriptor, _ in self._epoll.poll(0, _BATCH):
            if (target := self._targets.get(descriptor)) is not None:
                self._on_event(target)
        self._serve_waiting()

    def _on_event(self, target: Target) -> None:
        assert target._socket is not None
        if not target._connected:
            if error := target._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._fail(target, error)
            else:
                self._on_connected(target, registered=True)
            return
        try:
            data = target._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(target, error.errno or errno.EIO)
            return
        if data:
            self._heard(target, data)
        else:
            self._ended(target, 0)

    def _heard(self, target: Target, data: bytes) -> None:
        assert target._conversation is not None
        reused, target._reused = target._reused, False  # from here on it is the endpoint's fault
        target._heard_bytes += len(data)
        verdict: Verdict | None
        if target._heard_bytes > 2 * MOST_BYTES:  # pings and the like, too
            verdict = Verdict("it says too much", keep=False)
        else:
            try:
                verdict = target._conversation.hear(data)
            except Unserved:
                target._reused = reused
                self._ended(target, 0)
                return
            except ValueError as error:
                verdict = Verdict(str(error), keep=False)
        asked = target._under_way
        if verdict is not None and asked:
            self._end(target, verdict.problem)
        if verdict is not None and (not asked or not self._keeps(verdict)):
            self._close(target)  # also one that speaks without being asked
        elif not target.is_removed and (reply := target._conversation.take_reply()):
            self._say(target, reply)

    def _keeps(self, verdict: Verdict) -> bool:
        """A quarter of the connections is for those that have none."""
        return verdict.keep and len(self._targets) <= self._most * 3 // 4

    def _ended(self, target: Target, error: int) -> None:
        """A connection that was open ends without a verdict."""
        again = target._under_way and target._reused
        self._close(target)
        if again:  # the server did not want it any more
            target._reused = False
            self._connect(target)
        elif error == errno.EAGAIN:
            self._end(target, "it does not read what is asked")
        else:
            self._end(target, _words(error) if error else "it ended the connection")

    def _fail(self, target: Target, error: int) -> None:
        """It cannot be connected."""
        self._close(target)
        if error in _LOCAL_SHORTAGE:
            self.late += 1
            self._finish(target)  # which says nothing about the endpoint
        else:
            self._end(target, _words(error))

    def _end(self, target: Target, problem: str | None) -> None:
        if target._under_way:
            self._finish(target)
            target.told(problem)

    def _finish(self, target: Target) -> None:
        target._under_way = False
        spread = 1 + _JITTER * (2 * self._random.random() - 1)
        self._push(target._began + target.interval * spread, target)

    def _close(self, target: Target) -> None:
        if target._socket is None:
            return
        del self._targets[target._socket.fileno()]
        target._socket.close()  # and it leaves the epoll
        target._socket = None
        target._conversation = None


def _words(error: int) -> str:
    text = os.strerror(error)
    return text[:1].lower() + text[1:]
