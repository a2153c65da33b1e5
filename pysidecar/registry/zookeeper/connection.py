"""kazoo for an event loop: one connection to one ZooKeeper server, with its session."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, Final

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import ConnectionDropped, KazooException
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.states import KeeperState, WatchedEvent
from kazoo.retry import KazooRetry
from kazoo.security import ACL, CREATOR_ALL_ACL
from typing_extensions import override

from pysidecar.address import Address
from pysidecar.registry import RegistryError

__all__ = ["Connection", "SessionId"]

# What kazoo says of connections is said by who made them; what is left is its own mistakes.
_log = logging.getLogger("pysidecar.registry.zookeeper.kazoo")
_log.setLevel(logging.CRITICAL)

SessionId = tuple[int, bytes]
MAX_REPLY: Final = 32 << 20  # bytes: 20,000 instances with URLs of 1.6 KB
_AT_A_TIME: Final = 64
"""Calls: kazoo passes each to its thread by a byte in a pipe, whose end must not have to wait."""
_CLOSE_PATIENCE: Final = 2.0  # seconds for the server to end our session


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """Connects as we are told, and says when one of kazoo's threads ended."""

    def __init__(
        self, context: ssl.SSLContext | None, verify: str, ended: Callable[[], None]
    ) -> None:
        super().__init__()
        self._context = context
        self._verify = verify
        self._ended = ended
        self.problem = "the connection is gone"
        self._socket: socket.socket | None = None
        self._is_cut = False

    def cut(self) -> None:
        """No byte goes to the server any more."""
        self._is_cut = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    @override
    def create_connection(
        self, address: tuple[str, int], timeout: float, **_: Any
    ) -> socket.socket:
        """Verifies the server, which kazoo does against the system's authorities, too."""
        try:
            self._socket = self._connect(address, timeout)
        except OSError as error:
            self.problem = error.strerror or str(error)
            raise
        if self._is_cut:
            self.cut()
        return self._socket

    def _connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        plain = socket.create_connection(address, timeout)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is None:
                return plain
            return self._context.wrap_socket(plain, server_hostname=self._verify)
        except BaseException:
            plain.close()
            raise

    @override
    def spawn(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> threading.Thread:
        def run() -> None:
            try:
                func(*args, **kwargs)
            except Exception as error:  # such as for a reply that cannot be read
                self.problem = f"{type(error).__name__}: {error}"
            finally:
                self._ended()

        thread: threading.Thread = super().spawn(run)
        return thread


class Connection:
    """Connects once, and is never used again when it is lost: who wants another one opens it, with
    the session that this one had if that shall live on."""

    def __init__(
        self,
        address: Address,
        *,
        verify: str,
        session_timeout: float,
        context: ssl.SSLContext | None = None,
        credentials: tuple[str, str] | None = None,
        session: SessionId | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.on_loopback = ip_address(address.host).is_loopback
        """Whether the registry is on this host, and so perhaps all that it tells of."""
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._lost: asyncio.Future[str] = self._loop.create_future()
        self._room = asyncio.Semaphore(_AT_A_TIME)
        self.acl: Sequence[ACL] | None = CREATOR_ALL_ACL if credentials else None
        self.session: SessionId | None = None
        self.expired = False
        """Whether the session that it was to go on with is no more."""

        self._handler = handler = _Handler(context, verify, lambda: self._tell(self._end))
        self._client = KazooClient(
            hosts=str(address),
            timeout=session_timeout,
            client_id=session,
            handler=handler,
            auth_data=[("digest", ":".join(credentials))] if credentials else None,
            default_acl=self.acl,
            connection_retry=KazooRetry(max_tries=1, sleep_func=handler.sleep_func),
            logger=_log,
        )
        self._bound_replies()
        self._notice_expiry()
        self._client.add_listener(self._state_changed)

    async def open(self) -> None:
        """Returns when there is a session. Raises RegistryError."""
        self._client.start_async()
        either: list[asyncio.Future[Any]] = [self._connected, self._lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._lost.done():
            raise RegistryError(self._lost.result())

    async def lost(self) -> str:
        """Returns when it is: why."""
        return await asyncio.shield(self._lost)

    def fail(self, reason: str) -> None:
        """Counts as lost from here on."""
        self._lose(reason)

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What the client's ``name_async`` answers. Raises RegistryError when the connection is
        lost, else KazooException."""
        return await self._answer(lambda: getattr(self._client, f"{name}_async")(*args, **kwargs))

    async def commit(self, fill: Callable[[Any], None]) -> list[Any]:
        """All operations that ``fill`` puts into the transaction, or none: the results, which are
        exceptions where it came to nothing."""
        transaction = self._client.transaction()
        fill(transaction)
        results: list[Any] = await self._answer(transaction.commit_async)
        return results

    def watcher(self, changed: Callable[[], None]) -> Callable[[WatchedEvent], None]:
        """For ``watch=``: has ``changed`` called in the event loop."""
        return lambda event: self._tell(changed)

    async def close(self) -> None:
        """Ends the session, unless the connection is lost: then the session, and everything
        ephemeral that it created, lives as long as the server keeps it."""
        done = self._stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_PATIENCE):
                await done.wait()

    def abandon(self) -> None:
        """Ends the connection, but not the session, which another one may go on with."""
        self._handler.cut()
        self._stop()

    def _stop(self) -> asyncio.Event:
        done = asyncio.Event()
        self._lose("closed")

        def stop() -> None:
            with contextlib.suppress(Exception):
                self._client.stop()
            with contextlib.suppress(Exception):
                self._client.close()
            self._tell(done.set)

        threading.Thread(target=stop, name="zookeeper-close", daemon=True).start()
        return done

    # ---- in the event loop ----

    async def _answer(self, ask: Callable[[], Any]) -> Any:
        async with self._room:
            if self._lost.done():
                raise RegistryError(self._lost.result())
            answered: asyncio.Future[Any] = self._loop.create_future()
            ask().rawlink(lambda result: self._tell(_pass_on, result, answered))
            try:
                await asyncio.wait([answered, self._lost], return_when=asyncio.FIRST_COMPLETED)
                if not answered.done():
                    raise RegistryError(self._lost.result())
                return answered.result()
            finally:
                answered.cancel()  # for what comes too late

    def _begin(self, session: SessionId | None) -> None:
        self.session = session
        if not self._connected.done():
            self._connected.set_result(None)

    def _end(self) -> None:
        self._lose(self._handler.problem)

    def _lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    # ---- in kazoo's threads ----

    def _state_changed(self, state: KazooState) -> None:
        client = self._client
        if state == KazooState.CONNECTED:
            self._tell(self._begin, client.client_id)
        elif client.client_state == KeeperState.AUTH_FAILED:
            self._tell(self._lose, "it refuses the credentials")
        else:  # it is not connected again: there is one server, and no second try
            self._tell(self._end)

    def _tell(self, function: Callable[..., Any], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            self._loop.call_soon_threadsafe(function, *args)

    def _notice_expiry(self) -> None:
        """kazoo tells of a session's end only who had it with the same client."""
        change_state = self._client._session_callback

        def noticing(state: KeeperState) -> None:
            self.expired = self.expired or state == KeeperState.EXPIRED_SESSION
            change_state(state)

        self._client._session_callback = noticing

    def _bound_replies(self) -> None:
        """kazoo reads as much as the server says that a reply has."""
        connection = self._client._connection
        read = connection._read

        def bounded(length: int, timeout: float) -> bytes:
            if not 0 <= length <= MAX_REPLY:
                self._handler.problem = f"it sends a reply of {length} bytes"
                raise ConnectionDropped(self._handler.problem)
            found: bytes = read(length, timeout)
            return found

        connection._read = bounded


def _pass_on(result: Any, answered: asyncio.Future[Any]) -> None:
    if answered.done():
        return
    error = result.exception
    if error is None:
        answered.set_result(result.value)
    elif isinstance(error, KazooException):
        answered.set_exception(error)
    else:
        answered.set_exception(KazooException(f"{type(error).__name__}: {error}"))
