"""How single values are written in a configuration: durations, networks, ports, addresses.

Each parser raises ValueError with a text that begins with "expected"; whoever calls it knows the
key and the value and puts them in front.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from pysidecar.address import Address, NamedAddress, is_host_name
from pysidecar.destinations import Network, PortRange

__all__ = [
    "AddressText",
    "ApiText",
    "CgroupPath",
    "Duration",
    "DurationOrZero",
    "EndpointText",
    "FilePath",
    "HostText",
    "LoopbackText",
    "Mode",
    "NetworkText",
    "Ports",
    "SocketPath",
    "WhenAway",
    "WhenAwayText",
    "format_duration",
    "is_token",
]

# In the JSON schemas below, "kind" is what docs/configuration.md calls the type.

MAX_SOCKET_PATH = 107  # bytes: sizeof(sockaddr_un.sun_path) less the NUL
_MAX_SECONDS = 0xFFFFFFFF / 1000  # the data plane's timers are milliseconds in 32 bits

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_DURATION_PATTERN = r"\d+(\.\d+)?(ms|s|m|h|d)"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_PREFIX_LENGTH = re.compile("[0-9]|[12][0-9]|3[0-2]", re.ASCII)
_ZERO = "0s"
_USUAL_WAIT = 30.0  # seconds
_DURATION_EXPECTED = "expected a duration such as 500ms, 5s, 10m or 1h"


def is_token(value: Any, most: int) -> TypeGuard[str]:
    """Whether it is a text as names of headers and methods are (RFC 9110, 5.6.2), of at most so
    many characters."""
    return isinstance(value, str) and len(value) <= most and _TOKEN.fullmatch(value) is not None


def parse_duration(value: Any) -> float:
    """Seconds, from a number and a unit. At least a millisecond, less than 49 days."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(_DURATION_EXPECTED)
    seconds = float(match[1]) * _UNITS[match[2]]
    if not 0.001 <= seconds <= _MAX_SECONDS:
        raise ValueError("expected a duration of at least 1ms and at most 49d")
    return seconds


def parse_duration_or_zero(value: Any) -> float:
    """As ``parse_duration``, or ``0s``."""
    return 0.0 if value == _ZERO else parse_duration(value)


