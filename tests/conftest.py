"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import pysidecar

PACKAGE = Path(pysidecar.__file__).parent


def pytest_configure() -> None:
    """Makes sure of the build that is tested: the sanitized one is a copy in build/."""
    expected = os.environ.get("PYSIDECAR_UNDER_TEST", str(PACKAGE))
    if expected != str(PACKAGE):
        pytest.exit(f"the tests would run with {PACKAGE}; expected {expected}", 1)


def pytest_report_header() -> str:
    return f"pysidecar: {PACKAGE}"


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fails the run when a test left a process behind."""
    before = set(psutil.Process().children())
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not left, f"left behind: {left}"
