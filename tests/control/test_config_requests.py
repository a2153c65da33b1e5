"""Services, rules for requests and listeners: what a configuration means, and what its errors
say."""

from __future__ import annotations

import pytest

from pysidecar.address import Address
from pysidecar.config import ConfigError, Rewrite, parse, restart_keys
from pysidecar.config.requests import MAX_SERVICE_LISTENERS, Balance
from tests.control.configurations import EVERYTHING

SERVICES = """\
services:
  web: {protocol: http, endpoints: [10.0.0.1:80]}
  web2: {protocol: http}
  bolt: {protocol: bolt}
  dubbo: {protocol: dubbo}
  tcp: {protocol: tcp}
"""


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, source="f.yaml")
    return str(caught.value).splitlines()


def test_every_key_is_read() -> None:
    config = parse(EVERYTHING)
    orders, other = config.services["orders"], config.services["orders-v2"]
    assert [(each.address, each.weight) for each in orders.endpoints] == [
        (Address("10.0.0.7", 8080), 1),
        (Address("fd00::8", 8080), 2),
    ]
    assert orders.balance == Balance("least_requests")
    assert other.balance == Balance("ring_hash", "x-user")
    assert (orders.timeout, orders.read_timeout, orders.idle_timeout) == (3.0, 4.0, 5.0)
    assert (orders.connections, orders.pending) == (10, 0)
    assert (other.timeout, other.connections, other.pending) == (0.0, 1024, 1024)
    assert config.services["inventory"].timeout == 0
    rule = config.requests[0]
    assert rule.match.host == ("orders.*", "*.example.com")
    assert rule.match.headers == {"x-env": ("canary",), "x-debug": True, "x-stage": ("a", "b")}
    assert rule.services == {"orders-v2": 10, "orders": 90}
    assert rule.rewrite == Rewrite(
        host="inner:81",
        path_prefix="/",
        set_headers={"x-by": "1"},
        remove_headers=("cookie",),
        original_destination_header="x-original",
    )
    assert rule.timeout == 1.0
    assert config.requests[1].services == {"orders": 1}
    assert config.requests[3].match.group == ("blue", "green")
    assert [listener.listen.port for listener in config.listeners] == [12221, 12220, 12219]
    route = config.outbound.routes[2]
    assert (route.action, route.detect_timeout, route.undetected) == ("requests", 2.0, "refuse")
    assert config.request_limits.frame_bytes == 1048576


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("services: {a: {}}", "f.yaml:1: services.a.protocol: expected this key, which has no"),
        (
            "services: {a: {protocol: soap}}",
            "services.a.protocol: 'soap': expected 'http', 'http2'",
        ),
        ("services: {a b: {protocol: http}}", "'a b': expected the name of a service"),
        (
            "services: [a]",
            "services: ['a']: expected names below it, each with keys: protocol, end",
        ),
        ("services: {a: http}", "services.a: 'http': expected keys below it: protocol, endpoints"),
        ("services: {a: null}", "services.a.protocol: expected this key, which has no default"),
        ("services: {a: {protocol: http, endpoint: 1}}", "unknown key; did you mean endpoints?"),
        (
            "services: {a: {protocol: http, endpoints: [10.0.0.1]}}",
            "services.a.endpoints[0]: '10.0.0.1': expected an IP address and a port",
        ),
        (
            "services: {a: {protocol: http, endpoints: [{address: 10.0.0.1:80, weight: 0}]}}",
            "services.a.endpoints[0].weight: 0: expected greater than or equal to 1",
        ),
        (
            "services: {a: {protocol: http, endpoints: [{address: 10.0.0.1:80, wight: 2}]}}",
            "services.a.endpoints[0].wight: unknown key; did you mean weight?",
        ),
        (
            "services: {a: {protocol: http, endpoints: [10.0.0.1:80, 10.0.0.1:80]}}",
            "services.a: expected each address once in endpoints, not 10.0.0.1:80 again",
        ),
        (
            "services: {a: {protocol: http, balance: least_connections}}",
            "services.a.balance: 'least_connections': expected round_robin, random, least_requests",
        ),
        (
            "services: {a: {protocol: http, balance: {ring_hash: {cookie: x}}}}",
            "expected round_robin, random, least_requests, peak_ewma, or ring_hash: {header: NAME}",
        ),
        (
            "services: {a: {protocol: dubbo, balance: {ring_hash: {header: x}}}}",
            "services.a: expected another balance than ring_hash: there are no headers with",
        ),
        (
            "services: {a: {protocol: bolt, balance: {maglev: {header: no name}}}}",
            "services.a.balance: expected the name of a header such as x-user",
        ),
        (
            "services: {a: {protocol: http, health_check: {}}}",
            "services.a: expected a path, such as /health, or another type (tcp), with protocol",
        ),
        (
            "services: {a: {protocol: bolt, health_check: {path: /health}}}",
            "services.a: expected no path with type bolt, which protocol bolt has",
        ),
        (
            "services: {a: {protocol: http, health_check: {type: tcp, path: /}}}",
            "services.a.health_check: expected no path with type tcp",
        ),
        (
            "services: {a: {protocol: bolt, health_check: {interval: 10ms, timeout: 1ms}}}",
            "services.a.health_check: expected an interval of at least 100ms",
        ),
        (
            "services: {a: {protocol: bolt, health_check: {unhealthy_after: 0}}}",
            "services.a.health_check.unhealthy_after: 0: expected greater than or equal to 1",
        ),
        (
            "services: {a: {protocol: bolt, health_check: {pth: 0}}}",
            "services.a.health_check.pth: unknown key; did you mean path?",
        ),
        (
            "services: {a: {protocol: bolt, outlier_detection: {max_ejected: -1}}}",
            "services.a.outlier_detection.max_ejected: -1: expected a share from 0% to 100%",
        ),
        (
            "services: {a: {protocol: tcp, outlier_detection: {}}}",
            "services.a: expected no outlier_detection with protocol tcp: there are no answers",
        ),
        (
            "services: {a: {protocol: tcp, balance: peak_ewma}}",
            "services.a: expected no peak_ewma with protocol tcp: there are no answers to go by",
        ),
        (
            "services: {a: {protocol: http, healthy_panic_threshold: 101%}}",
            "services.a.healthy_panic_threshold: '101%': expected a share from 0% to 100%",
        ),
        (
            "services: {a: {protocol: http, locality: zone-a}}",
            "services.a.locality: 'zone-a': expected keys below it: prefer",
        ),
        (
            "services: {a: {protocol: http, locality: {prefer: ''}}}",
            "services.a.locality.prefer: '': expected the name of a zone",
        ),
        ("services: {a: {protocol: http, timeout: 3}}", "services.a.timeout: 3: expected a dura"),
        ("services: {a: {protocol: http, connections: 0}}", "services.a.connections: 0: expected"),
    ],
)
def test_a_wrong_service(text: str, error: str) -> None:
    [line] = errors(text)
    assert error in line


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ("{match: {host: a}}", "requests[0].services: expected this key, which has no default"),
        ("{services: []}", "requests[0].services: []: expected the name of a service, or names"),
        ("{services: wbe}", "'wbe': expected a service that is defined under services; did you me"),
        (
            "{services: {web: 1, other: 2}}",
            "f.yaml:8: requests[0].services.other: 'other': expected a service that is defined und",
        ),
        (
            "{services: {we b: 1}}",
            "requests[0].services: expected the name of a service: a text of",
        ),
        ("{services: {web: 0}}", "requests[0].services: expected a weight above 0 for one of"),
        (
            "{services: {web: -1}}",
            "requests[0].services: expected a weight from 0 to 10,000 for web",
        ),
        ("{services: {web: 1.5}}", "expected a weight from 0 to 10,000 for web"),
        (
            "{services: {web: 1, bolt: 1}}",
            "requests[0].services: expected services of one protocol: web is of http, bolt is of",
        ),
        ("{services: tcp}", "'tcp': expected a service whose requests are understood (http, bolt"),
        ("{services: web, match: {host: 'a:80'}}", "'a:80': expected a host without a port"),
        ("{services: web, match: {host: []}}", "requests[0].match.host: []: expected at least on"),
        ("{services: web, match: {path_prefix: v2}}", "'v2': expected a path such as /v2"),
        ("{services: web, match: {path: '/v2?x'}}", "'/v2?x': expected a path such as /v2"),
        ("{services: web, match: {path_prefix: '/v2/*'}}", "'/v2/*': expected a path such as /v2"),
        (
            "{services: web, match: {path: /a, path_prefix: /b}}",
            "requests[0].match: expected path or path_prefix, not both",
        ),
        ("{services: web, match: {method: 'G T'}}", "'G T': expected a method such as GET"),
        ("{services: web, match: {headers: [x]}}", "match.headers: ['x']: expected names below it"),
        ("{services: web, match: {headers: {x: 1}}}", "1: expected true, a text or a list of text"),
        ("{services: web, match: {headers: {x: false}}}", "False: expected true, a text or a list"),
        ("{services: web, match: {headers: {'x y': a}}}", "'x y': expected the name of a header"),
        ("{services: bolt, match: {service: a, version: 1.0}}", "1.0: expected a text; a number n"),
        (
            "{services: web, match: {service: a}}",
            "f.yaml:8: requests[0].match.service: expected no service in a rule for HTTP: it is fo",
        ),
        (
            "{services: bolt, match: {host: a}}",
            "requests[0].match.host: expected no host in a rule for Bolt: it is for HTTP",
        ),
        (
            "{services: bolt, match: {group: a}}",
            "[0].match.group: expected no group in a rule for Bolt: it is for gRPC and Dubbo",
        ),
        (
            "{services: dubbo, match: {headers: {x: a}}}",
            "expected no headers in a rule for Dubbo: it is for HTTP and Bolt",
        ),
        (
            "{services: bolt, rewrite: {path_prefix: /}}",
            "requests[0].rewrite.path_prefix: expected no path_prefix in a rule for Bolt: it is f",
        ),
        (
            "{services: dubbo, rewrite: {remove_headers: a}}",
            "expected no remove_headers in a rule for Dubbo",
        ),
        ("{services: web, rewrite: {host: 'a/b'}}", "'a/b': expected a host such as orders.exa"),
        ("{services: web, rewrite: {set_headers: {x: 1}}}", "1: expected a text; a number needs q"),
        (
            '{services: web, rewrite: {set_headers: {x: "a\\r\\nb: c"}}}',
            "expected a text of at most 512 characters on one line",
        ),
        (
            "{services: web, rewrite: {set_headers: {Content-Length: '1'}}}",
            "'Content-Length': expected a header that is not part of the connection or its framing",
        ),
        (
            "{services: web, rewrite: {remove_headers: [host]}}",
            "requests[0].rewrite.remove_headers[0]: 'host': expected a header that is not part of",
        ),
        ("{services: web, timeout: 0s}", "requests[0].timeout: '0s': expected a duration of at le"),
    ],
)
def test_a_wrong_rule(rule: str, error: str) -> None:
    [line] = errors(f"{SERVICES}requests:\n  - {rule}\n")
    assert line.startswith("f.yaml:8: ")
    assert error in line


