"""Route action ``direct``: the application connects itself, and is accounted for."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from pysidecar.address import Address
from pysidecar.testing import Connection, Sidecar
from tests.interop.servers import HAS_IPV6
from tests.sandbox import without_sock_diag
from tests.talking import Talking
from tests.waiting import PATIENCE, eventually

SERVICE = "10.1.2.3"
SERVICE6 = "fd00::1:2:3"
PORT = 5432
CLIENT = """
import json, socket, struct, sys, time
names = {"socket": socket, "struct": struct, "time": time}
for line in sys.stdin:
    try:
        try:
            answer = eval(line, names)
        except SyntaxError:
            answer = exec(json.loads(line) if line.startswith('"') else line, names)
        print(json.dumps(answer, default=lambda _: None))
    except OSError as error:
        print(json.dumps({"errno": error.errno}))
    sys.stdout.flush()
"""


class Client(Talking):
    """A Python under the hook that does what it is told, line by line."""

    def __init__(self, sidecar: Sidecar, *prefix: str) -> None:
        super().__init__(
            subprocess.Popen(
                [*prefix, sys.executable, "-c", CLIENT],
                env={**os.environ, **sidecar.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )

    def __call__(self, line: str) -> Any:
        """The value of an expression, or ``{"errno": …}``."""
        self.send(line)
        return self.answer()

    def send(self, line: str) -> None:
        self.write(json.dumps(line) if "\n" in line else line)

    def answer(self) -> Any:
        return json.loads(self.read())

    def connect(self, host: str = SERVICE, port: int = PORT) -> Any:
        family = "socket.AF_INET6" if ":" in host else "socket.AF_INET"
        self(f"s = socket.socket({family})")
        return self(f"s.connect({(host, port)!r})")

    def exchange(self, peer: socket.socket, sent: int, received: int) -> None:
        """Both read everything."""
        assert self(f"s.sendall(b'x' * {sent})") is None
        assert _read(peer, sent) == sent
        peer.sendall(b"y" * received)
        assert self(f"len(s.recv({received}, socket.MSG_WAITALL))") == received


def _read(peer: socket.socket, size: int) -> int:
    got = 0
    while got < size:
        part = peer.recv(65536)
        assert part
        got += len(part)
    return got


def listen(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=1024)
    listener.settimeout(PATIENCE)
    return listener


def accept(listener: socket.socket) -> socket.socket:
    peer = listener.accept()[0]
    peer.settimeout(PATIENCE)
    return peer


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with Sidecar({"workers": 2}) as running:
        yield running


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen() as listening:
        yield listening


@pytest.fixture
def client(sidecar: Sidecar, listener: socket.socket) -> Iterator[Client]:
    """One for which ``SERVICE`` is at the listener."""
    sidecar.route(SERVICE, listener, action="direct")
    with Client(sidecar) as running:
        yield running


def closed(sidecar: Sidecar) -> Connection:
    return sidecar.wait_for_connection(closed=True)


def open_ones(sidecar: Sidecar) -> list[Connection]:
    return [connection for connection in sidecar.connections() if not connection.closed]


# ---- The way there ----


def test_the_application_is_connected_to_the_endpoint_itself(
    sidecar: Sidecar, listener: socket.socket, client: Client
) -> None:
    assert client.connect() is None
    with accept(listener) as peer:
        # Nobody is in between.
        assert client("s.getsockname()") == list(peer.getpeername())
        assert client("s.getpeername()") == [SERVICE, PORT]
        client.exchange(peer, 1000, 2000)
        live = sidecar.wait_for_connection(closed=False, matching=lambda c: c.bytes_sent == 1000)
        assert (live.action, live.path, live.transport) == ("direct", "direct", "unix")
        assert live.original_destination == f"{SERVICE}:{PORT}"
        assert live.upstream == str(Address(*listener.getsockname()))
        assert live.source == str(Address(*peer.getpeername()))
        assert live.bytes_received == 2000
        assert live.pid == client.process.pid
        client("s.close()")
        assert peer.recv(1) == b""  # nothing holds the end back
    done = closed(sidecar)
    assert (done.bytes_sent, done.bytes_received, done.error) == (1000, 2000, None)
    assert done.source == live.source
    assert eventually(lambda: sidecar.access_log.count("\n")) == 1
    record = json.loads(sidecar.access_log)
    assert (record["action"], record["path"]) == ("direct", "direct")
    assert record["rtt_ms"] > 0
    assert record["duration_ms"] > 0


def test_without_an_endpoint_it_goes_where_it_wanted_to(
    sidecar: Sidecar, listener: socket.socket
) -> None:
    sidecar.route("127.0.0.0/8", action="direct")
    with Client(sidecar) as client:
        host, port = listener.getsockname()
        assert client.connect(host, port) is None
        with accept(listener) as peer:
            assert client("s.getsockname()") == list(peer.getpeername())
            assert client("s.connect_ex(s.getpeername())") == errno.EISCONN
            client("s.close()")
    assert closed(sidecar).path == "direct"
    assert len(sidecar.connections()) == 1


def test_a_refused_connect_says_so(sidecar: Sidecar, refusing_port: int) -> None:
    sidecar.route(SERVICE, f"127.0.0.1:{refusing_port}", action="direct")
    with Client(sidecar) as client:
        assert client.connect() == {"errno": errno.ECONNREFUSED}
        client("s.close()")
        done = closed(sidecar)
        assert done.error == "upstream connect failed"
        assert (done.bytes_sent, done.bytes_received) == (0, 0)


def test_non_blocking_connects_are_the_kernels(
    sidecar: Sidecar, listener: socket.socket, client: Client, refusing_port: int
) -> None:
    client("s = socket.socket()")
    client("s.setblocking(False)")
    assert client(f"s.connect_ex(('{SERVICE}', {PORT}))") == errno.EINPROGRESS
    with accept(listener):
        client("import select; select.select([], [s], [])")
        assert client("s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)") == 0
        assert client(f"s.connect_ex(('{SERVICE}', {PORT}))") in (0, errno.EISCONN)
        assert client(f"s.connect_ex(('{SERVICE}', {PORT}))") == errno.EISCONN
        assert len(sidecar.connections()) == 1
    sidecar.route(SERVICE, f"127.0.0.1:{refusing_port}", action="direct")
    client("s = socket.socket()")
    client("s.setblocking(False)")
    assert client(f"s.connect_ex(('{SERVICE}', {PORT}))") == errno.EINPROGRESS
    client("select.select([], [s], [])")
    assert client("s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)") == errno.ECONNREFUSED


def test_a_failed_socket_can_connect_again(
    sidecar: Sidecar, listener: socket.socket, client: Client, refusing_port: int
) -> None:
    sidecar.route(SERVICE, f"127.0.0.1:{refusing_port}", action="direct")
    assert client.connect() == {"errno": errno.ECONNREFUSED}
    sidecar.route(SERVICE, listener, action="direct")
    assert client(f"s.connect(('{SERVICE}', {PORT}))") is None
    with accept(listener) as peer:
        client.exchange(peer, 10, 20)
        failed = closed(sidecar)
        assert failed.error == "upstream connect failed"
        client("s.close()")
    eventually(lambda: not open_ones(sidecar))
    both = sidecar.connections()
    assert sorted((c.bytes_sent, c.bytes_received) for c in both) == [(0, 0), (10, 20)]


def test_a_send_timeout_ends_a_connect(sidecar: Sidecar) -> None:
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(2):  # its queue is full
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        sidecar.route(SERVICE, silent, action="direct")
        client = stack.enter_context(Client(sidecar))
        client("s = socket.socket()")
        option = "s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', 0, 200000))"
        client(option)
        assert client(f"s.connect_ex(('{SERVICE}', {PORT}))") == errno.EINPROGRESS
        assert client(f"s.connect_ex(('{SERVICE}', {PORT}))") == errno.EALREADY


def test_endpoints_take_turns(sidecar: Sidecar) -> None:
    with listen() as one, listen() as two:
        sidecar.route(SERVICE, [one, two], action="direct")
        with Client(sidecar) as client:
            client("kept = []")
            for _ in range(10):
                assert client.connect() is None
                client("kept.append(s)")
            upstreams = [connection.upstream for connection in sidecar.connections()]
            assert sorted(map(upstreams.count, set(upstreams))) == [5, 5]


def test_an_endpoint_that_failed_is_left_out_until_its_time_is_over(
    listener: socket.socket,
) -> None:
    settings = {"workers": 2, "outbound": {"ejection_time": "3s"}}
    with Sidecar(settings) as sidecar, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # but it does not listen
        dead.settimeout(0)
        sidecar.route(SERVICE, [dead, listener], action="direct")
        with Client(sidecar) as client:

            def connect() -> Any:
                failure = client.connect()
                client("s.close()")
                return failure

            assert connect() == {"errno": errno.ECONNREFUSED}
            closed(sidecar)  # the kernel's report has come
            assert [connect() for _ in range(20)] == [None] * 20
            dead.listen()

            def is_back() -> bool:
                assert connect() is None
                with contextlib.suppress(BlockingIOError), dead.accept()[0]:
                    return True
                return False

            eventually(is_back)


def test_least_connections_counts_direct_ones_until_they_end(sidecar: Sidecar) -> None:
    with listen() as one, listen() as two:
        sidecar.route(SERVICE, [one, two], action="direct", balance="least_connections")
        with Client(sidecar) as client:

            def upstream() -> str | None:
                before = len(sidecar.connections())
                assert client.connect() is None
                client("kept.append(s)")
                eventually(lambda: len(sidecar.connections()) > before)
                return sidecar.connections()[-1].upstream

            client("kept = []")
            first = upstream()
            second = upstream()
            assert first != second
            client("[kept.pop().close(), None]")
            closed(sidecar)
            assert upstream() == second


@pytest.mark.skipif(not HAS_IPV6, reason="no IPv6")
@pytest.mark.parametrize("host", [SERVICE, SERVICE6])
@pytest.mark.parametrize("endpoint", ["127.0.0.1", "::1"])
def test_an_endpoint_of_the_other_family_is_relayed_where_it_must_be(
    sidecar: Sidecar, host: str, endpoint: str
) -> None:
    with listen(endpoint) as listening:
        sidecar.route(host, listening, action="direct")
        with Client(sidecar) as client:
            assert client.connect(host) is None
            with accept(listening) as peer:
                client.exchange(peer, 100, 200)
                assert client("s.getpeername()[:2]") == [host, PORT]
                client("s.close()")
            done = closed(sidecar)
            # An AF_INET socket cannot go to an IPv6 address.
            reachable = not (host == SERVICE and endpoint == "::1")
            assert done.path == ("direct" if reachable else "relay")
            assert done.action == done.path
            assert (done.bytes_sent, done.bytes_received, done.error) == (100, 200, None)
            assert len(sidecar.connections()) == 1


@pytest.mark.skipif(not HAS_IPV6, reason="no IPv6")
def test_endpoints_take_turns_where_it_is_a_relay(sidecar: Sidecar) -> None:
    """An AF_INET socket cannot go to them: it is asked for and handed over, and is one turn."""
    with listen("::1") as one, listen("::1") as two:
        sidecar.route(SERVICE, [one, two], action="direct")
        with Client(sidecar) as client:
            client("kept = []")
            for _ in range(10):
                assert client.connect() is None
                client("kept.append(s)")
            connections = sidecar.connections()
            assert {connection.action for connection in connections} == {"relay"}
            upstreams = [connection.upstream for connection in connections]
            assert sorted(map(upstreams.count, set(upstreams))) == [5, 5]


def test_a_bound_source_is_kept(sidecar: Sidecar, listener: socket.socket, client: Client) -> None:
    client("s = socket.socket()")
    client("s.bind(('127.0.0.77', 0))")
    assert client(f"s.connect(('{SERVICE}', {PORT}))") is None
    with accept(listener) as peer:
        assert peer.getpeername()[0] == "127.0.0.77"
        client("s.close()")
    assert closed(sidecar).path == "direct"


@pytest.mark.parametrize("call", ["sendto", "sendmsg"])
def test_fast_open_reaches_the_endpoint(
    sidecar: Sidecar, listener: socket.socket, client: Client, call: str
) -> None:
    client("s = socket.socket()")
    to = f"('{SERVICE}', {PORT})"
    flag = "socket.MSG_FASTOPEN"
    line = f"s.sendto(b'hello', {flag}, {to})"
    if call == "sendmsg":
        line = f"s.sendmsg([b'hello'], [], {flag}, {to})"
    assert client(line) == 5
    with accept(listener) as peer:
        assert peer.recv(5, socket.MSG_WAITALL) == b"hello"
        client("s.close()")
    done = closed(sidecar)
    assert (done.path, done.bytes_sent, done.error) == ("direct", 5, None)


def test_a_deferred_fast_open_connect_stays_one(
    sidecar: Sidecar, listener: socket.socket, client: Client
) -> None:
    client("s = socket.socket()")
    client("s.setsockopt(socket.IPPROTO_TCP, 30, 1)")  # TCP_FASTOPEN_CONNECT
    assert client(f"s.connect(('{SERVICE}', {PORT}))") is None
    assert client("s.send(b'hello')") == 5
    with accept(listener) as peer:
        assert peer.recv(5, socket.MSG_WAITALL) == b"hello"
        client("s.close()")
    assert closed(sidecar).bytes_sent == 5


def test_mptcp_is_relayed(sidecar: Sidecar, listener: socket.socket, client: Client) -> None:
    made = client("s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)")
    if made is not None:
        pytest.skip("no MPTCP")
    assert client(f"s.connect(('{SERVICE}', {PORT}))") is None
    with accept(listener) as peer:
        client.exchange(peer, 10, 10)
        client("s.close()")
    assert closed(sidecar).path == "relay"


def test_other_routes_hold_as_they_stand(sidecar: Sidecar, listener: socket.socket) -> None:
    sidecar.route("10.0.0.0/8", listener, action="direct")
    sidecar.route("10.3.0.0/16", listener)
    sidecar.route("10.4.0.0/16", action="refuse")
    with Client(sidecar) as client:
        assert client.connect("10.4.0.1") == {"errno": errno.ECONNREFUSED}
        assert client.connect("10.3.0.1") is None
        assert client.connect("10.2.0.1") is None
        paths = {c.original_destination: c.path for c in open_ones(sidecar)}
        assert paths == {"10.3.0.1:5432": "relay", "10.2.0.1:5432": "direct"}


def test_with_transport_header_it_is_a_relay(listener: socket.socket) -> None:
    with Sidecar({"outbound": {"transport": "header"}}) as sidecar:
        sidecar.route(SERVICE, listener, action="direct")
        with Client(sidecar) as client:
            assert client.connect() is None
            with accept(listener) as peer:
                client.exchange(peer, 5, 5)
                client("s.close()")
            done = closed(sidecar)
        assert (done.path, done.action, done.transport) == ("relay", "relay", "header")
        assert sidecar.log.count("routes with action direct relay here") == 1


def test_without_sock_diag_it_is_a_relay(listener: socket.socket) -> None:
    with contextlib.ExitStack() as stack:
        sidecar = without_sock_diag(lambda: stack.enter_context(Sidecar()))
        sidecar.route(SERVICE, listener, action="direct")
        client = stack.enter_context(Client(sidecar))
        assert client.connect() is None
        with accept(listener) as peer:
            client.exchange(peer, 10, 20)
            client("s.close()")
        done = closed(sidecar)
        assert (done.path, done.action, done.error) == ("relay", "relay", None)
        assert (done.bytes_sent, done.bytes_received) == (10, 20)
        assert sidecar.log.count("routes with action direct relay here: the kernel does not") == 1


ELSEWHERE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0, reason="makes network namespaces, which needs root"
)


@needs_namespaces
@pytest.mark.parametrize("action", ["direct", "relay"])
def test_from_another_network_namespace_the_sidecar_is_away(
    listener: socket.socket, action: Literal["direct", "relay"]
) -> None:
    with Sidecar() as sidecar:
        sidecar.route(SERVICE, listener, action=action)
        with Client(sidecar, *ELSEWHERE) as client:
            assert client.connect() == {"errno": errno.ECONNREFUSED}
            client("s = socket.socket()")
            client("s.setblocking(False)")
            assert client(f"s.connect_ex(('{SERVICE}', {PORT}))") == errno.ECONNREFUSED
        with Client(sidecar) as client:  # but not from here
            assert client.connect() is None
            accept(listener).close()
        assert all(c.closed and c.bytes_sent == 0 for c in sidecar.connections()[:-1])


@needs_namespaces
def test_from_another_network_namespace_when_away_decides() -> None:
    with Sidecar({"outbound": {"when_away": "direct"}}) as sidecar:
        sidecar.route("127.0.0.0/8", action="direct")
        with Client(sidecar, *ELSEWHERE) as client:
            client("listener = socket.create_server(('127.0.0.1', 0))")
            client("s = socket.socket()")
            assert client("s.connect(listener.getsockname())") is None
            assert client("listener.accept()[1] == s.getsockname()") is True


# ---- How it ends ----


def _peer_closes(client: Client, peer: socket.socket) -> None:
    peer.close()
    assert client("len(s.recv(1))") == 0
    client("s.close()")


def _peer_closes_unread(client: Client, peer: socket.socket) -> None:
    peer.close()
    assert client("bool(time.sleep(0.1)) + 0") == 0
    client("s.close()")


def _application_closes(client: Client, peer: socket.socket) -> None:
    client("s.close()")
    assert peer.recv(1) == b""
    time.sleep(0.2)  # past the delayed acknowledgement: the two ends in two segments
    peer.close()


def _application_closes_and_peer_at_once(client: Client, peer: socket.socket) -> None:
    client("s.close()")
    assert peer.recv(1) == b""
    peer.close()


def _application_shuts_down(client: Client, peer: socket.socket) -> None:
    client("s.shutdown(socket.SHUT_WR)")
    assert peer.recv(1) == b""
    peer.close()
    assert client("len(s.recv(1))") == 0
    client("s.close()")


def _application_shuts_down_and_waits(client: Client, peer: socket.socket) -> None:
    client("s.shutdown(socket.SHUT_WR)")
    assert peer.recv(1) == b""
    time.sleep(0.2)
    peer.close()
    assert client("len(s.recv(1))") == 0
    client("s.close()")


def _peer_shuts_down(client: Client, peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)
    assert client("len(s.recv(1))") == 0
    client("s.sendall(b'')")
    client("s.close()")
    assert peer.recv(1) == b""


HOSTS = ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not HAS_IPV6, reason="no IPv6"))]


@pytest.mark.parametrize("size", [(0, 0), (1, 0), (0, 1), (1000, 300_000)])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    "end",
    [
        _peer_closes,
        _peer_closes_unread,
        _application_closes,
        _application_closes_and_peer_at_once,
        _application_shuts_down,
        _application_shuts_down_and_waits,
        _peer_shuts_down,
    ],
)
def test_bytes_are_exact_however_it_ends_in_order(
    sidecar: Sidecar,
    end: Callable[[Client, socket.socket], None],
    host: str,
    size: tuple[int, int],
) -> None:
    service = SERVICE6 if ":" in host else SERVICE
    with listen(host) as listening:
        sidecar.route(service, listening, action="direct")
        with Client(sidecar) as client:
            assert client.connect(service) is None
            with accept(listening) as peer:
                client.exchange(peer, *size)
                end(client, peer)
            done = closed(sidecar)
    # A FIN that comes while the sidecar asks is taken for a byte: see counts_fin().
    crosses = end is _application_closes_and_peer_at_once and size[1] > 0
    assert done.bytes_sent == size[0]
    assert done.bytes_received in (size[1], size[1] - crosses)
    assert done.error is None


def test_a_reset_by_the_peer_is_one(
    sidecar: Sidecar, listener: socket.socket, client: Client
) -> None:
    client.connect()
    peer = accept(listener)
    client.exchange(peer, 100, 200)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    assert client("s.recv(1)") == {"errno": errno.ECONNRESET}
    client("s.close()")
    done = closed(sidecar)
    assert done.error == "reset by the upstream"
    assert (done.bytes_sent, done.bytes_received) == (100, 200)


def test_a_close_with_unread_bytes_is_a_reset_by_the_application(
    sidecar: Sidecar, listener: socket.socket, client: Client
) -> None:
    client.connect()
    with accept(listener) as peer:
        peer.sendall(b"unread")
        client("len(s.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL))")
        client("s.close()")
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    done = closed(sidecar)
    assert done.error == "reset by the application"
    assert done.bytes_received == 6


def test_an_abort_is_told_from_a_failed_connect(
    sidecar: Sidecar, listener: socket.socket, client: Client
) -> None:
    client.connect()
    with accept(listener) as peer:
        client.exchange(peer, 100, 200)
        sidecar.wait_for_connection(matching=lambda c: c.bytes_received == 200)
        client("s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))")
        client("s.close()")
    done = closed(sidecar)
    assert done.error == "reset by the application"
    # The kernel has forgotten them; these were seen before.
    assert (done.bytes_sent, done.bytes_received) == (100, 200)


# ---- The sidecar's own life ----


def test_connections_outlive_a_killed_sidecar(
    sidecar: Sidecar, listener: socket.socket, client: Client
) -> None:
    client.connect()
    with accept(listener) as peer:
        client.exchange(peer, 10, 10)
        sidecar.kill()
        client.exchange(peer, 1000, 1000)
        sidecar.start()
        client.exchange(peer, 1000, 1000)
        assert client.connect() is None
        with accept(listener):
            assert sidecar.wait_for_connection(closed=False).path == "direct"


def test_a_stop_neither_waits_nor_aborts(listener: socket.socket) -> None:
    with Sidecar({"drain_timeout": "60s"}) as sidecar:
        sidecar.route(SERVICE, listener, action="direct")
        with Client(sidecar) as client:
            client.connect()
            with accept(listener) as peer:
                client.exchange(peer, 10, 20)
                sidecar.stop()  # within the 10 s of its own
                client.exchange(peer, 10, 10)
                record = json.loads(sidecar.access_log)
    assert record["error"] == "still open when the sidecar stopped; it goes on"
    assert (record["bytes_sent"], record["bytes_received"]) == (10, 20)


def _pause(sidecar: Sidecar) -> None:
    sidecar.pause()
    tasks = Path(f"/proc/{sidecar.pid}/task")
    eventually(lambda: all(") T " in (task / "stat").read_text() for task in tasks.iterdir()))


def test_a_frozen_sidecar_does_not_hold_up_a_non_blocking_connect(
    sidecar: Sidecar, listener: socket.socket, client: Client
) -> None:
    """It goes on in the background, as a relay."""
    client("s = socket.socket()")
    client("s.setblocking(False)")
    _pause(sidecar)
    began = time.monotonic()
    assert client(f"s.connect_ex(('{SERVICE}', {PORT}))") == errno.EINPROGRESS
    assert time.monotonic() - began < PATIENCE / 2
    sidecar.resume()
    peer = accept(listener)
    client("s.settimeout(10)")
    client.exchange(peer, 5, 7)
    client("s.close()")
    peer.close()
    done = closed(sidecar)
    assert (done.path, done.error, done.bytes_sent, done.bytes_received) == ("relay", None, 5, 7)
    assert len(sidecar.connections()) == 1


STORM = f"""
import selectors, socket, sys, threading
failures, blocking = [], sys.argv[1] == "blocking"

