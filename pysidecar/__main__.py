"""``python -m pysidecar`` is ``pysidecar``."""

from __future__ import annotations

from pysidecar.cli import main

if __name__ == "__main__":
    main(prog_name="pysidecar")