@pytest.mark.parametrize(
    ("listener", "error"),
    [
        ("{service: web}", "listeners[0].listen: expected this key, which has no default"),
        ("{listen: 8080}", "listeners[0].listen: 8080: expected an IP address and a port"),
        ("{listen: '127.0.0.1:1', service: wbe}", "'wbe': expected a service that is defined"),
        (
            "{listen: '127.0.0.1:1', service: web, protocol: bolt}",
            "listeners[0].protocol: 'bolt': expected http, which the service web speaks",
        ),
        (
            "{listen: '127.0.0.1:1', service: web, protocol: auto}",
            "listeners[0]: expected no protocol: auto beside a service",
        ),
        (
            "{listen: '127.0.0.1:1', protocol: tcp}",
            "listeners[0]: expected a service beside protocol: tcp, which has no requests",
        ),
        (
            "{listen: '127.0.0.1:1', undetected: relay}",
            "listeners[0].undetected: 'relay': expected 'refuse'",
        ),
        (
            "{listen: '127.0.0.1:15000'}",
            "expected another address in listeners[0].listen: 127.0.0.1:15000 is in admin.listen",
        ),
        (
            "{listen: '10.0.0.1:80'}",
            "services.web.endpoints[0]: '10.0.0.1:80': expected another endpoint: this is the sid",
        ),
    ],
)
def test_a_wrong_listener(listener: str, error: str) -> None:
    [line] = errors(f"{SERVICES}listeners:\n  - {listener}\n")
    assert error in line


