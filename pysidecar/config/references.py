"""Where one part of a configuration names another: what is wrong with that."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pysidecar.address import Address

if TYPE_CHECKING:
    from pysidecar.config.requests import RequestRule, ServiceListener
    from pysidecar.config.schema import Config

__all__ = ["Misfit", "misfits"]

_FAMILIES = {"http2": "http", "grpc": "http", "tri": "http"}
"""Requests of all versions of HTTP have the same rules."""
_PROTOCOLS = {"http": "HTTP", "bolt": "Bolt", "dubbo": "Dubbo", "grpc": "gRPC"}
_CALLS = ("grpc", "tri", "http2")
"""Of those, what calls of gRPC may go to."""
_MATCHES = {
    "host": ("http",),
    "path": ("http",),
    "path_prefix": ("http",),
    "headers": ("http", "bolt"),
    "service": ("grpc", "bolt", "dubbo"),
    "version": ("grpc", "bolt", "dubbo"),
    "group": ("grpc", "dubbo"),
}
_REWRITES = {
    "host": ("http",),
    "path_prefix": ("http",),
    "set_headers": ("http", "bolt"),
    "remove_headers": ("http", "bolt"),
    "original_destination_header": ("http", "bolt"),
}


_FIRST_FINAL = 200  # status of an answer that nothing follows
_WITHOUT_BODY = (204, 205, 304)


class Misfit(NamedTuple):
    """``location`` is as pydantic's; ``message`` says what was found and what was expected."""

    location: tuple[str | int, ...]
    message: str


def misfits(config: Config) -> Iterator[Misfit]:
    """All of them."""
    for index, rule in enumerate(config.requests):
        yield from _of_rule(config, rule, ("requests", index))
    for index, listener in enumerate(config.listeners):
        yield from _of_listener(config, listener, ("listeners", index))
    for name, service in config.services.items():
        if service.subscribe and config.takeover is None:
            yield Misfit(
                ("services", name, "subscribe"),
                "expected a section takeover beside it: without it no registry is asked",
            )
        if service.mirror is not None:
            yield from _of_mirror(config, name, service.mirror.to)
    yield from _own_endpoints(config)


def _unknown(config: Config, name: str) -> str:
    close = difflib.get_close_matches(name, config.services, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{name!r}: expected a service that is defined under services{hint}"


def _family(protocol: str) -> str:
    return _FAMILIES.get(protocol, protocol)


def _of_rule(
    config: Config, rule: RequestRule, location: tuple[str | int, ...]
) -> Iterator[Misfit]:
    protocols: dict[str, str] = {}
    at = (*location, "services")
    for name in rule.services:
        service = config.services.get(name)
        if service is None:
            yield Misfit((*at, name), _unknown(config, name))
        elif service.protocol == "tcp":
            yield Misfit(
                (*at, name),
                f"{name!r}: expected a service whose requests are understood (http, bolt or "
                "dubbo), not one of protocol tcp",
            )
        else:
            protocols.setdefault(_family(service.protocol), name)
    if len(protocols) > 1:
        found = ", ".join(f"{name} is of {protocol}" for protocol, name in protocols.items())
        yield Misfit(at, f"expected services of one protocol: {found}")
    if len(protocols) == 1:
        calls = all(
            config.services[name].protocol in _CALLS
            for name in rule.services
            if name in config.services
        )
        yield from _of_protocol(rule, next(iter(protocols)), location, calls=calls)


def _of_mirror(config: Config, name: str, to: str) -> Iterator[Misfit]:
    at = ("services", name, "mirror", "to")
    protocol = config.services[name].protocol
    if to not in config.services:
        yield Misfit(at, _unknown(config, to))
    elif to == name:
        yield Misfit(at, f"{to!r}: expected another service than the one whose requests it copies")
    elif config.services[to].protocol != protocol:
        yield Misfit(
            at,
            f"{to!r}: expected a service of {protocol}, not of {config.services[to].protocol}",
        )


def _of_protocol(
    rule: RequestRule, protocol: str, location: tuple[str | int, ...], *, calls: bool
) -> Iterator[Misfit]:
    """``calls``: the services may be asked by gRPC."""
    for part, keys in (("match", _MATCHES), ("rewrite", _REWRITES)):
        for key, protocols in keys.items():
            fits = protocol in protocols or (calls and "grpc" in protocols)
            if getattr(getattr(rule, part), key) and not fits:
                known = " and ".join(_PROTOCOLS[name] for name in protocols)
                yield Misfit(
                    (*location, part, key),
                    f"expected no {key} in a rule for {_PROTOCOLS[protocol]}: it is for {known}",
                )
    abort = rule.fault.abort if rule.fault is not None else None
    if abort is None or protocol != "http":
        return
    if abort.status < _FIRST_FINAL or abort.status in _WITHOUT_BODY:
        yield Misfit(
            (*location, "fault", "abort", "status"),
            f"{abort.status}: expected a status of HTTP from {_FIRST_FINAL} to 599, of an answer "
            "that has a body",
        )


def _of_listener(
    config: Config, listener: ServiceListener, location: tuple[str | int, ...]
) -> Iterator[Misfit]:
    if listener.service is None:
        return
    service = config.services.get(listener.service)
    if service is None:
        yield Misfit((*location, "service"), _unknown(config, listener.service))
    elif listener.protocol and _family(listener.protocol) != _family(service.protocol):
        yield Misfit(
            (*location, "protocol"),
            f"{listener.protocol!r}: expected {service.protocol}, which the service "
            f"{listener.service} speaks",
        )


def _own_endpoints(config: Config) -> Iterator[Misfit]:
    own: dict[Address, str] = {
        **dict.fromkeys(config.outbound.listen, "outbound.listen"),
        **dict.fromkeys(config.inbound.addresses if config.inbound else (), "inbound.listen"),
        **{listener.listen: "listeners" for listener in config.listeners},
    }
    for name, service in config.services.items():
        for index, endpoint in enumerate(service.endpoints):
            if endpoint.address in own:
                yield Misfit(
                    ("services", name, "endpoints", index),
                    f"'{endpoint.address}': expected another endpoint: this is the sidecar's own "
                    f"listener in {own[endpoint.address]}",
                )
