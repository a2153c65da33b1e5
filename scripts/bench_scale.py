"""Draws the curves of what grows with use. ``python -m scripts.bench_scale [NAME …]``, or ``make
bench-scale``."""

from __future__ import annotations

import sys

from scripts.scale import MEASUREMENTS


def main(names: list[str]) -> None:
    for name in names:
        if name not in MEASUREMENTS:
            raise SystemExit(f"expected one of {', '.join(MEASUREMENTS)}, not {name}")
    for name in names or MEASUREMENTS:
        print(f"{name}:", flush=True)
        MEASUREMENTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