def test_listeners_are_not_twice_and_not_too_many() -> None:
    entry = '  - {listen: "127.0.0.1:%d"}\n'
    [line] = errors("listeners:\n" + entry % 1 + entry % 1)
    assert "expected another address in listeners[1].listen: 127.0.0.1:1 is in listeners[0]" in line
    [line] = errors("listeners:\n" + "".join(entry % (n + 1) for n in range(33)))
    assert f"expected at most {MAX_SERVICE_LISTENERS} entries" in line


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "outbound: {routes: [{action: requests, endpoints: [10.0.0.1:80]}]}",
            "outbound.routes[0]: expected no endpoints beside action: requests",
        ),
        (
            "outbound: {routes: [{protocol: http}]}",
            "outbound.routes[0]: expected action: requests beside protocol",
        ),
        (
            "outbound: {routes: [{action: requests, protocol: tcp}]}",
            "outbound.routes[0].protocol: 'tcp': expected 'auto', 'http', 'http2', 'grpc', 'bolt' "
            "or 'dubbo'",
        ),
        (
            "inbound: {application_address: [127.0.0.1, '::1'], preserve_source: true, "
            "routes: [{action: requests}]}",
            "inbound: expected no action: requests in routes[0] beside preserve_source",
        ),
        (
            "request_limits: {fields: 129}",
            "request_limits.fields: 129: expected less than or equal",
        ),
        (
            "request_limits: {line_bytes: 2048, head_bytes: 1024}",
            "request_limits: expected head_bytes of at least line_bytes, which it contains",
        ),
    ],
)
def test_what_else_does_not_fit(text: str, error: str) -> None:
    [line] = errors(text)
    assert error in line


