"""Which connections and which requests somebody asks for: the parameters of ``/connections`` and
``/requests``, and the options of ``pysidecar connections`` and ``requests``, which are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from pysidecar.address import Address
from pysidecar.config.values import parse_duration, parse_endpoint, parse_network
from pysidecar.destinations import Network
from pysidecar.text import printable

# The command line answers before the data plane is loaded, whose words some filters need.

__all__ = [
    "FILTERS",
    "LISTS",
    "REQUEST_FILTERS",
    "STATES",
    "Filter",
    "Predicate",
    "RequestSelection",
    "Selection",
    "SelectionError",
    "select",
    "select_requests",
]

Predicate = Callable[[Any], bool]
"""Of a ConnectionRecord, or of a RequestRecord."""

_MOST_DIGITS = 10  # a uid has as many
_COMMAND_BYTES = 15  # of a process's name, all that the kernel keeps
_MOST_ASKED = 10**9  # more than there can be
_SHOWN = 40  # characters of an unknown key


class SelectionError(ValueError):
    """What is wrong with a parameter: its key, and what was expected."""

    def __init__(self, key: str, problem: str) -> None:
        self.key = key
        self.problem = problem
        super().__init__(f"{key}: {problem}")


@dataclass(frozen=True, slots=True)
class Filter:
    """A parameter that leaves connections or requests out. Given more than once, one of its values
    has to fit.

    ``parse`` raises ValueError with what was expected. ``metavar`` stands for its value in a help.
    """

    key: str
    help: str
    parse: Callable[[str], Predicate]
    metavar: Callable[[], str]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > _MOST_DIGITS:
        raise ValueError("expected a whole number")
    return int(text)


def _names(enumeration: str) -> list[str]:
    """The words for the members of one of the data plane's enumerations."""
    from pysidecar import dataplane

    return [name.lower() for name in getattr(dataplane, enumeration).__members__]


def _cut(text: str, most: int) -> str:
    """As the data plane cuts it, and Python reads it."""
    return text.encode(errors="surrogatepass")[:most].decode(errors="backslashreplace")


def _named(key: str, help_: str, enumeration: str) -> Filter:
    """By the name of a member."""

    def names() -> list[str]:
        return _names(enumeration)

    def parse(text: str) -> Predicate:
        if text not in (choices := names()):
            raise ValueError(f"expected {_alternatives(choices)}")
        name = text.upper()
        return lambda record: bool(getattr(record, key).name == name)

    return Filter(key, help_, parse, lambda: f"[{'|'.join(names())}]")


