"""The composition root: every part is made, connected and taken down here."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import importlib.metadata
import logging
import os
import resource
import shlex
import signal
import threading
from collections import deque
from collections.abc import Callable, Container, Coroutine, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pysidecar.access_log import AccessLog
from pysidecar.address import Address
from pysidecar.admin import AdminServer
from pysidecar.admin.metrics import Metrics, OwnCounters, RuleCounters
from pysidecar.admin.services import HealthResults
from pysidecar.background import in_background, release, without_collector
from pysidecar.config import Config, ConfigError, Problem, RegistryEntry, load, restart_keys
from pysidecar.dataplane import (
    HAS_HTTP2,
    Acceleration,
    AccelerationError,
    ConnectionPath,
    ConnectionRecord,
    DataPlane,
    Direction,
    EndpointSums,
    PackedRoutes,
    PackedServices,
    RequestLimits,
    RequestRecord,
    RequestTally,
    ServiceSums,
    Timeouts,
    TraceEvent,
    pack_routes,
)
from pysidecar.errors import StartError
from pysidecar.health.checks import HealthChecks
from pysidecar.health.outages import OutageLog
from pysidecar.interception import Interception, rules
from pysidecar.interception.hook import ConnectHook
from pysidecar.interception.kernel import interceptions, remove_leftovers, upstream_mark
from pysidecar.interception.preload import without_hook
from pysidecar.interception.services import ServiceListeners
from pysidecar.listeners import open_listener
from pysidecar.log import Mistakes, lost_lines
from pysidecar.room import RAISE_LIMIT, Room
from pysidecar.routing.found import NOTHING_FOUND, FoundServices
from pysidecar.routing.services import ServiceNumbers, checked_services, pack_services
from pysidecar.routing.table import excluded_table, route_table
from pysidecar.takeover.advertised import expand, local_hosts
from pysidecar.tracing import Tracing

if TYPE_CHECKING:
    from pysidecar.takeover.takeover import Takeover

__all__ = ["Sidecar", "prepare_process"]

log = logging.getLogger(__name__)
_mistakes = Mistakes(log)

# Seconds: so that reports come in batches and not one by one; and, when they are many, seldom wake
# a thread that competes with the workers.
_REPORT_PAUSE, _BUSY_REPORT_PAUSE = 0.02, 0.1
_BUSY_REPORTS = 16  # at a time
_BUSY_BYTES = 8192  # of lines, at a time
_RECENT_CLOSED = 1000  # connections that /connections?closed= can show
_MOST_FDS = 1 << 20
_OUTAGE_PERIOD = 1.0  # seconds from one look at services without enough endpoints to the next
# Connections of health checks: of the descriptors that there are, if some service has checks at the
# start; else as many as are left for the control plane anyway.
_CHECKS_SHARE, _MOST_CHECKS, _FEW_CHECKS = 8, 16384, 32
_FIRST_RETRY, _LONGEST_RETRY = 0.5, 30.0  # seconds until services are set again that could not be


class _Tables(NamedTuple):
    outbound: PackedRoutes
    inbound: PackedRoutes
    excluded: PackedRoutes
    services: PackedServices
    found: FoundServices
    """Which of them takeover had found."""


class Sidecar:
    """One sidecar in an asyncio loop: ``start``, then ``reload`` at will, then ``drain`` and
    ``stop``. ``run`` does all of it, driven by signals.

    ``source`` is the file that a reload reads; None for the embedded defaults. ``settle`` is called
    when all that takes privileges is open and no thread has been started.
    """

    def __init__(
        self,
        config: Config,
        *,
        source: Path | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.state = "starting"
        self._source = source
        self._settle = settle
        self._stack = contextlib.AsyncExitStack()
        self._recent: deque[ConnectionRecord] = deque(maxlen=_RECENT_CLOSED)
        self._reported = asyncio.Event()
        self._closed = self._dropped = 0  # connections and lines, when it was looked last
        self._reload_wanted = False
        self._reloading: asyncio.Task[None] | None = None
        self._applying = False  # part of a reload that is not given up in the middle
        self._takeover: Takeover | None = None
        self._found = NOTHING_FOUND  # by takeover, and what of it the data plane has
        self._found_applied = NOTHING_FOUND
        self._updating: asyncio.Task[None] | None = None
        self._found_changed = asyncio.Event()
        self._packing = threading.Lock()
        self._hook = ConnectHook(config)
        self._kernel = interceptions(config)
        self._services = ServiceListeners(config)
        self._service_numbers = ServiceNumbers()
        self._listeners_at_start = [listener.listen for listener in config.listeners]
        self._ways: Sequence[Interception] = [self._hook, *self._kernel, self._services]
        self._rule_counters: RuleCounters = {}
        self._data_plane: DataPlane
        self._checks: HealthChecks
        self._outages = OutageLog()
        self._own_by_address: dict[Address, str] | None = None
        self._access_log: AccessLog
        self._tracing = Tracing(lambda: self._data_plane.take_spans())
        self._admin: AdminServer
        self._room = Room(lambda: self._data_plane.counters())
        self.metrics = Metrics(
            version=importlib.metadata.version("pysidecar"),
            counters=lambda: self._data_plane.counters(),
            tallies=lambda: self._data_plane.tallies(),
            ejected=lambda: self._data_plane.ejected(),
            own=self._own_counters,
            rule_counters=lambda: self._rule_counters,
            conntrack=rules.conntrack,
            takeover=self.takeover_status,
            tracing=lambda: self._tracing.counters,
        )

    # ---- What others see ----

    @property
    def admin_address(self) -> Address:
        """Where the admin interface is, with the port that the kernel picked."""
        return self._admin.address

    @property
    def listeners(self) -> Sequence[Address]:
        """Where PROXY v2 connections are accepted."""
        return self._hook.listeners

    @property
    def description(self) -> Sequence[str]:
        """For people: where it listens, a line each."""
        file = f" -c {shlex.quote(str(self._source))}" if self._source else ""
        return [
            *self._hook.description,
            *(line for way in (*self._kernel, self._services) for line in way.description),
            *(self._takeover.description if self._takeover else ()),
            f"or: pysidecar exec{file} -- ./app",
            f"admin: http://{self.admin_address}/",
        ]

    @property
    def rules(self) -> dict[str, Any]:
        """What is in the kernel for us, or should be: by direction, line by line."""
        backend = self.config.rules_backend
        return {
            way.ruleset.direction.word: {
                "backend": backend,
                "managed": self.config.manage_rules,
                "lines": rules.show(way.ruleset, backend).splitlines(),
            }
            for way in self._kernel
        }

    async def refresh(self) -> None:
        """Reads the counters of the rules, for the metrics: a program has to be run for that."""
        self._rule_counters = await asyncio.to_thread(self._read_rule_counters)

    def _read_rule_counters(self) -> RuleCounters:
        counters: RuleCounters = {}
        for way in self._kernel:
            try:
                counters[way.direction.word] = rules.counters(
                    way.direction, self.config.rules_backend
                )
            except rules.RulesError as error:  # without the capability, if others manage them
                log.debug("no counters of the %s rules: %s", way.direction.word, error)
        return counters

    def _own_counters(self) -> OwnCounters:
        gate = self._admin.gate
        return OwnCounters(
            access_log_lost_records=self._access_log.lost_records,
            log_lost_lines=lost_lines(),
            admin_connections=gate.connections,
            admin_connections_refused=gate.refused,
            admin_bad_requests=gate.bad_requests,
            trace_readers=self._admin.trace_readers,
        )

    def descriptors(self) -> dict[str, Any]:
        """How many file descriptors are left for connections; see ``Room.describe``."""
        return self._room.describe()

    def connections(self) -> list[ConnectionRecord]:
        """The live ones."""
        return self._data_plane.snapshot()

    def walk_connections(self) -> Iterator[Sequence[ConnectionRecord]]:
        """The live ones in pieces, between which others may work."""
        return self._data_plane.walk()

    def closed_connections(self, limit: int) -> list[ConnectionRecord]:
        """The latest that closed, newest last; at most 1,000 are kept."""
        self._recent.extend(self._data_plane.take_closed())
        return list(islice(self._recent, max(0, len(self._recent) - limit), None))

    def services(self, *, only_used: bool = False) -> Iterator[Sequence[ServiceSums]]:
        """What their requests add up to, in pieces, between which others may work."""
        return self._data_plane.services(only_used=only_used)

    def service_details(self, service: ServiceSums) -> dict[str, Any]:
        """What takeover knows of one; empty for others."""
        if self._takeover is None:
            return {}
        words = (service.role.name.lower(), service.protocol.name.lower(), service.name)
        return self._takeover.details(*words)

    def takeover_status(self) -> dict[str, Any] | None:
        """How takeover does; None: it is off."""
        return None if self._takeover is None else self._takeover.status

    def endpoint_details(self, endpoint: EndpointSums) -> dict[str, Any]:
        """How one is, in a word, and why."""
        health = self._checks.of(endpoint.service, endpoint.address)
        details = {} if health is None else {"check": health.describe()}
        if endpoint.unhealthy:
            problem = health.problem if health is not None else None
            return {"health": "unhealthy", "reason": problem, **details}
        if endpoint.ejected_for:
            reason = f"its requests failed; ejected for {endpoint.ejected_for:.1f} s more"
            return {"health": "ejected", "reason": reason, **details}
        if endpoint.ejected:
            return {"health": "unreachable", "reason": "it could not be connected", **details}
        return {"health": "healthy", "reason": None, **details}

    def health_results(self) -> HealthResults:
        """Of the checks."""
        checks = self._checks
        return HealthResults(tuple(checks.results()), checks.late, checks.connections)

    def endpoints(
        self, *, only_used: bool = False, of: Container[int] | None = None
    ) -> Iterator[Sequence[EndpointSums]]:
        """Those of all services, or of those with these numbers, likewise."""
        return self._data_plane.endpoints(only_used=only_used, of=of)

    def unserved(self) -> RequestTally:
        """What requests add up to that reached no service."""
        return self._data_plane.unserved()

    def recent_requests(self) -> Iterator[Sequence[RequestRecord]]:
        """The latest that ended, newest first, in pieces; at most 1,000."""
        return self._data_plane.recent_requests()

    def failed_requests(self) -> Iterator[Sequence[RequestRecord]]:
        """The latest of those that failed, likewise."""
        return self._data_plane.failed_requests()

    def slowest_requests(self) -> Iterator[Sequence[RequestRecord]]:
        """The slowest of the last five minutes, slowest first, in pieces; at most 1,000."""
        return self._data_plane.slowest_requests()

    def trace(self, on: bool) -> None:
        """Whether what happens to connections is noted, for ``take_trace``."""
        self._data_plane.trace(on)

    def take_trace(self) -> tuple[list[TraceEvent], int]:
        """Some of it, and how much was lost."""
        return self._data_plane.take_trace()

    # ---- Life ----

    async def start(self) -> None:
        """Serves from here on. Raises StartError or ConfigError, and leaves nothing behind."""
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        self._check(config)
        for way in self._ways:
            stack.callback(way.close)
            way.open()
        listener = open_listener(config.admin.listen, "admin.listen")
        stack.callback(listener.close)
        self._admin = AdminServer(self, listener)
        if config.takeover is not None:
            from pysidecar.takeover.takeover import Takeover  # slow, and seldom needed

            self._takeover = Takeover(config, self._own_listeners(), self._on_found)
            stack.callback(self._takeover.close)
            self._takeover.open()
        elif config.registry != RegistryEntry():
            log.warning("registry is not used: it is for takeover, which has no section")

        data_plane = DataPlane(workers=config.worker_count, timeouts=_timeouts(config))
        self._data_plane = data_plane
        stack.callback(data_plane.close)
        if self._takeover is not None:
            data_plane.keep_descriptors(self._takeover.most_connections)
        self._checks = self._make_checks(data_plane)
        stack.callback(self._checks.close)
        self._accelerate(data_plane)
        for way in self._ways:
            way.attach(data_plane)
        data_plane.set_own_addresses(self._own_addresses())
        data_plane.set_request_limits(_request_limits(config))
        self._settle()
        if self._takeover is not None:
            self._found = self._found_applied = self._takeover.restore()
        self._set_tables(config, self._make_tables(config))
        self._access_log = self._open_access_log()  # as a reload will open it
        stack.callback(self._access_log.close)
        self._access_log.start()
        _set_log(data_plane, config)
        stack.callback(self._tracing.close)
        self._set_tracing(config)
        _start(data_plane)
        stack.callback(self._stop_data_plane)
        asyncio.get_running_loop().add_reader(data_plane.event_fd, self._on_reports)
        stack.callback(self._ignore_reports)

        await self._admin.start()
        stack.push_async_callback(self._admin.stop)
        if config.manage_rules:
            remove_leftovers(self._kernel)
        for way in self._ways:
            way.serve(also_own=[self.admin_address, *self._services.own_addresses])
        if self._takeover is not None:
            stack.push_async_callback(self._stop_takeover)
            await self._takeover.start()
        watch = asyncio.get_running_loop().create_task(self._watch_outages())
        stack.callback(watch.cancel)
        self.state = "serving"

    def _make_checks(self, data_plane: DataPlane) -> HealthChecks:
        most = _FEW_CHECKS
        if any(service.health_check for service in self.config.services.values()):
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = min(max(most, soft // _CHECKS_SHARE), _MOST_CHECKS)
            kept = self._takeover.most_connections if self._takeover is not None else 0
            data_plane.keep_descriptors(kept + most)
        return HealthChecks(
            data_plane.set_health,
            most=most,
            own=self._own_listener,
            mark=upstream_mark(self.config),
        )

    def _own_listener(self, address: Address) -> str | None:
        """What of ours listens there."""
        if self._own_by_address is None:
            hosts = local_hosts()
            self._own_by_address = {
                each: what
                for listener, what in self._own_listeners().items()
                for each in (listener, *expand(listener, hosts))
            }
        found = self._own_by_address.get(address)
        if found is None and address.host.startswith("127."):
            found = self._own_by_address.get(Address("0.0.0.0", address.port))
        return found

    async def _watch_outages(self) -> None:
        while True:
            await asyncio.sleep(_OUTAGE_PERIOD)
            self._outages.look(self._data_plane.outages())

    def _accelerate(self, data_plane: DataPlane) -> None:
        settings = self.config.acceleration
        if not settings.wanted:
            return
        try:
            data_plane.accelerate(
                Acceleration(
                    ConnectionPath[settings.path.upper()],
                    settings.after_bytes,
                    settings.after_round_trips,
                    settings.blocking_sockets,
                    settings.connections,
                )
            )
        except AccelerationError as error:
            if settings.mode == "require":
                raise StartError(
                    f"acceleration.mode is require, but connections cannot be accelerated: {error}"
                ) from None
            log.info("connections are relayed without acceleration: %s", error)

    def _own_addresses(self) -> list[Address]:
        """With a listener on every address, each of them."""
        hosts = local_hosts()
        own = self._own_listeners()
        reached = (each for address in own for each in (address, *expand(address, hosts)))
        return list(dict.fromkeys(reached))

    def _own_listeners(self) -> dict[Address, str]:
        """What listens where, by the key that says so, or in words."""
        takeover = self.config.takeover
        return {
            self.admin_address: "admin.listen",
            **{own: "of connections" for way in self._ways for own in way.own_addresses},
            **{
                each: key
                for key, addresses in (takeover.listeners if takeover else ())
                for each in addresses
            },
        }

    async def _stop_takeover(self) -> None:
        assert self._takeover is not None
        await self._takeover.stop()
        self._found_changed.set()  # it waits for nothing more
        if self._updating is not None:
            await self._updating

    def _on_found(self, found: FoundServices) -> asyncio.Task[None]:
        """Takeover knows of other services or endpoints than before; the task is done when requests
        go there."""
        self._found = found
        self._found_changed.set()
        if self._updating is None:
            self._updating = asyncio.get_running_loop().create_task(self._update_services())
        return self._updating

    async def _update_services(self) -> None:
        """However many changes come while a table is made: one more table follows it. One that
        cannot be made or set is tried again after a pause, or with the next change."""
        pause = _FIRST_RETRY
        try:
            while self._found_applied is not self._found and self.state != "stopped":
                found, config = self._found, self.config
                self._found_changed.clear()
                try:
                    services = await in_background(partial(self._pack_services, config, found))
                    if config is self.config:  # no reload came between
                        self._set_services(services, config, found)
                        self._found_applied = found
                        pause = _FIRST_RETRY
                except Exception as error:
                    _mistakes.tell(error, "requests go where they went before; it is tried again")
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._found_changed.wait(), pause)
                    pause = min(2 * pause, _LONGEST_RETRY)
        finally:
            self._updating = None

    def _set_services(self, services: PackedServices, config: Config, found: FoundServices) -> None:
        self._data_plane.set_services(services)
        self._checks.set(checked_services(config, self._service_numbers, found))

    def _pack_services(self, config: Config, found: FoundServices) -> PackedServices:
        """In any thread."""
        with self._packing:
            return pack_services(config, self._service_numbers, self._listeners_at_start, found)

    async def stop(self) -> None:
        """Aborts what is still open and removes everything; ``drain`` first to be gentle."""
        self.state = "stopped"
        if self._reloading is not None:
            if not self._applying:
                self._reloading.cancel()
            await asyncio.gather(self._reloading, return_exceptions=True)
        for way in self._ways:
            way.drain()
        await self._stack.aclose()

    async def reload(self) -> None:
        """Applies the configuration file as it is now; open connections go on as they are. Raises
        ConfigError when it cannot be applied as a whole, and changes nothing then."""
        old = await self._read_and_apply()
        await in_background(lambda: release(old))

    async def _read_and_apply(self) -> list[object]:
        """Returns what there was very much of, for ``release``."""
        config, tables = await in_background(self._read)
        if self.state != "serving":
            return []
        before = self.config
        self._applying = True
        try:
            await self._apply(config, tables)
        finally:
            self._applying = False
        return [
            *before.outbound.routes,
            *(before.inbound.routes if before.inbound else ()),
            *before.services.values(),
            *before.requests,
        ]

    def _read(self) -> tuple[Config, _Tables]:
        """All of a reload that takes time. In any thread."""
        with without_collector():
            config = load(self._source)
            if keys := restart_keys(self.config, config):
                reason = "expected no change: it takes effect at a restart"
                raise ConfigError(self._name, [Problem(key, reason) for key in keys])
            self._check(config)
            return config, self._make_tables(config)

    async def _apply(self, config: Config, tables: _Tables) -> None:
        source = self._name
        try:
            if config.access_log.writes:
                self._access_log.reopen(config.access_log.path)
        except OSError as error:
            raise ConfigError(
                source,
                [Problem("access_log.path", f"{config.access_log.path}: {_reason(error)}")],
            ) from None
        try:
            for way in reversed(self._ways):  # the rules can fail, the hook cannot
                await way.apply(config)
        except StartError as error:
            raise ConfigError(source, [Problem("", str(error))]) from None
        self._set_tables(config, tables)
        self._data_plane.set_timeouts(_timeouts(config))
        _set_log(self._data_plane, config)
        self._set_tracing(config)
        self.config = config
        self._found_applied = tables.found
        if self._takeover is not None:
            self._takeover.apply(config)
        self._on_found(self._found)

    @property
    def _name(self) -> str:
        """Of the configuration, in errors."""
        return str(self._source or "configuration")

    def _make_tables(self, config: Config) -> _Tables:
        """In any thread, but one at a time."""
        with self._packing:
            return make_tables(config, self._service_numbers, self._listeners_at_start, self._found)

    def _set_tables(self, config: Config, tables: _Tables) -> None:
        """The services first: routes with ``requests`` need them."""
        self._set_services(tables.services, config, tables.found)
        self._data_plane.set_excluded(tables.excluded)
        self._data_plane.set_routes(tables.outbound, Direction.OUTBOUND)
        self._data_plane.set_routes(tables.inbound, Direction.INBOUND)

    def begin_drain(self) -> None:
        """No new connections from here on."""
        self.state = "draining"
        for way in self._ways:
            way.drain()
        self._data_plane.drain()

    async def drained(self) -> None:
        """Returns when no connection is left that goes through here."""
        # In this order: what is taken from a listener is passing from then on.
        while not self._data_plane.drained or self._data_plane.passing:
            self._reported.clear()
            await self._reported.wait()

    async def run(
        self, *, until_stdin_ends: bool = False, reload_wanted: Callable[[], bool] = lambda: False
    ) -> None:
        """Starts, and serves until SIGTERM or SIGINT, or until standard input ends; then drains, at
        most for ``drain_timeout`` and until a second signal. SIGHUP reloads; ``reload_wanted`` says
        whether one came before this was called."""
        loop = asyncio.get_running_loop()
        first, second = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (second if first.is_set() else first).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

        def on_stdin() -> None:
            if not os.read(0, 4096):
                loop.remove_reader(0)
                first.set()

        if until_stdin_ends:
            loop.add_reader(0, on_stdin)
        await self.start()
        if self._reload_wanted or reload_wanted():  # the file was read before
            self._on_hangup()
        try:
            for line in self.description:
                log.info("%s", line)
            await first.wait()
            await self._leave(second)
            self.begin_drain()
            live = self._data_plane.passing
            if live:
                log.info("draining: %d connections are open; a second signal aborts them", live)
            await _first_of(self.drained(), second.wait(), asyncio.sleep(self.config.drain_timeout))
            if left := self._data_plane.passing:
                log.warning("aborting %d connections that are still open", left)
        finally:
            await self.stop()
        log.info("stopped")

    async def _leave(self, aborted: asyncio.Event) -> None:
        """Consumers elsewhere are told first, so that none of their requests is refused."""
        if self._takeover is not None and self._takeover.is_registered:
            log.info("taking back what is registered, and waiting for consumers to hear of it")
            await _first_of(self._takeover.leave(), aborted.wait())

    def _on_hangup(self) -> None:
        """However many come while a reload is under way: one more follows it."""
        self._reload_wanted = True
        if self._reloading is None:
            self._reloading = asyncio.get_running_loop().create_task(self._reload_while_wanted())

    async def _reload_while_wanted(self) -> None:
        try:
            while self._reload_wanted and self.state == "serving":
                self._reload_wanted = False
                await self._reload_once()
        finally:
            self._reloading = None

    async def _reload_once(self) -> None:
        try:
            old = await self._read_and_apply()
        except ConfigError as error:
            self.metrics.count_reload(applied=False)
            log.error("the running configuration stays, because of:\n%s", error)
        except Exception as error:
            self.metrics.count_reload(applied=False)
            _mistakes.tell(error, "the configuration is not applied as a whole; reload once more")
        else:  # said at once: to free what was takes a while
            self.metrics.count_reload(applied=True)
            log.info("reloaded %s", self._source or "the embedded defaults")
            await in_background(lambda: release(old))

    def _check(self, config: Config) -> None:
        if not HAS_HTTP2 and (keys := list(_of_http2(config))):
            reason = "expected another protocol: this pysidecar was built without libnghttp2-dev"
            raise ConfigError(self._name, [Problem(key, reason) for key in keys])
        try:
            for way in self._ways:
                way.check(config)
            self._tracing.check(config)
        except ValueError as error:
            raise ConfigError(self._name, [Problem("", str(error))]) from None

    def _set_tracing(self, config: Config) -> None:
        settings = config.tracing
        if settings is None:
            self._data_plane.set_tracing((), Fraction(0))
        else:
            self._data_plane.set_tracing(settings.propagate, settings.sample)
        self._tracing.apply(config)

    def _open_access_log(self) -> AccessLog:
        settings = self.config.access_log
        path = settings.path if settings.writes else None  # no file for what is not written
        try:
            return AccessLog(path)
        except OSError as error:
            raise StartError(
                f"cannot write the access log {path} (access_log.path): {_reason(error)}"
            ) from None

    # ---- Reports of the data plane ----

    def _on_reports(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._data_plane.event_fd)
        pause = _BUSY_REPORT_PAUSE if self._take_reports() else _REPORT_PAUSE
        loop.call_later(pause, self._await_reports)

    def _await_reports(self) -> None:
        if self.state != "stopped":
            asyncio.get_running_loop().add_reader(self._data_plane.event_fd, self._on_reports)

    def _ignore_reports(self) -> None:
        asyncio.get_running_loop().remove_reader(self._data_plane.event_fd)

    def _take_reports(self) -> bool:
        """Whether there have been many since the last time."""
        self._data_plane.clear_event()
        closed_before, self._closed = self._closed, self._data_plane.counters().closed
        self._room.look()
        if self._takeover is not None and self.state != "stopped":
            self._takeover.demand(self._data_plane.take_wanted())
        size = 0
        while taken := self._access_log.fill(self._data_plane.take_lines):
            size += taken
        self._reported.set()
        busy = self._closed - closed_before >= _BUSY_REPORTS or size >= _BUSY_BYTES
        if busy:
            self._tell_dropped()
        return busy

    def _tell_dropped(self) -> None:
        dropped_before, self._dropped = self._dropped, self._data_plane.tallies().lines_dropped
        if self._dropped > dropped_before:
            log.warning(
                "%d connections and requests that ended are counted, but not in the access log: "
                "the control plane was stuck",
                self._dropped - dropped_before,
            )

    def _stop_data_plane(self) -> None:
        self._data_plane.stop()
        self._take_reports()


def _start(data_plane: DataPlane) -> None:
    """Raises StartError that says what to do."""
    try:
        data_plane.start()
    except OSError as error:
        reason = str(error.strerror)
        if error.errno == errno.EMFILE:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            reason = (
                f"the limit of {limit} file descriptors leaves none for connections. {RAISE_LIMIT}"
            )
        raise StartError(f"cannot serve: {reason}") from None


def prepare_process(config: Config) -> None:
    """For a process that is a sidecar and nothing else: as many file descriptors as allowed, no
    connect hook in itself, and no core dump unless the configuration wants it."""
    if not config.core_dumps:
        # The kernel gives a core to a program (core_pattern) at a limit of 0, but not of 1.
        with contextlib.suppress(ValueError):  # the limit is 0 already
            resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mosnhook_bypass(1)
    if "LD_PRELOAD" in os.environ:
        os.environ["LD_PRELOAD"] = without_hook(os.environ["LD_PRELOAD"])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if os.geteuid() else max(hard, _MOST_FDS)
    with contextlib.suppress(OSError, ValueError):  # the kernel's fs.nr_open is lower
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _reason(error: OSError) -> str:
    if error.errno == errno.EACCES and os.geteuid() == 0:
        return (
            f"{error.strerror}: as root the sidecar keeps no right to other users' files; let root "
            "own the directory and the file"
        )
    return str(error.strerror)


def make_tables(
    config: Config,
    numbers: ServiceNumbers,
    listeners: Sequence[Address] = (),
    found: FoundServices = NOTHING_FOUND,
) -> _Tables:
    """All that the data plane decides by; for all but the first see ``pack_services``."""
    inbound = config.inbound.routes if config.inbound is not None else ()
    return _Tables(
        pack_routes(route_table(config.outbound.routes)),
        pack_routes(route_table(inbound)),
        pack_routes(excluded_table(config.outbound)),
        pack_services(config, numbers, listeners, found),
        found,
    )


def _set_log(data_plane: DataPlane, config: Config) -> None:
    settings = config.access_log
    data_plane.log(
        settings.writes_connections, requests=settings.writes_requests, queries=settings.query
    )


def _request_limits(config: Config) -> RequestLimits:
    limits = config.request_limits
    return RequestLimits(limits.line_bytes, limits.head_bytes, limits.fields, limits.frame_bytes)


def _of_http2(config: Config) -> Iterator[str]:
    """The keys that need HTTP/2."""
    protocols = {
        **{f"services.{name}.protocol": each.protocol for name, each in config.services.items()},
        **{f"listeners[{at}].protocol": each.protocol for at, each in enumerate(config.listeners)},
    }
    for direction, section in (("outbound", config.outbound), ("inbound", config.inbound)):
        for at, route in enumerate(section.routes if section else ()):
            protocols[f"{direction}.routes[{at}].protocol"] = route.protocol
    for name in ("subscribe", "publish"):
        for at, taken in enumerate(getattr(config.takeover, name, ())):
            protocols[f"takeover.{name}[{at}].protocol"] = taken.protocol
    return (key for key, protocol in protocols.items() if protocol in ("http2", "grpc", "tri"))


def _timeouts(config: Config) -> Timeouts:
    outbound = config.outbound
    return Timeouts(
        connect=outbound.connect_timeout,
        idle=outbound.idle_timeout,
        header=outbound.header_timeout,
        ejection=outbound.ejection_time,
        flush=outbound.flush_timeout,
    )


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns when one of them is done, and gives the others up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
