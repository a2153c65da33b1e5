"""What SOFARegistry's requests and pushes say, so that applications with a registry client of their
own and sidecars find each other.

A service is a dataId in the group ``SOFA``, an instance a text whose parameters have no escapes:

* bolt, as SOFARPC's registry ``sofa`` writes them (``SofaRegistryHelper``):
  ``interface:version[:uniqueId]@DEFAULT``, and ``10.0.0.7:12200?rpcVer=51302&
  serialization=hessian2&weight=100&appName=prov&p=1&v=4.0&_SERIALIZETYPE=hessian2&_WEIGHT=100&
  app_name=prov&startTime=1795641468975``.
* dubbo, as Dubbo's registry ``sofa`` does (``org.apache.dubbo.registry.sofa.SofaRegistry``):
  ``interface[:version][:group]@dubbo``, and
  ``dubbo://10.0.0.7:20880/interface?application=prov&side=provider&…``.
* http: ``host@http``, and instances as of bolt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote, unquote

from pysidecar.address import Address
from pysidecar.registry import MAX_INSTANCES, RegistryError
from pysidecar.registry.draft_hessian import HessianError, JavaObject, Long
from pysidecar.registry.service import VARIED, Instance, Registration, ServiceKey

__all__ = [
    "DEFAULT_ZONE",
    "MODEL",
    "Identity",
    "Push",
    "UnusableError",
    "publisher",
    "read_push",
    "read_url",
    "subscriber",
    "write_url",
]

MODEL: Final = "com.alipay.sofa.registry.core.model."
"""The package of all classes in its requests and answers."""

_PUBLISHER: Final = MODEL + "PublisherRegister"
DEFAULT_ZONE: Final = "DEFAULT_ZONE"
_INSTANCE_ID: Final = "DEFAULT_INSTANCE_ID"
_GROUP: Final = "SOFA"
_BOLT_SUFFIX: Final = "@DEFAULT"
_APPLICATION: Final = "pysidecar"
_DEFAULT_WEIGHT: Final = 100
_MAX_NUMBER: Final = (1 << 53) - 1
_MAX_NAME: Final = 1024
_MAX_QUERY: Final = 16 << 10  # characters
_MAX_PAIRS: Final = 128

_ESCAPED: Final = "&%#? "

# What SOFARPC writes twice, for its older releases: the first name is the one that counts.
_OLD_NAMES: Final = {
    "serialization": "_SERIALIZETYPE",
    "appName": "app_name",
    "timeout": "_TIMEOUT",
    "warmupWeight": "_WARMUPWEIGHT",
}
_IN_FRONT: Final = ("rpcVer", "serialization", "weight", "timeout", "appName", "p", "v")
_BEHIND: Final = ("_SERIALIZETYPE", "_WEIGHT", "_TIMEOUT", "app_name")
_LAST: Final = ("warmupTime", "_WARMUPTIME", "startTime")


@dataclass(frozen=True, slots=True)
class _Form:
    """How an instance is written. The first of several names is the one that counts."""

    weight: tuple[str, ...]
    warmup: tuple[str, ...]  # in milliseconds
    started: str  # in milliseconds since the epoch
    default_warmup: int
    fixed: Mapping[str, str]
    """What all of them say, and so no metadata."""
    service: tuple[str, ...] = ()
    """What says which service it is."""


_SOFARPC: Final = _Form(
    weight=("weight", "_WEIGHT"),
    warmup=("warmupTime", "_WARMUPTIME"),
    started="startTime",
    default_warmup=0,
    fixed={"v": "4.0"},
)
_BOLT: Final = replace(_SOFARPC, fixed={"p": "1", "v": "4.0"})
_DUBBO: Final = _Form(
    weight=("weight",),
    warmup=("warmup",),
    started="timestamp",
    default_warmup=600_000,
    fixed={"dubbo": "2.0.2", "dynamic": "true", "side": "provider"},
    service=("interface", "version", "group"),
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Names a registration or subscription; a later one with the same id and a higher version
    replaces it, also from another connection."""

    id: str
    version: int
    timestamp: int
    """Milliseconds since the epoch."""


class UnusableError(RegistryError):
    """Of a service or instance that SOFARegistry cannot take."""


@dataclass(frozen=True, slots=True)
class Push:
    """All instances of a service in one segment, which is a data center."""

    data_id: str
    subscriptions: tuple[str, ...]
    """The ids of those whose answer it is."""
    segment: str
    version: int
    """Goes up with each change; 0: not known."""
    instances: tuple[Instance, ...]
    unusable: int
    """How many others there are: not an address, or too many."""


# ---- requests ----


