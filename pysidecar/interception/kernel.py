"""What the ways of interception have in common that need rules in the kernel: listeners where the
rules point, and the rules themselves where the sidecar manages them."""

from __future__ import annotations

import abc
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.background import in_background
from pysidecar.config import Config, Inbound
from pysidecar.dataplane import DataPlane, Listener, Transport
from pysidecar.destinations import PortRange
from pysidecar.direction import Direction
from pysidecar.errors import StartError
from pysidecar.interception import Interception, rules
from pysidecar.interception.rules import InboundRules, RulesError, Ruleset
from pysidecar.interception.rules.namespace import inside
from pysidecar.listeners import has_ipv6_loopback, open_listener
from pysidecar.modes import OUTBOUND, inbound_mode, outbound_mode
from pysidecar.socket_options import SocketOption, mark_option

__all__ = [
    "InboundInterception",
    "KernelInterception",
    "interceptions",
    "remove_leftovers",
    "upstream_mark",
]

_Rules = TypeVar("_Rules", bound=Ruleset)
_InboundRules = TypeVar("_InboundRules", bound=InboundRules)
_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


def _present(listen: Sequence[Address], asked_for: bool, netns: str | None) -> Sequence[Address]:
    if asked_for or inside(netns, has_ipv6_loopback):
        return listen
    return [address for address in listen if address.family == socket.AF_INET]


def _reachable_own_ports(config: Config) -> list[int]:
    """The admin interface and listeners for services and takeover, where others are meant to reach
    them: they are not the application's."""
    own = [config.admin.listen, *(listener.listen for listener in config.listeners)]
    if config.takeover is not None:
        own.extend(each for _, addresses in config.takeover.listeners for each in addresses)
    reachable = (each.port for each in own if not ip_address(each.host).is_loopback)
    return sorted({port for port in reachable if port})


def upstream_mark(config: Config) -> int:
    """SO_MARK of the sidecar's connections to other hosts; 0 for none."""
    redirect = config.outbound.redirect
    return redirect.mark or 0 if redirect is not None else 0


def interceptions(config: Config, netns: str | None = None) -> list[KernelInterception[Any]]:
    """Those that the configuration asks for, none of them open yet, as far as the network namespace
    has what they need: a default IPv6 listener is left out without IPv6."""
    modes = []
    if config.inbound is not None:
        modes.append(inbound_mode(config.inbound.mode))
    modes += [outbound_mode(name) for name in OUTBOUND if getattr(config.outbound, name)]
    found = cast("list[type[KernelInterception[Any]]]", modes)
    return [interception.for_config(config, netns) for interception in found]


def _outside_the_loop(work: Callable[[], _Result]) -> _Result:
    """In another thread, because pyroute2 runs an event loop of its own and this thread may have
    one running. Waits for it: what follows relies on the rules."""
    with ThreadPoolExecutor(1, "rules") as executor:
        return executor.submit(work).result()


def remove_leftovers(wanted: Iterable[KernelInterception[Any]]) -> None:
    """Removes what a killed sidecar left in the directions that nobody wants now; the rules of the
    others are replaced. Raises RulesError."""
    unwanted = set(Direction) - {interception.direction for interception in wanted}
    removed = _outside_the_loop(lambda: rules.delete(unwanted))
    if removed:
        log.info("removed rules that an earlier sidecar left behind")


