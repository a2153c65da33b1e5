"""Settings: what is taken, and what cannot work is said."""

from __future__ import annotations

import itertools
import socket
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysidecar.address import Address
from pysidecar.config import Config
from pysidecar.destinations import PortRange, without
from pysidecar.interception.redirect import (
    InboundRedirect,
    InboundRedirectRules,
    OutboundRedirectRules,
    OwnTraffic,
)
from pysidecar.interception.rules import show
from pysidecar.interception.tproxy import TproxyRules, TransparentProxy
from tests.interception.support import OUTBOUND_LISTEN

TPROXY = TransparentProxy.default_listen
REDIRECT = InboundRedirect.default_listen

_ranges = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda r: PortRange(r[0], r[0] + r[1]))
)


@given(_ranges, _ranges)
def test_ports_are_the_included_without_the_excluded(
    included: list[PortRange], excluded: list[PortRange]
) -> None:
    def ports(ranges: Any) -> set[int]:
        return {port for r in ranges for port in range(r.first, r.last + 1)}

    result = without(included, excluded)
    assert ports(result) == ports(included) - ports(excluded)
    for one, following in itertools.pairwise(result):
        assert one.last + 1 < following.first


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"listen": ()}, "an address to listen on"),
        ({"listen": (Address("127.0.0.1", 0),)}, "a port from 1"),
        ({"listen": (Address("127.0.0.1", 1), Address("127.0.0.2", 1))}, "one address of each"),
        ({"ports": (PortRange(80, 90),), "exclude_ports": (PortRange(1, 99),)}, "not excluded"),
        ({"ports": (PortRange.single(15006),)}, "not excluded"),
        ({"mark": 0}, "a mark from 1"),
        ({"mark": 15008}, "another mark"),
    ],
)
def test_inbound_settings_that_cannot_work(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TproxyRules(**{"listen": TPROXY, **settings})


def test_inbound_redirect_that_cannot_work() -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0"):
        InboundRedirectRules(TPROXY)
    with pytest.raises(ValueError, match="mode tproxy"):
        InboundRedirectRules(REDIRECT, preserve_source=True)


def test_outbound_settings_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="redirected to itself"):
        OwnTraffic(marks=())
    with pytest.raises(ValueError, match="path of a cgroup"):
        OwnTraffic(cgroup='a"b')
    with pytest.raises(ValueError, match="where the kernel sends"):
        OutboundRedirectRules(listen=(Address("127.0.0.2", 15001),))
    with pytest.raises(ValueError, match="not excluded"):
        OutboundRedirectRules(OUTBOUND_LISTEN, exclude_ports=(PortRange(1, 65535),))


def test_networks_within_others_are_left_out() -> None:
    networks = ("10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "192.168.0.1/32", "10.0.0.0/8")
    settings = OutboundRedirectRules(
        OUTBOUND_LISTEN, exclude_networks=tuple(map(ip_network, networks))
    )
    excluded = settings.excluded(socket.AF_INET)
    assert excluded == (ip_network("10.0.0.0/8"), ip_network("192.168.0.1/32"))
    assert settings.excluded(socket.AF_INET6) == (ip_network("fd00::/8"),)


def test_a_family_without_a_listener_is_left_alone() -> None:
    ruleset = TproxyRules(TPROXY[:1], preserve_source=True)
    for backend in ("nft", "iptables"):
        text = show(ruleset, backend)
        assert "ip6" not in text
        assert "ip -6" not in text


def test_sockets_are_opened_as_the_rules_need_them() -> None:
    way = TransparentProxy(Config(), TproxyRules(TPROXY))
    for address in way.ruleset.listen:
        options = way.listener_options(address.family)
        assert options[0].symbol in ("IP_TRANSPARENT", "IPV6_TRANSPARENT")
        assert f"meta mark {options[1].value} notrack" in show(way.ruleset)
    assert way.application_mark == options[1].value
