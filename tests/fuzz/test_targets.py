"""The fuzz targets of ``make fuzz``: what is in their corpora passes, and so does a short run that
is the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.fuzz import TARGETS


@pytest.mark.timeout(300)  # a compilation, and a busy machine
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_in_a_moment(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    target.build()
    corpus = target.unpack(tmp_path / "corpus")
    assert any(corpus.iterdir())
    target.run(corpus, "-seed=1", f"-runs={target.runs}")
