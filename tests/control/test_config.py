"""What a configuration means, and what its errors say."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pysidecar.address import Address
from pysidecar.config import (
    Config,
    ConfigError,
    Redirect,
    default_control_socket,
    json_schema,
    load,
    parse,
    restart_keys,
)
from pysidecar.config.endpoints import HealthCheck
from pysidecar.config.schema import MAX_LISTENERS
from pysidecar.config.takeover import RegistryTls, Takeover
from pysidecar.config.values import MAX_SOCKET_PATH, WhenAway, format_duration
from pysidecar.dataplane import lib
from pysidecar.destinations import PortRange
from pysidecar.interception.hook import ConnectHook
from pysidecar.interception.kernel import interceptions
from pysidecar.interception.redirect import OutboundRedirect, OwnTraffic
from pysidecar.interception.tproxy import TproxyRules, TransparentProxy
from tests.control.configurations import EVERYTHING

ROOT = Path(__file__).resolve().parents[2]


def test_every_key_is_read() -> None:
    config = parse(EVERYTHING)
    outbound = config.outbound
    assert config.admin.listen == Address("127.0.0.1", 15000)
    assert config.access_log.path == Path("access.jsonl").absolute()
    assert (config.access_log.writes_connections, config.access_log.writes_requests) == (
        False,
        True,
    )
    assert config.access_log.query
    assert outbound.listen == (Address("127.0.0.1", 15001), Address("::1", 15001))
    assert outbound.control_path == Path("/run/pysidecar/hook.sock")
    assert outbound.control_socket_mode == 0o660
    assert outbound.when_away == WhenAway("wait", 5.0)
    assert outbound.exclude[3].ports == (PortRange(53, 53), PortRange(8000, 8001))
    timeouts = (outbound.connect_timeout, outbound.idle_timeout, outbound.header_timeout)
    assert timeouts == (0.5, 3600.0, 1.5)
    assert (outbound.ejection_time, outbound.flush_timeout) == (0, 600.0)
    assert outbound.routes[0].endpoints == (Address("127.0.0.1", 5433),)
    assert [str(network) for network in outbound.routes[1].match.destination] == [
        "192.0.2.0/24",
        "2001:db8::/32",
    ]
    assert (config.worker_count, config.drain_timeout) == (3, 120.0)
    assert (config.manage_rules, config.rules_backend) == (True, "iptables")


def test_the_rules_follow_from_the_configuration() -> None:
    config = parse(EVERYTHING.replace("mark: null, ", ""))
    assert config.inbound is not None
    inbound = TransparentProxy.rules_of(config.inbound)
    assert isinstance(inbound, TproxyRules)
    assert inbound.captured == tuple(
        PortRange(*ends) for ends in ((25, 25), (8000, 8079), (8081, 8999))
    )
    assert inbound.preserve_source
    assert config.inbound.application(socket.AF_INET6) == "::1"
    outbound = OutboundRedirect.rules_of(config.outbound)
    assert outbound.listen == (Address("127.0.0.1", 15002),)
    assert outbound.own == OwnTraffic((15001,), uids=(1337,), gids=(1, 2), cgroup="a/b")
    assert {str(n) for n in outbound.exclude_networks} == {"127.0.0.0/8", "::1/128", "10.0.0.53/32"}


def test_redirect_is_a_word_or_a_section() -> None:
    assert parse("outbound: {redirect: true}").outbound.redirect == Redirect()
    assert parse("outbound: {redirect: {}}").outbound.redirect == Redirect()
    for nothing in ("false", "null", ""):
        assert parse(f"outbound: {{redirect: {nothing}}}") == Config()
    assert parse("inbound:\n") == Config()


def test_rules_are_not_for_the_admin_interface_that_others_reach() -> None:
    config = parse("admin: {listen: 0.0.0.0:15000}\ninbound: {}")
    [inbound] = interceptions(config)
    assert isinstance(inbound.ruleset, TproxyRules)
    assert not any(p.first <= 15000 <= p.last for p in inbound.ruleset.captured)


def test_networks_and_ports_are_excluded_from_redirect() -> None:
    config = parse("outbound: {redirect: true, exclude: [{ports: 53}, 10.0.0.0/8]}")
    settings = OutboundRedirect.rules_of(config.outbound)
    assert settings.exclude_ports == (PortRange(53, 53),)
    assert [str(n) for n in settings.exclude_networks] == ["10.0.0.0/8"]


def test_what_is_printed_reads_back() -> None:
    config = parse(EVERYTHING)
    assert parse(yaml.safe_dump(config.to_plain())) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("auto", "full", 131072, 8)),
        ("acceleration: off", ("off", "full", 131072, 8)),
        ("acceleration: 'off'", ("off", "full", 131072, 8)),
        ("acceleration: {mode: require, receive: true}", ("require", "full", 131072, 8)),
        ("acceleration: {mode: off}", ("off", "full", 131072, 8)),
        ("acceleration: {path: local, after_bytes: 0}", ("auto", "local", 0, 8)),
        ("acceleration: {after_round_trips: 0}", ("auto", "full", 131072, 0)),
    ],
)
def test_acceleration_is_a_mode_or_a_mapping(text: str, expected: tuple[object, ...]) -> None:
    found = parse(text).acceleration
    assert (found.mode, found.path, found.after_bytes, found.after_round_trips) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (True, True, None)),
        ("access_log: on", (True, True, None)),
        ("access_log: off", (False, False, None)),
        ("access_log: {mode: off, path: /a, requests: on}", (False, False, Path("/a"))),
        ("access_log: {path: /a}", (True, True, Path("/a"))),
        ("access_log: {connections: off}", (False, True, None)),
        ("access_log: {requests: off}", (True, False, None)),
        ("access_log: {requests: off, connections: off}", (False, False, None)),
    ],
)
def test_access_log_is_a_mode_or_a_mapping(text: str, expected: tuple[object, ...]) -> None:
    found = parse(text).access_log
    assert (found.writes_connections, found.writes_requests, found.path) == expected
    assert found.writes == (found.writes_connections or found.writes_requests)
    assert not found.query


@pytest.mark.parametrize("text", ["", "# nothing\n", "outbound:\n  # routes: []\n"])
def test_an_empty_file_is_the_defaults(text: str) -> None:
    assert parse(text) == Config() == load(None)


def test_a_section_whose_lines_are_all_commented_out_is_there() -> None:
    config = parse(
        """