def connect(s):
    if blocking:
        s.settimeout({PATIENCE})
        s.setblocking(True)
        s.connect(("{SERVICE}", {PORT}))
        return
    s.setblocking(False)
    if s.connect_ex(("{SERVICE}", {PORT})) not in (0, {errno.EINPROGRESS}):
        raise OSError("refused at once")
    with selectors.DefaultSelector() as ready:
        ready.register(s, selectors.EVENT_WRITE)
        if not ready.select({PATIENCE}):
            raise OSError("never writable")
    if error := s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error)

def churn():
    for _ in range({{count}}):
        try:
            with socket.socket() as s:
                connect(s)
                s.settimeout({PATIENCE})
                s.sendall(b"hello")
                assert s.recv(5, socket.MSG_WAITALL) == b"hello"
        except OSError as error:
            failures.append(error)

threads = [threading.Thread(target=churn) for _ in range({{threads}})]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failures)
"""


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
def test_nothing_is_refused_by_a_sidecar_that_is_stopped_for_moments(
    sidecar: Sidecar, echo_port: int, mode: str
) -> None:
    """And nothing is logged twice, or not at all."""
    sidecar.route(SERVICE, f"127.0.0.1:{echo_port}", action="direct")
    count, threads = 60, 8
    command = [sys.executable, "-c", STORM.format(count=count, threads=threads), mode]
    with subprocess.Popen(
        command, env={**os.environ, **sidecar.environment}, stdout=subprocess.PIPE, text=True
    ) as storm:
        pauses = itertools.cycle([0.15, 0.4, 1.0, 0.2])
        while storm.poll() is None:
            sidecar.pause()
            time.sleep(next(pauses))  # it is away for as long as that
            sidecar.resume()
            time.sleep(0.05)  # and back for so long
        assert storm.stdout is not None
        assert storm.stdout.read() == "[]\n"
    eventually(lambda: not open_ones(sidecar))
    records = sidecar.connections()
    assert len(records) == count * threads
    assert {(r.bytes_sent, r.bytes_received, r.error) for r in records} == {(5, 5, None)}
    paths = {r.path for r in records}
    assert paths == ({"direct"} if mode == "blocking" else {"direct", "relay"})


CHURN = f"""
import socket, sys
for _ in range({{count}}):
    with socket.create_connection(("{SERVICE}", {PORT})) as s:
        s.sendall(b"hello")
        assert s.recv(5, socket.MSG_WAITALL) == b"hello"
