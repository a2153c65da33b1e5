"""From the configuration, and from what takeover found, to the table of services: where requests
go."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from pysidecar.address import Address
from pysidecar.config import (
    Config,
    FoundPolicy,
    RequestMatch,
    RequestRule,
    ServiceEntry,
    ServiceListener,
    ServicePolicy,
)
from pysidecar.dataplane import (
    Action,
    Balance,
    PackedServices,
    Protocol,
    Scope,
    ServiceRole,
    ffi,
    lib,
    pack_array,
)
from pysidecar.health.checks import CheckedService
from pysidecar.registry.service import CALLS, GRPC_COMMON, VARIED, ServiceKey
from pysidecar.routing.found import NOTHING_FOUND, FoundService, FoundServices, Role
from pysidecar.routing.policies import Policies
from pysidecar.routing.resilience import Handlings, Resiliences
from pysidecar.routing.resilience import milliseconds as _milliseconds
from pysidecar.routing.resilience import shares as _shares

__all__ = [
    "ServiceNumbers",
    "checked_services",
    "consumer_entrance",
    "pack_services",
    "provider_entrance",
]

_PROTOCOLS = {protocol.name.lower(): protocol for protocol in Protocol} | {"tri": Protocol.GRPC}
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

_ROLES = {Role.SUBSCRIBED: ServiceRole.SUBSCRIBED, Role.PUBLISHED: ServiceRole.PUBLISHED}
_CONFIGURED_SCOPES = 1 << Scope.OUTBOUND | 1 << Scope.INBOUND
_PASSED_SCOPES = 1 << Scope.PROVIDER
_SCOPES = {
    Role.SUBSCRIBED: 1 << Scope.OUTBOUND,
    Role.PUBLISHED: 1 << Scope.INBOUND | 1 << Scope.PROVIDER,
}
_NO_VERSION = "0.0.0"  # Dubbo's word for none, in requests
# In which order found services are asked, where two match: the one that says more, and before one
# that has no endpoints, which anybody can subscribe.
_TRIPLE, _GRPC, _LONE, _COMMON, _EMPTY, _EXACT, _GROUPED, _LIKE = range(8)
_DETECT_TIMEOUT = 5.0  # seconds, as the default of `listeners`

_Predicate = tuple[int, int, int, int, int]
_Entrance = tuple[int, ...]
_Endpoint = tuple[bytes, int, int, int, int, int, int]
"""As ``struct dp_endpoint``."""


class ServiceNumbers:
    """Names services for as long as the sidecar runs: one with the same name, protocol and role
    goes on with its counts and connections. One that takeover found is forgotten when the table
    does not have it any more; its number is not used again."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._unused = itertools.count()
        self.configured: _Configured | None = None
        """Of the table before."""
        self.found: dict[int, _Found] = {}
        """Of the table before, by the identity of what was packed."""
        self.policies = Policies({})
        """Of the table before."""

    def of(self, name: str, protocol: str) -> int:
        """Of the configuration's service; the same each time."""
        return self.of_key((name, protocol))

    def of_found(self, service: FoundService) -> int:
        """The same for each with this key and role."""
        return self.of_key((service.key, service.role))

    def of_key(self, key: Hashable) -> int:
        """The same each time."""
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = next(self._unused)
        return number

    def __len__(self) -> int:
        return len(self._numbers)

    def keep_found(self, found: dict[int, _Found]) -> None:
        """Forgets all others."""
        gone = {part.key for part in self.found.values()}
        gone.difference_update(part.key for part in found.values())
        for key in gone:
            del self._numbers[key]
        self.found = found


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
        self.handlings = Handlings()

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
                *(_CONFIGURED_SCOPES, self.handlings.add(rule)),
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


@dataclass(frozen=True, slots=True)
class _Configured:
    """What is in the table of a configuration alone: it stands before what is found."""

    config: Config
    listeners: Sequence[Address]
    told: Sequence[FoundService | None]
    packed: PackedServices
    policies: Mapping[str, _PackedPolicy]
    """Of what is found, by name."""


