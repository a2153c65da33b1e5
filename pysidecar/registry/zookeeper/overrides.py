"""Rules of Dubbo Admin's that say who gets no calls, or another share of them than its own.

``/dubbo/INTERFACE/configurators/override://HOST[:PORT]/INTERFACE?weight=…&disabled=…``, read as
Dubbo's consumers read them (``AbstractConfigurator.configureDeprecated``): with a port a rule is
for the provider at that address, or at that port of any host; without one for all providers, and
then it counts only where it is meant for every consumer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import unquote_plus

from pysidecar.registry.service import Instance
from pysidecar.registry.zookeeper.layout import MAX_NAME, Variant, dubbo_variant, parameters_of

__all__ = ["Override", "overridden", "overrides_path", "read_override"]

_ANY_HOST = "0.0.0.0"


@dataclass(frozen=True, slots=True, order=True)
class Override:
    """One rule. They are applied in their order, and the last one counts."""

    host: str
    priority: int
    port: int
    """0: of every provider."""

    variant: Variant
    weight: int | None = None
    disabled: bool | None = None

    def is_for(self, instance: Instance, which: Variant) -> bool:
        """Whether it says something of that one."""
        address = instance.address
        return (
            self.variant == which
            and self.host in (_ANY_HOST, address.host)
            and self.port in (0, address.port)
        )


def overrides_path(providers: str) -> str:
    """Beside the node whose children provide an interface."""
    return f"{providers.rpartition('/')[0]}/configurators"


def read_override(name: str) -> Override | None:
    """What a node of that name says; None where that is nothing that counts here: a rule for some
    consumers only, or for what is not ours to decide. Raises ValueError for what cannot be
    understood."""
    if len(name) > MAX_NAME:
        raise ValueError("too long")
    scheme, separator, rest = unquote_plus(name, errors="strict").partition("://")
    if not separator:
        raise ValueError("expected a URL")
    place, _, query = rest.partition("?")
    host, colon, port = place.partition("/")[0].rpartition("@")[2].partition(":")
    parameters = dict(parameters_of(query))
    if scheme != "override" or not _counts(parameters):
        return None
    if colon and not (port.isascii() and port.isdigit() and int(port) <= 0xFFFF):
        raise ValueError("expected a port")
    number = int(port or 0)
    if not number and host != _ANY_HOST:
        return None  # for one consumer, which calls by itself
    return Override(
        host,
        _whole(parameters.get("priority", "")) or 0,
        number,
        dubbo_variant(parameters.get("version", ""), parameters.get("group", "")),
        _whole(parameters.get("weight", "")),
        {"true": True, "false": False}.get(parameters.get("disabled", "")),
    )


def _counts(parameters: dict[str, str]) -> bool:
    application = parameters.get("application", "*")
    conditions = (key for key in parameters if key.startswith("~") or key == "providers")
    return (
        parameters.get("enabled") != "false"
        and parameters.get("side", "consumer") == "consumer"
        and application == "*"
        and not any(conditions)
        and bool({"weight", "disabled"} & parameters.keys())
    )


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def overridden(
    instances: Iterable[Instance], rules: Iterable[Override], which: Variant
) -> list[Instance]:
    """Those that get calls."""
    sorted_rules = sorted(rules, key=lambda rule: (rule.host, rule.priority))
    found = []
    for instance in instances:
        disabled, weight = False, instance.weight
        for rule in sorted_rules:
            if rule.is_for(instance, which):
                disabled = disabled if rule.disabled is None else rule.disabled
                weight = weight if rule.weight is None else rule.weight
        if not disabled:
            found.append(replace(instance, weight=weight))
    return found
