"""A real sidecar process for tests, and what it saw."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pysidecar import hook_path
from pysidecar.address import Address

if TYPE_CHECKING:
    from pysidecar.testing.hooked import Hooked

__all__ = [
    "Connection",
    "Destination",
    "Endpoint",
    "Request",
    "Sidecar",
    "SidecarError",
    "wait_until",
]

Destination = str
"""``10.0.0.9:5432``, ``[fd00::9]:5432``, or a network or address for all ports: ``10.0.0.0/8``."""

Endpoint = str | tuple[str, int] | Address | socket.socket
"""``127.0.0.1:5433``, ``("127.0.0.1", 5433)``, or a listening socket."""

READY_TIMEOUT = 60.0  # seconds; a start takes half of one, but machines that test are busy
STOP_TIMEOUT = 30.0
POLL_INTERVAL = 0.02

_RECENT_CLOSED = 1000  # the admin API's limit

T = TypeVar("T")


class SidecarError(Exception):
    """The sidecar did not start, reload or stop as it should; the text has its log."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as the sidecar recorded it; the names are those of the access log.

    Addresses are ``address:port`` (``[address]:port`` for IPv6), or None where there was none.
    """

    time: datetime = field(repr=False)
    direction: str
    transport: str
    source: str | None
    original_destination: str | None
    upstream: str | None
    action: str
    path: str
    bytes_sent: int  # by the application
    bytes_received: int
    duration_ms: float
    pid: int | None
    process: str | None
    error: str | None
    closed: bool  # while open, the numbers still grow

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from others, open or closed."""
        return (self.time, self.source, self.original_destination, self.pid)


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the sidecar recorded it when it had ended; the names are those of the access log
    (`docs/requests.md` explains them)."""

    time: datetime = field(repr=False)
    protocol: str
    direction: str
    source: str
    service: str
    method: str
    path: str
    status: int | None
    upstream: str | None
    attempts: int
    bytes_sent: int  # by the client
    bytes_received: int
    duration_ms: float
    first_byte_ms: float | None
    flags: tuple[str, ...]


class Sidecar:
    """A sidecar as a process of its own, ready once entered (it is a context manager).

    It has its own loopback address, directory, control socket and policy page, so that any number
    of them run side by side. Unlike the defaults, ``exclude`` is empty, so that servers on loopback
    are captured. Leaving it stops it and checks that nothing is left over.

    Raises SidecarError where it does not start, or stop, as it should.
    """

    python = sys.executable
    """The interpreter that runs it: that of another installation has another version."""

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        # Not pytest's directory for the test: its name may be too long for a Unix socket.
        self._temporary = tempfile.TemporaryDirectory(prefix="pysidecar-")
        self.directory = Path(self._temporary.name)
        self.address = _free_loopback_address()
        self.config_file = self.directory / "sidecar.yaml"
        self._log_file = self.directory / "log"
        self._settings = _merged(self._default_settings(), settings or {})
        self._initial_routes: tuple[Any, ...] = tuple(self._settings["outbound"]["routes"])
        self._final_logs: tuple[str, str] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._hooked: Hooked | None = None
        self._before_this_run: list[Connection] = []

    def _default_settings(self) -> dict[str, Any]:
        return {
            "admin": {"listen": f"{self.address}:15000"},
            "access_log": {"path": str(self.directory / "access.jsonl")},
            "outbound": {
                "listen": [f"{self.address}:15001"],
                "control_socket": str(self.directory / "hook.sock"),
                "exclude": [],
                "routes": [],
            },
            "drain_timeout": "2s",
            "workers": 1,
        }

    # ---- Where it is ----

    @property
    def control_socket(self) -> Path:
        """Where hooked processes ask."""
        return Path(self._settings["outbound"]["control_socket"])

    @property
    def page(self) -> Path:
        """The policy page that hooked processes read."""
        socket = self.control_socket
        return socket.with_name(socket.name.removesuffix(".sock") + ".policy")

    @property
    def admin(self) -> Address:
        """Where the admin API answers."""
        return Address.parse(self._settings["admin"]["listen"])

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._running.pid

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise SidecarError("the sidecar is not running")
        return self.process

    @property
    def environment(self) -> dict[str, str]:
        """The variables that put a process under the hook, to be laid over its own."""
        preloaded = os.environ.get("LD_PRELOAD", "")
        return {
            "LD_PRELOAD": f"{preloaded}:{hook_path()}".lstrip(":"),
            "MOSNHOOK_POLICY": str(self.page),
        }

    @property
    def hooked(self) -> Hooked:
        """Runs commands under the hook through this sidecar."""
        from pysidecar.testing.hooked import Hooked

        if self._hooked is None:
            self._hooked = Hooked(self)
        return self._hooked

    # ---- Life ----

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._final_logs = (self.log, self.access_log)
            self.kill()
            self._temporary.cleanup()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._hooked is not None:
                self._hooked.close()
            if self.process is not None:
                self.stop()
        finally:
            self.kill()
            self._final_logs = (self.log, self.access_log)
            self._temporary.cleanup()

    def start(self) -> None:
        """Starts the process and waits until it is ready; also after ``stop`` or ``kill``."""
        self._write_settings()
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MOSNHOOK_")
        }
        # The package that is imported here, not one that happens to be in the directory.
        environment["PYTHONSAFEPATH"] = "1"
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(self.python, "-m", "pysidecar", "run", "-c", str(self.config_file)),
                    "--until-stdin-ends",  # also when this process is killed
                ],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # ^C is for pytest, which then stops it in order
            )
        self._wait_until(self._is_ready, READY_TIMEOUT, "did not become ready")

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stops it with SIGTERM and checks that it ended well and left nothing behind."""
        process = self._running
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._error(f"did not end within {timeout:g} s of SIGTERM") from None
        self._ended()
        if status != 0:
            raise self._error(f"ended with status {status}")
        for path in (self.control_socket, self.page):
            if os.path.lexists(path):
                raise self._error(f"left {path} behind")

    def kill(self) -> None:
        """Kills it with SIGKILL, if it runs; what it leaves behind, a new start deals with."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self._ended()

    def _ended(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None
        self._before_this_run = self._logged_connections()

    def pause(self) -> None:
        """Stops its execution with SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on with SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def _is_ready(self) -> bool:
        try:
            return self._request("/ready").status == 200
        except OSError:
            return False

    # ---- What it saw ----

    @property
    def log(self) -> str:
        """Everything that the process printed."""
        return self._final_logs[0] if self._final_logs else _text(self._log_file)

    @property
    def access_log(self) -> str:
        """The access log: one JSON object for each closed connection, and for each request that
        ended. Empty where it is off."""
        if self._final_logs:
            return self._final_logs[1]
        setting = self._settings["access_log"]
        return _text(Path(setting["path"])) if isinstance(setting, dict) else ""

    def admin_json(self, path: str) -> Any:
        """What the admin API answers to a GET, decoded. Raises SidecarError for another status."""
        answer = self._request(path)
        if answer.status != 200:
            raise self._error(f"GET {path}: {answer.status} {answer.body.decode()}")
        return json.loads(answer.body)

    def connections(self) -> list[Connection]:
        """All connections so far, open and closed, in the order in which they were opened.

        Those of before a `stop` or `kill` are among them. An application may be ahead of its
        sidecar: wait for what it just did (`wait_for_connection`) rather than look once.
        """
        found = list(self._before_this_run)
        if self.process is not None:
            recent = self.admin_json(f"/connections?closed={_RECENT_CLOSED}")
            # By id: one that closes during the request is listed as open and as closed.
            open_ones = {each["id"]: each for each in recent if each["state"] == "open"}
            closed = [each for each in recent if each["state"] == "closed"]
            for each in closed:
                open_ones.pop(each["id"], None)
            if len(closed) < _RECENT_CLOSED:
                found += [_connection(each, closed=True) for each in closed]
            else:  # The access log has all of them, if a moment later.
                found = self._logged_connections()
            found += [_connection(each, closed=False) for each in open_ones.values()]
        return sorted(found, key=lambda connection: connection.time)

    def requests(self) -> list[Request]:
        """All requests that have ended so far, in the order in which they began, where the access
        log has them.

        A client may be ahead of the log: wait for what it just did (`wait_for_request`) rather than
        look once.
        """
        found = [_request(record) for record in self._logged("request")]
        return sorted(found, key=lambda request: request.time)

    def wait_for_request(
        self,
        service: str | None = None,
        *,
        method: str | None = None,
        path: str | None = None,
        matching: Callable[[Request], bool] = lambda request: True,
        timeout: float = 10.0,
    ) -> Request:
        """The first request that fits all that is given, as soon as it has ended.

        ``timeout`` is in seconds. Raises TimeoutError that lists what was there instead.
        """

        def fits(request: Request) -> bool:
            return (
                service in (None, request.service)
                and method in (None, request.method)
                and path in (None, request.path)
                and matching(request)
            )

        def first() -> Request | None:
            return next(filter(fits, self.requests()), None)

        found = wait_until(first, timeout)
        if found is None:
            seen = "".join(f"\n  {request}" for request in self.requests())
            raise TimeoutError(f"no such request within {timeout:g} s, but:{seen or ' none'}")
        return found

    def _logged(self, kind: str) -> list[dict[str, Any]]:
        """The lines of that type in the access log."""
        records = [
            json.loads(line)
            for line in self.access_log.splitlines(keepends=True)
            if line.endswith("\n")  # else it is just being written
        ]
        return [record for record in records if record["type"] == kind]

    def _logged_connections(self) -> list[Connection]:
        return [_connection(record, closed=True) for record in self._logged("connection")]

    def wait_for_connection(
        self,
        destination: str | None = None,
        *,
        process: str | None = None,
        pid: int | None = None,
        closed: bool | None = None,
        matching: Callable[[Connection], bool] = lambda connection: True,
        timeout: float = 10.0,
    ) -> Connection:
        """The first connection that fits all that is given, as soon as there is one.

        ``destination`` is the original one, ``address:port``; ``timeout`` is in seconds. Raises
        TimeoutError that lists what was there instead.
        """

        def fits(connection: Connection) -> bool:
            return (
                destination in (None, connection.original_destination)
                and process in (None, connection.process)
                and pid in (None, connection.pid)
                and closed in (None, connection.closed)
                and matching(connection)
            )

        def first() -> Connection | None:
            return next(filter(fits, self.connections()), None)

        found = wait_until(first, timeout)
        if found is None:
            seen = "".join(f"\n  {connection}" for connection in self.connections())
            raise TimeoutError(f"no such connection within {timeout:g} s, but:{seen or ' none'}")
        return found

    # ---- Routes ----

    def route(
        self,
        destination: Destination,
        endpoints: Endpoint | Sequence[Endpoint] = (),
        *,
        action: Literal["relay", "direct", "refuse"] = "relay",
        ports: int | str | Sequence[int | str] | None = None,
        balance: Literal["round_robin", "least_connections"] = "round_robin",
    ) -> None:
        """From here on, new connections to ``destination`` go to ``endpoints``, or are refused.

        The route goes before all others, so a later call overrides an earlier one. Without
        endpoints connections are relayed to where they wanted to go. When this returns, the sidecar
        has it.
        """
        match: dict[str, Any] = _match(destination)
        if ports is not None:
            match["ports"] = ports if isinstance(ports, int | str) else list(ports)
        route: dict[str, Any] = {"match": match, "action": action}
        if endpoint_texts := _endpoints(endpoints):
            route |= {"endpoints": endpoint_texts, "balance": balance}
        self._set_routes([route, *self._settings["outbound"]["routes"]])

    def reset_routes(self) -> None:
        """Takes back every ``route``: only those of the settings are left."""
        self._set_routes(self._initial_routes)

    def _set_routes(self, routes: Iterable[Any]) -> None:
        self.configure({"outbound": {"routes": list(routes)}})

    # ---- All else ----

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Merges ``settings`` over those that it has, as when it was made: mappings key by key,
        all else is replaced. When this returns, the sidecar has them.

        Raises SidecarError where they are refused: then it goes on with what it had.
        """
        before = self._settings
        self._settings = _merged(before, settings)
        try:
            self.reload()
        except SidecarError:
            self._settings = before
            self._write_settings()
            raise

    def reload(self) -> None:
        """Has the sidecar read its configuration file (SIGHUP) and waits until it did.

        Raises SidecarError where it keeps the configuration that it had.
        """
        self._write_settings()
        before = self._reloads()
        self._running.send_signal(signal.SIGHUP)
        self._wait_until(lambda: self._reloads() != before, READY_TIMEOUT, "did not reload")
        if self._reloads()["rejected"] != before["rejected"]:
            raise self._error("rejected its new configuration")

    def _reloads(self) -> dict[str, int]:
        """How many reloads it applied and rejected."""
        metrics = self._request("/metrics").body.decode()
        counted = re.findall(r'^pysidecar_reloads_total\{result="(\w+)"\} (\S+)$', metrics, re.M)
        return {"applied": 0, "rejected": 0} | {name: int(float(n)) for name, n in counted}

    # ---- Inside ----

    def _write_settings(self) -> None:
        new = self.config_file.with_suffix(".new")
        new.write_text(json.dumps(self._settings, indent=2))  # JSON is YAML
        new.replace(self.config_file)

    @dataclass(frozen=True, slots=True)
    class _Answer:
        status: int
        body: bytes

    def _request(self, path: str) -> _Answer:
        # With ssl and email behind it, too much for every pytest run to import.
        import http.client

        connection = http.client.HTTPConnection(
            self.admin.host, self.admin.port, timeout=READY_TIMEOUT
        )
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return self._Answer(response.status, response.read())

    def _wait_until(self, condition: Callable[[], bool], timeout: float, failure: str) -> None:
        """Until the condition holds; fails when the process ends before."""

        def settled() -> bool:
            return self._running.poll() is not None or condition()

        if not wait_until(settled, timeout):
            raise self._error(f"{failure} within {timeout:g} s")
        status = self._running.poll()
        if status is not None:
            raise self._error(f"ended with status {status}")

    def _error(self, what: str) -> SidecarError:
        return SidecarError(f"the sidecar {what}; its log:\n{self.log or '(empty)'}")


def wait_until(condition: Callable[[], T], timeout: float) -> T:
    """Asks for the condition until it is true or the time (seconds) is up; its last value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value or time.monotonic() >= deadline:
            return value
        time.sleep(POLL_INTERVAL)