@dataclass(frozen=True, slots=True)
class _PackedPolicy:
    """What ``struct dp_service`` has of a policy."""

    balance: Balance
    header: int
    limits: tuple[int, ...]
    limits_of_calls: tuple[int, ...]
    """Where it speaks gRPC."""
    resilience: int
    endpoints: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """What is in the table of one service that was found, in terms of its own texts: the first one
    has the number 1, and is its name."""

    source: object
    """What this is of; kept, so that nothing else has its identity."""
    header: str
    """That names the service of HTTP."""
    zone: str
    """Whose endpoints are preferred."""
    alone: bool
    """Of gRPC: there is no other one in its role, so that health checks are meant for it."""
    key: Hashable
    """Of its number."""
    number: int
    protocol: Protocol
    role: ServiceRole
    scopes: int
    texts: tuple[bytes, ...]
    predicates: tuple[_Predicate, ...]
    rank: int
    """Those with a lower one are asked first."""
    endpoints: bytes
    endpoint_count: int
    await_ms: int = 0
    policy: str | None = None
    """The name of the one that counts."""
    checked: CheckedService | None = None
    """Where its endpoints are to be asked how they are."""


def pack_services(
    config: Config,
    numbers: ServiceNumbers,
    listeners: Sequence[Address] = (),
    found: FoundServices = NOTHING_FOUND,
) -> PackedServices:
    """For ``DataPlane.set_services``, in any thread, but one at a time with the same ``numbers``.
    ``listeners`` are those of the configuration that the sidecar started with, in their order
    there. What has not changed since the last time (the configuration, each service of ``found``)
    is not packed again."""
    configured = numbers.configured
    told = _told(config, found)
    if (
        configured is None
        or configured.config is not config
        or configured.listeners != tuple(listeners)
        or configured.told != told
    ):
        configured = numbers.configured = _pack_configured(config, numbers, listeners, told)
    header = config.takeover.host_header.lower() if config.takeover is not None else "host"
    zone = config.registry.zone
    policies = Policies(config.takeover.services if config.takeover is not None else {})
    before = numbers.found if policies == numbers.policies else {}
    numbers.policies = policies
    parts: dict[int, _Found] = {}
    lone = _lone(found)
    for service in found.services:
        part = before.get(id(service))
        alone = service is lone
        if part is None or (part.header, part.zone, part.alone) != (header, zone, alone):
            part = _pack_found(service, numbers, header, zone, alone, policies)
        parts[id(service)] = part
    for passed in {passed[:2]: passed for passed in found.passed}.values():
        parts[id(passed)] = _pack_passed(passed, numbers, header)
    numbers.keep_found(parts)
    return _join(configured, parts.values())


def checked_services(
    config: Config, numbers: ServiceNumbers, found: FoundServices = NOTHING_FOUND
) -> list[CheckedService]:
    """Those whose endpoints are to be asked how they are, once a table with them was packed and
    set."""
    told = iter(_told(config, found))
    checked = []
    for name, service in config.services.items():
        subscribed = next(told) if service.subscribe else None
        if service.health_check is None:
            continue
        endpoints = (
            tuple(address for address, _ in subscribed.endpoints)
            if subscribed is not None
            else tuple(endpoint.address for endpoint in service.endpoints)
        )
        number = numbers.of(name, service.protocol)
        checked.append(
            CheckedService(number, name, service.protocol, service.health_check, endpoints)
        )
    checked += (part.checked for part in numbers.found.values() if part.checked is not None)
    return checked


def consumer_entrance(listeners: Sequence[object]) -> int:
    """The number (see ``Listener.number``) of takeover's consumer port; ``listeners`` are the
    configuration's at the start."""
    return len(listeners)


def provider_entrance(listeners: Sequence[object]) -> int:
    """The number of its provider port."""
    return len(listeners) + 1