class KernelInterception(Interception, Generic[_Rules]):
    """Connections of one direction that rules bring here.

    A way is a subclass, which says what its rules are and how its listeners are opened, and is
    registered in ``pysidecar.modes``.
    """

    name: ClassVar[str]
    """As the configuration and the command line have it."""
    direction: ClassVar[Direction]
    transport: ClassVar[Transport]
    """How the data plane learns where a connection wanted to go."""
    listen_key: ClassVar[str]
    """What to correct where a listener cannot be opened."""

    def __init__(self, config: Config, ruleset: _Rules) -> None:
        self._config = config
        self._ruleset = ruleset
        self._stack = contextlib.ExitStack()
        self._listeners: list[socket.socket] = []
        self._applied = False

    @classmethod
    def for_config(cls, config: Config, netns: str | None = None) -> Self:
        """What a configuration asks for in a network namespace."""
        return cls(config, cls._wanted(config, netns))

    @classmethod
    def _wanted(cls, config: Config, netns: str | None = None) -> _Rules:
        section, listen, asked_for = cls.section_of(config)
        present = _present(listen, asked_for, netns)
        return cls.rules_of(section, present, _reachable_own_ports(config))

    # ---- What a way says ----

    @classmethod
    @abc.abstractmethod
    def section_of(cls, config: Config) -> tuple[Any, Sequence[Address], bool]:
        """Its section of the configuration, where that says to listen, and whether somebody asked
        for these addresses."""

    @classmethod
    @abc.abstractmethod
    def rules_of(
        cls, section: Any, listen: Sequence[Address] = (), own_ports: Sequence[int] = ()
    ) -> _Rules:
        """What must be in the kernel, ``listen`` being those of the listeners that are there (all,
        if not given), and ``own_ports`` the sidecar's other ones that others reach. Raises
        ValueError for what cannot work."""

    def listener_options(self, family: socket.AddressFamily) -> tuple[SocketOption, ...]:
        """How a listener must be opened for the rules to find it, and for its connections to
        pass."""
        return ()

    def connections(self, family: socket.AddressFamily) -> Listener:
        """What is true of the connections of a listener."""
        return Listener(self.transport, self.direction, upstream_mark(self._config))

    # ---- Its life ----

    @property
    @override
    def ruleset(self) -> _Rules:
        return self._ruleset

    @override
    def open(self) -> None:
        if self._config.manage_rules and (
            found := rules.problems(self._ruleset, self._config.rules_backend)
        ):
            raise StartError(
                f"cannot manage the {self.direction.word} rules (manage_rules): {'; '.join(found)}"
            )
        self._check_mark()
        for address in self._ruleset.listen:
            options = self.listener_options(address.family)
            opened = open_listener(address, self.listen_key, options)
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
        for opened, address in zip(self._listeners, self._ruleset.listen, strict=True):
            data_plane.add_listener(opened, self.connections(address.family))

    @property
    @override
    def own_addresses(self) -> Sequence[Address]:
        return self._ruleset.listen

    @override
    def serve(self, also_own: Sequence[Address]) -> None:
        if self._config.manage_rules:
            self._applied = True
            self._apply_rules(self._ruleset)

    def _apply_rules(self, ruleset: Ruleset) -> None:
        _outside_the_loop(lambda: rules.apply(ruleset, self._config.rules_backend))

    @override
    async def apply(self, config: Config) -> None:
        ruleset = self._wanted(config)
        if ruleset != self._ruleset:
            if config.manage_rules:
                await in_background(lambda: self._apply_rules(ruleset))
            else:
                log.warning(
                    "the %s rules have to change too: pysidecar rules apply", self.direction.word
                )
        self._ruleset = ruleset
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
                log.error("the %s rules stay: %s", self.direction.word, error)
        self._stack.close()

    @property
    @override
    def description(self) -> Sequence[str]:
        addresses = ", ".join(map(str, self._ruleset.listen))
        hint = "" if self._config.manage_rules else "; its rules are made by: pysidecar rules apply"
        return [f"{self.direction.word} {self.name}: {addresses}{hint}"]


class InboundInterception(KernelInterception[_InboundRules]):
    """Connections that others open to the application, by the section ``inbound``."""

    direction = Direction.INBOUND
    listen_key = "inbound.listen"
    default_listen: ClassVar[tuple[Address, ...]]
    rules: ClassVar[type[InboundRules]]
    """What ``rules_of`` makes."""

    @classmethod
    @override
    def section_of(cls, config: Config) -> tuple[Inbound, Sequence[Address], bool]:
        assert config.inbound is not None
        return config.inbound, config.inbound.addresses, config.inbound.listen is not None

    @classmethod
    @override
    def rules_of(
        cls, section: Inbound, listen: Sequence[Address] = (), own_ports: Sequence[int] = ()
    ) -> _InboundRules:
        ruleset = cls.rules(
            listen=tuple(listen) or section.addresses,
            ports=section.ports,
            exclude_ports=(
                *(section.exclude_ports or ()),
                *map(PortRange.single, own_ports),
            ),
            preserve_source=section.preserve_source,
        )
        return cast(_InboundRules, ruleset)

    @property
    def application_mark(self) -> int:
        """SO_MARK of connections to the application; 0: as all others."""
        return 0

    def application_source(self, family: socket.AddressFamily) -> str | None:
        """Where connections to the application come from; None: the kernel picks it, or with
        ``preserve_source`` it is the client's."""
        return None

    @override
    def connections(self, family: socket.AddressFamily) -> Listener:
        inbound = self._config.inbound
        assert inbound is not None
        return Listener(
            self.transport,
            self.direction,
            upstream_mark(self._config),
            preserve_source=inbound.preserve_source,
            application_mark=self.application_mark,
            application_sources=(
                self.application_source(socket.AF_INET),
                self.application_source(socket.AF_INET6),
            ),
            application=inbound.application(family),
        )
