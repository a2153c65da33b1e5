"""What is said to an endpoint, and what its answer means; no sockets."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.dataplane import HAS_HTTP2, http2_status
from pysidecar.health.kinds import conversation_for
from pysidecar.health.kinds.conversation import Conversation, Unserved, Verdict

ADDRESS = Address("10.0.0.7", 8080)
WELL = Verdict(None, keep=True)


def begin(kind: str, protocol: str = "http", **settings: Any) -> Conversation:
    if kind == "http":
        settings.setdefault("path", "/health")
    check = HealthCheck.model_validate({"type": kind, **settings})
    converse = conversation_for(check, protocol)
    assert converse is not None
    return converse(check, ADDRESS)


def hear_piecewise(conversation: Conversation, data: bytes) -> Verdict | None:
    """As if each byte came by itself."""
    for i in range(len(data) - 1):
        assert conversation.hear(data[i : i + 1]) is None
    return conversation.hear(data[-1:])


# ---- http ----


def test_http_asks_for_the_path_at_the_address() -> None:
    assert begin("http").ask() == (
        b"GET /health HTTP/1.1\r\nHost: 10.0.0.7:8080\r\n"
        b"User-Agent: pysidecar-health-check\r\nAccept: */*\r\n\r\n"
    )
    assert b"\r\nHost: orders.test\r\n" in begin("http", host="orders.test").ask()


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", WELL),
        (b"HTTP/1.1 204 No Content\r\n\r\n", WELL),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 \r\ncontent-LENGTH:0\r\n\r\n", WELL),
        (
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            Verdict("its answer is 503", keep=True),
        ),
    ],
)
def test_http_hears_a_status_and_a_body_of_known_length(answer: bytes, verdict: Verdict) -> None:
    conversation = begin("http")
    for _ in range(2):
        conversation.ask()
        assert hear_piecewise(conversation, answer) == verdict


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    ],
)
def test_http_does_not_wait_for_a_body_that_it_would_not_read(head: bytes) -> None:
    conversation = begin("http")
    conversation.ask()
    assert conversation.hear(head) == Verdict(None, keep=False)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_http_understands_nothing_else(answer: bytes) -> None:
    conversation = begin("http")
    conversation.ask()
    with pytest.raises(ValueError, match="its answer"):
        conversation.hear(answer)


# ---- bolt ----


def bolt_answer(number: int, status: int = 0, body: bytes = b"") -> bytes:
    return struct.pack(">BBHBIBHHHI", 1, 0, 0, 1, number, 1, status, 0, 0, len(body)) + body


def test_bolt_sends_heartbeats_and_takes_their_answers() -> None:
    conversation = begin("bolt")
    for number in (1, 2):
        asked = conversation.ask()
        assert struct.unpack(">BBHBIBiHHI", asked) == (1, 1, 0, 1, number, 1, 1000, 0, 0, 0)
        assert hear_piecewise(conversation, bolt_answer(number, body=b"pong")) == WELL
    conversation.ask()
    assert conversation.hear(bolt_answer(3, 4)) == Verdict("its status is 4", keep=True)


@pytest.mark.parametrize(
    "answer", [bolt_answer(7), b"\x02" + bolt_answer(1)[1:], b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
def test_bolt_takes_no_other_answer(answer: bytes) -> None:
    conversation = begin("bolt")
    conversation.ask()
    with pytest.raises(ValueError, match="its answer"):
        conversation.hear(answer)


# ---- dubbo ----


def dubbo_frame(flags: int, status: int, number: int, body: bytes = b"N") -> bytes:
    return struct.pack(">HBBQI", 0xDABB, flags, status, number, len(body)) + body


def test_dubbo_sends_heartbeats_and_answers_those_of_the_server() -> None:
    conversation = begin("dubbo")
    assert conversation.ask() == dubbo_frame(0xE2, 0, 1)
    assert conversation.hear(dubbo_frame(0xE2, 0, 77)) is None
    assert conversation.take_reply() == dubbo_frame(0x22, 20, 77)
    assert conversation.take_reply() == b""
    assert hear_piecewise(conversation, dubbo_frame(0x22, 20, 1)) == WELL
    conversation.ask()
    answer = dubbo_frame(0x22, 20, 1) + dubbo_frame(0x22, 80, 2)  # one comes late
    assert conversation.hear(answer) == Verdict("its status is 80", keep=True)


def test_dubbo_takes_no_other_answer() -> None:
    conversation = begin("dubbo")
    conversation.ask()
    with pytest.raises(ValueError, match="its answer is not Dubbo's"):
        conversation.hear(bytes(16))
    with pytest.raises(ValueError, match="too long"):
        begin("dubbo").hear(struct.pack(">HBBQI", 0xDABB, 0x22, 20, 1, 1 << 30))


# ---- grpc ----

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def health(status: int) -> bytes:
    body = b"\x08" + bytes([status]) if status else b""
    return b"\0" + struct.pack(">I", len(body)) + body


def answer(stream: int, status: int) -> bytes:
    return b"".join(
        (
            frame(4, 0, 0, struct.pack(">HI", 3, 100)),
            frame(1, 4, stream, b"\x88"),
            frame(0, 0, stream, health(status)),
            frame(1, 5, stream, b"\x00\x01a\x01b"),
        )
    )


def test_grpc_asks_on_one_stream_after_the_other() -> None:
    conversation = begin("grpc")
    first = conversation.ask()
    assert first.startswith(PREFACE)
    assert b"\x04\x1c/grpc.health.v1.Health/Check" in first
    assert first.endswith(frame(0, 1, 1, bytes(5)))
    assert hear_piecewise(conversation, answer(1, 1)) == WELL
    assert conversation.take_reply() == frame(4, 1, 0)
    second = conversation.ask()
    assert not second.startswith(PREFACE)
    assert second.endswith(frame(0, 1, 3, bytes(5)))


def test_grpc_asks_about_a_service() -> None:
    asked = begin("grpc", service="shop.Orders", host="orders.test").ask()
    assert asked.endswith(b"\0\0\0\0\x0d\x0a\x0bshop.Orders")
    assert b"\x01\x0borders.test" in asked
    assert begin("grpc", service="x" * 200).ask().endswith(b"\x0a\xc8\x01" + b"x" * 200)


@pytest.mark.parametrize(
    ("status", "word"), [(0, "UNKNOWN"), (2, "NOT_SERVING"), (3, "SERVICE_UNKNOWN"), (9, "9")]
)
def test_grpc_takes_only_serving(status: int, word: str) -> None:
    conversation = begin("grpc")
    conversation.ask()
    verdict = conversation.hear(answer(1, status))
    assert verdict == Verdict(f"its health status is {word}", keep=True)


def test_grpc_knows_how_a_stream_and_a_connection_end() -> None:
    conversation = begin("grpc")
    conversation.ask()
    verdict = conversation.hear(frame(1, 5, 1, b"\x88"))  # an error: trailers only
    assert verdict == Verdict("its answer has no health status", keep=True)
    conversation.ask()
    verdict = conversation.hear(frame(3, 0, 3, struct.pack(">I", 7)))
    assert verdict == Verdict("it reset the stream: 7", keep=False)
    conversation = begin("grpc")
    conversation.ask()
    goes_away = frame(7, 0, 0, struct.pack(">II", 1, 0))
    assert conversation.hear(goes_away + answer(1, 1)) == WELL._replace(keep=False)


def test_grpc_answers_pings_and_gives_room_again() -> None:
    conversation = begin("grpc")
    conversation.ask()
    assert conversation.hear(frame(6, 0, 0, b"12345678") + frame(6, 1, 0, b"87654321")) is None
    assert conversation.take_reply() == frame(6, 1, 0, b"12345678")
    given = 0
    for _ in range(3000):
        conversation.hear(answer(conversation._stream, 1))  # type: ignore[attr-defined]
        reply = conversation.take_reply()
        while reply:
            size = int.from_bytes(reply[:3], "big")
            if reply[3] == 8:
                given += int.from_bytes(reply[9:13], "big")
            reply = reply[9 + size :]
        conversation.ask()
    assert given > 3000 * 7 - 16384


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 9])
def test_grpc_understands_nothing_else(data: bytes) -> None:
    conversation = begin("grpc")
    conversation.ask()
    with pytest.raises(ValueError, match="its answer is not HTTP/2"):
        conversation.hear(data)


def test_grpc_is_not_made_to_answer_for_ever() -> None:
    conversation = begin("grpc")
    conversation.ask()
    with pytest.raises(ValueError, match="it asks for too much"):
        conversation.hear(frame(6, 0, 0, bytes(8)) * 10_000)


# ---- http, of a service that speaks HTTP/2 ----

needs_http2 = pytest.mark.skipif(not HAS_HTTP2, reason="built without libnghttp2")
OK, NO_CONTENT, NOT_FOUND, UNAVAILABLE = b"\x88", b"\x89", b"\x8d", b"\x08\x03503"
EARLY = b"\x08\x03103"  # hints
GONE = Encoder().encode([(":status", "410")], huffman=True)


def begin_http2(**settings: Any) -> Conversation:
    conversation = begin("http", "http2", **settings)
    conversation.ask()
    return conversation


def test_an_http_check_speaks_what_the_service_speaks() -> None:
    for protocol in ("http2", "grpc"):
        asked = begin("http", protocol).ask()
        assert asked.startswith(PREFACE)
        head = asked[-(len(asked) - asked.index(b"\x82\x86")) :]
        assert b"\x04\x07/health" in head
        assert b"\x01\x0d10.0.0.7:8080" in head
    for protocol in ("http", "bolt"):
        assert begin("http", protocol).ask().startswith(b"GET /health HTTP/1.1\r\n")
    assert b"\x01\x0borders.test" in begin("http", "http2", host="orders.test").ask()


@pytest.mark.parametrize(
    ("protocol", "settings", "kind"),
    [
        ("http2", {"path": "/health"}, "http"),
        ("http2", {}, "tcp"),
        ("http2", {"type": "grpc"}, "grpc"),
        ("grpc", {}, "grpc"),
        ("grpc", {"type": "http", "path": "/health"}, "http"),
        ("http", {"path": "/health"}, "http"),
    ],
)
def test_the_protocol_says_what_is_asked(
    protocol: str, settings: dict[str, Any], kind: str
) -> None:
    check = HealthCheck.model_validate(settings)
    assert check.misfit(protocol) is None
    assert check.kind(protocol) == kind


@needs_http2
@pytest.mark.parametrize(
    ("frames", "verdict"),
    [
        (frame(1, 5, 1, OK), WELL),
        (frame(1, 5, 1, NO_CONTENT), WELL),
        (frame(1, 4, 1, OK) + frame(0, 1, 1, b"ok"), WELL),
        (frame(1, 4, 1, EARLY) + frame(1, 5, 1, OK), WELL),
        (frame(1, 4, 1, OK) + frame(0, 0, 1, b"ok") + frame(1, 5, 1, b"\x00\x01a\x01b"), WELL),
        (frame(1, 1, 1, OK[:0]) + frame(9, 0, 1, OK) + frame(9, 4, 1, b""), WELL),
        (frame(1, 0x2D, 1, b"\x02" + bytes(5) + OK + b"xx"), WELL),  # padded, with a priority
        (frame(1, 5, 1, b"\x20" + OK), WELL),  # it has no table either
        (frame(1, 5, 1, NOT_FOUND), Verdict("its answer is 404", keep=True)),
        (frame(1, 5, 1, UNAVAILABLE), Verdict("its answer is 503", keep=True)),
        (frame(1, 5, 1, GONE), WELL._replace(problem="its answer is 410")),
        (frame(1, 5, 1, EARLY), Verdict("its answer is interim only", keep=True)),
        (frame(3, 0, 1, bytes(4)), Verdict("it reset the stream: 0", keep=False)),
    ],
)
def test_http2_hears_a_status_and_the_end_of_the_stream(frames: bytes, verdict: Verdict) -> None:
    conversation = begin_http2()
    assert hear_piecewise(conversation, frame(4, 0, 0) + frames) == verdict
    assert conversation.take_reply() == frame(4, 1, 0)


@needs_http2
def test_http2_asks_on_one_stream_after_the_other() -> None:
    conversation = begin("http", "http2")
    for stream in (1, 3, 5):
        asked = conversation.ask()
        assert asked.startswith(PREFACE) == (stream == 1)
        assert struct.pack(">BBI", 1, 5, stream) in asked
        assert conversation.hear(frame(1, 5, stream, OK)) == WELL
        # What comes late is nobody's.
        assert conversation.hear(frame(3, 0, stream, bytes(4))) is None


@needs_http2
def test_http2_does_not_read_a_long_body_to_its_end() -> None:
    conversation = begin_http2()
    assert conversation.hear(frame(1, 4, 1, OK)) is None
    for _ in range(3):
        assert conversation.hear(frame(0, 0, 1, bytes(16384))) is None
    assert conversation.hear(frame(0, 0, 1, bytes(1))) == WELL._replace(keep=False)


@needs_http2
def test_http2_knows_what_was_served_before_a_connection_ends() -> None:
    conversation = begin_http2()
    with pytest.raises(Unserved):
        conversation.hear(frame(7, 0, 0, bytes(8)))
    conversation = begin_http2()
    assert conversation.hear(frame(7, 0, 0, struct.pack(">II", 1, 0))) is None
    assert conversation.hear(frame(1, 5, 1, UNAVAILABLE)) == Verdict("its answer is 503", False)
    conversation = begin_http2()
    assert conversation.hear(frame(1, 5, 1, OK)) == WELL
    # While nothing is asked, it is not used any more.
    assert conversation.hear(frame(7, 0, 0, struct.pack(">II", 1, 0))) == WELL._replace(keep=False)


@needs_http2
@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame(0, 1, 1, b"ok"),  # before a head
        frame(1, 5, 1, b""),
        frame(1, 5, 1, b"\xbe" + OK),  # of a table that is empty
        frame(1, 5, 1, b"\x00\x01a\x01b"),  # no status
        frame(1, 5, 1, b"\x08\x0399x"),
        frame(1, 0xD, 1, b"\x09" + OK),  # more padding than there is
        frame(9, 4, 1, OK),
        frame(1, 1, 1, OK) + frame(0, 1, 1, b""),
        frame(1, 1, 1, bytes(16000)) + frame(9, 0, 1, bytes(16000)) * 4,
    ],
)
def test_http2_understands_nothing_else(data: bytes) -> None:
    with pytest.raises(ValueError, match="its answer"):
        begin_http2().hear(data)


@needs_http2
@given(st.binary(max_size=64))
def test_any_header_block_has_a_status_or_none(block: bytes) -> None:
    status = http2_status(block)
    assert status is None or 1 <= status <= 999
