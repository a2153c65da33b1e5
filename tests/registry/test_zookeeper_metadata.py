"""Providers with Dubbo 3 that alone know what they provide: they are asked."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.registry.zookeeper import metadata
from pysidecar.registry.zookeeper.applications import MetadataService, Services, read_instance
from pysidecar.registry.zookeeper.hessian import HessianError, Reader, dump_map, dump_text
from pysidecar.registry.zookeeper.layout import Variant

_CAPTURED = Path(__file__).parent / "captured" / "dubbo-3.3.6_metadata.txt"
_READERS = {
    "dubbo": metadata._read_dubbo,
    "wrapped": metadata._read_wrapped,
    "second": metadata._read_second,
}
_OK = struct.Struct(">HBBQI")


@pytest.fixture(autouse=True)
def _machines_may_be_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "_TIMEOUT", 60.0)


def captured(kind: str) -> tuple[str, bytes]:
    """Revision and answer."""
    for part in _CAPTURED.read_text().split("\n\n"):
        head, *lines = part.splitlines()
        if head.startswith(f"{kind} "):
            return head.split()[1], bytes.fromhex("".join(lines))
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", sorted(_READERS))
def test_what_dubbo_answers_is_understood(kind: str) -> None:
    revision, answer = captured(kind)
    found = _READERS[kind](answer, revision)
    [((protocol, interface), variants)] = found.items()
    assert (protocol, interface) == ("dubbo" if kind == "dubbo" else "tri", "peer.Echo")
    assert {which for which, _, _ in variants} == {Variant("1.0", ""), Variant("1.0", "blue")}
    assert {weight for _, _, weight in variants} == {100}
    with pytest.raises(ValueError, match="revision"):
        _READERS[kind](answer, "another")


@pytest.mark.parametrize("kind", sorted(_READERS))
def test_whatever_is_answered_costs_an_error_only(kind: str) -> None:
    revision, answer = captured(kind)
    random.seed(7)
    for _ in range(500):
        broken = bytearray(answer[: random.randrange(1, len(answer) + 1)])
        for _ in range(random.randrange(4)):
            broken[random.randrange(len(broken))] = random.randrange(256)
        with contextlib.suppress(ValueError):
            _READERS[kind](bytes(broken), revision)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"N", None),
        (b"T", True),
        (b"\x90", 0),
        (b"\x80", -16),
        (b"\xc7\x00", -256),
        (b"\xd7\xff\xff", 262143),
        (b"I\x80\x00\x00\x00", -(1 << 31)),
        (b"\xe0", 0),
        (b"\xf7\x00", -256),
        (b"\x3f\xff\xff", 262143),
        (b"Y\x00\x00\x00\x07", 7),
        (b"\x5c", 1.0),
        (b"\x5e\x00\x80", 128),
        (b"\x5f\x00\x00\x27\x10", 10.0),
        (b"\x04\xc3\xa9\xed\xa0\xbd\xed\xb8\x80x", "\xe9\U0001f600x"),
        (b"R\x00\x02ab\x01c", "abc"),
        (b"\x30\x02hi", "hi"),
        (b"\x23\x01\x02\x03", b"\x01\x02\x03"),
        (b"H\x01a\x91Z", {"a": 1}),
        (b"M\x01t\x01a\x91Z", {"a": 1}),
        (b"\x7a\x91\x92", [1, 2]),
        (b"\x72\x01t\x91\x92", [1, 2]),
        (b"W\x91\x92Z", [1, 2]),
        (b"V\x01t\x92\x91\x92", [1, 2]),
        (b"C\x01c\x92\x01a\x01b\x60\x91Q\x90", {"a": 1, "b": ...}),
    ],
)
def test_values_of_hessian(data: bytes, value: object) -> None:
    found = Reader(data).value()
    if isinstance(found, dict) and isinstance(value, dict) and ... in value.values():
        assert found["b"] is found
    else:
        assert found == value


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "in the middle"),
        (b"\x05ab", "in the middle"),
        (b"S\xff\xffab", "in the middle"),
        (b"B\xff\xffab", "in the middle"),
        (b"V\x01tI\x7f\xff\xff\xff", "in the middle"),
        (b"X" * 40, "begins no int"),
        (b"W" * 40, "nested"),
        (b"W" + b"N" * 260_000, "values"),
        (b"C\x01cI\x7f\xff\xff\xff", "too many fields"),
        (b"o", "in the middle"),
        (b"Q\x95", "in the middle"),
        (b"Q\x8f", "below 0"),
        (b"HH\x01aNZNZ", "a key that is an object"),
        (b"G", "begins no value"),
        (b"M\x95Z", "not named"),
    ],
)
def test_what_is_no_hessian_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(HessianError, match=problem):
        Reader(data).value()


def test_what_is_written_is_read_back() -> None:
    for text in ("", "a" * 31, "b" * 32, "\xe9" * 70_000):
        assert Reader(dump_text(text)).value() == text
    assert Reader(dump_map({"a": "1", "b": ""})).value() == {"a": "1", "b": ""}


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def asked(serve: Serve, protocol: str, version: str, *, loopback: bool = True) -> Services:
    async def run() -> Services:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            service = MetadataService(Address("127.0.0.1", port), protocol, version)
            return await metadata.ask(service, "app", "r1", loopback=loopback)

    return asyncio.run(run())


def answering(data: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(data)
        await writer.drain()

    return serve


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 16):
        pass


def dubbo(body: bytes, *, flags: int = 2, status: int = 20, size: int | None = None) -> bytes:
    return _OK.pack(0xDABB, flags, status, 1, len(body) if size is None else size) + body


KINDS = [("dubbo", "1.0.0"), ("tri", "1.0.0"), ("tri", "2.0.0")]


@pytest.mark.parametrize(("protocol", "version"), KINDS)
@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 64, b"\xff" * 9000]
)
def test_who_speaks_something_else_is_an_error(protocol: str, version: str, answer: bytes) -> None:
    wrong = "closed|does not answer|is wrong|not Dubbo's|Incomplete"
    with pytest.raises(ValueError, match=wrong):
        asked(answering(answer), protocol, version)


@pytest.mark.parametrize(("protocol", "version"), KINDS)
def test_who_says_nothing_is_not_waited_for(
    protocol: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "_TIMEOUT", 0.05)
    with pytest.raises(ValueError, match=r"no answer within 0\.05 s"):
        asked(silent, protocol, version)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (dubbo(b"\x95"), "does not know"),  # null, with attachments
        (dubbo(b"\x91\x03abc"), "does not know"),
        (dubbo(b"\x91H\x08servicesNZ"), "does not know"),
        (dubbo(b"\x03err", status=70), "status is 70"),
        (dubbo(b"", size=1 << 30), "not Dubbo's"),
        (dubbo(b"\x91", size=5), "IncompleteRead"),
    ],
)
def test_an_answer_of_dubbo_that_says_nothing_is_an_error(answer: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        asked(answering(answer), "dubbo", "1.0.0")


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_frames_that_are_no_answer_are_not_read_for_long(version: str) -> None:
    """Each takes us longer than whoever sends it."""
    settings, ping = b"\0\0\0\4\0\0\0\0\0", b"\0\0\x08\6\0\0\0\0\0" + bytes(8)
    with pytest.raises(ValueError, match="too much that is not of its answer"):
        asked(answering(settings + 100_000 * ping), "tri", version)


def test_a_heartbeat_comes_before_an_answer() -> None:
    body = b"\x94" + b"H\x08services" + b"HZ" + b"Z"
    assert asked(answering(dubbo(b"N", flags=0x22) + dubbo(body)), "dubbo", "1.0.0") == {}


def test_nobody_on_loopback_is_asked_for_another_hosts_registry() -> None:
    with pytest.raises(ValueError, match="cannot be meant"):
        asked(silent, "dubbo", "1.0.0", loopback=False)


INSTANCE = (
    '{"address": "10.0.0.7", "payload": {"metadata": {"dubbo.endpoints":'
    ' "[{\\"port\\":20880,\\"protocol\\":\\"dubbo\\"}]", "dubbo.metadata.revision": "r1",'
    ' "dubbo.metadata-service.url-params": "%s", "dubbo.metadata.storage-type": "local"}}}'
)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (
            r"{\"protocol\":\"tri\",\"port\":\"50051\",\"version\":\"2.0.0\"}",
            MetadataService(Address("10.0.0.7", 50051), "tri", "2.0.0"),
        ),
        (
            r"{\"protocol\":\"dubbo\",\"port\":\"20880\"}",
            MetadataService(Address("10.0.0.7", 20880), "dubbo", ""),
        ),
        (r"{\"protocol\":\"rest\",\"port\":\"20880\"}", None),
        (r"{\"protocol\":\"dubbo\",\"port\":\"0\"}", None),
        (r"{\"protocol\":\"dubbo\",\"port\":\"x\"}", None),
        (r"[]", None),
        (r"", None),
    ],
)
def test_an_instance_says_where_it_is_asked(said: str, wanted: MetadataService | None) -> None:
    instance = read_instance((INSTANCE % said).encode())
    assert instance is not None
    assert instance.asked == wanted
    assert instance.revision == ("r1" if wanted else "")
    assert replace(instance, asked=None).addresses["dubbo"] == (Address("10.0.0.7", 20880),)
