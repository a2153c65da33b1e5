"""Providers that Dubbo 3 registered by application: which endpoints of it provide an interface.

Read from Dubbo's sources: ``/dubbo/mapping/INTERFACE`` names applications with commas
(``ZookeeperMetadataReport``); ``/services/APPLICATION/IP:PORT`` is an instance in Curator's JSON
(``CuratorFrameworkUtils``), with its endpoints by protocol;
``/dubbo/metadata/APPLICATION/REVISION`` says which services it has (``MetadataInfo``), where
``metadata-type`` is ``remote``. With the default, ``local``, only the provider itself says so: see
``metadata``. Where it does not answer, what counts is
``/dubbo/metadata/INTERFACE[/VERSION][/GROUP]/provider/APPLICATION``, which it writes all the same,
for people, and where there is none of that interface, the mapping alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pysidecar.address import Address
from pysidecar.registry.service import VARIED, Instance
from pysidecar.registry.zookeeper.layout import Variant, dubbo_variant

__all__ = [
    "ApplicationInstance",
    "MetadataService",
    "Services",
    "definition_path",
    "definitions_path",
    "instances_of",
    "mapping_path",
    "metadata_path",
    "read_instance",
    "read_mapping",
    "read_services",
    "services_of",
    "services_path",
]

MAX_APPLICATIONS: Final = 64  # of one interface
_MAX_ENDPOINTS = 16  # of one instance
_MAX_VERSION = 64  # characters
_WARMUP = 600.0  # seconds: Dubbo's, where nobody says anything else

Services = Mapping[tuple[str, str], Sequence[tuple[Variant, int | None, float]]]
"""By protocol and interface: which variants of it there are, at which port (None: the endpoint's),
and with what weight."""


@dataclass(frozen=True, slots=True)
class MetadataService:
    """Where an instance is asked for what it provides."""

    address: Address
    protocol: str
    """Of ``VARIED``."""
    version: str


@dataclass(frozen=True, slots=True)
class ApplicationInstance:
    """One process of an application."""

    host: str

    addresses: Mapping[str, tuple[Address, ...]]
    """Where it speaks what, of ``VARIED``."""

    revision: str
    """Names its services; empty: nobody says."""

    started: float

    asked: MetadataService | None = None
    """Who knows what the revision has, if that is not in ZooKeeper."""


def mapping_path(interface: str) -> str:
    """The node that names the applications."""
    return f"/dubbo/mapping/{interface}"


def services_path(application: str) -> str:
    """The node whose children are the application's instances."""
    return f"/services/{application}"


def metadata_path(application: str, revision: str) -> str:
    """The node that says what services they have."""
    return f"/dubbo/metadata/{application}/{revision}"


def definitions_path(interface: str) -> str:
    """The node that is there if any application says that it provides this interface."""
    return f"/dubbo/metadata/{interface}"


def definition_path(interface: str, which: Variant, application: str) -> str | None:
    """The node that is there if that application provides that; None: there cannot be one."""
    parts = (which.version, which.group, "provider", application)
    named = [part for part in parts if part]
    if not all(map(_is_segment, named)):
        return None
    return "/".join((definitions_path(interface), *named))


def read_mapping(data: bytes) -> tuple[str, ...]:
    """The applications. Those whose names cannot be one of a node are left out."""
    names = data.decode(errors="replace").split(",", MAX_APPLICATIONS)[:MAX_APPLICATIONS]
    return tuple(dict.fromkeys(name for each in names if _is_segment(name := each.strip())))


def read_instance(data: bytes) -> ApplicationInstance | None:
    """None where it is none that may be called by Dubbo. Raises ValueError."""
    fields = _object(_json(data))
    if fields.get("enabled") is False:
        return None
    metadata = _object(_object(fields.get("payload")).get("metadata"))
    endpoints = metadata.get("dubbo.endpoints")
    if not isinstance(endpoints, str):
        return None
    host = str(fields.get("address"))
    found = _json(endpoints.encode())
    places = [
        each
        for each in (found if isinstance(found, list) else [])[:_MAX_ENDPOINTS]
        if isinstance(each, dict)
    ]
    addresses = {
        protocol: tuple(
            address_of(host, each.get("port"))
            for each in places
            if each.get("protocol") == protocol
        )
        for protocol in VARIED
    }
    revision = metadata.get("dubbo.metadata.revision")
    asked = None
    if metadata.get("dubbo.metadata.storage-type") != "remote":
        with suppress(ValueError):
            asked = _metadata_service(host, metadata)
        if asked is None:
            revision = None
    named = isinstance(revision, str) and _is_segment(revision)
    since = fields.get("registrationTimeUTC")
    started = since / 1000 if isinstance(since, int) and 0 <= since < 1 << 53 else 0.0
    return ApplicationInstance(host, addresses, str(revision) if named else "", started, asked)


def _metadata_service(host: str, metadata: dict[str, Any]) -> MetadataService | None:
    said = metadata.get("dubbo.metadata-service.url-params")
    if not isinstance(said, str):
        return None
    fields = _object(_json(said.encode()))
    protocol, version = fields.get("protocol"), str(fields.get("version") or "")
    if protocol not in VARIED or len(version) > _MAX_VERSION or not version.isascii():
        return None
    address = address_of(host, fields.get("port"))
    return MetadataService(address, protocol, version) if address.port else None


def read_services(data: bytes) -> Services:
    """What a revision's metadata says. Raises ValueError."""
    return services_of(_object(_object(_json(data)).get("services")).values())


def services_of(entries: Iterable[Any]) -> Services:
    """From descriptions of services, each with the names that Dubbo has for its parts. Raises
    ValueError."""
    found: dict[tuple[str, str], list[tuple[Variant, int | None, float]]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("protocol") not in VARIED:
            continue
        which = dubbo_variant(str(entry.get("version") or ""), str(entry.get("group") or ""))
        port = entry.get("port")
        weight = str(_object(entry.get("params") or {}).get("weight", 100))
        found.setdefault((entry["protocol"], str(entry.get("name"))), []).append(
            (
                which,
                port if isinstance(port, int) and 0 < port <= 65535 else None,
                float(weight) if weight.isascii() and weight.isdigit() and len(weight) < 9 else 100,
            )
        )
    return found


def instances_of(
    protocol: str,
    interface: str,
    which: Variant,
    instance: ApplicationInstance,
    services: Services | None,
) -> Iterator[Instance]:
    """Where that instance of an application provides this; ``services`` is what its revision says,
    None: nothing."""
    addresses = instance.addresses.get(protocol, ())
    if services is None:
        for address in addresses:
            yield Instance(address, started=instance.started, warmup=_WARMUP)
        return
    for variant, port, weight in services.get((protocol, interface), ()):
        if variant != which:
            continue
        # The port that the provider listens on may not be the one that it registers. Of what it
        # began to provide late, Dubbo does not add the protocol to the instance.
        own = [address for address in addresses if address.port == port]
        late = [address_of(instance.host, port)] if port and not addresses else []
        for address in own or list(addresses) or late:
            yield Instance(address, weight=int(weight), started=instance.started, warmup=_WARMUP)


def address_of(host: str, port: Any) -> Address:
    """Raises ValueError."""
    return Address.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return value


def _is_segment(name: str) -> bool:
    return (
        name not in ("", ".", "..") and "/" not in name and name.isprintable() and len(name) < 512
    )