def publisher(
    registration: Registration, identity: Identity, zone: str, *, wanted: bool
) -> JavaObject:
    """The request that registers it, or, unless ``wanted``, takes it back. Raises UnusableError."""
    instance = registration.instance
    metadata = dict(instance.metadata)
    request = JavaObject(_PUBLISHER)
    application = metadata.get("appName") or metadata.get("application")
    _fill(request, registration.service, identity, zone=instance.zone or zone, wanted=wanted)
    request.fields["appName"] = application or _APPLICATION
    if wanted:
        request.fields["dataList"] = [
            JavaObject(MODEL + "DataBox", {"data": write_url(registration)})
        ]
    return request


def subscriber(service: ServiceKey, identity: Identity, zone: str, *, wanted: bool) -> JavaObject:
    """The request that subscribes it, in all data centers, or, unless ``wanted``, ends that. Raises
    RegistryError."""
    fields = {"scope": "global", "acceptEncoding": None, "acceptMulti": False}
    request = JavaObject(MODEL + "SubscriberRegister", dict[str, object](fields))
    _fill(request, service, identity, zone=zone, wanted=wanted)
    return request


def _fill(
    request: JavaObject, service: ServiceKey, identity: Identity, *, zone: str, wanted: bool
) -> None:
    data_id, group = _names(service)
    request.fields |= {
        "instanceId": _INSTANCE_ID,
        "zone": zone or DEFAULT_ZONE,
        "appName": _APPLICATION,
        "dataId": data_id,
        "group": group,
        "processId": None,
        "registId": identity.id,
        "clientId": None,
        "dataInfoId": None,
        "ip": None,
        "port": None,
        "eventType": "REGISTER" if wanted else "UNREGISTER",
        "version": Long(identity.version),
        "timestamp": Long(identity.timestamp),
    }
    if request.class_name == _PUBLISHER:
        request.fields["dataList"] = None
    request.fields["attributes"] = {}


def _names(service: ServiceKey) -> tuple[str, str]:
    """Its dataId and group. Raises UnusableError."""
    if service.protocol == "bolt":
        name, group = service.name + _BOLT_SUFFIX, service.group or _GROUP
    elif service.protocol in VARIED:
        parts = filter(None, (service.name, service.version, service.group))
        name, group = f"{':'.join(parts)}@{service.protocol}", _GROUP
    else:
        name, group = f"{service.name}@{service.protocol}", _GROUP
    for text in (name, group):
        # The server joins its names with "#@#".
        if len(text) > _MAX_NAME or "#@#" in text or not text.isprintable():
            raise UnusableError(f"a service that SOFARegistry cannot name: {text[:100]!r}")
    return name, group


# ---- instances ----


def write_url(registration: Registration) -> str:
    """Where it is provided, and what else is said of it. Raises UnusableError."""
    service, instance = registration.service, registration.instance
    form = {"bolt": _BOLT, **dict.fromkeys(VARIED, _DUBBO)}.get(service.protocol, _SOFARPC)
    pairs = dict(form.fixed) | dict(instance.metadata)
    for name in form.weight:
        pairs[name] = str(instance.weight)
    if instance.warmup or form.default_warmup:
        for name in form.warmup:
            pairs[name] = str(round(instance.warmup * 1000))
    if instance.started:
        pairs[form.started] = str(round(instance.started * 1000))
    if form is _DUBBO:
        own = {"interface": service.name, "version": service.version, "group": service.group}
        pairs |= {name: value for name, value in own.items() if value}
        return _join(
            f"{service.protocol}://{instance.address}/{service.name}", pairs, sorted(pairs)
        )
    _complete(pairs, instance)
    others = sorted(pairs.keys() - {*_IN_FRONT, *_BEHIND, *_LAST})
    return _join(str(instance.address), pairs, (*_IN_FRONT, *_BEHIND, *others, *_LAST))


def _complete(pairs: dict[str, str], instance: Instance) -> None:
    """What SOFARPC's readers expect beyond what is said."""
    application = pairs.get("appName") or pairs.get("application")
    if application:
        pairs["appName"] = application
    if instance.warmup:
        pairs.setdefault("warmupWeight", "1")  # without it they warm up nothing
    for name, old in _OLD_NAMES.items():
        if name in pairs:
            pairs.setdefault(old, pairs[name])


def _join(place: str, pairs: Mapping[str, str], order: Iterable[str]) -> str:
    query = "&".join(
        f"{_escape(name, '=')}={_escape(pairs[name])}" for name in order if name in pairs
    )
    if len(query) > _MAX_QUERY or len(pairs) > _MAX_PAIRS:
        raise UnusableError(
            f"{len(pairs)} metadata of {len(query)} characters; expected at most "
            f"{_MAX_PAIRS} of {_MAX_QUERY}"
        )
    return f"{place}?{query}"