# ---- the configuration's part ----


def _told(config: Config, found: FoundServices) -> list[FoundService | None]:
    """Where the endpoints of those that are subscribed are, in their order."""
    wanted = [
        ServiceKey.parse(service.protocol, service.subscribe)
        for service in config.services.values()
        if service.subscribe
    ]
    if not wanted:
        return []
    services = {
        service.key: service for service in found.services if service.role is Role.SUBSCRIBED
    }
    return [services.get(key) for key in wanted]


def _pack_configured(
    config: Config,
    numbers: ServiceNumbers,
    listeners: Sequence[Address],
    told: Sequence[FoundService | None],
) -> _Configured:
    texts = _Texts()
    services: list[tuple[int, ...]] = []
    endpoints: list[_Endpoint] = []
    places = {name: place for place, name in enumerate(config.services)}
    resiliences = Resiliences(places)
    hedged = {name for rule in config.requests if rule.hedge for name in rule.services}
    left = iter(told)
    for name, service in config.services.items():
        number = numbers.of(name, service.protocol)
        await_ms = 0
        if service.subscribe:
            told_of = next(left)
            own = _found_endpoints(told_of, _zone(service, config))
            await_ms = _await(told_of, config)
        else:
            own = _own_endpoints(service)
        span = (len(endpoints), len(own))
        resilience = resiliences.add(service, service.mirror, hedged=name in hedged)
        fixed = _service(number, texts.add(name), service, texts, await_ms, span)
        services.append((*fixed, resilience, *_policy(service)))
        endpoints.extend(own)
    rules = _Rules(texts, places)
    for rule in config.requests:
        protocol = config.services[next(iter(rule.services))].protocol
        rules.add(rule, _PROTOCOLS[protocol].family)
    entrances = [
        _entrance(listener, config, places) for listener in _in_order(config.listeners, listeners)
    ]
    if config.takeover is not None:
        takeover = config.takeover
        wait = _milliseconds(takeover.on_demand_timeout) if takeover.on_demand else 0
        header = takeover.host_header.lower()
        named = texts.add(None if header == "host" else header)
        entrances += [_port(Scope.OUTBOUND, wait, named), _port(Scope.PROVIDER)]
    policies = {
        name: _pack_policy(policy, texts.add(policy.balance.header), resiliences.add(policy))
        for name, policy in (config.takeover.services if config.takeover else {}).items()
    }
    packed_texts, characters = texts.pack()
    packed = PackedServices(
        services=pack_array("struct dp_service", services),
        endpoints=pack_array("struct dp_endpoint", endpoints),
        rules=pack_array("struct dp_rule", rules.rules),
        predicates=pack_array("struct dp_predicate", rules.predicates),
        targets=pack_array("struct dp_target", rules.targets),
        headers=pack_array("struct dp_header", rules.headers),
        entrances=pack_array("struct dp_entrance", entrances),
        resiliences=pack_array("struct dp_resilience", resiliences.items),
        handlings=pack_array("struct dp_handling", rules.handlings.items),
        texts=packed_texts,
        characters=characters,
    )
    return _Configured(config, tuple(listeners), told, packed, policies)


def _pack_policy(policy: FoundPolicy, header: int, resilience: int) -> _PackedPolicy:
    limits = limits_of_calls = _limits(policy)
    if "read_timeout" not in policy.model_fields_set:
        # A stream may be silent for as long as it likes: what a call may take is its deadline.
        limits_of_calls = _limits(policy.model_copy(update={"read_timeout": 0.0}))
    balance = _BALANCES[policy.balance.kind]
    return _PackedPolicy(balance, header, limits, limits_of_calls, resilience, _policy(policy))


def _await(service: FoundService | None, config: Config) -> int:
    """Milliseconds for which a request waits to hear where the service is."""
    if service is not None:
        return service.await_ms
    assert config.takeover is not None
    return _milliseconds(config.takeover.await_timeout)


