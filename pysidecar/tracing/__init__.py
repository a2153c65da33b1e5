"""Spans of the requests that were sampled, on their way to a collector.

The data plane keeps them in rings of a bounded size, from which a thread of its own takes them, and
sends them by OpenTelemetry's exporters. Where the collector is away or slow, what the rings cannot
hold is dropped, and counted; no request and no other thread waits for it. OpenTelemetry is imported
by that thread, and only where traces are configured.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pysidecar.config import Config
from pysidecar.config import Tracing as Settings
from pysidecar.dataplane import SPAN_PIECE, SpanRecord

__all__ = ["Tracing", "TracingCounters"]

log = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds between two looks at what there is
_EXPORT_TIMEOUT = 5.0  # seconds for one batch, with what is tried again of it
_FLUSH_LIMIT = 3.0  # seconds for all that is left, when the sidecar stops
_PACKAGES = {
    "http": "opentelemetry.exporter.otlp.proto.http",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
}

Take = Callable[[], tuple[list[SpanRecord], int]]


class TracingCounters(NamedTuple):
    """Spans since the start: those that the collector has taken, those that came faster than they
    were sent, and those that it has not taken."""

    exported: int = 0
    overrun: int = 0
    failed: int = 0


class Sender(Protocol):
    """Sends spans to one collector."""

    def send(self, records: Sequence[SpanRecord]) -> bool:
        """Whether the collector has taken them."""

    def close(self) -> None:
        """Gives up what is under way."""


Make = Callable[[Settings, bool], Sender]
_Wanted = tuple[Settings, bool] | None  # and whether queries are sent


def _make_sender(settings: Settings, query: bool) -> Sender:
    from pysidecar.tracing.otlp import OtlpSender

    return OtlpSender(settings, query=query, timeout=_EXPORT_TIMEOUT)


class Tracing:
    """Starts and ends with the sidecar; ``apply`` follows its configuration. ``take`` gives some of
    the spans that ended, and how many were lost; the thread calls it, and after ``close`` nobody
    does."""

    def __init__(self, take: Take, *, make: Make = _make_sender) -> None:
        self._take = take
        self._make = make
        self._lock = threading.Lock()  # of what follows
        self._settings: _Wanted = None
        self._counters = TracingCounters()
        self._closing = self._over = False
        self._sender: Sender | None = None
        # The thread's own.
        self._news = threading.Event()
        self._thread: threading.Thread | None = None
        self._followed: _Wanted = None
        self._lost = 0  # since the collector was last there

    @staticmethod
    def check(config: Config) -> None:
        """Raises ValueError where a package is missing."""
        if config.tracing is None:
            return
        package = _PACKAGES[config.tracing.protocol]
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ValueError(
                f"tracing needs the package {package}: pip install 'pysidecar[tracing]'"
            )

    def apply(self, config: Config) -> None:
        """From the next spans on. Those that are being sent go where they went before."""
        settings = config.tracing
        with self._lock:
            self._settings = None if settings is None else (settings, config.access_log.query)
        self._news.set()
        if settings is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tracing", daemon=True)
            self._thread.start()

    @property
    def counters(self) -> TracingCounters | None:
        """None: nothing was ever to be traced."""
        if self._thread is None:
            return None
        with self._lock:
            return self._counters

    def close(self) -> None:
        """Sends what is left, within a limit; takes nothing afterwards."""
        if self._thread is None:
            return
        with self._lock:
            self._closing = True
        self._news.set()
        self._thread.join(_FLUSH_LIMIT)
        with self._lock:
            self._over = True
            sender = self._sender
        if self._thread.is_alive():
            log.warning("tracing: the collector does not take the last spans in time")
            if sender is not None:
                sender.close()

    # ---- the thread ----

    def _run(self) -> None:
        while True:
            self._news.clear()
            with self._lock:
                wanted, closing = self._settings, self._closing
            self._follow(wanted)
            began = time.monotonic()
            count = self._pass_on()
            if closing and count == 0:
                return
            if not closing:
                self._pause(count, time.monotonic() - began)

    def _follow(self, wanted: _Wanted) -> None:
        """Another collector, or another way to it."""
        if wanted == self._followed:
            return
        self._followed = wanted
        if self._sender is not None:
            self._sender.close()
        sender = None
        if wanted is not None:
            try:
                sender = self._make(*wanted)
            except Exception:  # such as a file that cannot be read: the sidecar goes on
                log.exception("tracing: spans cannot be sent")
        with self._lock:
            self._sender = sender

    def _pass_on(self) -> int:
        """Takes some, and sends them. Returns how many there were."""
        with self._lock:
            if self._over:
                return 0
            records, missed = self._take()
            self._counters = self._counters._replace(overrun=self._counters.overrun + missed)
        if not records:
            return 0
        taken = self._send(records)
        with self._lock:
            exported, overrun, failed = self._counters
            count = len(records)
            self._counters = (
                TracingCounters(exported + count, overrun, failed)
                if taken
                else TracingCounters(exported, overrun, failed + count)
            )
        self._tell(taken, len(records))
        return len(records)

    def _send(self, records: Sequence[SpanRecord]) -> bool:
        if self._sender is None:
            return False
        try:
            return self._sender.send(records)
        except Exception:  # of the exporter, which promises none: the next batch may go
            log.exception("tracing: spans cannot be sent")
            return False

    def _tell(self, taken: bool, count: int) -> None:
        """Once when the collector goes, and once when it comes back."""
        if not taken and self._lost == 0:
            log.warning("tracing: the collector takes no spans: they are dropped, and counted")
        if taken and self._lost > 0:
            log.warning("tracing: the collector takes spans again: %d were dropped", self._lost)
        self._lost = 0 if taken else self._lost + count

    def _pause(self, count: int, used: float) -> None:
        """So that no more are sent than configured, and that they go in batches."""
        limit = self._followed[0].spans_per_second if self._followed else 1
        pause = count / limit - used if count >= SPAN_PIECE else _PAUSE
        self._news.wait(max(0.0, pause))
