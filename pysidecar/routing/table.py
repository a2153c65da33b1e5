"""From the configuration to the tables: routes for the data plane, verdicts for the hook."""

from __future__ import annotations

from collections.abc import Sequence

from pysidecar.config import Match, Outbound, RouteEntry
from pysidecar.dataplane import Action, Balance, Protocol, Route, RouteTable, lib
from pysidecar.routing.rules import Rule, compile_rules

__all__ = ["excluded_table", "hook_rules", "route_table"]


_ACTIONS = {action.name.lower(): action for action in Action}
_PROTOCOLS = {protocol.name.lower(): protocol for protocol in Protocol}
_BALANCES = {balance.name.lower(): balance for balance in Balance}


def route_table(routes: Sequence[RouteEntry]) -> RouteTable:
    """The routes in the order of the file; a rule's number is its route's index."""
    return RouteTable(
        rules=compile_rules(
            Rule(route.match.destination, route.match.ports, index)
            for index, route in enumerate(routes)
        ),
        routes=tuple(
            Route(
                action=_ACTIONS[route.action],
                balance=_BALANCES[route.balance],
                endpoints=route.endpoints or (),
                key=_key(route.match),
                protocol=_PROTOCOLS[route.protocol],
                detect=route.detect_timeout,
                undetected=_ACTIONS[route.undetected],
            )
            for route in routes
        ),
    )


def _key(match: Match) -> int:
    """A route is the same one if it is for the same connections. 64 bits; two routes with the same
    would only take their turns together."""
    networks = tuple(
        (network.version, int(network.network_address), network.prefixlen)
        for network in match.destination
    )
    return hash((networks, match.ports)) & 0xFFFF_FFFF_FFFF_FFFF


def excluded_table(outbound: Outbound) -> RouteTable:
    """What the hook leaves alone, so that nobody else asks for it either."""
    return RouteTable(
        rules=compile_rules(
            Rule(exclude.destination, exclude.ports, index)
            for index, exclude in enumerate(outbound.exclude)
        ),
        routes=(Route(action=Action.REFUSE),) * len(outbound.exclude),
    )


def hook_rules(outbound: Outbound, *, direct: bool) -> bytes:
    """The rules of the policy page: numbers carry the verdict in their two lowest bits.

    With ``direct`` destinations of routes that say so are asked about, which takes a round trip to
    the sidecar: so all routes must be there, but only where one of them says so.
    """
    verdicts: list[tuple[Match, int]] = [
        (exclude, lib.MOSNHOOK_EXCLUDE) for exclude in outbound.exclude
    ]
    if direct and outbound.direct_routes:
        verdicts += [
            (route.match, lib.MOSNHOOK_ASK if route.action == "direct" else lib.MOSNHOOK_CAPTURE)
            for route in outbound.routes
        ]
    return compile_rules(
        Rule(match.destination, match.ports, lib.MOSNHOOK_VERDICTS * index + verdict)
        for index, (match, verdict) in enumerate(verdicts)
    )