def _service(
    number: int,
    name: int,
    service: ServiceEntry,
    texts: _Texts,
    await_ms: int,
    endpoints: tuple[int, int],
) -> tuple[int, ...]:
    """``endpoints``: the index of its first one, and how many there are."""
    return (
        *(number, name, _PROTOCOLS[service.protocol], _BALANCES[service.balance.kind]),
        texts.add(service.balance.header),
        *(*_limits(service), await_ms),
        *(*endpoints, ServiceRole.CONFIGURED),
    )


def _policy(service: ServicePolicy) -> tuple[int, ...]:
    """As ``struct dp_endpoint_policy``."""
    outliers = service.outlier_detection
    return (
        _shares(service.healthy_panic_threshold),
        *(
            (
                outliers.consecutive_errors,
                _milliseconds(outliers.ejection_time),
                _shares(outliers.max_ejected),
            )
            if outliers is not None
            else (0, 0, 0)
        ),
        _milliseconds(service.slow_start),
    )


def _zone(service: ServiceEntry, config: Config) -> str:
    """That is preferred; empty: none."""
    if service.locality is not None:
        return service.locality.prefer
    return config.registry.zone if service.subscribe else ""


def _own_endpoints(service: ServiceEntry) -> list[_Endpoint]:
    zone = service.locality.prefer if service.locality is not None else ""
    return _in_levels(
        (*each.address.to_native(), each.weight, int(zone != "" and each.zone != zone), 0)
        for each in service.endpoints
    )


def _found_endpoints(service: FoundService | None, zone: str) -> list[_Endpoint]:
    """Those of the preferred zone before the others."""
    if service is None:
        return []
    if not service.warming and not (zone and service.zones):
        level = int(zone != "")
        return [(*address.to_native(), weight, level, 0) for address, weight in service.endpoints]
    zones = service.zones or ("",) * len(service.endpoints)
    return _in_levels(
        (
            *address.to_native(),
            weight,
            int(zone != "" and where != zone),
            int(address in service.warming),
        )
        for (address, weight), where in zip(service.endpoints, zones, strict=True)
    )


def _in_levels(endpoints: Iterable[_Endpoint]) -> list[_Endpoint]:
    return sorted(endpoints, key=lambda endpoint: endpoint[5])


