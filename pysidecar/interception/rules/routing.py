"""Policy routing rules and routes, by netlink.

Ours are those with our protocol number and table; nothing else is ever touched. No sysctl is
changed.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from ipaddress import ip_network
from typing import Any

from pysidecar.interception.rules.model import (
    ROUTE_PROTOCOL,
    ROUTE_TABLE,
    RULE_PRIORITY,
    PolicyRule,
    RulesError,
)

__all__ = ["Routing", "describe"]

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_RT_SCOPE_HOST = 254  # <linux/rtnetlink.h>; IPv6 routes have no scope


def describe(wanted: Iterable[PolicyRule]) -> list[str]:
    """What ``Routing.apply`` does, as the commands of ``ip`` that would do the same."""
    wanted = sorted(wanted)
    lines = []
    for family in sorted({rule.family for rule in wanted}):
        if family == socket.AF_INET:
            words = "ip -4 route add local 0.0.0.0/0 dev lo scope host"
        else:
            words = "ip -6 route add local ::/0 dev lo"
        lines.append(f"{words} table {ROUTE_TABLE} protocol {ROUTE_PROTOCOL}")
    return [*lines, *map(str, wanted)]


class Routing:
    """Our rules and routes in the network namespace of the calling thread."""

    def __init__(self) -> None:
        # Imported here: it takes half a second, which only those shall pay who change routes.
        from pyroute2 import IPRoute  # type: ignore[import-untyped]

        self._netlink: Any = IPRoute()

    def close(self) -> None:
        """Gives the netlink socket back."""
        self._netlink.close()

    def __enter__(self) -> Routing:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def rules(self) -> set[PolicyRule]:
        """Our policy rules that are there."""
        return {rule for family in _FAMILIES for rule, _ in self._our_rules(family)}

    def routes(self) -> set[socket.AddressFamily]:
        """The families that have our route."""
        return {family for family in _FAMILIES if any(self._our_routes(family))}

    def is_applied(self, wanted: Iterable[PolicyRule]) -> bool:
        """Whether exactly the wanted rules and their routes are there."""
        wanted = set(wanted)
        return self.rules() == wanted and self.routes() == {rule.family for rule in wanted}

    def add(self, wanted: Iterable[PolicyRule]) -> list[Callable[[], None]]:
        """Adds what is missing. Returns what undoes it, to be called last one first. When it fails
        it has undone everything, and raises RulesError."""
        undo: list[Callable[[], None]] = []
        missing = set(wanted) - self.rules()
        without_route = {rule.family for rule in wanted} - self.routes()
        try:
            # The routes first: a rule whose table is empty would be passed over.
            for family in sorted(without_route):
                route = self._route(family)
                self._request("route", "add", route, f"add the route of table {ROUTE_TABLE}")
                undo.append(partial(self._remove, "route", route))
            for rule in sorted(missing):
                arguments = _rule(rule)
                self._request("rule", "add", arguments, f"do: {rule}")
                undo.append(partial(self._remove, "rule", arguments))
        except RulesError:
            for step in reversed(undo):
                step()
            raise
        return undo

    def remove_others(self, wanted: Iterable[PolicyRule]) -> bool:
        """Removes ours that are not wanted. Returns whether there were any. Raises RulesError."""
        wanted = set(wanted)
        families = {rule.family for rule in wanted}
        removed = False
        for family in _FAMILIES:
            for rule, arguments in list(self._our_rules(family)):
                if rule not in wanted:
                    self._remove("rule", arguments)
                    removed = True
            if family not in families:
                for route in list(self._our_routes(family)):
                    self._remove("route", route)
                    removed = True
        return removed

    def _route(self, family: socket.AddressFamily) -> dict[str, Any]:
        route: dict[str, Any] = {
            "family": int(family),
            "table": ROUTE_TABLE,
            "proto": ROUTE_PROTOCOL,
            "type": "local",
            "dst": "0.0.0.0/0" if family == socket.AF_INET else "::/0",
            "oif": socket.if_nametoindex("lo"),
        }
        if family == socket.AF_INET:
            route["scope"] = _RT_SCOPE_HOST
        return route

    def _our_rules(
        self, family: socket.AddressFamily
    ) -> Iterator[tuple[PolicyRule, dict[str, Any]]]:
        for message in self._dump("get_rules", family=int(family)):
            if (
                message.get_attr("FRA_PROTOCOL") != ROUTE_PROTOCOL
                or message.get_attr("FRA_TABLE") != ROUTE_TABLE
            ):
                continue
            source = message.get_attr("FRA_SRC")
            destination = message.get_attr("FRA_DST")
            rule = PolicyRule(
                family,
                source=source and _network(source, message["src_len"]),
                destination=destination and _network(destination, message["dst_len"]),
            )
            arguments = _rule(rule)
            arguments["priority"] = message.get_attr("FRA_PRIORITY") or 0
            if message.get_attr("FRA_IIFNAME") is None:
                del arguments["iifname"]
            yield rule, arguments

    def _our_routes(self, family: socket.AddressFamily) -> Iterator[dict[str, Any]]:
        for message in self._dump("get_routes", family=int(family), table=ROUTE_TABLE):
            if (
                message["proto"] == ROUTE_PROTOCOL
                and message.get_attr("RTA_TABLE") == ROUTE_TABLE
                and message["dst_len"] == 0
            ):
                yield self._route(family)

    def _dump(self, what: str, **filters: Any) -> list[Any]:
        from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

        try:
            return list(getattr(self._netlink, what)(**filters))
        except NetlinkError as error:
            if error.code in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                return []  # no such table, or a kernel without this family
            raise RulesError(f"cannot read the routing rules: {error}") from None

    def _request(self, kind: str, action: str, arguments: dict[str, Any], purpose: str) -> None:
        from pyroute2.netlink.exceptions import NetlinkError

        # There already, or gone already: then someone else was faster.
        tolerated = {"add": (errno.EEXIST,), "del": (errno.ENOENT, errno.ESRCH)}[action]
        try:
            getattr(self._netlink, kind)(action, **arguments)
        except NetlinkError as error:
            if error.code not in tolerated:
                reason = errno.errorcode.get(error.code, str(error.code))
                raise RulesError(f"the kernel refuses with {reason} to {purpose}") from None

    def _remove(self, kind: str, arguments: dict[str, Any]) -> None:
        self._request(kind, "del", arguments, f"remove the {kind} of table {ROUTE_TABLE}")


def _network(address: str, length: int) -> str:
    return str(ip_network((address, length)))


def _rule(rule: PolicyRule) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "family": int(rule.family),
        "table": ROUTE_TABLE,
        "priority": RULE_PRIORITY,
        "protocol": ROUTE_PROTOCOL,
        "iifname": "lo",
    }
    if rule.source is not None:
        arguments["src"] = rule.source
    if rule.destination is not None:
        arguments["dst"] = rule.destination
    return arguments
