"""From the configuration to the table of services: where requests go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pysidecar.address import Address
from pysidecar.config import Config, RequestMatch, RequestRule, ServiceEntry, ServiceListener
from pysidecar.dataplane import Action, Balance, PackedServices, Protocol, lib, pack_array

__all__ = ["ServiceNumbers", "pack_services"]

_PROTOCOLS = {protocol.name.lower(): protocol for protocol in Protocol}
_BALANCES = {balance.name.lower(): balance for balance in Balance}
_ANY = True  # as the value of a header

# In this order they are compared.
_SUBJECTS = (
    ("host", lib.DP_SUBJECT_HOST),
    ("service", lib.DP_SUBJECT_SERVICE),
    ("path", lib.DP_SUBJECT_PATH),
    ("path_prefix", lib.DP_SUBJECT_PATH_PREFIX),
    ("method", lib.DP_SUBJECT_METHOD),
    ("version", lib.DP_SUBJECT_VERSION),
    ("group", lib.DP_SUBJECT_GROUP),
)
_NEVER_GLOBS = ("path", "path_prefix")

_Predicate = tuple[int, int, int, int, int]


class ServiceNumbers:
    """Names services for as long as the sidecar runs: one with the same name and protocol goes on
    with its counts and connections."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def of(self, name: str, protocol: str) -> int:
        """The same each time."""
        return self._numbers.setdefault((name, protocol), len(self._numbers))


class _Texts:
    """Each once; the first one is empty."""

    def __init__(self) -> None:
        self._numbers = {"": 0}
        self._places = [(0, 0)]
        self._characters = bytearray()

    def add(self, text: str | None) -> int:
        number = self._numbers.setdefault(text or "", len(self._places))
        if number == len(self._places):
            encoded = (text or "").encode()
            self._places.append((len(self._characters), len(encoded)))
            self._characters += encoded
        return number

    def pack(self) -> tuple[bytes, bytes]:
        return pack_array("struct dp_text", self._places), bytes(self._characters)


class _Rules:
    """The arrays that rules are made of."""

    def __init__(self, texts: _Texts, places: dict[str, int]) -> None:
        self._texts = texts
        self._places = places  # of services
        self.rules: list[tuple[int, ...]] = []
        self.predicates: list[_Predicate] = []
        self.targets: list[tuple[int, int]] = []
        self.headers: list[tuple[int, int]] = []

    def add(self, rule: RequestRule, protocol: Protocol) -> None:
        add = self._texts.add
        first_predicate, first_target = len(self.predicates), len(self.targets)
        self.predicates.extend(self._predicates(rule.match))
        self.targets.extend(
            (self._places[name], weight) for name, weight in rule.services.items() if weight
        )
        rewrite = rule.rewrite
        set_headers = self._add_headers(rewrite.set_headers.items())
        remove_headers = self._add_headers((name, "") for name in rewrite.remove_headers)
        self.rules.append(
            (
                *(protocol, _milliseconds(rule.timeout or 0)),
                *(first_predicate, len(self.predicates) - first_predicate),
                *(first_target, len(self.targets) - first_target),
                *(add(rewrite.host), add(rewrite.path_prefix)),
                add(rewrite.original_destination_header),
                *(*set_headers, *remove_headers),
            )
        )

    def _add_headers(self, headers: Iterable[tuple[str, str]]) -> tuple[int, int]:
        """The first one, and how many there are."""
        first = len(self.headers)
        self.headers.extend(
            (self._texts.add(name), self._texts.add(text)) for name, text in headers
        )
        return first, len(self.headers) - first

    def _predicates(self, match: RequestMatch) -> Iterator[_Predicate]:
        add = self._texts.add
        for key, subject in _SUBJECTS:
            for place, value in enumerate(getattr(match, key) or ()):
                is_glob = "*" in value and key not in _NEVER_GLOBS
                pattern = lib.DP_PATTERN_GLOB if is_glob else lib.DP_PATTERN_EXACT
                yield subject, pattern, 0, add(value), int(place > 0)
        for name, values in match.headers.items():
            if values is _ANY:
                yield lib.DP_SUBJECT_HEADER, lib.DP_PATTERN_ANY, add(name), 0, 0
                continue
            for place, value in enumerate(values):
                yield (
                    *(lib.DP_SUBJECT_HEADER, lib.DP_PATTERN_EXACT, add(name), add(value)),
                    int(place > 0),
                )


def pack_services(
    config: Config, numbers: ServiceNumbers, listeners: Sequence[Address] = ()
) -> PackedServices:
    """For ``DataPlane.set_services``, in any thread. ``listeners`` are those of the configuration
    that the sidecar started with, in their order there."""
    texts = _Texts()
    services: list[tuple[int, ...]] = []
    endpoints: list[tuple[bytes | int, ...]] = []
    places = {name: place for place, name in enumerate(config.services)}
    for name, service in config.services.items():
        number = numbers.of(name, service.protocol)
        services.append(_service(number, texts.add(name), service, texts, len(endpoints)))
        endpoints.extend(
            (*endpoint.address.to_native(), endpoint.weight, 0) for endpoint in service.endpoints
        )
    rules = _Rules(texts, places)
    for rule in config.requests:
        protocol = config.services[next(iter(rule.services))].protocol
        rules.add(rule, _PROTOCOLS[protocol])
    entrances = [
        _entrance(listener, config, places) for listener in _in_order(config.listeners, listeners)
    ]
    packed_texts, characters = texts.pack()
    return PackedServices(
        services=pack_array("struct dp_service", services),
        endpoints=pack_array("struct dp_endpoint", endpoints),
        rules=pack_array("struct dp_rule", rules.rules),
        predicates=pack_array("struct dp_predicate", rules.predicates),
        targets=pack_array("struct dp_target", rules.targets),
        headers=pack_array("struct dp_header", rules.headers),
        entrances=pack_array("struct dp_entrance", entrances),
        texts=packed_texts,
        characters=characters,
    )


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1000), 0xFFFFFFFF)


def _service(
    number: int, name: int, service: ServiceEntry, texts: _Texts, first_endpoint: int
) -> tuple[int, ...]:
    return (
        *(number, name, _PROTOCOLS[service.protocol], _BALANCES[service.balance.kind]),
        texts.add(service.balance.header),
        *(_milliseconds(service.timeout), _milliseconds(service.read_timeout)),
        _milliseconds(service.idle_timeout),
        *(service.connections, service.pending),
        *(first_endpoint, len(service.endpoints)),
    )


def _in_order(
    listeners: Sequence[ServiceListener], addresses: Sequence[Address]
) -> Iterator[ServiceListener]:
    """Those with these addresses, each once: a reload may bring them in another order."""
    left = list(listeners)
    for address in addresses or [listener.listen for listener in listeners]:
        listener = next(each for each in left if each.listen == address)
        left.remove(listener)
        yield listener


def _entrance(
    listener: ServiceListener, config: Config, places: dict[str, int]
) -> tuple[int, int, int, int]:
    service = listener.service
    protocol = listener.protocol or (config.services[service].protocol if service else "auto")
    return (
        _PROTOCOLS[protocol],
        _milliseconds(listener.detect_timeout),
        Action.REFUSE,
        lib.DP_NO_SERVICE if service is None else places[service],
    )
