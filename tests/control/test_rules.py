"""The compiled rules answer what a plain first-match over the list would."""

from __future__ import annotations

import random
import time
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import cffi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysidecar.address import Address
from pysidecar.config import parse
from pysidecar.dataplane import Action, Balance, ffi, lib
from pysidecar.destinations import Network, PortRange
from pysidecar.interception.policy_page import RULES_CAPACITY
from pysidecar.routing.rules import Rule, compile_rules
from pysidecar.routing.table import hook_rules, route_table

ROOT = Path(__file__).resolve().parents[2]
NO_RULE = 0xFFFFFFFF


@cache
def lookup_library() -> Any:
    """The C lookup of hook/rules.h, the one that the hook and the data plane compile in."""
    import importlib.util
    import tempfile

    builder = cffi.FFI()
    builder.cdef(
        "uint32_t look_up(const void *blob, uint64_t capacity, const uint8_t *ip, uint16_t port);"
    )
    builder.set_source(
        "rules_lookup",
        """
        #include <string.h>
        #include "rules.h"

        static uint32_t look_up(const void *blob, uint64_t capacity, const uint8_t *ip,
                                uint16_t port)
        {
            const struct mosnhook_rules *rules = blob;
            struct mosnhook_address address = {.port = port};

            if (!mosnhook_rules_fit(rules, capacity))
                return UINT32_MAX - 1;
            memcpy(address.ip, ip, sizeof address.ip);
            return mosnhook_match(rules, rules + 1, &address);
        }
        """,
        include_dirs=[str(ROOT / "hook")],
    )
    with tempfile.TemporaryDirectory() as directory:
        built = builder.compile(tmpdir=directory)
        spec = importlib.util.spec_from_file_location("rules_lookup", built)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def look_up(blob: bytes, host: IPv4Address | IPv6Address, port: int) -> int:
    module = lookup_library()
    ip = Address(str(host), port).to_native()[0]
    return int(module.lib.look_up(module.ffi.from_buffer(blob), len(blob), ip, port))


def first_match(rules: list[Rule], host: IPv4Address | IPv6Address, port: int) -> int:
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    if mapped is not None:
        host = mapped
    for rule in rules:
        if any(host.version == n.version and host in n for n in rule.networks) and (
            rule.ports is None or any(p.first <= port <= p.last for p in rule.ports)
        ):
            return rule.number
    return NO_RULE


# Few distinct bits, so that networks nest, touch and repeat.
V4_WORDS = st.sampled_from([0, 1, 0x7F000000, 0x7F000001, 0x0A000000, 0x0A0000FF, 0xFFFFFFFF])
V6_WORDS = st.sampled_from(
    [0, 1, 0xFFFF << 32, (0xFFFF << 32) - 1, 1 << 48, 0xFD << 120, (0xFD << 120) + 1, 2**128 - 1]
)
V4 = st.one_of(V4_WORDS, st.integers(0, 2**32 - 1))
V6 = st.one_of(V6_WORDS, st.integers(0, 2**128 - 1))
PORTS = st.one_of(st.sampled_from([1, 2, 80, 81, 65535]), st.integers(1, 65535))


def v4_network(value: int, length: int) -> Network:
    return IPv4Network((value, length), strict=False)


def v6_network(value: int, length: int) -> Network:
    network = IPv6Network((value, length), strict=False)
    mapped = network.network_address.ipv4_mapped  # the configuration's parser does the same
    if mapped is not None and length >= 96:
        return IPv4Network((int(mapped), length - 96))
    return network


NETWORKS = st.one_of(
    st.builds(v4_network, V4, st.sampled_from([0, 1, 8, 24, 31, 32])),
    st.builds(v6_network, V6, st.sampled_from([0, 1, 7, 64, 80, 96, 127, 128])),
)
PORT_RANGES = st.builds(lambda a, b: PortRange(min(a, b), max(a, b)), PORTS, PORTS)
RULES = st.lists(
    st.tuples(
        st.lists(NETWORKS, min_size=1, max_size=3),
        st.none() | st.lists(PORT_RANGES, min_size=1, max_size=3),
    ),
    max_size=12,
).map(lambda rules: [Rule(networks, ports, i) for i, (networks, ports) in enumerate(rules)])


@settings(max_examples=200, deadline=None)
@given(RULES, st.data())
def test_finds_the_first_match(rules: list[Rule], data: st.DataObject) -> None:
    blob = compile_rules(rules)
    edges: list[IPv4Address | IPv6Address] = []
    for rule in rules:
        for network in rule.networks:
            kind = IPv4Address if network.version == 4 else IPv6Address
            low, high = int(network.network_address), int(network.broadcast_address)
            limit = 2**network.max_prefixlen
            edges += [kind(n) for n in (low - 1, low, high, high + 1) if 0 <= n < limit]
    hosts = [*edges, IPv4Address(data.draw(V4)), IPv6Address(data.draw(V6))]
    edge_ports = {
        p + d for r in rules for q in r.ports or () for p in (q.first, q.last) for d in (-1, 0, 1)
    }
    ports = {port for port in edge_ports if 0 <= port <= 65535} | {data.draw(PORTS)}
    for host in hosts:
        for port in ports:
            assert look_up(blob, host, port) == first_match(rules, host, port), (host, port)


