"""The ways that need rules in the kernel, at work: listeners where the rules point, and the rules
themselves where the sidecar manages them."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, TypeVar

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.background import in_background
from pysidecar.config import Config
from pysidecar.dataplane import DataPlane, Listener, Transport
from pysidecar.dataplane import Direction as DataPlaneDirection
from pysidecar.errors import StartError
from pysidecar.interception import Interception, rules
from pysidecar.interception.base import Direction, OriginalDestination, Way, mark_option
from pysidecar.interception.redirect import InboundRedirect, OutboundRedirect
from pysidecar.interception.rules import InboundMode, RulesError, Ruleset
from pysidecar.interception.rules.namespace import inside
from pysidecar.interception.tproxy import TransparentProxy
from pysidecar.listeners import has_ipv6_loopback, open_listener

__all__ = ["KernelInterception", "interceptions", "make_way", "remove_leftovers", "upstream_mark"]

_Result = TypeVar("_Result")

log = logging.getLogger(__name__)

_TRANSPORTS = {
    OriginalDestination.ORIGINAL_DST: Transport.REDIRECT,
    OriginalDestination.LOCAL_ADDRESS: Transport.TPROXY,
}
_LISTEN_KEYS = {
    Direction.INBOUND: "inbound.listen",
    Direction.OUTBOUND: "outbound.redirect.listen",
}


def make_way(config: Config, direction: Direction, netns: str | None = None) -> Way[Any] | None:
    """What the configuration asks for in a direction, as far as the network namespace has it: a
    default IPv6 listener is left out without IPv6. None where it asks for nothing."""
    if direction is Direction.OUTBOUND:
        redirect = config.outbound.redirect
        if redirect is None:
            return None
        asked = "listen" in redirect.model_fields_set
        listen = _present(redirect.listen, asked, netns)
        return OutboundRedirect(config.outbound.redirect_settings(listen))
    inbound = config.inbound
    if inbound is None:
        return None
    listen = _present(inbound.addresses, inbound.listen is not None, netns)
    settings = inbound.settings(listen, _reachable_own_ports(config))
    if settings.mode is InboundMode.TPROXY:
        return TransparentProxy(settings)
    return InboundRedirect(settings)


def _present(listen: Sequence[Address], asked_for: bool, netns: str | None) -> Sequence[Address]:
    if asked_for or inside(netns, has_ipv6_loopback):
        return listen
    return [address for address in listen if address.family == socket.AF_INET]


def _reachable_own_ports(config: Config) -> list[int]:
    """The admin interface, where others are meant to reach it: it is not the application's."""
    admin = config.admin.listen
    return [admin.port] if admin.port and not ip_address(admin.host).is_loopback else []


def upstream_mark(config: Config) -> int:
    """SO_MARK of the sidecar's connections to other hosts; 0 for none."""
    redirect = config.outbound.redirect
    return redirect.mark or 0 if redirect is not None else 0


def interceptions(config: Config) -> list[KernelInterception]:
    """Those that the configuration asks for."""
    ways = ((direction, make_way(config, direction)) for direction in Direction)
    return [KernelInterception(config, direction, way) for direction, way in ways if way]


def _outside_the_loop(work: Callable[[], _Result]) -> _Result:
    """In another thread, because pyroute2 runs an event loop of its own and this thread may have
    one running. Waits for it: what follows relies on the rules."""
    with ThreadPoolExecutor(1, "rules") as executor:
        return executor.submit(work).result()


def remove_leftovers(wanted: Iterable[KernelInterception]) -> None:
    """Removes what a killed sidecar left in the directions that nobody wants now; the rules of the
    others are replaced. Raises RulesError."""
    unwanted = set(Direction) - {interception.direction for interception in wanted}
    removed = _outside_the_loop(lambda: rules.delete(unwanted))
    if removed:
        log.info("removed rules that an earlier sidecar left behind")


