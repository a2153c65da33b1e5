"""Checks that the data plane's C includes only downwards (``make lint`` runs it).

A folder includes what stands before it in LAYERS, and itself. Each source includes its own header
first, so that every header can stand alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "pysidecar" / "dataplane"
LAYERS = ("base", "loop", "net", "upstream", "intercept", "l4", "l7", "api")
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def problems(root: Path) -> Iterator[str]:
    """What is wrong below the folder, a line each."""
    for path in sorted(path for path in root.rglob("*.[ch]") if path.parent.name != "bpf"):
        name = path.relative_to(root).as_posix()
        layer = name.split("/")[0]
        includes = _INCLUDE.findall(path.read_text())
        if layer not in LAYERS:
            yield f"{name}: not in one of the folders {', '.join(LAYERS)}"
            continue
        for included in includes:
            if not (root / included).exists():
                continue  # of hook/
            if LAYERS.index(included.split("/")[0]) > LAYERS.index(layer):
                yield f"{name}: includes {included}, but {layer}/ may only include downwards"
        header = path.with_suffix(".h").relative_to(root).as_posix()
        if path.suffix == ".c" and (root / header).exists() and includes[:1] != [header]:
            yield f"{name}: does not include {header} first"


def main() -> None:
    found = list(problems(ROOT))
    for line in found:
        print(f"pysidecar/dataplane/{line}", file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
