"""Inputs that fuzz targets begin with, where those are made rather than found."""

from __future__ import annotations

import re
from pathlib import Path

_HTTP2 = Path(__file__).resolve().parent.parent / "tests" / "fuzz" / "http2.c"
_CLIENT, _UPSTREAM, _CLIENT_RAW, _UPSTREAM_RAW, _OTHER = 0x30, 0x33, 0x32, 0x35, 6
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_ENDS, _HEAD_ENDS = 1, 4
_NEW = 255


def _words() -> list[str]:
    table = re.search(r"words\[\] = \{(.*?)\};", _HTTP2.read_text(), re.DOTALL)
    assert table
    return re.findall(r'"((?:[^"\\]|\\.)*)"', table.group(1))


class _Steps:
    """Of an input of ``tests/fuzz/http2.c``."""

    def __init__(self, how: int = 0) -> None:
        self.bytes = bytes([how])
        self.words = _words()

    def frame(self, who: int, kind: int, flags: int, stream: int, payload: bytes) -> _Steps:
        self.bytes += bytes([who, kind, flags, stream]) + payload
        return self

    def head(self, who: int, stream: int, *fields: str, flags: int = _HEAD_ENDS) -> _Steps:
        """Each as ``name=value``."""
        pairs = [each.split("=", 1) for each in fields]
        numbers = [self.words.index(word) for pair in pairs for word in pair]
        return self.frame(who, _HEADERS, flags, stream, bytes([len(pairs), *numbers]))

    def request(self, *fields: str, method: str = "GET", ends: bool = True) -> _Steps:
        flags = _HEAD_ENDS | (_ENDS if ends else 0)
        own = (f":method={method}", ":scheme=http", ":authority=a", ":path=/")
        return self.head(_CLIENT, _NEW, *own, *fields, flags=flags)

    def settings(self, who: int, *pairs: int) -> _Steps:
        return self.frame(who, _SETTINGS, 0, 0, bytes([len(pairs) // 2, *pairs]))

    def turn(self, *what: int) -> _Steps:
        self.bytes += bytes([*what]) if what else b"\x37"
        return self

    def raw(self, who: int, number: int) -> _Steps:
        self.bytes += bytes([who, 255, number])
        return self


def http2() -> list[bytes]:
    """What is in order, and beginnings of what is not."""
    answer = ":status=200"
    found = []
    for how in (0, 4):
        greeted = _Steps(how).settings(_UPSTREAM)
        found += [
            _Steps(how).request().settings(_UPSTREAM).head(_UPSTREAM, 1, answer, flags=5),
            _Steps(how)
            .request("te=trailers", "content-type=application/grpc", method="POST", ends=False)
            .frame(_CLIENT, _DATA, _ENDS, 1, bytes([100]))
            .settings(_UPSTREAM)
            .head(_UPSTREAM, 1, answer, "content-type=application/grpc")
            .frame(_UPSTREAM, _DATA, 0, 1, bytes([220]))
            .head(_UPSTREAM, 1, "grpc-status=0", flags=5),
            _Steps(how).request("cookie=a=1", "cookie=a=1").frame(_CLIENT, _RESET, 0, 1, b"\x08"),
            _Steps(how).request(method="POST", ends=False).frame(_CLIENT, _WINDOW, 0, 1, b"\x07"),
            _Steps(how).settings(_CLIENT, 4, 0, 1, 0, 5, 4).request().request().request(),
            _Steps(how)
            .request("content-length=3", method="POST", ends=False)
            .frame(_CLIENT, _DATA, _ENDS, 1, bytes([3]))
            .settings(_UPSTREAM, 3, 0)
            .frame(_UPSTREAM, _GOAWAY, 0, 0, bytes([0, 0])),
            _Steps(how)
            .request()
            .settings(_UPSTREAM)
            .head(_UPSTREAM, 1, ":status=103")
            .head(_UPSTREAM, 1, ":status=100")
            .head(_UPSTREAM, 1, answer)
            .frame(_UPSTREAM, _DATA, _ENDS, 1, bytes([255])),
            greeted.request().frame(_UPSTREAM, _RESET, 0, 1, b"\x07").turn(),
            _Steps(how).request().turn(_OTHER | 64 | 0x30).request().turn(_OTHER | 32),
            _Steps(how).request().frame(_CLIENT, _PING, 0, 0, bytes([8]) + b"12345678"),
        ]
    found += [
        _Steps(how).request(method="POST", ends=False).frame(_CLIENT, _DATA, _ENDS, 1, bytes([50]))
        .raw(_UPSTREAM_RAW, number).raw(_UPSTREAM_RAW, 2)
        for how in (2, 6)
        for number in range(7)
    ]  # fmt: skip
    found += [
        _Steps(how).raw(_CLIENT_RAW, number).settings(_UPSTREAM)
        .head(_UPSTREAM, 1, answer, "content-length=3")
        .frame(_UPSTREAM, _DATA, _ENDS, 1, bytes([3]))
        for how in (3, 7)
        for number in range(5)
    ]  # fmt: skip
    found += [ # clients that take nothing, or too many streams
        _Steps(how).settings(_CLIENT, 4, 0).request().request().request().request()
        .settings(_UPSTREAM)
        .head(_UPSTREAM, 1, answer).frame(_UPSTREAM, _DATA, _ENDS, 1, bytes([250]))
        .head(_UPSTREAM, 3, answer).frame(_UPSTREAM, _DATA, 0, 3, bytes([30]))
        .turn().frame(_CLIENT, _WINDOW, 0, 1, b"\x01").turn().turn()
        .frame(_CLIENT, _PING, 0, 0, bytes([8]) + b"12345678").turn()
        for how in (16, 20, 32, 36, 48, 52)
    ]  # fmt: skip
    return [each.bytes for each in found]