def _free_loopback_address() -> str:
    """An address of 127.0.0.0/8 that nobody listens on: with 16 million of them, sidecars side by
    side share no port, and no outgoing connection takes one of theirs."""
    while True:
        address = str(ipaddress.IPv4Address(0x7F000000 | (2 + secrets.randbelow((1 << 24) - 3))))
        try:
            for port in (15000, 15001):
                with socket.socket() as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        return address


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _match(destination: Destination) -> dict[str, Any]:
    try:
        ipaddress.ip_network(destination)
    except ValueError:
        address = Address.parse(destination)
        return {"destination": address.host, "ports": address.port}
    return {"destination": destination}


def _endpoints(endpoints: Endpoint | Sequence[Endpoint]) -> list[str]:
    if isinstance(endpoints, str | Address | socket.socket):
        return [_endpoint(endpoints)]
    match endpoints:
        case (str() as host, int() as port):
            return [_endpoint((host, port))]
    return [_endpoint(endpoint) for endpoint in endpoints]


def _endpoint(endpoint: Endpoint) -> str:
    if isinstance(endpoint, socket.socket):
        endpoint = endpoint.getsockname()[:2]
    if isinstance(endpoint, tuple):
        endpoint = Address(*endpoint)
    return str(endpoint)


def _connection(record: Mapping[str, Any], *, closed: bool) -> Connection:
    values = {name: record[name] for name in Connection.__slots__ if name not in ("time", "closed")}
    return Connection(time=datetime.fromisoformat(record["time"]), closed=closed, **values)


def _request(record: Mapping[str, Any]) -> Request:
    values = {name: record[name] for name in Request.__slots__ if name not in ("time", "flags")}
    time = datetime.fromisoformat(record["time"])
    return Request(time=time, flags=tuple(record["flags"]), **values)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="backslashreplace")
    except FileNotFoundError:
        return ""