def _escape(text: str, also: str = "") -> str:
    """What would end a key or a value. Others do not undo it, but read the rest."""
    return "".join(
        quote(c, safe="", errors="replace") if c in _ESCAPED + also or not c.isprintable() else c
        for c in text
    )


def read_url(text: str, zone: str, *, bolt: bool = True) -> Instance | None:
    """None where it has no address that can be connected to, or is one of another kind than a
    provider."""
    place, _, query = text.partition("?")
    if len(query) > _MAX_QUERY:
        return None
    scheme, _, place = place.rpartition("://")
    form = _DUBBO if scheme in VARIED else _BOLT if bolt else _SOFARPC
    if scheme == "override":
        return None
    try:
        address = Address.parse(place.partition("/")[0])
    except ValueError:
        return None
    pairs = dict(_pairs(query))
    instance = Instance(
        address,
        weight=_number(pairs, form.weight, _DEFAULT_WEIGHT),
        started=_number(pairs, (form.started,), 0) / 1000,
        warmup=_number(pairs, form.warmup, form.default_warmup) / 1000,
        zone="" if zone == DEFAULT_ZONE else zone,
    )
    if form is not _DUBBO:
        _reduce(pairs, instance)
    for name, value in form.fixed.items():
        if pairs.get(name) == value:
            del pairs[name]
    for name in (*form.weight, *form.warmup, form.started, *form.service):
        pairs.pop(name, None)
    return replace(instance, metadata=tuple(sorted(pairs.items()))) if address.port else None


def _reduce(pairs: dict[str, str], instance: Instance) -> None:
    """The reverse of ``_complete``."""
    for name, old in _OLD_NAMES.items():
        if old in pairs and pairs.setdefault(name, pairs[old]) == pairs[old]:
            del pairs[old]
    if pairs.get("application") == pairs.get("appName"):
        pairs.pop("appName", None)
    if instance.warmup and pairs.get("warmupWeight") == "1":
        del pairs["warmupWeight"]


def _pairs(query: str) -> Iterator[tuple[str, str]]:
    for pair in query.split("&", _MAX_PAIRS)[:_MAX_PAIRS]:
        name, _, value = pair.strip().partition("=")
        if name:
            yield _unescape(name), _unescape(value)


def _unescape(text: str) -> str:
    return unquote(text) if "%" in text else text


def _number(pairs: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    """The first that is one; not below zero."""
    for name in names:
        text = pairs.get(name, "")
        if len(text) < 20 and text.removeprefix("-").isdecimal() and text.isascii():
            return min(max(int(text), 0), _MAX_NUMBER)
    return default


# ---- pushes ----


def read_push(pushed: JavaObject) -> Push | None:
    """From a ReceivedData; None where it says nothing. Raises HessianError."""
    fields = pushed.fields
    zones = fields.get("data")
    if zones is None:
        return None
    ids = fields.get("subscriberRegistIds")
    version = fields.get("version")
    if not isinstance(zones, dict) or not isinstance(ids, list):
        raise HessianError("a push without data or subscribers")
    data_id = str(fields.get("dataId"))
    bolt = data_id.endswith(_BOLT_SUFFIX)
    instances: dict[Address, Instance] = {}
    unusable = 0
    for count, (zone, text) in enumerate(_boxes(zones)):
        if count >= MAX_INSTANCES:
            unusable += 1
            break
        instance = read_url(text, zone, bolt=bolt)
        if instance is None:
            unusable += 1
        else:
            _put(instances, instance)
    return Push(
        data_id,
        tuple(each for each in ids if isinstance(each, str)),
        segment=str(fields.get("segment")),
        version=version if isinstance(version, int) else 0,
        instances=tuple(instances.values()),
        unusable=unusable,
    )


def _boxes(zones: Mapping[object, object]) -> Iterator[tuple[str, str]]:
    """Zone and text of each. One list may be referred to from any number of zones."""
    for zone, boxes in zones.items():
        if not isinstance(zone, str) or not isinstance(boxes, list):
            raise HessianError("a push whose zones have no lists")
        for box in boxes:
            text = box.fields.get("data") if isinstance(box, JavaObject) else None
            yield zone, text if isinstance(text, str) else ""


def _put(instances: dict[Address, Instance], instance: Instance) -> None:
    """One who starts again may be there twice for a while: the later one counts."""
    before = instances.get(instance.address)
    if before is None or before.started <= instance.started:
        instances[instance.address] = instance