"""


def _fds(sidecar: Sidecar) -> int:
    return len(os.listdir(f"/proc/{sidecar.pid}/fd"))


def test_churn_leaves_nothing(sidecar: Sidecar, echo_port: int) -> None:
    sidecar.route(SERVICE, f"127.0.0.1:{echo_port}", action="direct")

    def churn(count: int) -> None:
        sidecar.hooked.run([sys.executable, "-c", CHURN.format(count=count)], check=True)
        eventually(lambda: not sidecar.admin_json("/connections"))

    churn(10)
    before = _fds(sidecar)
    churn(1000)
    assert _fds(sidecar) < before + 10  # a worker may have had none before
    records = [json.loads(line) for line in sidecar.access_log.splitlines()]
    assert {(r["bytes_sent"], r["error"], r["path"]) for r in records} == {(5, None, "direct")}


@pytest.mark.exclusive  # the worker must be too slow for the events, and nobody else
def test_lost_events_are_made_up_for(
    sidecar: Sidecar, listener: socket.socket, client: Client
) -> None:
    client("kept = []")
    peers = []
    for _ in range(20):
        client.connect()
        client("kept.append(s)")
        peers.append(accept(listener))
    assert len(sidecar.connections()) == 20
    eventually(lambda: all(c.duration_ms > 2000 for c in sidecar.connections()))
    sidecar.pause()
    client("[s.close() for s in kept[:10]] and None")
    with listen() as other:  # so many that the oldest or the latest find no room
        for _ in range(20_000):
            with socket.create_connection(other.getsockname()):
                linger = struct.pack("ii", 1, 0)
                reset = other.accept()[0]
                reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                reset.close()
    client("[s.close() for s in kept[10:19]] and None")
    sidecar.resume()
    eventually(lambda: len(open_ones(sidecar)) == 1)
    eventually(lambda: "ended unobserved" in sidecar.access_log, "the log, which comes later")
    for peer in peers:
        peer.close()


def test_no_capability_is_needed(refusing_port: int) -> None:
    del refusing_port
    script = """
import sys, socket
from pysidecar.testing import Sidecar
with socket.create_server(("127.0.0.1", 0)) as listener, Sidecar() as sidecar:
    sidecar.route("10.1.2.3", listener, action="direct")
    code = "import socket; socket.create_connection(('10.1.2.3', 80)).close()"
    done = sidecar.hooked.run([sys.executable, "-c", code], check=True)
    assert done.connection.path == "direct", done.connection
    assert done.connection.error is None, done.connection
    assert "WARNING" not in sidecar.log, sidecar.log
print("ok")
"""
    command = [sys.executable, "-c", script]
    if os.geteuid() == 0:
        none = "--bounding-set=-all --inh-caps=-all --ambient-caps=-all --securebits=+noroot"
        command = ["setpriv", *none.split(), *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout == "ok\n", done.stderr
