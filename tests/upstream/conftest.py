"""``shim.c`` with the sources that it is about, compiled with assertions."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
DATA_PLANE = ROOT / "pysidecar" / "dataplane"
SHIM = Path(__file__).with_name("shim.c")
FLAGS = "-std=gnu11 -D_GNU_SOURCE -O1 -g -Wall -Wextra -Werror -fPIC -shared -UNDEBUG".split()


def _declarations() -> str:
    """The functions of the shim, and what else the tests call."""
    text = SHIM.read_text()
    structure = re.search(r"struct shim_route \{.*?\};", text, re.DOTALL)
    assert structure
    functions = re.findall(r"^(?!static)(\w[^;{}]*?\bshim_\w+\([^{}]*?\))\n\{", text, re.MULTILINE)
    return "\n".join(
        [
            "struct registry; struct table; struct cluster;",
            structure[0],
            *(f"{function};" for function in functions),
            "uint32_t cluster_pick(struct cluster *, uint64_t since_ms, uint64_t *random);",
            "void cluster_give_back(struct cluster *);",
            "void table_release(struct table *);",
            "void table_drop(struct table *);",
        ]
    )


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """cffi's ``ffi`` and ``lib``."""
    library = tmp_path_factory.mktemp("upstream") / "shim.so"
    parts = ("cluster", "endpoint", "latency", "maglev", "service", "shared", "table", "weighing")
    sources = [
        SHIM,
        DATA_PLANE / "base" / "map.c",
        DATA_PLANE / "base" / "places.c",
        DATA_PLANE / "base" / "slab.c",
        *(DATA_PLANE / "upstream" / f"{part}.c" for part in parts),
    ]
    sanitize = (
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        if "libasan" in os.environ.get("LD_PRELOAD", "")
        else []
    )
    include = [f"-I{ROOT / 'hook'}", f"-I{DATA_PLANE}"]
    subprocess.run(
        ["gcc", *FLAGS, *sanitize, *include, *map(str, sources), "-o", str(library)], check=True
    )
    ffi = FFI()
    ffi.cdef(_declarations())
    return ffi, ffi.dlopen(str(library))
