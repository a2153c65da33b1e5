"""The codecs of requests, compiled with assertions and without anything else."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI

from tests.codecs.frames import Frames
from tests.codecs.http1 import Http1
from tests.requests import programs
from tests.requests.programs import Program

ROOT = Path(__file__).resolve().parents[2]
DATA_PLANE = ROOT / "pysidecar" / "dataplane"
SOURCES = ("http1*.c", "bolt.c", "checksum.c", "dubbo.c", "hessian.c", "trace_context.c", "grpc.c")
FLAGS = "-std=gnu11 -D_GNU_SOURCE -O1 -g -Wall -Wextra -Werror -fPIC -shared -UNDEBUG".split()


def _declarations() -> str:
    """Those of codec.h, with what it includes, and of hessian.h."""
    headers = ("base/terms.h", "l7/codec.h", "l7/hessian.h", "l7/grpc.h")
    paths = (ROOT / "hook" / "contract.h", *(DATA_PLANE / header for header in headers))
    text = re.search(r"struct text \{.*?\};", (DATA_PLANE / "base" / "text.h").read_text(), re.S)
    assert text
    all_of_it = "".join([text[0], *(path.read_text() for path in paths)])
    declarations = re.sub(r"^\s*#.*$", "", all_of_it, flags=re.MULTILINE)
    # What is "const" cffi takes for a number.
    return declarations.replace("extern const struct codec", "extern struct codec")


@pytest.fixture(scope="session")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """cffi's ``ffi`` and ``lib``, with everything that these headers declare."""
    library = tmp_path_factory.mktemp("codecs") / "codecs.so"
    sanitize = (
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        if "libasan" in os.environ.get("LD_PRELOAD", "")
        else []
    )
    command = ["gcc", *FLAGS, *sanitize, f"-I{ROOT / 'hook'}", f"-I{DATA_PLANE}"]
    sources = [path for source in SOURCES for path in sorted((DATA_PLANE / "l7").glob(source))]
    subprocess.run([*command, *map(str, sources), "-o", str(library)], check=True)
    ffi = FFI()
    ffi.cdef(_declarations())
    return ffi, ffi.dlopen(str(library))


@pytest.fixture(scope="session")
def frames(codecs: tuple[Any, Any]) -> Frames:
    """The codecs of frames."""
    return Frames(*codecs)


@pytest.fixture(scope="session")
def http1(codecs: tuple[Any, Any]) -> Http1:
    """The codec of HTTP/1.1."""
    return Http1(*codecs)


@pytest.fixture(scope="session")
def sofa() -> Iterator[Program]:
    """SOFARPC and SOFABolt."""
    with programs.sofa() as program:
        yield program


@pytest.fixture(scope="session")
def dubbo() -> Iterator[Program]:
    """Dubbo."""
    with programs.dubbo() as program:
        yield program
