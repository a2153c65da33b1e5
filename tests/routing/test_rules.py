"""Which rule a request finds: against a reference that goes through all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pysidecar.config import Config, RequestMatch, RequestRule, ServiceEntry
from pysidecar.dataplane import Protocol
from tests.routing.conftest import Request, Router

PROTOCOLS = {"http": Protocol.HTTP, "bolt": Protocol.BOLT, "dubbo": Protocol.DUBBO}
SERVICES = {name: ServiceEntry(protocol=name) for name in PROTOCOLS}  # type: ignore[arg-type]

SETTINGS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# ---- the reference ----


def glob(pattern: str, text: str, *, fold: bool = False) -> bool:
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    return bool(re.fullmatch(expression, text, re.DOTALL | (re.IGNORECASE if fold else 0)))


def names_of(request: Request) -> tuple[list[str], str]:
    """The names of its service, with and without version, and the version."""
    if request.protocol == Protocol.DUBBO:
        full = f"{request.service}:{request.version}" if request.version else request.service
        return [full, request.service], request.version
    name, _, rest = request.service.partition(":")
    return [request.service, name], rest.partition(":")[0]


def under(prefix: str, path: str) -> bool:
    wanted = prefix.rstrip("/").split("/")
    return path.startswith("/") and path.partition("?")[0].split("/")[: len(wanted)] == wanted


def conditions(match: RequestMatch, request: Request) -> Iterator[bool]:
    names, version = names_of(request)
    if match.host:
        yield any(glob(each, request.service, fold=True) for each in match.host)
    if match.path:
        yield request.path.partition("?")[0] in match.path
    if match.path_prefix:
        yield any(under(each, request.path) for each in match.path_prefix)
    if match.method:
        yield any(glob(each, request.method) for each in match.method)
    if match.service:
        yield any(glob(each, name) for each in match.service for name in names)
    if match.version:
        yield any(glob(each, version) for each in match.version)
    if match.group:
        yield any(glob(each, request.group) for each in match.group)
    for name, values in match.headers.items():
        found = [value for key, value in request.headers if key.lower() == name.lower()]
        yield bool(found) if values is True else any(value in found for value in values)


def expected(config: Config, request: Request) -> int | None:
    for number, rule in enumerate(config.requests):
        [service] = rule.services
        of_protocol = PROTOCOLS[config.services[service].protocol] == request.protocol
        if of_protocol and all(conditions(rule.match, request)):
            return number
    return None


# ---- rules and requests that often fit ----

labels = st.lists(st.sampled_from(["a", "b", "B", "*", "a*"]), min_size=1, max_size=4)
hosts = labels.map(".".join)
services = st.tuples(hosts, st.sampled_from(["", ":1", ":2", ":*", ":1:u", "*"])).map("".join)
segments = st.lists(st.sampled_from(["a", "b", "ab", ""]), max_size=3)
paths = segments.map(lambda parts: "/" + "/".join(parts))


def some(values: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.none() | st.lists(values, min_size=1, max_size=3).map(tuple)


header_matches = st.dictionaries(
    st.sampled_from(["x", "Y"]),
    st.just(True) | st.lists(st.sampled_from(["1", "2", ""]), min_size=1, max_size=2).map(tuple),
    max_size=2,
)
methods = st.sampled_from(["GET", "get", "G*", "*"])
versions = st.sampled_from(["1", "2", "*", "1*"])
texts = {
    "http": {"host": some(hosts), "method": some(methods), "headers": header_matches},
    "bolt": {
        "service": some(services),
        "version": some(versions),
        "method": some(methods),
        "headers": header_matches,
    },
    "dubbo": {"service": some(services), "version": some(versions), "group": some(versions)},
}


def rules_of(protocol: str) -> st.SearchStrategy[RequestRule]:
    matches = st.builds(RequestMatch.model_construct, **texts[protocol])
    if protocol == "http":
        matches = st.one_of(
            matches,
            st.builds(RequestMatch.model_construct, **texts[protocol], path=some(paths)),
            st.builds(RequestMatch.model_construct, **texts[protocol], path_prefix=some(paths)),
        )
    return st.builds(RequestRule.model_construct, match=matches, services=st.just({protocol: 1}))


rules = st.lists(st.one_of(*map(rules_of, PROTOCOLS)), min_size=1, max_size=12)
requests = st.builds(
    Request,
    protocol=st.sampled_from(list(PROTOCOLS.values())),
    service=services.map(lambda text: text.replace("*", "c")),
    group=st.sampled_from(["", "1", "2"]),
    version=st.sampled_from(["", "1", "2"]),
    method=st.sampled_from(["GET", "get", "PUT"]),
    path=st.one_of(
        st.tuples(paths, st.sampled_from(["", "?", "?/a", "/"])).map("".join), st.just("*")
    ),
    headers=st.lists(
        st.tuples(st.sampled_from(["x", "X", "y"]), st.sampled_from(["1", "2", ""])), max_size=3
    ).map(tuple),
)


@SETTINGS
@given(rules=rules, requests=st.lists(requests, min_size=5, max_size=15))
def test_the_first_rule_that_matches(
    shim: tuple[Any, Any], rules: list[RequestRule], requests: list[Request]
) -> None:
    config = Config.model_construct(services=SERVICES, requests=tuple(rules))
    router = Router(*shim)
    try:
        router.use(config)
        for request in requests:
            assert router.route(request).rule == expected(config, request), request
    finally:
        router.close()


# ---- rewriting ----


def joined(prefix: str, rest: str) -> str:
    """With one slash between, and one at the beginning."""
    path, question, query = rest.partition("?")
    whole = prefix.rstrip("/") + (path if path.startswith("/") or not path else "/" + path)
    return (whole or "/") + question + query


@SETTINGS
@given(prefix=paths, to=paths, path=paths, query=st.sampled_from(["", "?", "?/x"]))
def test_a_prefix_is_replaced(
    shim: tuple[Any, Any], prefix: str, to: str, path: str, query: str
) -> None:
    router = Router(*shim)
    try:
        router.load(
            "services: {web: {protocol: http}}\nrequests:\n"
            f"  - match: {{path_prefix: '{prefix}'}}\n    services: web\n"
            f"    rewrite: {{path_prefix: '{to}'}}\n"
        )
        routed = router.route(Request(path=path + query))
        if under(prefix, path):
            rest = (path + query)[len(prefix.rstrip("/")) :]
            assert routed.path == joined(to, rest)
        else:
            assert routed.rule is None
    finally:
        router.close()


# ---- many ----


@pytest.mark.parametrize("protocol", ["http", "bolt", "dubbo"])
def test_ten_thousand_rules_are_as_those_before(router: Router, protocol: str) -> None:
    key = "host" if protocol == "http" else "service"
    rules = [
        RequestRule.model_construct(
            match=RequestMatch.model_validate({key: name}), services={protocol: 1}
        )
        for n in range(2500)
        for name in (f"s{n}.example", f"d{n}.*", f"p{n}.x.*", f"*.e{n}")
    ]
    router.use(Config.model_construct(services=SERVICES, requests=tuple(rules)))
    for n in (0, 1, 1234, 2499):
        for place, name in enumerate((f"s{n}.example", f"d{n}.y", f"p{n}.x.y", f"y.e{n}")):
            request = Request(PROTOCOLS[protocol], name)
            assert router.route(request).rule == 4 * n + place
    assert router.route(Request(PROTOCOLS[protocol], "s2500.example")).rule is None
