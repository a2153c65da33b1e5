"""The pytest plugin: fixtures, and the sidecars' logs in the report of a failed test.

Every pytest run of an environment that has pysidecar loads this module, so what takes time to
import comes with the first fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pysidecar.testing import Hooked, Sidecar

_REPORTED_LINES = 100  # of an access log: load tests have many thousands
_SIDECARS: pytest.StashKey[list[Sidecar]] = pytest.StashKey()


@pytest.fixture
def sidecar_factory(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., Sidecar]]:
    """Starts sidecars with other settings: ``sidecar_factory(settings)``.

    ``settings`` are laid over the harness's own, section by section (see ``docs/configuration.md``
    for the keys). Each sidecar is ready when returned and is stopped at the end of the test.
    """
    from pysidecar.testing import Sidecar

    with ExitStack() as stack:

        def start(settings: Mapping[str, Any] | None = None) -> Sidecar:
            sidecar = Sidecar(settings)
            request.node.stash.setdefault(_SIDECARS, []).append(sidecar)
            return stack.enter_context(sidecar)

        yield start


@pytest.fixture
def sidecar(sidecar_factory: Callable[..., Sidecar]) -> Sidecar:
    """A running sidecar of the test's own, which captures everything, loopback included."""
    return sidecar_factory()


@pytest.fixture
def hooked(sidecar: Sidecar) -> Hooked:
    """Runs commands under the connect hook, through ``sidecar``."""
    return sidecar.hooked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds what the test's sidecars logged, while they still run."""
    report = yield
    sidecars = item.stash.get(_SIDECARS, None)
    if report.failed and sidecars:
        for number, sidecar in enumerate(sidecars, 1):
            name = f"sidecar {number} ({report.when})"
            report.sections.append((f"{name}: log", sidecar.log))
            report.sections.append((f"{name}: access log", _tail(sidecar.access_log)))
    return report


def _tail(text: str) -> str:
    lines = text.splitlines(keepends=True)
    left_out = len(lines) - _REPORTED_LINES
    if left_out <= 0:
        return text
    return f"({left_out} lines before these)\n" + "".join(lines[-_REPORTED_LINES:])
