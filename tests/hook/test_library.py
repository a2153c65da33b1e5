"""The library file itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from hook.build import HERE, build
from tests.hook.support import SANITIZED

pytestmark = pytest.mark.skipif(SANITIZED, reason="an ordinary library, which needs its runtime")


def _readelf(library: Path, option: str) -> str:
    command = ["readelf", "--wide", option, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_needs_no_other_library(library: Path) -> None:
    dynamic = _readelf(library, "--dynamic")
    assert "NEEDED" not in dynamic
    assert re.search(r"FLAGS_1.*NOW.*NODELETE", dynamic)
    assert "TEXTREL" not in dynamic


def test_asks_for_nothing_that_must_be_there(library: Path) -> None:
    undefined = {
        (row[7], row[4])
        for row in map(str.split, _readelf(library, "--dyn-syms").splitlines())
        if len(row) == 8 and row[6] == "UND"
    }
    names = {"dlsym", "dlerror", "environ", "getauxval", "__errno_location"}
    assert undefined == {(name, "WEAK") for name in names}


def test_shows_what_it_hooks_and_nothing_else(library: Path) -> None:
    shown = {
        row[7]
        for row in map(str.split, _readelf(library, "--dyn-syms").splitlines())
        if len(row) == 8 and row[4] == "GLOBAL" and row[6] != "UND"
    }
    wanted = re.findall(r"^ {8}(\w+);$", (HERE / "mosnhook.map").read_text(), re.MULTILINE)
    assert shown == set(wanted)


def test_has_no_thread_local_storage_and_no_executable_stack(library: Path) -> None:
    segments = _readelf(library, "--segments")
    assert "TLS" not in segments
    assert re.search(r"GNU_STACK.*RW +0x", segments)


def test_sanitized_variant_compiles(tmp_path: Path) -> None:
    build(tmp_path / "sanitized.so", sanitize=True)
    assert "libasan" in _readelf(tmp_path / "sanitized.so", "--dynamic")


def test_a_compiler_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no compiler 'no-such-compiler'"):
        build(tmp_path / "x.so", cc="no-such-compiler")
