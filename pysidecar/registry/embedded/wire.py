"""The embedded registry's protocol: JSON objects, a line each. See ``docs/takeover.md``."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

from pysidecar.address import Address
from pysidecar.registry import MAX_INSTANCES
from pysidecar.registry.known import MAX_WEIGHT
from pysidecar.registry.service import Instance, ServiceKey

__all__ = [
    "MOST_BYTES_OF_ANSWER",
    "MOST_BYTES_OF_REQUEST",
    "TIMEOUTS",
    "VERSION",
    "InstanceReader",
    "plain_instance",
    "plain_service",
    "read_address",
    "read_instance",
    "read_line",
    "read_long_push",
    "read_service",
    "text_of",
    "text_of_instance",
    "text_of_service",
]

VERSION: Final = 1
MOST_BYTES_OF_REQUEST: Final = 65536
MOST_BYTES_OF_ANSWER: Final = 16 << 20
TIMEOUTS: Final = (0.5, 600.0)
"""Seconds that a client may ask for; others are taken for the nearer one of these."""

_MOST_HEAD = 16384  # characters of a push before its instances
_WINDOW = 2 * MOST_BYTES_OF_REQUEST  # characters; an instance came in a request
_INSTANCES = re.compile(r'"instances"\s*:\s*\[')
_SPACE = re.compile(r"[ \t\r\n]*")
_MOST_METADATA = 128
_LENGTHS = {"protocol": 32, "name": 512, "version": 128, "group": 128, "zone": 256}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def read_line(line: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        message = _decoder.decode(line.decode())
    except RecursionError:
        raise ValueError("expected less depth") from None
    if not isinstance(message, dict):
        raise ValueError("expected a JSON object")
    return message


def read_long_push(line: bytes) -> tuple[ServiceKey, list[Instance]]:
    """A line that tells of very many instances, for any thread: the interpreter's lock is held for
    one after the other, and not for all of it. Those beyond MAX_INSTANCES + 1 are not read. Raises
    ValueError."""
    text = line.decode()
    found = _INSTANCES.search(text, 0, _MOST_HEAD)
    if found is None:
        raise ValueError("expected a shorter line")
    head = read_line((text[: found.end()] + "]}").encode())
    return read_service(head.get("service")), _read_instances(text, found.end())


def _read_instances(text: str, begin: int) -> list[Instance]:
    instances: list[Instance] = []
    read = InstanceReader().read
    window, at, is_next = text[begin : begin + _WINDOW], 0, True
    while len(instances) <= MAX_INSTANCES:
        if at > _WINDOW // 2:
            begin += at
            window, at = text[begin : begin + _WINDOW], 0
        at = _after_space(window, at)
        if window[at : at + 1] == "]":
            break
        if not is_next:
            raise ValueError("expected a comma between instances")
        try:
            plain, at = _decoder.raw_decode(window, at)
        except RecursionError:
            raise ValueError("expected less depth") from None
        instances.append(read(plain))
        at = _after_space(window, at)
        is_next = window[at : at + 1] == ","
        at += is_next
    return instances


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def text_of(plain: Any) -> str:
    """One line, in ASCII."""
    return json.dumps(plain, separators=(",", ":"))


def plain_service(service: ServiceKey) -> dict[str, str]:
    """What is empty is left out."""
    plain = {"protocol": service.protocol, "name": service.name}
    if service.version:
        plain["version"] = service.version
    if service.group:
        plain["group"] = service.group
    return plain


def text_of_service(service: ServiceKey) -> str:
    """As JSON."""
    return text_of(plain_service(service))


def read_service(plain: object) -> ServiceKey:
    """Raises ValueError."""
    if not isinstance(plain, dict):
        raise ValueError("expected a service")
    return ServiceKey(
        _word(plain, "protocol", needed=True),
        _word(plain, "name", needed=True),
        _word(plain, "version"),
        _word(plain, "group"),
    )


def plain_instance(instance: Instance) -> dict[str, Any]:
    """What is as usual is left out."""
    plain: dict[str, Any] = {"address": str(instance.address), "weight": instance.weight}
    for name in ("started", "warmup", "zone"):
        if value := getattr(instance, name):
            plain[name] = value
    if instance.metadata:
        plain["metadata"] = dict(instance.metadata)
    return plain


def text_of_instance(instance: Instance) -> str:
    """As JSON."""
    return text_of(plain_instance(instance))


class InstanceReader:
    """Of instances of one service, which mostly have the same metadata: these are looked at once,
    and are in memory once."""

    def __init__(self) -> None:
        self._plain: object = None
        self._metadata: tuple[tuple[str, str], ...] = ()

    def read(self, plain: object) -> Instance:
        """Raises ValueError."""
        if isinstance(plain, dict) and plain.get("metadata") == self._plain:
            return _read_instance(plain, self._metadata)
        instance = read_instance(plain)
        assert isinstance(plain, dict)
        self._plain, self._metadata = plain.get("metadata"), instance.metadata
        return instance


def read_instance(plain: object) -> Instance:
    """Raises ValueError."""
    if not isinstance(plain, dict):
        raise ValueError("expected an instance")
    return _read_instance(plain, _metadata(plain["metadata"]) if "metadata" in plain else ())


def _read_instance(plain: dict[str, Any], metadata: tuple[tuple[str, str], ...]) -> Instance:
    weight = plain.get("weight", 100)
    if type(weight) is not int:
        raise ValueError("expected a whole number as weight")
    return Instance(
        read_address(plain.get("address")),
        min(max(weight, 0), MAX_WEIGHT),
        _seconds(plain, "started") if "started" in plain else 0.0,
        _seconds(plain, "warmup") if "warmup" in plain else 0.0,
        _word(plain, "zone") if "zone" in plain else "",
        metadata,
    )


def read_address(plain: object) -> Address:
    """Raises ValueError."""
    if not isinstance(plain, str):
        raise ValueError("expected an address")
    address = Address.parse(plain)
    if address.port == 0:
        raise ValueError("expected a port")
    return address


def _word(plain: dict[str, Any], key: str, *, needed: bool = False) -> str:
    value = plain.get(key, "")
    if not isinstance(value, str) or len(value) > _LENGTHS[key] or (needed and not value):
        raise ValueError(f"expected a {key} of at most {_LENGTHS[key]} characters")
    return value


def _seconds(plain: dict[str, Any], key: str) -> float:
    value = plain.get(key, 0.0)
    if type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not float or not 0 <= value < math.inf:
        raise ValueError(f"expected seconds as {key}")
    return value


def _metadata(plain: object) -> tuple[tuple[str, str], ...]:
    if plain is None:
        return ()
    if (
        not isinstance(plain, dict)
        or len(plain) > _MOST_METADATA
        or not {str}.issuperset(map(type, plain.values()))
    ):
        raise ValueError(f"expected at most {_MOST_METADATA} texts as metadata")
    return tuple(sorted(plain.items()))
