"""Retries, hedging, limits, mirrors and faults, between raw peers: what is sent how often, and what
the client gets."""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tests.dataplane.support import closed_address, linger_reset
from tests.requests.configured import Configured, flag_names
from tests.requests.frames import BOLT, DUBBO, Answer, Request, Wire
from tests.requests.support import Upstream, read_message
from tests.waiting import PATIENCE, eventually

LISTENERS = "listeners: [{listen: '127.0.0.1:0'}]\n"
WIRES = [BOLT, DUBBO]


@dataclass
class Backend:
    """A server of HTTP whose manners can be changed: ``way`` is what it does with a request."""

    way: str = "answer"
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    """Request lines and bodies."""
    heads: list[bytes] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    lost: int = 0
    """Connections that ended while a request waited."""

    def serve(self, connection: socket.socket) -> None:
        rest = b""
        while True:
            head, body, rest = read_message(connection, rest)
            way = self.way
            line = head.partition(b"\r\n")[0].decode()
            self.seen.append((line, body))
            self.heads.append(head)
            match way:
                case "answer":
                    connection.sendall(answer(200, line.split()[1].encode()))
                case "reset":
                    linger_reset(connection)
                    return
                case "wait":
                    self._wait(connection)
                    connection.sendall(answer(200, line.split()[1].encode()))
                case status:
                    connection.sendall(answer(int(status), b"no"))

    def _wait(self, connection: socket.socket) -> None:
        connection.settimeout(0.01)
        while not self.release.is_set():
            try:
                if connection.recv(1, socket.MSG_PEEK) == b"":
                    raise ConnectionError
            except TimeoutError:
                pass
            except OSError:
                self.lost += 1
                raise
        connection.settimeout(PATIENCE)


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@contextlib.contextmanager
def backends(*ways: str) -> Iterator[list[tuple[Backend, Upstream]]]:
    with contextlib.ExitStack() as stack:
        made = []
        for way in ways:
            backend = Backend(way)
            made.append((backend, stack.enter_context(Upstream(backend.serve))))
        yield made
        for backend, _ in made:
            backend.release.set()


def services(upstreams: Sequence[object], keys: str, rule: str = "", protocol: str = "http") -> str:
    """One, and a rule for it."""
    addresses = ", ".join(f'"{getattr(each, "address", each)}"' for each in upstreams)
    return (
        f"services:\n  web: {{protocol: {protocol}, endpoints: [{addresses}], {keys}}}\n"
        f"requests: [{{services: web, {rule}}}]\n{LISTENERS}"
    )


def request(path: str = "/", method: str = "GET", body: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%b %b HTTP/1.1\r\nHost: web\r\n%b\r\n%b" % (
        method.encode(),
        path.encode(),
        length,
        body,
    )