def test_ipv4_and_ipv6_are_apart() -> None:
    everything_v6 = compile_rules([Rule([IPv6Network("::/0")], None, 0)])
    assert look_up(everything_v6, IPv4Address("10.0.0.1"), 80) == NO_RULE
    assert look_up(everything_v6, IPv6Address("::ffff:10.0.0.1"), 80) == NO_RULE
    assert look_up(everything_v6, IPv6Address("::fffe:ffff:ffff"), 80) == 0
    assert look_up(everything_v6, IPv6Address("::1:0:0:0"), 80) == 0
    everything_v4 = compile_rules([Rule([IPv4Network("0.0.0.0/0")], None, 0)])
    assert look_up(everything_v4, IPv4Address("255.255.255.255"), 80) == 0
    assert look_up(everything_v4, IPv6Address("::1"), 80) == NO_RULE


def test_no_rules_match_nothing() -> None:
    assert look_up(compile_rules([]), IPv4Address("10.0.0.1"), 80) == NO_RULE


@pytest.mark.parametrize("same_network", [False, True])
def test_ten_thousand_rules_compile_fast_and_fit(same_network: bool) -> None:
    chance = random.Random(1)
    rules = []
    for number in range(10_000):
        value = 0 if same_network else chance.getrandbits(32)
        length = 8 if same_network else chance.choice([8, 16, 24, 32])
        first = chance.randint(1, 60_000)
        ports = [PortRange(first, first + chance.randint(0, 50))]
        rules.append(Rule([v4_network(value, length)], ports, number))
    start = time.process_time()
    blob = compile_rules(rules)
    assert time.process_time() - start < 1.0
    assert len(blob) <= RULES_CAPACITY
    for _ in range(200):
        host = IPv4Address(chance.getrandbits(24 if same_network else 32))
        port = chance.randint(1, 60_050)
        assert look_up(blob, host, port) == first_match(rules, host, port)


def test_a_configuration_becomes_tables() -> None:
    outbound = parse(
        """
        outbound:
          exclude: [127.0.0.0/8, {destination: 10.0.0.1, ports: [53, 8000-8001]}]
          routes:
            - match: {destination: [10.0.0.0/8, "fd00::/8"], ports: 5432}
              endpoints: [127.0.0.1:5433, "[::1]:5434"]
              balance: least_connections
            - action: refuse
        """
    ).outbound
    table = route_table(outbound.routes)
    assert [route.action for route in table.routes] == [Action.RELAY, Action.REFUSE]
    assert table.routes[0].balance is Balance.LEAST_CONNECTIONS
    assert table.routes[0].endpoints == (Address("127.0.0.1", 5433), Address("::1", 5434))
    assert look_up(table.rules, IPv4Address("10.1.2.3"), 5432) == 0
    assert look_up(table.rules, IPv6Address("fd00::1"), 5432) == 0
    assert look_up(table.rules, IPv4Address("10.1.2.3"), 5433) == 1
    assert look_up(table.rules, IPv6Address("2001:db8::1"), 1) == 1
    excluded = hook_rules(outbound, direct=True)
    assert look_up(excluded, IPv4Address("127.1.1.1"), 80) % 4 == lib.MOSNHOOK_EXCLUDE
    assert look_up(excluded, IPv4Address("10.0.0.1"), 8001) == 4 + lib.MOSNHOOK_EXCLUDE
    assert look_up(excluded, IPv4Address("10.0.0.1"), 80) == NO_RULE


def test_the_blob_says_its_size() -> None:
    blob = compile_rules([Rule([IPv4Network("10.0.0.0/8")], None, 7)])
    header = ffi.cast("struct mosnhook_rules *", ffi.from_buffer(blob))
    assert header.size == len(blob)


def test_the_hook_asks_only_where_a_route_is_direct() -> None:
    text = """
outbound:
  exclude: [10.9.0.0/16]
  routes:
    - match: {destination: 10.1.0.0/16}
    - match: {destination: 10.0.0.0/8}
      action: direct
"""
    outbound = parse(text).outbound

    def verdict(rules: bytes, address: str) -> int:
        rule = look_up(rules, IPv4Address(address), 80)
        return int(lib.MOSNHOOK_CAPTURE if rule == NO_RULE else rule % lib.MOSNHOOK_VERDICTS)

    asked = hook_rules(outbound, direct=True)
    assert verdict(asked, "10.9.0.1") == lib.MOSNHOOK_EXCLUDE
    assert verdict(asked, "10.1.0.1") == lib.MOSNHOOK_CAPTURE
    assert verdict(asked, "10.2.0.1") == lib.MOSNHOOK_ASK
    assert verdict(asked, "192.0.2.1") == lib.MOSNHOOK_CAPTURE
    never = hook_rules(outbound, direct=False)
    assert verdict(never, "10.9.0.1") == lib.MOSNHOOK_EXCLUDE
    assert verdict(never, "10.2.0.1") == lib.MOSNHOOK_CAPTURE