takeover:
  # api: 127.0.0.1:13330
registry:
  type: etcd
  address: 10.0.0.5:2379
  tls:
    # ca: ca.pem
services:
  a:
    protocol: grpc
    endpoints: [10.0.0.7:1]
    health_check:
"""
    )
    assert config.takeover == Takeover()
    assert config.registry.tls == RegistryTls()
    assert config.services["a"].health_check == HealthCheck()


def test_a_section_that_is_null_is_not_there() -> None:
    assert parse("takeover: null\ntracing: ~\n") == Config()


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, source="f.yaml")
    return str(caught.value).splitlines()


ADDRESS = "expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080"
PORTS = "expected a port such as 5432 or a range such as 8000-8999"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("outbond: {}", "outbond: unknown key; did you mean outbound?"),
        (
            "outbound: {zzz: 1}",
            "outbound.zzz: unknown key; expected one of listen, control_socket, ",
        ),
        ("admin: {listen: localhost}", f"admin.listen: 'localhost': {ADDRESS}"),
        ("admin: 5", "admin: 5: expected keys below it: listen"),
        ("outbound: {listen: [0.0.0.0:1]}", "outbound.listen[0]: '0.0.0.0:1': expected a loopback"),
        ("outbound: {listen: []}", "outbound.listen: []: expected at least one entry"),
        ("outbound: {listen: 127.0.0.1:1}", "outbound.listen: '127.0.0.1:1': expected a list"),
        (
            "outbound: {listen: [127.0.0.1:1, 127.0.0.1:1]}",
            "outbound: expected each address once in listen, not 127.0.0.1:1 again",
        ),
        (
            "outbound: {transport: tcp}",
            "outbound.transport: 'tcp': expected 'unix' or 'header'",
        ),
        ("outbound: {idle_timeout: 5}", "outbound.idle_timeout: 5: expected a duration such as"),
        ("outbound: {idle_timeout: 0s}", "outbound.idle_timeout: '0s': expected a duration of at"),
        (
            "outbound: {when_away: waits}",
            "outbound.when_away: 'waits': expected refuse, direct, wait",
        ),
        (
            "registry: {type: zookeeper, address: 10.0.0.5:2181,10.0.0.6:2181}",
            "registry.10.0.0.6:2181: expected quotes around addresses with commas",
        ),
        *(
            (
                f"registry: {{type: etcd, address: ['{wrong}']}}",
                "registry.address: ['" + wrong + "']: expected an IP address or a host name, and",
            )
            for wrong in ("10.0.0.500:1", "zk", "zk:0", "zk:65536", "-zk:1", "z..k:1", "z k:1")
        ),
        ("registry: {type: etcd, address: [1]}", "registry.address: [1]: expected an IP address"),
        (
            "takeover: {api: 10.0.0.7:13330}",
            "takeover.api: '10.0.0.7:13330': expected a loopback address: whoever reaches this "
            "listener can publish services",
        ),
        ("outbound: {when_away: wait:5}", "outbound.when_away: 'wait:5': after wait: expected a"),
        (
            "outbound: {control_socket_mode: 600}",
            "outbound.control_socket_mode: 600: expected octal permissions",
        ),
        (
            "outbound: {control_socket_mode: 0400}",
            "outbound.control_socket_mode: '0400': expected permissions that let the owner",
        ),
        (
            "outbound: {control_socket: /" + "x" * 107 + "}",
            "expected a path of at most 107 bytes, the kernel's limit for Unix sockets; /xxx",
        ),
        (
            "outbound: {exclude: [10.0.0.1/8]}",
            "outbound.exclude[0]: '10.0.0.1/8': expected a network without host bits; did you mean "
            "10.0.0.0/8?",
        ),
        ("outbound: {exclude: [{}]}", "outbound.exclude[0]: expected a network, or a mapping with"),
        (
            "outbound: {exclude: [{port: 1}]}",
            "outbound.exclude[0].port: unknown key; did you mean ports?",
        ),
        (
            "outbound: {exclude: [{ports: 0}]}",
            f"outbound.exclude[0].ports: 0: {PORTS}, from 1 to 65535",
        ),
        (
            "outbound: {routes: [{match: {ports: [9-8]}}]}",
            "outbound.routes[0].match.ports[0]: '9-8': expected the smaller port first: 8-9",
        ),
        ("outbound: {routes: [{match: {ports: true}}]}", f"match.ports: True: {PORTS}"),
        ("outbound: {routes: [{match: {ports: []}}]}", "match.ports: []: expected at least one"),
        (
            "outbound: {routes: [{match: {destination: x}}]}",
            "outbound.routes[0].match.destination: 'x': expected an IPv4 or IPv6 network",
        ),
        (
            "outbound: {routes: [{action: drop}]}",
            "outbound.routes[0].action: 'drop': expected 'relay', 'direct', 'refuse' or 'requests'",
        ),
        (
            "outbound: {routes: [{endpoints: [127.0.0.1:0]}]}",
            "outbound.routes[0].endpoints[0]: '127.0.0.1:0': expected a port from 1 to 65535",
        ),
        (
            "outbound: {routes: [{action: refuse, endpoints: [127.0.0.1:1]}]}",
            "outbound.routes[0]: expected no endpoints in a route that refuses",
        ),
        (
            "outbound: {routes: [{endpoints: [127.0.0.1:15001]}]}",
            "expected other endpoints in routes[0]: 127.0.0.1:15001 is the sidecar's own listener",
        ),
        ("inbound: {mode: nat}", "inbound.mode: 'nat': expected 'tproxy' or 'redirect'"),
        (
            "inbound: {mode: redirect, listen: ['127.0.0.1:15006']}",
            "inbound: expected 0.0.0.0 or [::] instead of 127.0.0.1:15006 for mode redirect",
        ),
        (
            "inbound: {mode: redirect, preserve_source: true}",
            "inbound: expected mode tproxy for preserve_source",
        ),
        (
            "inbound: {preserve_source: true}",
            'inbound: expected application_address: [127.0.0.1, "::1"] for preserve_source',
        ),
        (
            "inbound: {preserve_source: true, application_address: 127.0.0.1}",
            "inbound: expected an application_address of each family that is listened on",
        ),
        (
            "inbound: {application_address: [127.0.0.1, 10.0.0.1]}",
            "inbound: expected at most one application_address of each family",
        ),
        (
            "inbound: {application_address: [127.0.0.1, 'fd00::1']}",
            "inbound: expected application_address all on loopback, or none of them",
        ),
        (
            "inbound: {application_address: localhost}",
            "inbound.application_address: 'localhost': expected an IP address such as 127.0.0.1",
        ),
        ("inbound: {ports: 80, exclude_ports: 80}", "inbound: expected a port that is not excl"),
        ("inbound: {ports: []}", "inbound.ports: []: expected at least one entry"),
        (
            "inbound: {routes: [{endpoints: ['127.0.0.1:15006']}]}",
            "expected other endpoints in routes[0]: 127.0.0.1:15006 is the sidecar's own listener",
        ),
        (
            "outbound: {redirect: {mark: null}}",
            "outbound: expected a mark, uid, gid or cgroup that tells the sidecar's own traffic",
        ),
        (
            "outbound: {redirect: {uid: 3}}",
            "outbound.redirect.uid: unknown key; did you mean uids?",
        ),
        ("outbound: {redirect: {cgroup: /}}", "outbound.redirect.cgroup: '/': expected the path"),
        (
            "outbound: {redirect: true, exclude: [{destination: 10.0.0.1, ports: 53}]}",
            "outbound: expected either destination or ports in exclude[0]",
        ),
        (
            "outbound: {redirect: {listen: ['127.0.0.1:15001']}}",
            "expected another address in outbound.redirect.listen: 127.0.0.1:15001 is in",
        ),
        ("rules_backend: ipfw", "rules_backend: 'ipfw': expected 'nft', 'iptables'"),
        ("manage_rules: 1", "manage_rules: 1: expected true or false"),
        ("workers: 0", "workers: 0: expected greater than or equal to 1"),
        ("workers: '2'", "workers: '2': expected a whole number"),
        ("workers: yes", "workers: 'yes': expected a whole number"),
        ("[1]", "expected keys such as outbound: at the top"),
        ("a: [", "not YAML: while parsing a flow node"),
        (
            "a: !!python/name:os.system x",
            "f.yaml:1: a: expected no tag tag:yaml.org,2002:python/name",
        ),
        ("a:\n- !x y", "f.yaml:2: a[0]: expected no tag !x"),
        ("a: !!binary aGk=", "a: expected no tag tag:yaml.org,2002:binary"),
        ("\x00", "not YAML:"),
        ("&a [*a]", "f.yaml:1: [0]: expected an alias of a value before it: *a"),
        ("a: *b", "a: expected an alias of a value before it: *b"),
        ("a: 1\n---\nb: 1", "f.yaml:2: expected one document"),
        ("? [a]\n: b", "expected a text as key"),
        ("? {a: b}\n: b", "expected a text as key"),
        ("a: &x b\n*x : c", "f.yaml:2: expected a text as key"),
        ("a: " + "[" * 40, "a[0][0][0][0]"),
        ("a: " + "[" * 40, "expected a depth of at most 32"),
        ("a: 1\nb: \x07", "f.yaml:2: not YAML: control characters are not allowed"),
        ("workers: " + "9" * 5000, "f.yaml:1: workers: '9999"),
        ("workers: .nan", "workers: '.nan': expected a whole number"),
        ("workers: 2001-12-14", "workers: '2001-12-14': expected a whole number"),
        ("a\u202eb: 1", "f.yaml:1: a\\u202eb: unknown key"),
        ("access_log: {path: ~/x}", "access_log.path: '~/x': expected a path without ~"),
        ("outbound: {control_socket: ~root/x}", "control_socket: '~root/x': expected a path"),
        ("access_log: maybe", "access_log: 'maybe': expected 'on' or 'off'"),
        ("access_log: {requests: 1}", "access_log.requests: 1: expected 'on' or 'off'"),
        ("access_log: {query: 1}", "access_log.query: 1: expected true or false"),
        (
            "acceleration: sometimes",
            "acceleration: 'sometimes': expected 'auto', 'off' or 'require'",
        ),
        (
            "acceleration: {path: both}",
            "acceleration.path: 'both': expected 'full' or 'local'",
        ),
        (
            "acceleration: {after_bytes: -1}",
            "acceleration.after_bytes: -1: expected greater than or equal to 0",
        ),
        (
            "acceleration: {after_round_trips: 4294967296}",
            "acceleration.after_round_trips: 4294967296: expected less than or equal to 4294967295",
        ),
        (
            "acceleration: {connections: 0}",
            "acceleration.connections: 0: expected greater than or equal to 1",
        ),
        (
            "acceleration: {speed: 1}",
            "acceleration.speed: unknown key; expected one of mode, path, after_bytes, "
            "after_round_trips",
        ),
        (
            "acceleration: require",
            "expected receive: true beside mode: require: without it nothing is accelerated",
        ),
        (
            "acceleration: {blocking_sockets: true}",
            "expected receive: true beside blocking_sockets: true: without it nothing is",
        ),
        (
            "acceleration: 7",
            "acceleration: 7: expected keys below it: mode, path, after_bytes, after_round_trips",
        ),
    ],
)
def test_an_error_names_the_key_the_value_and_what_was_expected(text: str, error: str) -> None:
    [line] = errors(text)
    assert line.startswith("f.yaml:")
    assert error in line


@pytest.mark.parametrize("name", ["nullog.jsonl", "truelog.jsonl", "falsehood", "null.log", "~"])
def test_a_text_that_begins_like_a_constant_is_a_text(name: str) -> None:
    path = parse(f"access_log: {{path: {name}}}").access_log.path
    assert path == (None if name == "~" else Path(name).absolute())


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


def test_aliases_stand_for_a_bounded_number_of_values() -> None:
    [line] = errors(_bomb(8))
    assert line == "f.yaml:5: a4[7]: expected aliases that stand for at most 100,000 values"
    assert "unknown key" in errors(_bomb(4))[0]
    config = parse("outbound: {exclude: [&a 10.0.0.0/8, *a], routes: [{match: {ports: &p 80}}]}")
    assert len(config.outbound.exclude) == 2


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 1_000_000,
        "{" * 1_000_000,
        "? " * 1_000_000,
        "- " * 1_000_000,
        "a: [" + "1, " * 1_200_000,
        "a: !" + "x" * 1_000_000,
        "a: &" + "x" * 1_000_000,
        "outbound: {exclude: &a [" + "1, " * 1000 + "], routes: [" + "*a, " * 90 + "]}",
        "outbound: {routes: [" + "1," * 20_000 + "]}",
        "\0" * 1_000_000,
        "\n".join(f"key{number}: 1" for number in range(20_000)),
    ],
    ids=str.__len__,
)
def test_whatever_is_too_much_is_refused_in_few_lines(text: str) -> None:
    lines = errors(text)
    assert 1 <= len(lines) <= 101
    assert all(line.startswith("f.yaml") and len(line) < 1000 for line in lines)


_FRAGMENTS = [
    *(
        "&a ",
        "*a",
        "!!int ",
        "!x ",
        "? ",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "|",
        ">",
        "#",
        "---",
        "...",
    ),
    *(
        "\n",
        "  ",
        "\t",
        "'",
        '"',
        "%YAML 1.1",
        "<<: ",
        "~",
        "null",
        "true",
        ".inf",
        "1e400",
        "0x1f",
    ),
    *("2001-12-14t21:59:43.10-05:00", "\ufeff", "\0", "\x85", "\u2028", "\ud7ff", "9" * 400, "-0"),
]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(EVERYTHING)),
            st.integers(0, 12),
            st.one_of(st.sampled_from(_FRAGMENTS), st.text(max_size=3)),
        ),
        max_size=6,
    ),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1"]),
    st.binary(max_size=2),
)
def test_a_mutilated_file_is_read_or_refused(
    changes: list[tuple[int, int, str]], encoding: str, more: bytes
) -> None:
    text = EVERYTHING
    for at, cut, put in changes:
        text = text[:at] + put + text[at + cut :]
    data = text.encode(encoding, errors="replace") + more
    refusal = "f.yaml"
    try:
        config = parse(data, source="f.yaml")
    except ConfigError as error:
        refusal = str(error)
    else:
        assert parse(yaml.safe_dump(config.to_plain())) == config
    assert all(line.startswith("f.yaml") for line in refusal.splitlines())


def test_all_errors_are_reported_at_once_with_their_lines() -> None:
    found = errors(
        "admin: {listen: x}\n"
        "outbound:\n"
        "  transport: unix\n"
        "  transport: tcp\n"
        "  routes:\n"
        "    - match: {destination: 10.0.0.0/8}\n"
        "      action: relay\n"
        "      ballance: round_robin\n"
    )
    assert [line.split(": ", 2)[:2] for line in found] == [
        ["f.yaml:1", "admin.listen"],
        ["f.yaml:4", "outbound.transport"],
        ["f.yaml:4", "outbound.transport"],
        ["f.yaml:8", "outbound.routes[0].ballance"],
    ]
    assert "expected each key once; it is in line 3 already" in "".join(found)


def test_an_unreadable_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read: No such file or directory"):
        load(tmp_path / "no.yaml")


def test_v4_mapped_networks_are_ipv4() -> None:
    config = parse("outbound: {exclude: ['::ffff:10.0.0.0/104']}")
    assert str(config.outbound.exclude[0].destination[0]) == "10.0.0.0/8"


@pytest.mark.parametrize("text", ["1ms", "1500ms", "1s", "90s", "2m", "1h", "36h", "2d"])
def test_durations_are_spelled_as_they_are_read(text: str) -> None:
    config = parse(f"drain_timeout: {text}")
    assert format_duration(config.drain_timeout) == text
    outbound = parse(f"outbound: {{ejection_time: {text}}}").to_plain()["outbound"]
    assert outbound["ejection_time"] == text


def test_a_duration_that_may_be_zero_is_spelled_so() -> None:
    plain = parse("outbound: {ejection_time: 0s}").to_plain()
    assert plain["outbound"]["ejection_time"] == "0s"


@pytest.mark.parametrize(
    ("when_away", "value"),
    [
        ("refuse", "refuse"),
        ("direct", "direct"),
        ("wait:5s", "wait:5"),
        ("wait:500ms", "wait:0.5"),
        ("wait", "wait:30"),
    ],
)
def test_when_away_as_the_hook_reads_it(when_away: str, value: str) -> None:
    config = parse(f"outbound: {{when_away: '{when_away}'}}")
    assert config.outbound.when_away.environment_value == value


def test_the_default_control_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_control_socket() == tmp_path / "pysidecar" / "hook.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    elsewhere = default_control_socket()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_control_socket() == elsewhere
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_control_socket() == Path("/run/pysidecar/hook.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert default_control_socket() == Path("/tmp/pysidecar-1234/hook.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
@pytest.mark.parametrize("link", [False, True])
def test_a_runtime_directory_that_another_user_took_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    user = 70_000 + os.getpid()
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    taken = Path(f"/tmp/pysidecar-{user}")
    also_taken = Path(f"/tmp/pysidecar-{user}.0")
    also_taken.mkdir()
    os.chown(also_taken, 65534, 65534)
    if link:
        taken.symlink_to("/tmp")
    else:
        taken.mkdir()
        os.chown(taken, 65534, 65534)
    found = default_control_socket()
    try:
        assert found.name == "hook.sock"
        assert found.parent.name.startswith(f"{taken.name}.")
        assert found.parent != also_taken
        assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
        assert default_control_socket() == found, "the next sidecar, and pysidecar exec"
        assert any("MOSNHOOK_POLICY=" in line for line in ConnectHook(Config()).description)
    finally:
        found.parent.rmdir()
        also_taken.rmdir()
        if link:
            taken.unlink()
        else:
            taken.rmdir()


def test_keys_that_need_a_restart_are_known() -> None:
    changed = parse(EVERYTHING.replace("15001", "15101").replace("workers: 3", "workers: 4"))
    assert restart_keys(parse(EVERYTHING), changed) == ["outbound.listen", "workers"]
    changed = parse(
        EVERYTHING.replace("8000-8999]\n  ex", "8000]\n  ex").replace("uids: 1337", "uids: 1")
    )
    assert restart_keys(parse(EVERYTHING), changed) == ["outbound.redirect.uids", "inbound.ports"]
    assert restart_keys(parse(""), parse("inbound: {}")) == ["inbound"]
    reloadable = parse(
        EVERYTHING.replace("1h", "2h").replace("refuse", "relay").replace("2525", "2526")
    )
    assert restart_keys(parse(EVERYTHING), reloadable) == []


def test_limits_are_those_of_the_contract() -> None:
    assert MAX_LISTENERS == lib.MOSNHOOK_MAX_LISTENERS
    assert MAX_SOCKET_PATH == lib.MOSNHOOK_PATH_SIZE - 1


def test_the_json_schema_has_every_key_with_its_default() -> None:
    schema = json_schema()
    outbound = schema["$defs"]["Outbound"]["properties"]
    defaults: dict[str, Any] = {key: entry["default"] for key, entry in outbound.items()}
    assert parse(json.dumps({"outbound": defaults})) == Config()
    assert all(entry["description"] for entry in outbound.values())


def test_the_documentation_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate_config_docs.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_in_the_documentation_are_valid() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    blocks = text.split("```yaml\n")[1:]
    assert blocks
    for block in blocks:
        parse(block.split("```")[0])
