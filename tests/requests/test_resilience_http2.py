"""Retries, hedging, limits, mirrors and faults of HTTP/2, and between it and HTTP/1.1."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

import pytest
from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame

from tests.requests.configured import Configured, flag_names
from tests.requests.http2 import PREFACE, REFUSED_STREAM, Peer, ResetError
from tests.requests.support import Upstream, read_message
from tests.waiting import eventually

LISTENERS = "listeners: [{listen: '127.0.0.1:0'}]\n"


@dataclass
class Backend:
    """A server that treats each request in its ``way``."""

    way: str
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    cancelled: int = 0

    def serve(self, sock: socket.socket) -> None:
        peer = Peer.server(sock)
        paths: dict[int, str] = {}
        bodies: dict[int, bytes] = {}
        for frame in peer.frames():
            stream = frame.stream_id
            if isinstance(frame, HeadersFrame):
                fields = {str(k): str(v) for k, v in peer.decoder.decode(frame.data)}
                paths[stream] = fields[":path"]
                bodies[stream] = b""
            elif isinstance(frame, DataFrame):
                bodies[stream] += frame.data
            elif isinstance(frame, RstStreamFrame):
                self.cancelled += 1
            if "END_STREAM" in frame.flags and isinstance(frame, HeadersFrame | DataFrame):
                self.seen.append((paths[stream], bodies[stream]))
                self.answer(peer, stream, paths[stream].encode())

    def answer(self, peer: Peer, stream: int, said: bytes) -> None:
        match self.way:
            case "answer":
                peer.respond(stream, said, ("content-length", str(len(said))))
            case "refuse":
                peer.reset(stream, REFUSED_STREAM)
            case "503":
                peer.headers(stream, [(":status", "503")], "END_STREAM")
            case "unavailable":
                peer.headers(stream, [(":status", "200"), ("grpc-status", "14")], "END_STREAM")
            case "silent":
                pass


def config(backends: list[Upstream], keys: str = "", rule: str = "") -> str:
    addresses = ", ".join(f"'{each.address}'" for each in backends)
    return (
        f"services:\n  web: {{protocol: http2, endpoints: [{addresses}], timeout: 15s, {keys}}}\n"
        f"requests: [{{services: web, {rule}}}]\n{LISTENERS}"
    )


def client_of(plane: Configured) -> Peer:
    sock = plane.client()
    sock.sendall(PREFACE)
    return Peer(sock)


def ask(client: Peer, path: str, body: bytes | None = None) -> tuple[str, bytes]:
    head, said, _ = client.answer(client.request(path, body=body))
    return head[":status"], said


def test_a_refused_stream_is_sent_again_whatever_it_is() -> None:
    bad, good = Backend("refuse"), Backend("answer")
    with Upstream(bad.serve) as one, Upstream(good.serve) as other:
        text = config([one, other], "retries: {attempts: 1}")
        with Configured(text, workers=1) as plane:
            client = client_of(plane)
            for i in range(6):
                assert ask(client, f"/{i}", b"b" * 100 * i) == ("200", b"/%d" % i)
            flags = plane.flags("web")
    assert [path for path, _ in good.seen] == [f"/{i}" for i in range(6)]
    assert flags == {"retried": len(bad.seen)}
    assert bad.seen


@pytest.mark.parametrize(
    ("budget", "attempts", "flag"), [("100%", 3, "retried"), ("0%", 1, "retry_limited")]
)
def test_refusals_have_the_attempts_and_the_budget_of_all_retries(
    budget: str, attempts: int, flag: str
) -> None:
    backend = Backend("refuse")
    with Upstream(backend.serve) as upstream:
        keys = (
            f"retries: {{attempts: 2, budget: {budget}, backoff: {{base: 1ms}}}},"
            " circuit_breaker: {retries: 0}"
        )
        with Configured(config([upstream], keys), workers=1) as plane:
            client = client_of(plane)
            stream = client.request("/a")
            with pytest.raises(ResetError):
                client.answer(stream)
            assert plane.flags("web") == {flag: 1, "upstream_reset": 1}
    assert len(backend.seen) == attempts


def test_a_status_of_grpc_has_a_name() -> None:
    bad, good = Backend("unavailable"), Backend("answer")
    with Upstream(bad.serve) as one, Upstream(good.serve) as other:
        keys = "retries: {attempts: 1, on: unavailable}"
        with Configured(config([one, other], keys, "idempotent: true"), workers=1) as plane:
            client = client_of(plane)
            for i in range(4):
                stream = client.request(f"/a/{i}", ("content-type", "application/grpc"), body=b"")
                assert client.answer(stream)[1] == b"/a/%d" % i
    assert bad.seen


def test_a_status_is_a_reason() -> None:
    bad, good = Backend("503"), Backend("answer")
    with Upstream(bad.serve) as one, Upstream(good.serve) as other:
        keys = "retries: {attempts: 1, on: 503}"
        with Configured(config([one, other], keys), workers=1) as plane:
            client = client_of(plane)
            for i in range(6):
                assert ask(client, f"/{i}") == ("200", b"/%d" % i)
    assert bad.seen


@pytest.mark.parametrize(
    ("keys", "rule", "flag"),
    [
        ("retries: {attempts: 1, per_try_timeout: 50ms}", "", "retried"),
        ("", "hedge: {after: 50ms}", "hedged"),
    ],
)
def test_a_silent_endpoint_keeps_nobody(keys: str, rule: str, flag: str) -> None:
    """And its stream is cancelled."""
    silent, good = Backend("silent"), Backend("answer")
    with Upstream(silent.serve) as one, Upstream(good.serve) as other:
        text = config([one, other], keys, rule)
        with Configured(text, workers=1) as plane:
            client = client_of(plane)
            for i in range(4):
                assert ask(client, f"/{i}") == ("200", b"/%d" % i)
            flags = plane.flags("web")
            eventually(lambda: silent.cancelled == len(silent.seen), "the ends of its streams")
    assert flags == {flag: len(silent.seen)}
    assert silent.seen


@pytest.mark.parametrize("rule", ["hedge: {after: 30ms}", "idempotent: true"])
def test_a_client_of_http1_is_helped_as_well(rule: str) -> None:
    silent, good = Backend("silent"), Backend("answer")
    with Upstream(silent.serve) as one, Upstream(good.serve) as other:
        keys = "retries: {attempts: 2, per_try_timeout: 100ms}"
        text = config([one, other], keys, rule)
        with Configured(text, workers=1) as plane, plane.client() as client:
            for i in range(4):
                client.sendall(b"GET /%d HTTP/1.1\r\nHost: web\r\n\r\n" % i)
                head, body, _ = read_message(client)
                assert (head.split()[1], body) == (b"200", b"/%d" % i)
    assert silent.seen


def test_limits_faults_and_mirrors() -> None:
    web, shadow = Backend("answer"), Backend("answer")
    with Upstream(web.serve) as one, Upstream(shadow.serve) as other:
        text = (
            f"services:\n  web: {{protocol: http2, endpoints: ['{one.address}'],"
            " mirror: {to: shadow}, rate_limit: {requests: 3, per: 1h}}\n"
            f"  shadow: {{protocol: http2, endpoints: ['{other.address}']}}\n"
            "requests:\n"
            "  - {match: {path: /no}, services: shadow, fault: {abort: {status: 418}}}\n"
            f"  - {{services: web, fault: {{delay: {{fixed: 20ms}}}}}}\n{LISTENERS}"
        )
        with Configured(text, workers=1) as plane:
            client = client_of(plane)
            for i in range(3):
                assert ask(client, f"/{i}", b"b" * 3000 * i) == ("200", b"/%d" % i)
            assert ask(client, "/3")[0] == "429"
            eventually(lambda: {"rate_limited"} in map(flag_names, plane.records()), "its record")
            assert ask(client, "/no")[0] == "418"
            eventually(lambda: len(shadow.seen) == 3, "the copies")
            assert plane.flags("web") == {"fault_delay": 3, "mirrored": 3, "rate_limited": 1}
    assert sorted(shadow.seen) == sorted(web.seen)
