"""What holds for all tests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

import pysidecar

PACKAGE = Path(pysidecar.__file__).parent

# By default an example that takes a fifth of a second fails its test, and so do values that take
# long to make: that says nothing on a busy machine.
hypothesis_settings.register_profile(
    "busy machines", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("busy machines")


def pytest_configure() -> None:
    """Makes sure of the build that is tested: the sanitized one is a copy in build/."""
    expected = os.environ.get("PYSIDECAR_UNDER_TEST", str(PACKAGE))
    if expected != str(PACKAGE):
        pytest.exit(f"the tests would run with {PACKAGE}; expected {expected}", 1)


# Tests that share what takes seconds to start. (Marks of xdist_group would say so where they stand,
# but xdist 3.8 loses them with pytest 9.2, where a node's id can no longer be changed.)
_TOGETHER = re.compile(
    r"tests/codecs/test_frames_|tests/re(quests|gistry)/\w+"
    r"|tests/takeover/test_(dubbo|http_services|sofarpc)\.py"
)


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Each test goes to whichever process is free, but those of `_TOGETHER` to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        found = _TOGETHER.match(nodeid)
        return found[0] if found else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduling:
    return _Scheduling(config, log)


def pytest_report_header() -> str:
    return f"pysidecar: {PACKAGE}"


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fails the run when a test left a process behind."""
    before = set(psutil.Process().children())
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not left, f"left behind: {left}"
