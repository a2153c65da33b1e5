"""Addresses as registries tell of them: texts of others, which reach logs and terminals, and of
which a registry may tell very many."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pysidecar.address import Address
from pysidecar.registry.embedded import wire


@pytest.mark.parametrize("zone", ["", "\x1b[31m", "a\nWARNING b", "a b", "a/b", "ä", "x" * 16])
@pytest.mark.parametrize("read", [Address.parse, wire.read_address])
def test_a_zone_that_no_interface_has_is_no_address(
    read: Callable[[str], Address], zone: str
) -> None:
    with pytest.raises(ValueError, match="expected an IP address and a port"):
        read(f"[fe80::1%{zone}]:20881")


@pytest.mark.parametrize("zone", ["eth0", "2", "veth-1.100@if7", "x" * 15])
def test_a_zone_that_an_interface_may_have_is_kept(zone: str) -> None:
    assert Address.parse(f"[fe80::1%{zone}]:80") == Address(f"fe80::1%{zone}", 80)