def _limits(service: ServicePolicy) -> tuple[int, ...]:
    return (
        *(_milliseconds(service.timeout), _milliseconds(service.read_timeout)),
        _milliseconds(service.idle_timeout),
        *(service.connections, service.pending),
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


def _entrance(listener: ServiceListener, config: Config, places: dict[str, int]) -> _Entrance:
    service = listener.service
    protocol = listener.protocol or (config.services[service].protocol if service else "auto")
    return (
        _PROTOCOLS[protocol],
        _milliseconds(listener.detect_timeout),
        Action.REFUSE,
        lib.DP_NO_SERVICE if service is None else places[service],
        *(Scope.OUTBOUND, 0, 0),
    )


def _port(scope: Scope, on_demand: int = 0, name_header: int = 0) -> _Entrance:
    return (
        *(Protocol.AUTO, _milliseconds(_DETECT_TIMEOUT), Action.REFUSE, lib.DP_NO_SERVICE),
        *(scope, on_demand, name_header),
    )


# ---- what was found ----


class _Match:
    """The predicates of a service, and the texts in them."""

    def __init__(self, name: str) -> None:
        self.texts = [name.encode()]
        self.predicates: list[_Predicate] = []

    def _add(self, text: str) -> int:
        if not text:
            return 0
        self.texts.append(text.encode())
        return len(self.texts)

    def exactly(self, subject: int, *values: str, header: str = "") -> None:
        """One of these."""
        name = self._add(header)
        for place, value in enumerate(values):
            self.predicates.append(
                (subject, lib.DP_PATTERN_EXACT, name, self._add(value), int(place > 0))
            )

    def or_exactly(self, subject: int, value: str) -> None:
        """Or this, instead of the ones before."""
        self.predicates.append((subject, lib.DP_PATTERN_EXACT, 0, self._add(value), 1))

    def like(self, subject: int, value: str, *, header: str = "") -> None:
        """Each ``*`` in the value stands for any characters."""
        pattern = lib.DP_PATTERN_GLOB if "*" in value else lib.DP_PATTERN_EXACT
        self.predicates.append((subject, pattern, self._add(header), self._add(value), 0))


def _lone(found: FoundServices) -> FoundService | None:
    """The only one of gRPC that applications here call."""
    calls = [
        service
        for service in found.services
        if service.role is Role.SUBSCRIBED
        and service.key.protocol in CALLS
        and service.key.name not in GRPC_COMMON
    ]
    return calls[0] if len(calls) == 1 else None


def _match_call(match: _Match, key: ServiceKey, alone: bool) -> int:
    """By the path; health checks and reflection by the host, or where nothing else can be meant.
    Its rank."""
    if key.name in GRPC_COMMON or key.version or key.group:
        match.exactly(lib.DP_SUBJECT_TARGET, key.name)
    else:
        if not alone:
            match.exactly(lib.DP_SUBJECT_TARGET, key.name)
            match.or_exactly(lib.DP_SUBJECT_HOST, key.name)
        match.exactly(lib.DP_SUBJECT_TARGET, key.name, *GRPC_COMMON)
    if key.name in GRPC_COMMON:
        return _COMMON
    return _TRIPLE if key.protocol == "tri" else _GRPC


def _pack_found(
    service: FoundService,
    numbers: ServiceNumbers,
    header: str,
    zone: str,
    alone: bool,
    policies: Policies,
) -> _Found:
    key = service.key
    named = policies.of(key) if service.role is Role.SUBSCRIBED else None
    policy = policies.settings[named] if named is not None else FoundPolicy()
    number = numbers.of_found(service)
    preferred = policy.locality.prefer if policy.locality is not None else zone
    match = _Match(str(key))
    rank = _EXACT
    if key.protocol in CALLS:
        rank = _match_call(match, key, alone)
        if not service.endpoints:
            rank = _EMPTY
    elif key.protocol == "http":
        if header == "host":
            match.exactly(lib.DP_SUBJECT_HOST, key.name.lower())
        else:
            match.exactly(lib.DP_SUBJECT_NAME_HEADER, key.name, header=header)
    else:
        match.exactly(lib.DP_SUBJECT_TARGET, key.name)
        if key.protocol == "bolt" and key.group:  # of which calls say nothing
            rank = _GROUPED
    if key.protocol in VARIED and not _match_variant(match, service):
        rank = _LIKE
    return _Found(
        source=service,
        header=header,
        zone=zone,
        alone=alone,
        key=(key, service.role),
        number=number,
        protocol=_PROTOCOLS[key.protocol],
        role=_ROLES[service.role],
        scopes=_SCOPES[service.role],
        texts=tuple(match.texts),
        predicates=tuple(match.predicates),
        rank=rank,
        endpoints=pack_array("struct dp_endpoint", _found_endpoints(service, preferred)),
        endpoint_count=len(service.endpoints),
        await_ms=service.await_ms,
        policy=named,
        checked=_checked(service, number, policy),
    )


def _checked(service: FoundService, number: int, policy: FoundPolicy) -> CheckedService | None:
    check = policy.check(service.key.protocol)
    if check is None:
        return None
    addresses = tuple(address for address, _ in service.endpoints)
    return CheckedService(number, str(service.key), service.key.protocol, check, addresses)


def _match_variant(match: _Match, service: FoundService) -> bool:
    """Version and group of Dubbo. Whether they are exactly those: ``*`` in what is subscribed
    stands for any."""
    version, group = service.key.version, service.key.group
    any_version, any_group = (
        service.role is Role.SUBSCRIBED and text == "*" for text in (version, group)
    )
    if not any_version:
        is_none = version in ("", _NO_VERSION)
        match.exactly(lib.DP_SUBJECT_VERSION, *(("", _NO_VERSION) if is_none else (version,)))
    if not any_group:
        match.exactly(lib.DP_SUBJECT_GROUP, group)
    return not any_version and not any_group


def _pack_passed(passed: tuple[str, str, Address], numbers: ServiceNumbers, header: str) -> _Found:
    protocol, name, address = passed
    key = ("passed", protocol, name)
    match = _Match(name)
    if protocol != "http":
        match.like(lib.DP_SUBJECT_SERVICE, name)
    elif header == "host":
        match.like(lib.DP_SUBJECT_HOST, name.lower())
    else:
        match.like(lib.DP_SUBJECT_NAME_HEADER, name, header=header)
    return _Found(
        source=passed,
        header=header,
        zone="",
        alone=False,
        key=key,
        number=numbers.of_key(key),
        protocol=_PROTOCOLS[protocol],
        role=ServiceRole.PUBLISHED,
        scopes=_PASSED_SCOPES,
        texts=tuple(match.texts),
        predicates=tuple(match.predicates),
        rank=_LONE if name in GRPC_COMMON else _LIKE,
        endpoints=pack_array("struct dp_endpoint", [(*address.to_native(), 1, 0, 0)]),
        endpoint_count=1,
    )


# ---- both together ----

_DEFAULTS = _pack_policy(FoundPolicy(), 0, 0)
_SIZES = {
    name: ffi.sizeof(f"struct dp_{name}")
    for name in ("service", "endpoint", "predicate", "target", "text")
}


def _join(configured: _Configured, found: Iterable[_Found]) -> PackedServices:
    packed = configured.packed
    at = len(packed.characters)
    service_count, endpoint_count, predicate_count, target_count, text_count = (
        len(getattr(packed, f"{name}s")) // size for name, size in _SIZES.items()
    )
    services: list[tuple[int, ...]] = []
    rules: list[tuple[int, ...]] = []
    predicates: list[_Predicate] = []
    texts: list[tuple[int, int]] = []
    parts = sorted(found, key=attrgetter("rank"))
    for part in parts:
        before = text_count + len(texts) - 1
        rules.append(
            (
                *(part.protocol.family, 0, predicate_count + len(predicates), len(part.predicates)),
                *(target_count + len(rules), 1, 0, 0, 0, 0, 0, 0, 0, part.scopes, 0),
            )
        )
        predicates.extend(
            (subject, pattern, name and before + name, value and before + value, alternative)
            for subject, pattern, name, value, alternative in part.predicates
        )
        policy = configured.policies[part.policy] if part.policy is not None else _DEFAULTS
        services.append(
            (
                *(part.number, before + 1, part.protocol, policy.balance, policy.header),
                *(policy.limits_of_calls if part.protocol is Protocol.GRPC else policy.limits),
                *(part.await_ms, endpoint_count, part.endpoint_count, part.role),
                *(policy.resilience, *policy.endpoints),
            )
        )
        endpoint_count += part.endpoint_count
        for text in part.texts:
            texts.append((at, len(text)))
            at += len(text)
    targets = [(service_count + place, 1) for place in range(len(parts))]
    return PackedServices(
        services=packed.services + pack_array("struct dp_service", services),
        endpoints=b"".join([packed.endpoints, *(part.endpoints for part in parts)]),
        rules=packed.rules + pack_array("struct dp_rule", rules),
        predicates=packed.predicates + pack_array("struct dp_predicate", predicates),
        targets=packed.targets + pack_array("struct dp_target", targets),
        headers=packed.headers,
        entrances=packed.entrances,
        resiliences=packed.resiliences,
        handlings=packed.handlings,
        texts=packed.texts + pack_array("struct dp_text", texts),
        characters=b"".join([packed.characters, *(t for part in parts for t in part.texts)]),
    )
