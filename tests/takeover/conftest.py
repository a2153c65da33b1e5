"""Network namespaces need root."""

from __future__ import annotations

import pytest

from tests.namespaces import skip_without_root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_root(items, "mesh")
