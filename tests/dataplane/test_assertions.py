"""The data plane under test checks its assertions: without that, they would say nothing."""

from __future__ import annotations

import subprocess

import pysidecar.dataplane._native as native


def test_assertions_are_on() -> None:
    assert native.__file__
    command = ["readelf", "--wide", "--dyn-syms", native.__file__]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "__assert_fail" in symbols
