"""Builds ``pysidecar.dataplane._native``: the cffi module around the data plane's C.

The C itself is a static library (see ``setup.py``), so that our strict warnings apply to it and not
to the code that cffi generates. Only used at build time.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
# What follows is relative to ROOT, where every build runs: setuptools wants it so.
CONTRACT = "hook/contract.h"
INTERFACE = ["pysidecar/dataplane/base/terms.h", "pysidecar/dataplane/api/dataplane.h"]
INCLUDE_DIRS = ["hook", "pysidecar/dataplane"]


def _relative(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


SOURCES = [path for path in _relative("pysidecar/dataplane/**/*.c") if not path.endswith(".bpf.c")]
HEADERS = _relative("pysidecar/dataplane/**/*.h") + _relative("hook/*.h")


def has_http2() -> bool:
    """Whether libnghttp2 can be built with; without it the rest is (see ``l7/http2_absent.c``)."""
    header = ROOT / "pysidecar/dataplane/l7/http2_library.h"
    probe = ["cc", "-E", "-include", str(header), "-o", os.devnull, "-x", "c", "-"]
    content = "#if !HAS_LIBNGHTTP2\n#error\n#endif\n"
    try:
        done = subprocess.run(
            probe, input=content, text=True, stderr=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError:  # no compiler either, which is for those to say who need it
        return False
    return done.returncode == 0


def declarations() -> str:
    """What Python sees: the headers without their preprocessor lines, which cffi cannot read."""
    headers = "".join((ROOT / path).read_text() for path in (CONTRACT, *INTERFACE))
    return re.sub(r"^\s*#.*$", "", headers, flags=re.MULTILINE)


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "pysidecar.dataplane._native",
    '#include "api/dataplane.h"',
    include_dirs=INCLUDE_DIRS,
    depends=[*SOURCES, *HEADERS, "setup.py"],
    libraries=["pthread", "m"],
    # Behind the data plane, which setuptools adds to the libraries.
    extra_link_args=["-lnghttp2"] if has_http2() else [],
)
