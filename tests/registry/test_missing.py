"""Registries whose packages are not installed."""

from __future__ import annotations

import subprocess
import sys


def test_a_missing_package_is_named_by_who_needs_it_only() -> None:
    program = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name in ("kazoo", "aetcd", "grpc"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import pysidecar.sidecar
from pysidecar.config import RegistryEntry
from pysidecar.errors import StartError
from pysidecar.registry import make_registry
for kind in ("zookeeper", "etcd"):
    try:
        make_registry(RegistryEntry.model_validate({"type": kind, "address": "127.0.0.1:1"}))
    except StartError as error:
        print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    assert first == (
        "registry.type zookeeper needs the package kazoo: pip install 'pysidecar[zookeeper]'"
    )
    assert second.endswith(": pip install 'pysidecar[etcd]'")
