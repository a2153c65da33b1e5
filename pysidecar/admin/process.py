"""The metrics of a process that Prometheus' clients have in common.

Those of ``prometheus_client`` list the open file descriptors to count them, which takes as long as
there are connections.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

__all__ = ["OwnProcess"]

_FDS = "/proc/self/fd"
# Fields of /proc/self/stat, as proc(5) numbers them, from 3 on.
_START_TIME, _VIRTUAL, _RESIDENT = 22 - 3, 23 - 3, 24 - 3


class OwnProcess(Collector):
    """Of this process, with the names and texts of ``prometheus_client.ProcessCollector``."""

    def __init__(self) -> None:
        # Once: each reading of the two clocks gives another moment, and a start time that changes
        # is a restart to whoever watches it.
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._started = booted + int(_stat()[_START_TIME]) / os.sysconf("SC_CLK_TCK")

    @override
    def collect(self) -> Iterator[Metric]:
        fields = _stat()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield CounterMetricFamily(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            value=usage.ru_utime + usage.ru_stime,
        )
        for name, text, value in (
            ("virtual_memory_bytes", "Virtual memory size in bytes.", int(fields[_VIRTUAL])),
            (
                "resident_memory_bytes",
                "Resident memory size in bytes.",
                int(fields[_RESIDENT]) * resource.getpagesize(),
            ),
            (
                "start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                self._started,
            ),
            ("open_fds", "Number of open file descriptors.", _open_fds()),
            (
                "max_fds",
                "Maximum number of open file descriptors.",
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            ),
        ):
            yield GaugeMetricFamily(f"process_{name}", text, value=value)


def _stat() -> list[bytes]:
    """The fields from 3 on."""
    with open("/proc/self/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def _open_fds() -> int:
    """The size of the directory; before Linux 6.2 it has none."""
    return os.stat(_FDS).st_size or len(os.listdir(_FDS))