def exchange(client: socket.socket, data: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body."""
    client.sendall(data)
    head, body, rest = read_message(client)
    assert not rest
    return int(head.split()[1]), head, body


def ask(plane: Configured, path: str = "/", method: str = "GET", body: bytes = b"") -> int:
    """The status, on a connection of its own."""
    with plane.client() as client:
        return exchange(client, request(path, method, body))[0]


# ---- retries ----


def test_where_nothing_was_sent_any_request_is_sent_again() -> None:
    with backends("answer") as [(backend, upstream)]:
        config = services([str(closed_address()), upstream], "retries: {attempts: 1}")
        with Configured(config, timeouts=None) as plane:
            for i in range(6):
                assert ask(plane, f"/{i}", "POST", b"x") == 200
            assert len(backend.seen) == 6
            flags = plane.flags("web")
    assert flags["retried"] >= 1


@pytest.mark.parametrize(
    ("method", "rule", "status", "seen"),
    [
        ("GET", "", 200, 2),
        ("PUT", "", 200, 2),
        ("POST", "", 502, 1),
        ("POST", "idempotent: true", 200, 2),
    ],
)
def test_what_may_have_been_done_is_only_sent_again_if_it_is_idempotent(
    method: str, rule: str, status: int, seen: int
) -> None:
    with backends("reset", "answer") as made:
        config = services([each for _, each in made], "retries: {attempts: 1}", rule)
        with Configured(config, workers=1) as plane:
            assert ask(plane, "/", method) == status
            record = plane.next_record()
    assert sum(len(backend.seen) for backend, _ in made) == seen
    assert ("retried" in flag_names(record), record.attempts) == (seen == 2, seen)


def test_a_status_is_a_reason_and_an_untried_endpoint_is_next() -> None:
    with backends("503", "503", "answer") as made:
        config = services([each for _, each in made], "retries: {attempts: 2, on: 503}")
        with Configured(config, workers=1) as plane, plane.client() as client:
            for i in range(9):
                assert exchange(client, request(f"/{i}"))[2] == b"/%d" % i
        bad, worse, good = (len(backend.seen) for backend, _ in made)
    assert good == 9
    assert (bad, worse) <= (9, 9)


def test_the_last_answer_is_the_clients() -> None:
    with backends("503") as [(backend, upstream)]:
        config = services([upstream], "retries: {attempts: 2, on: gateway_error, budget: 100%}")
        with Configured(config) as plane, plane.client() as client:
            status, _, body = exchange(client, request())
            assert (status, body) == (503, b"no")
            record = plane.next_record()
            assert exchange(client, request())[0] == 503
    assert len(backend.seen) == 6
    assert (record.attempts, record.status, flag_names(record)) == (3, 503, {"retried"})


def test_what_is_no_reason_is_passed_on() -> None:
    with backends("500") as [(backend, upstream)]:
        config = services([upstream], "retries: {attempts: 2, on: [gateway_error, 409]}")
        with Configured(config) as plane:
            assert ask(plane) == 500
    assert len(backend.seen) == 1


def test_an_attempt_has_its_own_time() -> None:
    with backends("wait", "answer") as made:
        config = services(
            [each for _, each in made],
            "timeout: 15s, retries: {attempts: 1, per_try_timeout: 100ms}",
        )
        with Configured(config, workers=1) as plane:
            assert ask(plane) == 200
            record = plane.next_record()
            eventually(lambda: made[0][0].lost, "the end of the slow connection")
    assert flag_names(record) == {"retried"}
    assert 95 < record.duration_ms < 10_000


def test_the_time_for_all_ends_the_attempts() -> None:
    with backends("wait") as [(backend, upstream)]:
        keys = "timeout: 300ms, retries: {attempts: 10, per_try_timeout: 120ms, budget: 100%}"
        with Configured(services([upstream], keys), workers=1) as plane:
            assert ask(plane) == 504
            record = plane.next_record()
    assert flag_names(record) == {"retried", "timeout"}
    assert len(backend.seen) in (2, 3)
    assert record.duration_ms > 290


def test_without_another_attempt_its_time_ends_the_request() -> None:
    with backends("wait") as [(backend, upstream)]:
        keys = "timeout: 15s, retries: {attempts: 1, per_try_timeout: 100ms}"
        with Configured(services([upstream], keys), workers=1) as plane:
            assert ask(plane, method="POST") == 504
            record = plane.next_record()
    assert (flag_names(record), len(backend.seen)) == ({"timeout"}, 1)
    assert record.duration_ms < 10_000


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "kept"), [(1000, True), (100_000, False)])
def test_bodies_are_kept_up_to_a_limit(chunked: bool, size: int, kept: bool) -> None:
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        data = b""
        while not (data.endswith(b"0\r\n\r\n") if chunked else len(data) >= size):
            data += connection.recv(65536)
            data = data.partition(b"\r\n\r\n")[2] if b"HTTP/1.1" in data else data
        if chunked:
            data = b"".join(line for line in data.split(b"\r\n") if line.startswith(b"x"))
        received.append(data)
        if len(received) == 1:
            linger_reset(connection)
        else:
            connection.sendall(answer(200, b"ok"))

    head = b"PUT / HTTP/1.1\r\nHost: web\r\n"
    if chunked:
        part = size // 2
        data = head + b"Transfer-Encoding: chunked\r\n\r\n"
        data += (b"%x\r\n%b\r\n" % (part, b"x" * part)) * 2 + b"0\r\n\r\n"
    else:
        data = head + b"Content-Length: %d\r\n\r\n%b" % (size, b"x" * size)
    with Upstream(serve) as upstream:
        config = services([upstream], "retries: {attempts: 1}")
        with Configured(config, workers=1) as plane, plane.client() as client:
            status = exchange(client, data)[0]
            record = plane.next_record()
    assert status == (200 if kept else 502)
    assert flag_names(record) == ({"retried"} if kept else {"retry_unkept", "upstream_reset"})
    assert received == [b"x" * size] * (2 if kept else 1)


def test_a_request_that_goes_on_coming_is_not_sent_again() -> None:
    with backends("reset", "answer") as made:
        config = services([each for _, each in made], "retries: {attempts: 1}")
        with Configured(config, workers=1) as plane, plane.client() as client:
            head = b"PUT / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n"
            assert exchange(client, head)[0] == 502
    assert sum(len(backend.seen) for backend, _ in made) == 1


def test_who_leaves_during_a_wait_is_forgotten() -> None:
    keys = "retries: {attempts: 5, on: 503, budget: 100%, backoff: {base: 10s}}"
    with backends("503") as [(backend, upstream)], Configured(services([upstream], keys)) as plane:
        clients = [plane.client() for _ in range(20)]
        for client in clients:
            client.sendall(request())
        eventually(lambda: plane.service("web").retries >= 3, "requests that wait for a retry")
        for client in clients:
            linger_reset(client)
        eventually(plane.is_quiet, "nothing under way")
        assert len(backend.seen) < 60


WAITING = "retries: {attempts: 1, on: 503, budget: 100%, backoff: {base: 3s, max: 3s}}"


def test_what_waits_for_a_retry_goes_where_a_reload_says() -> None:
    with backends("503", "answer") as [(old, first), (new, second)]:
        with Configured(services([first], WAITING), workers=1) as plane:
            clients = [plane.client() for _ in range(20)]
            for client in clients:
                client.sendall(request())
            eventually(lambda: len(old.seen) >= 20, "all requests")
            plane.reload(services([second], WAITING))
            statuses = collections.Counter(
                int(read_message(client)[0].split()[1]) for client in clients
            )
            early = len(old.seen) - 20  # retries before the reload
            assert statuses == collections.Counter({200: 20 - early, 503: early})
            assert early < 20
            eventually(plane.is_quiet, "nothing under way")
            assert plane.service("web").tally.requests == 20
        assert len(new.seen) == 20 - early


def test_what_waits_survives_the_end_of_its_service() -> None:
    keys = WAITING.replace("3s", "400ms")
    with backends("503", "answer") as [(old, first), (new, second)]:
        with Configured(services([first], keys), workers=1) as plane:
            clients = [plane.client() for _ in range(20)]
            for client in clients:
                client.sendall(request())
            eventually(lambda: len(old.seen) >= 20, "all requests")
            plane.reload(services([second], keys).replace("web", "other"))
            statuses = {int(read_message(client)[0].split()[1]) for client in clients}
            assert statuses <= {502, 503}
            assert ask(plane) == 200
        assert len(new.seen) == 1


def test_reloads_without_end_while_requests_wait_are_survived() -> None:
    """Endpoints come and go between the attempts of requests that remember which they tried."""
    keys = (
        "retries: {attempts: 8, on: 503, budget: 100%, backoff: {base: 10ms, max: 30ms}},"
        " circuit_breaker: {retries: 100}"
    )
    with backends("503", "503", "503", "503") as made:
        upstreams = [upstream for _, upstream in made]
        with Configured(services(upstreams, keys, "hedge: {after: 5ms}"), workers=2) as plane:
            clients = [plane.client() for _ in range(20)]
            for turn in range(25):
                for client in clients:
                    client.sendall(request())
                left = upstreams[turn % 4 :] if turn % 4 < 3 else upstreams[:1]
                plane.reload(services(left, keys, "hedge: {after: 5ms}"))
                for client in clients:
                    assert read_message(client)[0].split()[1] in (b"502", b"503")


def test_a_hedge_goes_where_a_reload_says() -> None:
    rule = "hedge: {after: 1500ms}"
    keys = "timeout: 15s, circuit_breaker: {retries: 10}"
    with backends("wait", "answer") as [(silent, first), (new, second)]:
        with Configured(services([first], keys, rule), workers=1) as plane:
            client = plane.client()
            client.sendall(request())
            eventually(lambda: silent.seen, "the request")
            plane.reload(services([second], keys, rule))
            assert read_message(client)[0].split()[1] == b"200"
            assert flag_names(plane.next_record()) == {"hedged"}
        assert len(silent.seen) == len(new.seen) == 1


def test_a_reload_to_another_protocol_leaves_what_waits_where_it_was() -> None:
    with backends("503", "answer") as [(old, first), (new, second)]:
        with Configured(services([first], WAITING.replace("3s", "500ms")), workers=1) as plane:
            client = plane.client()
            client.sendall(request())
            eventually(lambda: old.seen, "the request")
            plane.reload(services([second], "", protocol="grpc"))
            assert read_message(client)[0].split()[1] in (b"502", b"503")
        assert not new.seen


# ---- the budget ----


def storm(plane: Configured, clients: int, requests: int) -> collections.Counter[int]:
    """So many clients, each with so many requests one after the other; how often each status."""
    statuses: collections.Counter[int] = collections.Counter()
    lock = threading.Lock()

    def run() -> None:
        own: collections.Counter[int] = collections.Counter()
        with plane.client() as client:
            for i in range(requests):
                own[exchange(client, request(f"/{i}"))[0]] += 1
        with lock:
            statuses.update(own)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


class SlowlyFailing:
    """Answers 503 after a moment."""

    def __init__(self) -> None:
        self.requests = 0
        self._lock = threading.Lock()

    def serve(self, connection: socket.socket) -> None:
        rest = b""
        while True:
            _, _, rest = read_message(connection, rest)
            with self._lock:
                self.requests += 1
            time.sleep(0.02)  # how long a request takes there
            connection.sendall(answer(503, b"no"))


@pytest.mark.parametrize(("budget", "most"), [("20%", 1.3), ("100%", 3.0)])
def test_a_dead_cluster_gets_no_storm_of_retries(budget: str, most: float) -> None:
    server = SlowlyFailing()
    keys = f"retries: {{attempts: 2, on: gateway_error, backoff: {{base: 1ms}}, budget: {budget}}}"
    with Upstream(server.serve) as upstream, Configured(services([upstream], keys)) as plane:
        assert storm(plane, 50, 10) == {503: 500}
        flags = plane.flags("web")
    ratio = server.requests / 500
    assert ratio <= most
    if budget == "20%":
        assert flags["retry_limited"] > 100
    else:
        assert ratio == 3


def test_some_retries_are_possible_with_few_requests() -> None:
    with backends("503") as [(backend, upstream)]:
        keys = "retries: {attempts: 1, on: 503, budget: 0%}, circuit_breaker: {retries: 1}"
        with Configured(services([upstream], keys)) as plane:
            assert ask(plane) == 503
        assert len(backend.seen) == 2
        keys = keys.replace("retries: 1}", "retries: 0}")
        with Configured(services([upstream], keys)) as plane:
            assert ask(plane) == 503
            assert flag_names(plane.next_record()) == {"retry_limited"}
        assert len(backend.seen) == 3


# ---- hedging ----


def test_the_first_good_answer_wins_and_the_other_attempt_ends() -> None:
    with backends("wait", "answer") as made:
        config = services([each for _, each in made], "timeout: 15s", "hedge: {after: 50ms}")
        with Configured(config, workers=1) as plane, plane.client() as client:
            for i in range(4):
                assert exchange(client, request(f"/{i}"))[2] == b"/%d" % i
            records = [record for record in plane.records() if "hedged" in flag_names(record)]
            eventually(lambda: made[0][0].lost == len(records), "the slow connections' ends")
    assert records
    assert all(record.attempts == 2 for record in records)
    assert all(record.upstream == made[1][1].address for record in records)
    assert all(record.duration_ms > 45 for record in records)


def test_an_answer_in_time_has_no_second_attempt() -> None:
    with backends("answer", "answer") as made:
        config = services([each for _, each in made], "timeout: 15s", "hedge: {after: 10s}")
        with Configured(config, workers=1) as plane:
            for i in range(4):
                assert ask(plane, f"/{i}") == 200
    assert sum(len(backend.seen) for backend, _ in made) == 4


def test_a_request_that_is_not_idempotent_is_not_hedged() -> None:
    with backends("wait", "answer") as made:
        config = services([each for _, each in made], "timeout: 300ms", "hedge: {after: 10ms}")
        with Configured(config, workers=1) as plane:
            statuses = [ask(plane, "/", "POST", b"x") for _ in range(2)]
    assert sorted(statuses) == [200, 504]


@pytest.mark.parametrize("first", [0, 1])
def test_where_one_attempt_fails_the_other_is_waited_for(first: int) -> None:
    """Whichever of both was sent first."""
    with backends("wait", "wait") as made:
        config = services([each for _, each in made], "timeout: 15s", "hedge: {after: 20ms}")
        with Configured(config, workers=1) as plane, plane.client() as client:
            client.sendall(request("/x"))
            eventually(lambda: all(backend.seen for backend, _ in made), "both attempts")
            failing, good = made[first], made[1 - first]
            failing[1].close()
            good[0].release.set()
            head, body, _ = read_message(client)
            assert (head.split()[1], body) == (b"200", b"/x")


def test_two_failures_are_one() -> None:
    with backends("wait", "wait") as made:
        config = services([each for _, each in made], "timeout: 15s", "hedge: {after: 20ms}")
        with Configured(config, workers=1) as plane, plane.client() as client:
            client.sendall(request("/x"))
            eventually(lambda: all(backend.seen for backend, _ in made), "both attempts")
            for _, upstream in made:
                upstream.close()
            assert read_message(client)[0].split()[1] == b"502"
            record = plane.next_record()
    assert flag_names(record) == {"hedged", "upstream_reset"}


def test_after_two_failures_there_is_a_retry() -> None:
    with backends("wait", "wait") as made:
        keys = "timeout: 15s, retries: {attempts: 1}"
        config = services([each for _, each in made], keys, "hedge: {after: 20ms}")
        with Configured(config, workers=1) as plane, plane.client() as client:
            client.sendall(request("/x"))
            eventually(lambda: all(backend.seen for backend, _ in made), "both attempts")
            for _, upstream in made:
                upstream.close()  # so that the third attempt cannot connect
            assert read_message(client)[0].split()[1] == b"502"
            record = plane.next_record()
    assert flag_names(record) == {"hedged", "retried", "connect_failed"}
    assert record.attempts == 3


def test_who_leaves_ends_both_attempts() -> None:
    with backends("wait", "wait") as made:
        config = services([each for _, each in made], "timeout: 15s", "hedge: {after: 20ms}")
        with Configured(config, workers=1) as plane:
            client = plane.client()
            client.sendall(request("/x"))
            eventually(lambda: all(backend.seen for backend, _ in made), "both attempts")
            assert plane.service("web").tally.active == 1
            linger_reset(client)
            eventually(lambda: all(backend.lost for backend, _ in made), "both to end")


# ---- limits ----


def test_rates_are_exact_over_workers() -> None:
    rate, burst, seconds = 100, 50, 2.0
    with backends("answer") as [(backend, upstream)]:
        keys = f"rate_limit: {{requests: {rate}, per: 1s, burst: {burst}}}"
        with Configured(services([upstream], keys), workers=3) as plane:
            began = time.monotonic()

            def run() -> None:
                with plane.client() as client:
                    while time.monotonic() < began + seconds:
                        exchange(client, request())

            threads = [threading.Thread(target=run) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            expected = rate * (time.monotonic() - began) + burst
            flags = plane.flags("web")
    assert flags["rate_limited"] > 0
    assert expected * 0.95 <= len(backend.seen) <= expected * 1.05


def test_beyond_the_rate_there_is_an_answer_that_says_so() -> None:
    with backends("answer") as [(_, upstream)]:
        keys = "rate_limit: {requests: 2, per: 1h}"
        with Configured(services([upstream], keys)) as plane, plane.client() as client:
            assert [exchange(client, request())[0] for _ in range(2)] == [200, 200]
            status, head, _ = exchange(client, request())
            assert (status, b"x-sidecar-reason: rate_limited" in head) == (429, True)
            assert [bound.name for bound in plane.service("web").reached] == ["RATE"]
            plane.reload(services([upstream], keys.replace("2,", "3,")))
            eventually(lambda: {"rate_limited"} in map(flag_names, plane.records()), "its record")
            plane.reload(services([upstream], ""))
            assert exchange(client, request())[0] == 200


def test_more_requests_than_may_be_under_way_are_refused() -> None:
    with backends("wait") as [(backend, upstream)]:
        keys = "circuit_breaker: {requests: 2}"
        with Configured(services([upstream], keys)) as plane:
            clients = [plane.client() for _ in range(2)]
            for client in clients:
                client.sendall(request())
            eventually(lambda: len(backend.seen) == 2, "both requests")
            assert [bound.name for bound in plane.service("web").reached] == ["REQUESTS"]
            assert ask(plane) == 503
            assert flag_names(plane.next_record()) == {"overload", "limit_requests"}
            backend.release.set()
            assert [read_message(client)[0].split()[1] for client in clients] == [b"200"] * 2
            assert ask(plane) == 200


def test_more_requests_than_may_wait_are_refused() -> None:
    with backends("wait") as [(backend, upstream)]:
        keys = "circuit_breaker: {connections: 1, pending: 1}"
        with Configured(services([upstream], keys)) as plane:
            clients = [plane.client() for _ in range(2)]
            clients[0].sendall(request())
            eventually(lambda: backend.seen, "the request")
            clients[1].sendall(request())
            eventually(lambda: plane.service("web").tally.pending, "one that waits")
            assert ask(plane) == 503
            assert flag_names(plane.next_record()) == {"overload", "limit_pending"}
            backend.release.set()
            assert [read_message(client)[0].split()[1] for client in clients] == [b"200"] * 2


# ---- mirrors ----


def mirrored(web: Upstream, shadow: str, keys: str = "") -> str:
    return (
        f"services:\n  web: {{protocol: http, endpoints: ['{web.address}'], mirror: {{to: shadow}},"
        f" {keys}}}\n  shadow: {{protocol: http, endpoints: ['{shadow}']}}\n"
        f"requests: [{{services: web}}]\n{LISTENERS}"
    )


def test_a_mirror_gets_the_same_requests() -> None:
    with (
        backends("answer", "answer") as [(web, one), (shadow, other)],
        Configured(mirrored(one, str(other.address)), workers=1) as plane,
    ):
        with plane.client() as client:
            for i in range(5):
                data = request(f"/{i}", "POST", b"b" * 2000 * i)
                assert exchange(client, data)[2] == b"/%d" % i
        eventually(lambda: len(shadow.seen) == 5, "the copies")
        assert sorted(shadow.seen) == sorted(web.seen)
        assert sorted(shadow.heads) == sorted(web.heads)
        eventually(plane.is_quiet, "nothing under way")
        tally = plane.service("shadow").tally
        assert (tally.requests, tally.statuses[2]) == (5, 5)
        assert plane.flags("web") == {"mirrored": 5}
        assert len(list(plane.records())) == 5


def limited(web: Upstream, shadow: str, limit: str) -> str:
    """With a limit of the mirror."""
    return mirrored(web, shadow).replace(f"'{shadow}']", f"'{shadow}'], {limit}")


def test_copies_count_in_the_rate_of_the_mirror() -> None:
    with backends("answer", "answer") as [(_, one), (shadow, other)]:
        text = limited(one, str(other.address), "rate_limit: {requests: 3, per: 1h}")
        with Configured(text, workers=1) as plane:
            with plane.client() as client:
                for i in range(8):
                    assert exchange(client, request(f"/{i}"))[0] == 200
            eventually(lambda: len(shadow.seen) == 3, "the copies")
            eventually(plane.is_quiet, "nothing under way")
            assert plane.flags("web") == {"mirrored": 3}
            assert plane.flags("shadow") == {"rate_limited": 5}
            assert len(list(plane.records())) == 8
        assert len(shadow.seen) == 3


def test_copies_count_in_the_requests_of_the_mirror() -> None:
    with backends("answer", "wait") as [(_, one), (shadow, other)]:
        text = limited(one, str(other.address), "circuit_breaker: {requests: 2}")
        with Configured(text, workers=1) as plane:
            with plane.client() as client:
                for i in range(6):
                    assert exchange(client, request(f"/{i}"))[0] == 200
                eventually(lambda: len(shadow.seen) == 2, "the copies")
                assert plane.flags("shadow") == {"overload": 4, "limit_requests": 4}
                shadow.release.set()
                shadow.way = "answer"
                eventually(plane.is_quiet, "nothing under way")
                assert exchange(client, request("/again"))[0] == 200
                eventually(lambda: len(shadow.seen) == 3, "one more copy")
            assert plane.flags("web") == {"mirrored": 3}


def test_what_is_too_large_is_not_mirrored() -> None:
    with backends("answer", "answer") as [(web, one), (shadow, other)]:
        with Configured(mirrored(one, str(other.address)), workers=1) as plane:
            assert ask(plane, "/", "POST", b"b" * 100_000) == 200
            assert ask(plane, "/small", "POST", b"b") == 200
            eventually(lambda: shadow.seen, "a copy")
        assert len(web.seen) == 2
        assert [line for line, _ in shadow.seen] == ["POST /small HTTP/1.1"]


@pytest.mark.parametrize("way", ["reset", "wait", "503", "closed"])
def test_a_mirror_neither_delays_nor_fails(way: str) -> None:
    with backends("answer", "503" if way == "closed" else way) as [(web, one), (_, other)]:
        shadow = str(closed_address() if way == "closed" else other.address)
        with Configured(mirrored(one, shadow), workers=1) as plane, plane.client() as client:
            for i in range(10):
                assert exchange(client, request(f"/{i}"))[2] == b"/%d" % i
            if way == "wait":
                assert plane.service("shadow").tally.active == 10
                plane.stop()  # with copies under way
            else:
                eventually(lambda: plane.service("shadow").tally.requests == 10, "the copies")
        assert len(web.seen) == 10


# ---- faults ----


def test_faults_are_as_frequent_as_they_say() -> None:
    with backends("answer") as [(_, upstream)]:
        rule = "fault: {abort: {status: 418, percent: 20.5}, delay: {fixed: 1ms, percent: 30}}"
        with Configured(services([upstream], "", rule)) as plane, plane.client() as client:
            statuses = collections.Counter(exchange(client, request())[0] for _ in range(1000))
            flags = plane.flags("web")
    assert set(statuses) == {200, 418}
    assert 140 <= statuses[418] <= 270
    assert flags["fault_abort"] == statuses[418]
    assert 180 <= flags["fault_delay"] <= 300


def test_a_held_request_waits_with_its_body() -> None:
    with backends("answer") as [(backend, upstream)]:
        rule = "fault: {delay: {fixed: 150ms}}"
        with Configured(services([upstream], "timeout: 15s", rule)) as plane:
            assert ask(plane, "/", "POST", b"b" * 50_000) == 200
            record = plane.next_record()
        assert backend.seen == [("POST / HTTP/1.1", b"b" * 50_000)]
    assert flag_names(record) == {"fault_delay"}
    assert record.duration_ms > 145


def test_the_timeout_counts_while_a_request_is_held() -> None:
    with backends("answer") as [(backend, upstream)]:
        rule = "timeout: 50ms, fault: {delay: {fixed: 10s}}"
        with Configured(services([upstream], "", rule)) as plane:
            assert ask(plane) == 504
            assert flag_names(plane.next_record()) == {"fault_delay", "timeout"}
        assert not backend.seen


def test_held_requests_are_bounded() -> None:
    """By 1,024 of a worker: what is more goes on at once."""
    with backends("answer") as [(_, upstream)]:
        rule = "fault: {delay: {fixed: 30s}}"
        with Configured(services([upstream], "", rule), workers=1) as plane:
            held = [plane.client() for _ in range(1024)]
            for client in held:
                client.sendall(request())
            eventually(lambda: plane.service("web").tally.active == 1024, "all to be held")
            assert ask(plane) == 200
            for client in held:
                linger_reset(client)
            eventually(plane.is_quiet, "nothing under way")


# ---- Bolt and Dubbo ----


@dataclass
class FrameBackend:
    """The same for frames: each is answered with its content by what ``way`` says."""

    wire: Wire
    way: Callable[[Request], Answer | None]
    seen: list[Request] = field(default_factory=list)

    def serve(self, connection: socket.socket) -> None:
        while True:
            found = self.wire.read(connection)
            assert isinstance(found, Request)
            self.seen.append(found)
            if made := self.way(found):
                connection.sendall(self.wire.answer(made))


def frame_services(wire: Wire, upstreams: Sequence[object], keys: str, rule: str = "") -> str:
    return services(upstreams, keys, rule, wire.name)


def call(client: socket.socket, wire: Wire, id_: int, content: bytes = b"hello") -> Answer:
    client.sendall(wire.request(Request(id_, "method", content)))
    found = wire.read(client)
    assert isinstance(found, Answer)
    assert found.id == id_
    return found


def busy(wire: Wire) -> int:
    return 4 if wire is BOLT else 100


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
def test_frames_that_were_refused_are_sent_again(wire: Wire) -> None:
    refusing = FrameBackend(wire, lambda request: Answer(request.id, busy(wire), b""))
    good = FrameBackend(wire, lambda request: Answer(request.id, wire.good, request.content))
    with Upstream(refusing.serve) as one, Upstream(good.serve) as other:
        config = frame_services(wire, [one, other], "retries: {attempts: 1}")
        with Configured(config, workers=1) as plane, plane.client() as client:
            for i in range(8):
                content = b"%d" % i * 1000
                assert call(client, wire, i, content) == Answer(i, wire.good, content)
            flags = plane.flags("web")
    assert flags == {"retried": len(refusing.seen)}
    assert refusing.seen


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
@pytest.mark.parametrize(("rule", "again"), [("", False), ("idempotent: true", True)])
def test_frames_are_idempotent_only_if_the_rule_says_so(wire: Wire, rule: str, again: bool) -> None:
    def lose(_: Request) -> None:
        raise OSError

    losing = FrameBackend(wire, lose)
    good = FrameBackend(wire, lambda request: Answer(request.id, wire.good, request.content))
    with Upstream(losing.serve) as one, Upstream(good.serve) as other:
        config = frame_services(wire, [one, other], "retries: {attempts: 1}", rule)
        with Configured(config, workers=1) as plane, plane.client() as client:
            statuses = [call(client, wire, i).status for i in range(4)]
    if again:
        assert statuses == [wire.good] * 4
    else:
        assert any(status in wire.unreachable for status in statuses)


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
def test_frames_are_hedged(wire: Wire) -> None:
    silent = FrameBackend(wire, lambda _: None)
    good = FrameBackend(wire, lambda request: Answer(request.id, wire.good, request.content))
    with Upstream(silent.serve) as one, Upstream(good.serve) as other:
        rule = "idempotent: true, hedge: {after: 30ms}"
        config = frame_services(wire, [one, other], "timeout: 15s", rule)
        with Configured(config, workers=1) as plane, plane.client() as client:
            for i in range(6):
                assert call(client, wire, i, b"%d" % i) == Answer(i, wire.good, b"%d" % i)
            flags = plane.flags("web")
    assert flags == {"hedged": len(silent.seen)}
    assert silent.seen


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
def test_an_attempt_of_a_frame_has_its_own_time(wire: Wire) -> None:
    silent = FrameBackend(wire, lambda _: None)
    good = FrameBackend(wire, lambda request: Answer(request.id, wire.good, request.content))
    with Upstream(silent.serve) as one, Upstream(good.serve) as other:
        keys = "timeout: 15s, retries: {attempts: 1, per_try_timeout: 50ms}"
        config = frame_services(wire, [one, other], keys, "idempotent: true")
        with Configured(config, workers=1) as plane, plane.client() as client:
            for i in range(4):
                assert call(client, wire, i).status == wire.good
            flags = plane.flags("web")
    assert flags == {"retried": len(silent.seen)}


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
def test_frames_have_limits_faults_and_mirrors(wire: Wire) -> None:
    good = FrameBackend(wire, lambda request: Answer(request.id, wire.good, request.content))
    shadow = FrameBackend(wire, lambda request: Answer(request.id, wire.good, request.content))
    with Upstream(good.serve) as one, Upstream(shadow.serve) as other:
        config = (
            f"services:\n  web: {{protocol: {wire.name}, endpoints: ['{one.address}'],"
            " mirror: {to: shadow}, rate_limit: {requests: 3, per: 1h}}\n"
            f"  shadow: {{protocol: {wire.name}, endpoints: ['{other.address}']}}\n"
            "  no: {protocol: %s}\n"
            "requests:\n"
            "  - {match: {method: abort}, services: no, fault: {abort: {status: 70}}}\n"
            "  - {services: web, fault: {delay: {fixed: 20ms}}}\n" % wire.name
        ) + LISTENERS
        with Configured(config, workers=1) as plane, plane.client() as client:
            for i in range(3):
                assert call(client, wire, i, b"%d" % i) == Answer(i, wire.good, b"%d" % i)
            assert call(client, wire, 9).status == busy(wire)
            eventually(lambda: len(shadow.seen) == 3, "the copies")
            assert [each.content for each in shadow.seen] == [b"0", b"1", b"2"]
            assert plane.flags("web") == {"fault_delay": 3, "mirrored": 3, "rate_limited": 1}
            client.sendall(wire.request(Request(10, "abort", b"")))
            found = wire.read(client)
            assert isinstance(found, Answer)
            assert (found.id, found.status) == (10, 70)