def test_all_misfits_are_reported_at_once_with_their_lines() -> None:
    lines = errors(
        f"{SERVICES}requests:\n  - services: nobody\n  - services: web\n    match:\n"
        "      group: a\nlisteners:\n  - listen: 127.0.0.1:1\n    service: nobody\n"
    )
    assert [line.split(" ")[0] for line in lines] == ["f.yaml:8:", "f.yaml:11:", "f.yaml:14:"]


def test_which_changes_need_a_restart() -> None:
    before = parse(EVERYTHING)
    moved = EVERYTHING.replace("127.0.0.1:12220", "127.0.0.1:12222")
    assert restart_keys(before, parse(moved)) == ["listeners[].listen"]
    added = EVERYTHING.replace("listeners:\n", 'listeners:\n  - {listen: "127.0.0.1:1"}\n')
    assert restart_keys(before, parse(added)) == ["listeners[].listen"]
    limited = EVERYTHING.replace("fields: 50", "fields: 51")
    assert restart_keys(before, parse(limited)) == ["request_limits.fields"]
    changed = EVERYTHING.replace("timeout: 3s", "timeout: 4s").replace(
        "protocol: http, service: orders", "protocol: bolt"
    )
    assert changed != EVERYTHING
    assert restart_keys(before, parse(changed)) == []


def test_listeners_may_change_their_order() -> None:
    first, second = '  - {listen: "127.0.0.1:1"}\n', '  - {listen: "127.0.0.1:2"}\n'
    before, after = (parse(f"listeners:\n{a}{b}") for a, b in ((first, second), (second, first)))
    assert restart_keys(before, after) == []


def test_all_versions_of_http_have_the_same_rules() -> None:
    services = "services: {a: {protocol: http}, b: {protocol: http2}, c: {protocol: grpc}}\n"
    parse(
        services + "requests: [{match: {host: x}, services: {a: 1, b: 1, c: 1}}]\n"
        "listeners: [{listen: '127.0.0.1:1', protocol: http2, service: a}]"
    )
    with pytest.raises(ConfigError) as failure:
        parse(
            "services: {a: {protocol: http2}, b: {protocol: bolt}}\n"
            "requests: [{services: {a: 1, b: 1}}]"
        )
    assert "expected services of one protocol" in str(failure.value)
