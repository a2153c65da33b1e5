"""Where a service is in ZooKeeper, and what a node there says of who provides it.

Each instance is a node whose name is a URL, percent-encoded as Java's ``URLEncoder`` does:

* dubbo: ``/dubbo/INTERFACE/providers/dubbo://IP:PORT/INTERFACE?version=…&group=…``, as Dubbo's
  ``ZookeeperRegistry`` writes and reads it.
* bolt: ``/sofa-rpc/INTERFACE/providers/bolt://IP:PORT?version=1.0&uniqueId=…``, as SOFARPC's
  (``RegistryUtils.convertProviderToUrls``): the version and the unique id of the service's name are
  in the URL.
* tri: as dubbo, in the same directory, with the scheme ``tri``.
* http, grpc: ``/pysidecar/http/HOST/providers/http://IP:PORT?…``, of our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Final
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from pysidecar.address import Address
from pysidecar.registry.service import VARIED, Instance, Registration, ServiceKey

__all__ = [
    "MAX_NAME",
    "Provider",
    "Variant",
    "directory",
    "dubbo_variant",
    "node_name",
    "parameters_of",
    "read_node",
    "variant",
]

MAX_NAME: Final = 16384  # bytes of a node's name, encoded
_MAX_PARAMETERS = 128
_DUBBO_WARMUP = 600.0  # seconds, where a provider says nothing: Constants.DEFAULT_WARMUP
_ROOTS = {
    "dubbo": "/dubbo",
    "tri": "/dubbo",
    "bolt": "/sofa-rpc",
    "http": "/pysidecar/http",
    "grpc": "/pysidecar/grpc",
}
_MARK = ("registered-by", "pysidecar")
# Have a place of their own in ServiceKey or Instance, or say what the node's place says already.
_OWN_KEYS = frozenset(
    "interface version group uniqueId weight timestamp startTime warmup warmupTime warmupWeight "
    "zone side dubbo dynamic registered-by".split()
)
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_PLAIN = " !\"#$'()*+,/:;<>@[\\]^`{|}~"
"""What metadata of ours holds as it is. The rest is percent-encoded once more, which Dubbo does not
do: to it a value is everything up to the next ``&``."""


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """What tells services in one directory from each other."""

    version: str = ""
    group: str = ""
    unique_id: str = ""


@dataclass(frozen=True, slots=True)
class Provider:
    """What one node says."""

    variant: Variant
    instance: Instance
    ours: bool
    """Whether a sidecar wrote it."""


def directory(service: ServiceKey) -> str:
    """The node whose children provide that service. Raises ValueError for names that cannot be."""
    name = service.name.split(":", 1)[0] if service.protocol == "bolt" else service.name
    root = _ROOTS.get(service.protocol)
    if root is None:
        raise ValueError(f"no place in ZooKeeper for protocol {service.protocol}")
    segment = quote_plus(name)
    if segment in ("", ".", "..") or len(segment) > MAX_NAME:
        raise ValueError("a service's name that cannot be one of a node")
    return f"{root}/{segment}/providers"


def variant(service: ServiceKey) -> Variant:
    """Which one in its directory."""
    if service.protocol == "bolt":
        _, version, unique_id = (*service.name.split(":", 2), "", "")[:3]
        return Variant(version, service.group, unique_id)
    return dubbo_variant(service.version, service.group)


def dubbo_variant(version: str, group: str) -> Variant:
    """Dubbo takes 0.0.0 for no version."""
    return Variant("" if version == "0.0.0" else version, group)


def node_name(registration: Registration) -> str:
    """Of the same registration always the same. Raises ValueError where it gets too long."""
    service, instance = registration.service, registration.instance
    which = variant(service)
    parameters = {
        key: quote(value, safe=_PLAIN)
        for key, value in instance.metadata
        if _KEY.fullmatch(key) and key not in _OWN_KEYS
    }
    name = service.name.split(":", 1)[0] if service.protocol == "bolt" else service.name
    own = {
        "interface": name,
        "version": which.version,
        "group": which.group,
        "weight": "" if instance.weight == 100 else str(instance.weight),
        "zone": quote(instance.zone, safe=_PLAIN),
        _MARK[0]: _MARK[1],
    }
    parameters |= {key: value for key, value in own.items() if value}
    parameters |= dict(_OWN_PARAMETERS[service.protocol](instance, which))
    if not all(map(_is_clean, (name, *astuple(which)))):
        raise ValueError("a service's name, version or group that does not fit into a URL")
    path = f"/{name}" if service.protocol in VARIED else ""
    query = "&".join(f"{key}={value}" for key, value in sorted(parameters.items()))
    encoded = quote_plus(f"{service.protocol}://{instance.address}{path}?{query}")
    if len(encoded) > MAX_NAME:
        raise ValueError(f"what is to be registered makes a URL of more than {MAX_NAME} bytes")
    return encoded


def read_node(protocol: str, name: str) -> Provider | None:
    """What a node of that name says; None where that is nobody of this protocol that may be called.
    Raises ValueError for what cannot be understood."""
    if len(name) > MAX_NAME:
        raise ValueError("too long")
    scheme, separator, rest = unquote_plus(name, errors="strict").partition("://")
    if not separator:
        raise ValueError("expected a URL")
    if scheme.lower() != protocol:
        return None  # empty://, override://, route://, or another protocol of the same interface
    place, _, query = rest.partition("?")
    address = Address.parse(place.partition("/")[0].rpartition("@")[2])
    parameters = dict(parameters_of(query))
    if parameters.get("disabled") == "true" or parameters.get("enabled") == "false":
        return None
    version, group = parameters.get("version", ""), parameters.get("group", "")
    if protocol == "bolt":
        which = Variant(version, group, parameters.get("uniqueId", ""))
    else:
        which = dubbo_variant(version, group)
    return Provider(which, _instance(protocol, address, parameters), _is_ours(parameters))


def parameters_of(query: str) -> Iterator[tuple[str, str]]:
    """Of a URL; the first ones, where there are very many."""
    for part in query.split("&", _MAX_PARAMETERS)[:_MAX_PARAMETERS]:
        key, _, value = part.partition("=")
        if key:
            yield key, value


def _instance(protocol: str, address: Address, parameters: dict[str, str]) -> Instance:
    bolt = protocol == "bolt"
    started = _number(parameters.get("startTime" if bolt else "timestamp", ""), 0.0) / 1000
    warmup = _number(parameters.get("warmupTime" if bolt else "warmup", ""), -1.0) / 1000
    if warmup < 0:
        warmup = _DUBBO_WARMUP if protocol in VARIED else 0.0
    read = unquote if _is_ours(parameters) else str
    return Instance(
        address,
        weight=int(_number(parameters.get("weight", ""), 100.0)),
        started=started,
        warmup=warmup,
        zone=read(parameters.get("zone", "")),
        metadata=tuple(
            sorted((key, read(value)) for key, value in parameters.items() if key not in _OWN_KEYS)
        ),
    )


def _is_ours(parameters: dict[str, str]) -> bool:
    return parameters.get(_MARK[0]) == _MARK[1]


def _of_dubbo(instance: Instance, which: Variant) -> Iterator[tuple[str, str]]:
    yield "dubbo", "2.0.2"  # the version of the protocol, not of Dubbo
    yield "dynamic", "true"
    yield "side", "provider"
    yield from _of_http(instance, which)


def _of_http(instance: Instance, _: Variant) -> Iterator[tuple[str, str]]:
    if instance.started:
        yield "timestamp", str(round(instance.started * 1000))
    yield "warmup", str(round(instance.warmup * 1000))


def _of_bolt(instance: Instance, which: Variant) -> Iterator[tuple[str, str]]:
    yield "uniqueId", which.unique_id  # SOFARPC compares it with its own, which may be empty
    yield "weight", str(instance.weight)
    if instance.started:
        yield "startTime", str(round(instance.started * 1000))
    if instance.warmup:
        yield "warmupTime", str(round(instance.warmup * 1000))
        yield "warmupWeight", "1"


_OWN_PARAMETERS = {
    "dubbo": _of_dubbo,
    "tri": _of_dubbo,
    "bolt": _of_bolt,
    "http": _of_http,
    "grpc": _of_http,
}


def _number(text: str, default: float) -> float:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 16 else default


def _is_clean(value: str) -> bool:
    """Whether it stays one part of a URL, which is encoded as a whole only: nothing in it becomes
    another parameter."""
    return not set("&?") & set(value) and value.isprintable()
