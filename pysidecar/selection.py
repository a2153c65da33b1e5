"""Which connections somebody asks for: the parameters of ``/connections``, and the options of
``pysidecar connections``, which are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pysidecar.address import Address
from pysidecar.config.values import parse_endpoint, parse_network
from pysidecar.destinations import Network
from pysidecar.text import printable

if TYPE_CHECKING:  # the command line answers before the data plane is loaded
    from pysidecar.dataplane import ConnectionRecord

__all__ = ["FILTERS", "STATES", "Filter", "Predicate", "Selection", "SelectionError", "select"]

Predicate = Callable[["ConnectionRecord"], bool]

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
    """A parameter that leaves connections out. Given more than once, one of its values has to
    fit.

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


def _named(key: str, help_: str, enumeration: str) -> Filter:
    """By the name of a member of one of the data plane's enumerations."""

    def names() -> list[str]:
        from pysidecar import dataplane

        return [name.lower() for name in getattr(dataplane, enumeration).__members__]

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

        def fits(record: ConnectionRecord) -> bool:
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
    name = text.encode()[:_COMMAND_BYTES].decode(errors="backslashreplace")
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

STATES = ("open", "closed")
_MORE_KEYS = ("state", "closed", "limit", "format")


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for. ``closed`` is how many of those that closed are looked at, the latest;
    ``limit`` how many connections are wanted, None being all."""

    filters: tuple[tuple[Predicate, ...], ...] = ()
    open: bool = True
    closed: int = 0
    limit: int | None = None

    def fits(self, record: ConnectionRecord) -> bool:
        """Whether it is among those that are asked for."""
        return all(any(one(record) for one in alternatives) for alternatives in self.filters)


def select(parameters: Iterable[tuple[str, str]]) -> Selection:
    """From the parameters of a request, in which ``format`` is somebody else's. Raises
    SelectionError."""
    filters = {each.key: each for each in FILTERS}
    values: dict[str, list[str]] = {}
    for key, value in parameters:
        if key not in filters and key not in _MORE_KEYS:
            known = ", ".join([*filters, *_MORE_KEYS])
            raise SelectionError(printable(key[:_SHOWN]), f"unknown key: expected one of {known}")
        values.setdefault(key, []).append(value)
    states = _states(values)
    return Selection(
        filters=tuple(
            tuple(_parsed(each, value) for value in values[key])
            for key, each in filters.items()
            if key in values
        ),
        open="open" in states,
        closed=_closed(values, states),
        limit=_only_number(values, "limit", least=1),
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
