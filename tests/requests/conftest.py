"""The real programs on both ends of requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.requests import java
from tests.requests.java import Java

# One of each for a module's tests: a start costs half a second.


@pytest.fixture(scope="module")
def sofa_server() -> Iterator[Java]:
    with java.sofa() as program:
        yield program


@pytest.fixture(scope="module")
def dubbo_server() -> Iterator[Java]:
    with java.dubbo() as program:
        yield program
