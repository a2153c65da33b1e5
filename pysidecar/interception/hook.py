"""The connect hook's side of the sidecar: its listeners, control socket, parks and policy page."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import socket
from collections.abc import Sequence

from typing_extensions import override

from pysidecar import hook_path
from pysidecar.address import Address
from pysidecar.config import Config, default_control_socket
from pysidecar.dataplane import DataPlane, Listener, Transport, direct_works, parking_works
from pysidecar.errors import StartError
from pysidecar.interception import Interception
from pysidecar.interception.control_socket import ControlSocket
from pysidecar.interception.kernel import upstream_mark
from pysidecar.interception.policy_page import (
    RULES_CAPACITY,
    Policy,
    PolicyPage,
    State,
    page_path,
)
from pysidecar.listeners import has_ipv6_loopback, open_listener
from pysidecar.routing.table import hook_rules

__all__ = ["ConnectHook"]

log = logging.getLogger(__name__)

# A pair (the application's loopback address, park) has about 28,000 ports: so many connections are
# open through one park at once. Several parks, so that memory is the limit and not ports.
_PARKS_PER_FAMILY = 4
_LOOPBACKS = ("127.0.0.1", "::1")


class ConnectHook(Interception):
    """Outbound connections of processes that run under ``libmosnhook.so``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stack = contextlib.ExitStack()
        self._control: ControlSocket | None = None
        self._page: PolicyPage | None = None
        self._listeners: list[socket.socket] = []
        self._addresses: list[Address] = []
        self._parks: list[Address] = []
        self._obstacles: dict[str, str] = {}  # why there are no parks, by host
        self._also_own: list[Address] = []
        self._serving = False
        self._no_direct = ""  # why there are no direct connections
        self._checked: tuple[Config, bytes] | None = None  # with its rules
        self._said_relayed = False

    @override
    def open(self) -> None:
        outbound = self._config.outbound
        path = outbound.control_path
        # The lock comes first: what follows is ours alone.
        self._control = ControlSocket(path, outbound.control_socket_mode)
        self._stack.callback(self._control.remove)
        self._stack.callback(self._control.listener.close)
        try:
            self._page = PolicyPage(page_path(path), socket_mode=outbound.control_socket_mode)
        except OSError as error:
            raise StartError(
                f"cannot make the policy page {page_path(path)}: {error.strerror}"
            ) from None
        self._stack.callback(self._page.remove)
        for host in _LOOPBACKS:
            if obstacle := _parking_obstacle(host):
                self._obstacles[host] = obstacle
        if self._needs_listeners:
            self._open_listeners()
        # Whoever connects from here on finds what is excluded, and what to do until we serve.
        self._publish(State.STARTING)

    @property
    def _needs_listeners(self) -> bool:
        """Whoever reaches a listener is told from others by less than who reaches the control
        socket: so there is none without a need."""
        outbound = self._config.outbound
        return (
            "listen" in outbound.model_fields_set
            or outbound.transport == "header"
            or len(self._obstacles) == len(_LOOPBACKS)
        )

    def _open_listeners(self) -> None:
        for address in self._config.outbound.listen:
            if self._skipped(address):
                log.info("this host has no IPv6 loopback: not listening on %s", address)
                continue
            listener = open_listener(address, "outbound.listen")
            self._stack.callback(listener.close)
            self._listeners.append(listener)
            self._addresses.append(Address(*listener.getsockname()[:2]))

    def _skipped(self, address: Address) -> bool:
        """Of addresses that nobody asked for, those that are not there."""
        return (
            "listen" not in self._config.outbound.model_fields_set
            and address.family == socket.AF_INET6
            and not has_ipv6_loopback()
        )

    @override
    def attach(self, data_plane: DataPlane) -> None:
        assert self._control is not None
        assert self._page is not None
        mark = upstream_mark(self._config)  # so that redirect leaves these connections alone
        for listener in self._listeners:
            data_plane.add_listener(listener, Listener(Transport.HEADER, mark=mark))
        if self._listeners:
            data_plane.set_clients(*self._control.users)
        data_plane.add_listener(self._control.listener, Listener(Transport.UNIX, mark=mark))
        for host in _LOOPBACKS:
            if host not in self._obstacles:
                self._parks += [data_plane.add_park(host) for _ in range(_PARKS_PER_FAMILY)]
        data_plane.set_page(self._page.buffer)
        try:
            direct_works()
        except OSError as error:
            self._no_direct = f"the kernel does not report the ends of connections: {error}"
        self._say_what_is_relayed()
        if not self._parks:
            log.warning(
                "outbound.transport unix works as header here, because connections cannot wait for "
                "their upstream: %s",
                "; ".join(f"on {host} {obstacle}" for host, obstacle in self._obstacles.items()),
            )

    @property
    @override
    def own_addresses(self) -> Sequence[Address]:
        return [*self._addresses, *self._parks]

    @property
    def listeners(self) -> Sequence[Address]:
        """Where PROXY v2 connections are accepted, with the ports that the kernel picked."""
        return self._addresses

    @override
    def serve(self, also_own: Sequence[Address]) -> None:
        self._also_own = list(also_own)
        self._serving = True
        self._publish()

    @override
    def check(self, config: Config) -> None:
        if config.outbound.transport == "header" and self._page and not self._listeners:
            raise ValueError(
                "outbound.transport: expected unix until a restart, since header needs listeners, "
                "which were not opened at the start; with outbound.listen in the configuration "
                "they are"
            )
        rules = hook_rules(config.outbound, direct=True)
        size = len(rules)
        if self._no_direct and config.outbound.direct_routes:
            rules = hook_rules(config.outbound, direct=False)
        self._checked = (config, rules)
        if size > RULES_CAPACITY:
            raise ValueError(
                "outbound.exclude: expected fewer networks and ports (those of routes count, too, "
                f"if one is direct): their {size:,} bytes do not fit the {RULES_CAPACITY:,} of the "
                "policy page"
            )

    @override
    async def apply(self, config: Config) -> None:
        self._config = config
        self._say_what_is_relayed()
        if self._serving:
            self._publish()

    def _say_what_is_relayed(self) -> None:
        """Once: nothing of it changes while we run but the configuration."""
        outbound = self._config.outbound
        if not outbound.direct_routes or self._said_relayed:
            return
        reason = self._no_direct
        if not reason and outbound.transport == "header":
            reason = "outbound.transport is header"
        if reason:
            self._said_relayed = True
            log.warning("routes with action direct relay here: %s", reason)

    def _rules(self) -> bytes:
        if self._checked is None or self._checked[0] is not self._config:
            self.check(self._config)
        assert self._checked is not None
        return self._checked[1]

    def _publish(self, state: State = State.SERVING) -> None:
        assert self._page is not None
        outbound = self._config.outbound
        self._page.publish(
            Policy(
                transport=outbound.transport if self._parks else "header",
                when_away=outbound.when_away,
                control_path=outbound.control_path,
                listeners=self._addresses,
                parks=self._parks,
                own=self._also_own,
                rules=self._rules(),
                server_uid=os.geteuid(),
            ),
            state,
        )

    @override
    def drain(self) -> None:
        self._serving = False
        if self._page is not None:
            self._page.set_state(State.DRAINING)

    @override
    def close(self) -> None:
        self._serving = False
        self._stack.close()

    @property
    @override
    def description(self) -> Sequence[str]:
        path = self._config.outbound.control_path
        listeners = ", ".join(map(str, self._addresses))
        policy = ""
        if path != default_control_socket() or "." in path.parent.name:
            policy = f"MOSNHOOK_POLICY={shlex.quote(str(page_path(path)))} "
        return [
            f"hooked connections: {path}",
            *([f"PROXY v2 connections: {listeners}"] if listeners else []),
            f"hook a program: {policy}LD_PRELOAD={shlex.quote(str(hook_path()))} ./app",
        ]


def _parking_obstacle(host: str) -> str | None:
    """Why there can be no parks on this loopback address."""
    try:
        works = parking_works(host)
    except OSError as error:
        return error.strerror
    return None if works else "the kernel does not complete a simultaneous open"