def _alternatives(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _place(text: str) -> tuple[Network | None, int | None]:
    """A network and a port, of which one may be missing."""
    if text.startswith(":") and text[1:].isdigit():
        return None, parse_endpoint(f"0.0.0.0{text}").port
    try:
        return parse_network(text), None
    except ValueError:
        address = parse_endpoint(text)
        return parse_network(address.host), address.port


def _addressed(key: str, attribute: str, whose: str) -> Filter:
    def parse(text: str) -> Predicate:
        try:
            network, port = _place(text)
        except ValueError:
            raise ValueError(
                "expected an address, a prefix, or either's port, such as 10.0.0.9, 10.0.0.0/8, "
                "[fd00::9]:5432 or :5432"
            ) from None

        def fits(record: Any) -> bool:
            address: Address | None = getattr(record, attribute)
            return (
                address is not None
                and port in (None, address.port)
                and (network is None or ip_address(address.host) in network)
            )

        return fits

    return Filter(key, f"{whose}: an address, a prefix or :PORT.", parse, lambda: "WHERE")


def _numbered(key: str, help_: str, *, may_be_none: bool = False) -> Filter:
    def parse(text: str) -> Predicate:
        if may_be_none and text == "none":
            return lambda record: getattr(record, key) is None
        try:
            number = _number(text)
        except ValueError:
            what = "expected a whole number"
            raise ValueError(f"{what}, or none" if may_be_none else what) from None
        return lambda record: bool(getattr(record, key) == number)

    return Filter(key, help_, parse, lambda: "N")


def _parse_process(text: str) -> Predicate:
    if not text:
        raise ValueError("expected the name of a process")
    name = _cut(text, _COMMAND_BYTES)
    return lambda record: record.process == name


FILTERS = (
    _named("direction", "Which side opened it.", "Direction"),
    _named("transport", "How it got here.", "Transport"),
    _named("action", "What its route says.", "Action"),
    _named("path", "The way that its bytes take.", "ConnectionPath"),
    _addressed("source", "source", "Whence it came"),
    _addressed("destination", "original_destination", "Where it wanted to go"),
    _addressed("upstream", "upstream", "Where it went"),
    Filter(
        "process",
        f"The process's name, of which the kernel keeps {_COMMAND_BYTES} bytes.",
        _parse_process,
        lambda: "NAME",
    ),
    _numbered("pid", "The process's id."),
    _numbered("uid", "The process's user."),
    _numbered(
        "route",
        "The index of the route that matched, from 0, or none.",
        may_be_none=True,
    ),
)
"""Those that look at the connection alone."""

_MOST_ID_DIGITS = 20  # of 64 bits
_SERVICE_BYTES, _METHOD_BYTES = 64, 32  # all that the data plane keeps
_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")  # as the data plane's STATUS_CLASSES
_FAILED = "failed"


def _exactly(key: str, help_: str, most: int) -> Filter:
    """A text, of which the record has so many bytes."""

    def parse(text: str) -> Predicate:
        if not text:
            raise ValueError("expected a text")
        cut = _cut(text, most)
        return lambda record: bool(getattr(record, key) == cut)

    return Filter(key, help_, parse, lambda: "NAME")


def _parse_path(text: str) -> Predicate:
    if not text:
        raise ValueError("expected what the path begins with")
    return lambda record: (record.path_without_query or "").startswith(text)


def _parse_status(text: str) -> Predicate:
    if text == "none":
        return lambda record: record.status is None
    if text in _CLASSES:
        number = _CLASSES.index(text)
        return lambda record: bool(record.status_class == number)
    try:
        number = _number(text)
    except ValueError:
        raise ValueError("expected a status, a class such as 5xx, or none") from None
    return lambda record: bool(record.status == number)


def _parse_flag(text: str) -> Predicate:
    if text == _FAILED:
        return lambda record: bool(record.failed)
    if text not in (choices := _names("Flag")):
        raise ValueError(f"expected {_alternatives([_FAILED, *choices])}")
    name = text.upper()
    return lambda record: any(flag.name == name for flag in record.flags)


def _parse_connection(text: str) -> Predicate:
    if not (text.isascii() and text.isdigit()) or len(text) > _MOST_ID_DIGITS:
        raise ValueError("expected the id of a connection, as /connections gives it")
    number = int(text)
    return lambda record: bool(record.connection == number)


def _parse_slower(text: str) -> Predicate:
    least_ms = parse_duration(text) * 1000
    return lambda record: bool(record.duration_ms >= least_ms)


REQUEST_FILTERS = (
    _exactly("service", "Its service, or what it asks for where it reached none.", _SERVICE_BYTES),
    _named("protocol", "What it speaks.", "Protocol"),
    _named("direction", "Which side opened its connection.", "Direction"),
    _exactly("method", "Its method, such as GET.", _METHOD_BYTES),
    Filter("path", "What its path begins with.", _parse_path, lambda: "PREFIX"),
    Filter(
        "status",
        "What the client got: a number, a class such as 5xx, or none.",
        _parse_status,
        lambda: "STATUS",
    ),
    Filter(
        "flag",
        "What happened to it, such as timeout; failed is any failure.",
        _parse_flag,
        lambda: "FLAG",
    ),
    _addressed("source", "source", "Whence it came"),
    _addressed("upstream", "upstream", "Where it went"),
    Filter("connection", "The id of its connection.", _parse_connection, lambda: "ID"),
    Filter("slower", "It took at least so long, such as 100ms.", _parse_slower, lambda: "DURATION"),
)
"""Those that look at the request alone."""

STATES = ("open", "closed")
_MORE_KEYS = ("state", "closed", "limit", "format")
LISTS = ("newest", "failed", "slowest")
_MORE_REQUEST_KEYS = ("list", "limit", "format")

_Filters = tuple[tuple[Predicate, ...], ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which connections are asked for. ``closed`` is how many of those that closed are looked at,
    the latest; ``limit`` how many connections are wanted, None being all."""

    filters: _Filters = ()
    open: bool = True
    closed: int = 0
    limit: int | None = None

    def fits(self, record: Any) -> bool:
        """Whether it is among those that are asked for."""
        return _fits(self.filters, record)


@dataclass(frozen=True, slots=True)
class RequestSelection:
    """Which requests are asked for: of which of the LISTS, and how many at most, None being all."""

    filters: _Filters = ()
    list: str = LISTS[0]
    limit: int | None = None

    def fits(self, record: Any) -> bool:
        """Whether it is among those that are asked for."""
        return _fits(self.filters, record)


def _fits(filters: _Filters, record: Any) -> bool:
    return all(any(one(record) for one in alternatives) for alternatives in filters)


def select(parameters: Iterable[tuple[str, str]]) -> Selection:
    """Connections, from the parameters of a request, in which ``format`` is somebody else's. Raises
    SelectionError."""
    values = _collect(parameters, FILTERS, _MORE_KEYS)
    states = _states(values)
    return Selection(
        filters=_predicates(values, FILTERS),
        open="open" in states,
        closed=_closed(values, states),
        limit=_only_number(values, "limit", least=1),
    )


def select_requests(parameters: Iterable[tuple[str, str]]) -> RequestSelection:
    """Requests, likewise."""
    values = _collect(parameters, REQUEST_FILTERS, _MORE_REQUEST_KEYS)
    names = values.get("list", [LISTS[0]])
    if len(names) != 1 or names[0] not in LISTS:
        raise SelectionError("list", f"expected {_alternatives(LISTS)}, once")
    return RequestSelection(
        filters=_predicates(values, REQUEST_FILTERS),
        list=names[0],
        limit=_only_number(values, "limit", least=1),
    )


def _collect(
    parameters: Iterable[tuple[str, str]], filters: Sequence[Filter], more: Sequence[str]
) -> dict[str, list[str]]:
    """The values of each key."""
    keys = [*(each.key for each in filters), *more]
    values: dict[str, list[str]] = {}
    for key, value in parameters:
        if key not in keys:
            known = ", ".join(keys)
            raise SelectionError(printable(key[:_SHOWN]), f"unknown key: expected one of {known}")
        values.setdefault(key, []).append(value)
    return values


def _predicates(values: dict[str, list[str]], filters: Sequence[Filter]) -> _Filters:
    return tuple(
        tuple(_parsed(each, value) for value in values[each.key])
        for each in filters
        if each.key in values
    )


def _parsed(each: Filter, value: str) -> Predicate:
    try:
        return each.parse(value)
    except ValueError as error:
        raise SelectionError(each.key, str(error)) from None


def _states(values: dict[str, list[str]]) -> Sequence[str]:
    """Those that are asked for; both where nobody says."""
    states = values.get("state", STATES)
    for state in states:
        if state not in STATES:
            raise SelectionError("state", f"expected {_alternatives(STATES)}")
    return states


def _closed(values: dict[str, list[str]], states: Sequence[str]) -> int:
    asked = _only_number(values, "closed")
    if "closed" not in states:
        return 0
    if asked is None:  # then whoever asks for those that closed wants all of them
        return _MOST_ASKED if "state" in values else 0
    return asked


def _only_number(values: dict[str, list[str]], key: str, *, least: int = 0) -> int | None:
    if key not in values:
        return None
    try:
        [text] = values[key]
        number = _number(text)
    except ValueError:
        number = -1
    if not least <= number <= _MOST_ASKED:
        raise SelectionError(key, f"expected a whole number from {least} to {_MOST_ASKED:,}, once")
    return number
