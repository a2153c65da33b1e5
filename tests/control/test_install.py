"""What ``pip install .`` installs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif("PYSIDECAR_UNDER_TEST" in os.environ, reason="the ordinary build is meant")
@pytest.mark.timeout(180)
def test_the_installed_package_brings_its_hook(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, listed)):
        if (ROOT / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        # What it depends on is here already; nothing is downloaded.
        [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), "."],
        cwd=sources,
        check=True,
    )
    [wheel] = tmp_path.glob("pysidecar-*.whl")
    assert "-cp311-abi3-linux_" in wheel.name
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    [metadata] = installed.glob("pysidecar-*.dist-info")
    assert "License-Expression: Apache-2.0 AND" in (metadata / "METADATA").read_text()
    assert (metadata / "licenses" / "LICENSE").is_file()
    assert [native.name for native in installed.rglob("_native*.so")] == ["_native.abi3.so"]

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    hook = Path(python("-m", "pysidecar", "hook-path"))
    assert hook == installed / "pysidecar" / "libmosnhook.so"
    assert hook.read_bytes().startswith(b"\x7fELF")
    native = python("-c", "import pysidecar.dataplane._native as native; print(native.__file__)")
    assert Path(native).is_relative_to(installed)
    symbols = ["readelf", "--wide", "--dyn-syms", native]
    dynamic = subprocess.run(symbols, capture_output=True, text=True, check=True).stdout
    assert "__assert_fail" not in dynamic, "assertions are for the tests"