def format_duration(seconds: float) -> str:
    """The shortest exact spelling that ``parse_duration`` reads back."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return _ZERO
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(milliseconds, round(_UNITS[unit] * 1000))
        if rest == 0:
            return f"{count}{unit}"
    return f"{milliseconds}ms"


Duration = Annotated[
    float,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION_PATTERN}$", "kind": "duration"}),
]

DurationOrZero = Annotated[
    float,
    PlainValidator(parse_duration_or_zero),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{_DURATION_PATTERN}$", "kind": "duration or `0s`"}
    ),
]


@dataclass(frozen=True, slots=True)
class WhenAway:
    """What a hooked connect does while no sidecar serves. ``wait`` is in seconds and only counts
    in mode "wait"."""

    mode: Literal["refuse", "direct", "wait"] = "refuse"
    wait: float = 0.0

    def __str__(self) -> str:
        return f"wait:{format_duration(self.wait)}" if self.mode == "wait" else self.mode

    @property
    def environment_value(self) -> str:
        """The spelling of MOSNHOOK_WHEN_AWAY, which counts in seconds."""
        if self.mode != "wait":
            return self.mode
        return f"wait:{self.wait:.3f}".rstrip("0").rstrip(".")


def parse_when_away(value: Any) -> WhenAway:
    """``refuse``, ``direct``, ``wait`` or ``wait:<duration>``."""
    if value == "refuse" or value == "direct":
        return WhenAway(value)
    if value == "wait":
        return WhenAway("wait", _USUAL_WAIT)
    if isinstance(value, str) and value.startswith("wait:"):
        try:
            return WhenAway("wait", parse_duration(value.removeprefix("wait:")))
        except ValueError as error:
            raise ValueError(f"after wait: {error}") from None
    raise ValueError("expected refuse, direct, wait or wait:<duration> such as wait:5s")


WhenAwayText = Annotated[
    WhenAway,
    PlainValidator(parse_when_away),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": f"^(refuse|direct|wait(:{_DURATION_PATTERN})?)$",
            "kind": "`refuse`, `direct`, `wait` or `wait:<duration>`",
        }
    ),
]


def _plain_network(value: str) -> IPv4Network | None:
    """As ``ip_network`` reads a CIDR of IPv4, much faster; None for anything else."""
    host, slash, length = value.partition("/")
    try:
        packed = socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return None
    if slash and not _PREFIX_LENGTH.fullmatch(length):
        return None
    return IPv4Network((packed, int(length) if slash else 32))


def parse_network(value: Any) -> Network:
    """A CIDR, or a single address. IPv4 written as v4-mapped IPv6 becomes IPv4, as the kernel
    treats it."""
    if not isinstance(value, str):
        raise ValueError("expected an IPv4 or IPv6 network such as 10.0.0.0/8 or fd00::/8")
    try:
        network = _plain_network(value) or ip_network(value)
    except ValueError:
        try:
            loose = ip_network(value, strict=False)
        except ValueError:
            raise ValueError(
                "expected an IPv4 or IPv6 network such as 10.0.0.0/8 or fd00::/8"
            ) from None
        raise ValueError(f"expected a network without host bits; did you mean {loose}?") from None
    if isinstance(network, IPv6Network):
        if network.network_address.scope_id is not None:
            raise ValueError("expected a network without a zone")
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            return IPv4Network((int(mapped), network.prefixlen - 96))
    return network


NetworkText = Annotated[
    Network,
    PlainValidator(parse_network),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "kind": "network"}),
]

_PORTS_EXPECTED = "expected a port such as 5432 or a range such as 8000-8999"


def parse_ports(value: Any) -> PortRange:
    """A port, or ``first-last``."""
    if isinstance(value, int) and not isinstance(value, bool):
        first = last = value
    elif isinstance(value, str) and (match := re.fullmatch(r"(\d+)(?:-(\d+))?", value, re.ASCII)):
        first = int(match[1])
        last = int(match[2] or match[1])
    else:
        raise ValueError(_PORTS_EXPECTED)
    if not (1 <= first <= 0xFFFF and 1 <= last <= 0xFFFF):
        raise ValueError(f"{_PORTS_EXPECTED}, from 1 to 65535")
    if first > last:
        raise ValueError(f"expected the smaller port first: {last}-{first}")
    return PortRange(first, last)


Ports = Annotated[
    PortRange,
    PlainValidator(parse_ports),
    PlainSerializer(PortRange.to_plain, return_type=int | str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 65535},
                {"type": "string", "pattern": r"^\d+(-\d+)?$"},
            ],
            "kind": "port or range",
        }
    ),
]


def parse_address(value: Any) -> Address:
    """``127.0.0.1:80`` or ``[::1]:80``; spelled in the shortest form from here on."""
    if not isinstance(value, str):
        raise ValueError("expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080")
    address = Address.parse(value)
    if ":" not in address.host:
        return address
    return Address(str(ip_address(address.host)), address.port)


def parse_loopback_address(value: Any) -> Address:
    """An address that only this machine reaches."""
    return _on_loopback(value, "can connect anywhere through it")


def parse_api_address(value: Any) -> Address:
    """Likewise, of the mesh API."""
    return _on_loopback(value, "can publish services as if they were provided here")


def _on_loopback(value: Any, reason: str) -> Address:
    address = parse_address(value)
    if not ip_address(address.host).is_loopback:
        raise ValueError(f"expected a loopback address: whoever reaches this listener {reason}")
    return address


def parse_endpoint(value: Any) -> Address:
    """An address that can be connected to."""
    address = parse_address(value)
    if address.port == 0:
        raise ValueError("expected a port from 1 to 65535")
    return address


def parse_server(value: Any) -> Address | NamedAddress:
    """An address that can be connected to, or a name in the place of its host."""
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if is_host_name(host) and port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 0xFFFF:
        return NamedAddress(host, int(port))
    try:
        return parse_endpoint(value)
    except ValueError:
        raise ValueError(
            "expected an IP address or a host name, and a port, such as 10.0.0.5:2181 or "
            "registry.example:2181"
        ) from None


def parse_host(value: Any) -> str:
    """An IP address without a port, in its shortest form."""
    try:
        if not isinstance(value, str) or "%" in value:
            raise ValueError
        host = ip_address(value)
    except ValueError:
        raise ValueError("expected an IP address such as 127.0.0.1 or ::1") from None
    if host.is_unspecified or host.is_multicast:
        raise ValueError("expected an IP address that can be connected to")
    return str(host)


_ADDRESS_FORM = (
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "kind": "address"}),
)
AddressText = Annotated[Address, PlainValidator(parse_address), *_ADDRESS_FORM]
LoopbackText = Annotated[Address, PlainValidator(parse_loopback_address), *_ADDRESS_FORM]
ApiText = Annotated[Address, PlainValidator(parse_api_address), *_ADDRESS_FORM]
EndpointText = Annotated[Address, PlainValidator(parse_endpoint), *_ADDRESS_FORM]
HostText = Annotated[str, PlainValidator(parse_host), *_ADDRESS_FORM]


def parse_path(value: Any) -> Path:
    """A path, made absolute: against the directory that the sidecar is started in. Not against a
    home: the sidecar's and its applications' may differ, and both read the file."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("expected a path")
    if str(value).startswith("~"):
        raise ValueError("expected a path without ~: write the home directory out")
    return Path(value).absolute()


def parse_socket_path(value: Any) -> Path:
    """A path that fits the kernel's address of a Unix socket."""
    path = parse_path(value)
    length = len(bytes(path))
    if length > MAX_SOCKET_PATH:
        raise ValueError(
            f"expected a path of at most {MAX_SOCKET_PATH} bytes, the kernel's limit for Unix "
            f"sockets; {path} has {length}"
        )
    return path


_PATH_FORM = (
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "kind": "path"}),
)
FilePath = Annotated[Path, PlainValidator(parse_path), *_PATH_FORM]
SocketPath = Annotated[Path, PlainValidator(parse_socket_path), *_PATH_FORM]


def parse_cgroup(value: Any) -> str:
    """A path below the root of the cgroup v2 hierarchy, without slashes at its ends."""
    path = value.strip("/") if isinstance(value, str) else ""
    if not path or any(c in path for c in '"\\\n\0'):
        raise ValueError("expected the path of a cgroup such as system.slice/pysidecar.service")
    return path


CgroupPath = Annotated[
    str, PlainValidator(parse_cgroup), WithJsonSchema({"type": "string", "kind": "path"})
]


def parse_mode(value: Any) -> int:
    """Permission bits, written as an octal text: an unquoted number would be ambiguous."""
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError('expected octal permissions with a leading zero, such as "0600" or "0660"')
    mode = int(value, 8)
    if mode & 0o600 != 0o600 or mode & 0o111:
        raise ValueError(
            "expected permissions that let the owner read and write, and nobody execute, such as "
            '"0600" or "0660"'
        )
    return mode


Mode = Annotated[
    int,
    PlainValidator(parse_mode),
    PlainSerializer(lambda mode: f"{mode:04o}", return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^0?[0-7]{3}$", "kind": "octal text"}),
]