class KernelInterception(Interception):
    """Connections of one direction that rules bring here."""

    def __init__(self, config: Config, direction: Direction, way: Way[Any]) -> None:
        self.direction = direction
        self._config = config
        self._way = way
        self._stack = contextlib.ExitStack()
        self._listeners: list[socket.socket] = []
        self._applied = False

    @property
    @override
    def ruleset(self) -> Ruleset:
        return self._way.rules

    @override
    def open(self) -> None:
        if self._config.manage_rules and (found := self._way.problems(self._config.rules_backend)):
            raise StartError(
                f"cannot manage the {self.direction.value} rules (manage_rules): {'; '.join(found)}"
            )
        self._check_mark()
        for listener in self._way.listeners:
            opened = open_listener(listener.address, _LISTEN_KEYS[self.direction], listener.options)
            self._stack.callback(opened.close)
            self._listeners.append(opened)

    def _check_mark(self) -> None:
        """Otherwise it would be each connection that fails."""
        mark = upstream_mark(self._config)
        with socket.socket() as probe:
            try:
                if mark:
                    mark_option(mark).set(probe)
            except OSError as error:
                raise StartError(
                    f"cannot mark connections with {mark} (outbound.redirect.mark): "
                    f"{error.strerror}; it needs the capability CAP_NET_ADMIN. Or set it to null, "
                    "and let uids, gids or cgroup tell the sidecar"
                ) from None

    @override
    def attach(self, data_plane: DataPlane) -> None:
        for opened, listener in zip(self._listeners, self._way.listeners, strict=True):
            data_plane.add_listener(
                opened,
                self._settings(_TRANSPORTS[listener.original_destination], listener.address.family),
            )

    def _settings(self, transport: Transport, family: socket.AddressFamily) -> Listener:
        mark = upstream_mark(self._config)
        inbound = self._config.inbound
        if self.direction is Direction.OUTBOUND or inbound is None:
            return Listener(transport, DataPlaneDirection.OUTBOUND, mark)
        leg = self._way.application_leg
        return Listener(
            transport,
            DataPlaneDirection.INBOUND,
            mark,
            preserve_source=inbound.preserve_source,
            application_mark=self._way.settings.mark if leg.options else 0,
            application_sources=(
                leg.sources.get(socket.AF_INET),
                leg.sources.get(socket.AF_INET6),
            ),
            application=inbound.application(family),
        )

    @property
    @override
    def own_addresses(self) -> Sequence[Address]:
        return [listener.address for listener in self._way.listeners]

    @override
    def serve(self, also_own: Sequence[Address]) -> None:
        if self._config.manage_rules:
            self._applied = True
            self._apply_rules(self._way)

    def _apply_rules(self, way: Way[Any]) -> None:
        _outside_the_loop(lambda: rules.apply(way.rules, self._config.rules_backend))

    @override
    async def apply(self, config: Config) -> None:
        way = make_way(config, self.direction)
        assert way is not None  # a reload cannot take a direction away
        if way.rules != self.ruleset:
            if config.manage_rules:
                await in_background(lambda: self._apply_rules(way))
            else:
                log.warning(
                    "the %s rules have to change too: pysidecar rules apply", self.direction.value
                )
        self._way = way
        self._config = config

    @override
    def drain(self) -> None:
        """The rules stay until the last connection has ended: what is open goes on through them,
        and what is new is refused, as the listeners are closed."""

    @override
    def close(self) -> None:
        if self._applied:
            self._applied = False
            try:
                _outside_the_loop(lambda: rules.delete([self.direction]))
            except RulesError as error:
                log.error("the %s rules stay: %s", self.direction.value, error)
        self._stack.close()

    @property
    @override
    def description(self) -> Sequence[str]:
        addresses = ", ".join(str(listener.address) for listener in self._way.listeners)
        hint = "" if self._config.manage_rules else "; its rules are made by: pysidecar rules apply"
        return [f"{self.direction.value} {self._way.name}: {addresses}{hint}"]
