"""From the configuration to the tables: routes for the data plane, exclusions for the hook."""

from __future__ import annotations

from collections.abc import Sequence

from pysidecar.config import Outbound, RouteEntry
from pysidecar.dataplane import Action, Balance, Route, RouteTable, lib
from pysidecar.routing.rules import Rule, compile_rules

__all__ = ["exclude_rules", "route_table"]


def route_table(routes: Sequence[RouteEntry]) -> RouteTable:
    """The routes in the order of the file; a rule's number is its route's index."""
    return RouteTable(
        rules=compile_rules(
            Rule(route.match.destination, route.match.ports, index)
            for index, route in enumerate(routes)
        ),
        routes=tuple(
            Route(
                action=Action[route.action.upper()],
                balance=Balance[route.balance.upper()],
                endpoints=route.endpoints or (),
            )
            for route in routes
        ),
    )


def exclude_rules(outbound: Outbound) -> bytes:
    """The rules of the policy page: numbers carry the verdict in their lowest bit."""
    return compile_rules(
        Rule(exclude.destination, exclude.ports, 2 * index + lib.MOSNHOOK_EXCLUDE)
        for index, exclude in enumerate(outbound.exclude)
    )
