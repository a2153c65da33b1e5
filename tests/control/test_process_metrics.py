"""Our metrics of the process beside those of the library."""

from __future__ import annotations

import os

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from pysidecar.admin import process
from pysidecar.admin.process import OwnProcess


@pytest.mark.parametrize("size_is_known", [True, False])
def test_they_are_those_of_the_library(
    monkeypatch: pytest.MonkeyPatch, size_is_known: bool
) -> None:
    if not size_is_known:  # as before Linux 6.2: a directory whose size is 0, as most of /proc
        monkeypatch.setattr(process, "_FDS", "/proc/self/task")
    theirs = {family.name: family for family in ProcessCollector(registry=None).collect()}
    ours = {family.name: family for family in OwnProcess().collect()}
    assert ours.keys() == theirs.keys()
    for name, family in ours.items():
        assert (family.documentation, family.type) == (
            theirs[name].documentation,
            theirs[name].type,
        )
        if name == "process_open_fds" and not size_is_known:
            assert family.samples[0].value == len(os.listdir("/proc/self/task"))
            continue
        assert family.samples[0].name == theirs[name].samples[0].name
        assert family.samples[0].value == pytest.approx(
            theirs[name].samples[0].value, rel=0.05, abs=1
        )


def test_it_counts_each_descriptor() -> None:
    def open_fds() -> float:
        return next(
            family.samples[0].value
            for family in OwnProcess().collect()
            if family.name == "process_open_fds"
        )

    registry = CollectorRegistry()
    registry.register(OwnProcess())
    before = open_fds()
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
    try:
        assert open_fds() - before == 100
    finally:
        for fd in fds:
            os.close(fd)


def test_the_start_is_always_the_same_moment() -> None:
    ours = OwnProcess()
    starts = {
        family.samples[0].value
        for _ in range(20)
        for family in ours.collect()
        if family.name == "process_start_time_seconds"
    }
    assert len(starts) == 1
