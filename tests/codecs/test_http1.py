"""What our codec of HTTP/1.1 accepts, llhttp (in httptools) and h11 accept too, and understand in
the same way; and so what we pass on. That it refuses more than they do is meant."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.codecs.http1 import (
    Http1,
    Message,
    read_request_with_h11,
    read_response_with_h11,
    read_with_llhttp,
)

pytestmark = pytest.mark.timeout(300)  # a busy machine, with sanitizers

SETTINGS = settings(
    max_examples=400,
    deadline=None,  # a busy machine
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

METHODS = "GET HEAD POST PUT DELETE OPTIONS PATCH TRACE CONNECT PROPFIND QUERY".split()
TARGETS = [
    *("/", "/a/b?c=d&e", "/%2e%2e/;x=y", "//x//", "/?http://y/", '/a|b"{}\\^`', "*", "x", "/a#b"),
    *("http://h", "http://h/", "HTTP://h:1/p?q", "https://h/", "http://u@h/", "http://h?q", "h:1"),
    *("/\xfc", "/a b", "/a\tb", "", "http:///", "ftp://h/", "/a\x00", "http://[::1]:80/"),
]
LENGTHS = [
    "0",
    "1",
    "5",
    "05",
    "+5",
    "-5",
    "5, 5",
    "5,6",
    "5 5",
    "0x5",
    "5;",
    "",
    "99999999999999999999",
]
CODINGS = [
    *("chunked", "Chunked", "chunked, chunked", "gzip, chunked", "chunked, gzip", "identity"),
    *("xchunked", "chunked;a=b", '"chunked"', "\x0bchunked", "chunked\x00", "", ",chunked"),
]
HOSTS = [
    "h",
    "h:80",
    "[::1]:80",
    "a b",
    "a,b",
    "a/b",
    "u@h",
    "",
    "h:x",
    "h:99999",
    "h\x80",
    "1.2.3.4",
]
FIELDS = [
    *(f"Content-Length: {value}" for value in LENGTHS),
    *(f"Transfer-Encoding: {value}" for value in CODINGS),
    *(f"Host: {value}" for value in HOSTS),
    *(
        f"Connection: {value}"
        for value in ("close", "keep-alive", "Upgrade", "a, b", "TE", "", ";")
    ),
    *("Upgrade: websocket", "Upgrade: h2c", "Expect: 100-continue", "Expect: x", "TE: trailers"),
    *("Transfer-Encoding : chunked", " folded", "\tfolded", "no colon", ": no name", "a\x01: b"),
    *(
        "Content-Length:5",
        "content-length:\t5\t",
        "X: a\rb",
        "X: a\nb",
        "X: \xe4",
        "X:",
        "X: a\x00",
    ),
    *("Content_Length: 5", "Content-Length\t: 5", "Trailer: T", "Keep-Alive: 5", "X(: b"),
]
PROPER_FIELDS = [
    *(
        "A: b",
        "Connection: close",
        "Connection: keep-alive",
        "Connection: a, B",
        "A: c",
        "TE: trailers",
    ),
    *(
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Expect: 100-continue",
        "X:",
        "X:\t\xe4 \t",
        "B: c",
    ),
]
BODIES = [
    *("", "hello", "0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "5;a=b\r\nhello\r\n0;c\r\nT: u\r\n\r\n"),
    *("5 \r\nhello\r\n0\r\n\r\n", "5;\r\nhello\r\n0\r\n\r\n", "5;\nhello\r\n0\r\n\r\n"),
    *("5;a\n\r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "+5\r\nhello\r\n0\r\n\r\n"),
    *("5\nhello\n0\n\n", "5\r\nhelloXX0\r\n\r\n", "5\r\nhello0\r\n\r\n", "-1\r\n\r\n0\r\n\r\n"),
    *(
        "ffffffffffffffff\r\nhello\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "05\r\nhello\r\n0\r\n\r\n",
    ),
    *("5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n", "5\r\nhello\r\n0\r\nT u\r\n\r\n", "0\r\n\n"),
    *(
        '5;a="b\\"c"\r\nhello\r\n0\r\n\r\n',
        "5;a b\r\nhello\r\n0\r\n\r\n",
        "0\r\n\rX\n",
        "0\r\n\r\n\r\n",
    ),
]
FRAMINGS = ["", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"]
VERSIONS = [*["HTTP/1.1"] * 30, *["HTTP/1.0"] * 10, "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.1 "]
STATUSES = ["200", "404", "100", "101", "103", "204", "304", "500", "599"]
FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SPECIAL = b'\0\t\n\v\f\r !"#,-.0159:;=A_f\x7f\x80\xa0\xff'


def joined(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map("".join)


def mostly(good: str, bad: Sequence[str]) -> st.SearchStrategy[str]:
    return st.sampled_from([good] * 15 * len(bad) + list(bad))


line_ends = mostly("\r\n", ["\n", "\r", "\r\r\n", " \r\n", ""])
fields = joined(st.sampled_from(PROPER_FIELDS * 4 + FIELDS), line_ends)
heads = joined(
    mostly("Host: x\r\n", [""]),
    st.sampled_from(FRAMINGS),
    st.lists(fields, max_size=3).map("".join),
    mostly("\r\n", ["\n", "\r", "\r\n\r\n"]),
    st.sampled_from(BODIES),
)
request_lines = joined(
    st.sampled_from(METHODS * 9 + ["get", "G T", "G\x00T", "(", ""]),
    mostly(" ", ["  ", "\t"]),
    st.sampled_from(["/"] * len(TARGETS) + TARGETS),
    mostly(" ", ["  ", ""]),
    st.sampled_from(VERSIONS),
    line_ends,
)
status_lines = joined(
    st.sampled_from(VERSIONS),
    mostly(" ", ["  ", ""]),
    st.sampled_from([*STATUSES * 5, "600", "99", "2x0", "0200"]),
    st.sampled_from([*[" OK", "", " ", " a b\tc", " \xe4"] * 5, " a\x01", "OK"]),
    line_ends,
)
changes: st.SearchStrategy[list[tuple[int, int, int]]] = st.just([]) | st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 1), st.sampled_from(list(SPECIAL))), max_size=2
)


def changed(text: str, where: Sequence[tuple[int, int, int]]) -> bytes:
    data = bytearray(text.encode("latin-1"))
    for at, length, byte in where:
        at %= len(data) + 1
        data[at : at + length] = bytes([byte])
    return bytes(data)


requests = st.builds(
    changed, st.lists(joined(request_lines, heads), min_size=1, max_size=2).map("".join), changes
)
responses = st.builds(
    changed,
    joined(st.sampled_from([""] * 3 + ["HTTP/1.1 100 Continue\r\n\r\n"]), status_lines, heads),
    changes,
)


def path_of(target: bytes, method: bytes) -> bytes:
    """What is asked for at the host, of a target that we accept."""
    if target[:7].lower() != b"http://":
        return target
    _, slash, path = target[7:].partition(b"/")
    return slash + path if slash else b"*" if method == b"OPTIONS" else b"/"


def stripped(fields: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """h11 has the names of codings in lower case, llhttp leaves the space behind a value."""
    return [
        (name, value.strip(b" \t").lower() if name == b"transfer-encoding" else value.strip(b" \t"))
        for name, value in fields
    ]


def check_same(mine: Message, other: Message) -> None:
    assert other.complete or not mine.complete
    assert mine.http10 == other.http10 or mine.status
    assert mine.method == other.method
    if mine.method != b"CONNECT":
        assert mine.target == path_of(other.target, mine.method)
    assert mine.status == other.status
    assert mine.reason.strip(b" \t") == other.reason.strip(b" \t")
    assert stripped(mine.fields) == stripped(other.fields)
    assert mine.body == other.body
    assert stripped(mine.trailers) == stripped(other.trailers)


def read_requests(http1: Http1, data: bytes) -> list[Message]:
    """Those that can be compared: llhttp knows methods by their names."""
    messages = http1.read(data).complete
    known = all(message.method.decode() in METHODS for message in messages)
    return messages if known else []


def becomes_another_protocol(message: Message) -> bool:
    """So that llhttp reads no further, not even the body."""
    options = b",".join(message.values(b"connection")).lower()
    return message.method == b"CONNECT" or (
        bool(message.values(b"upgrade")) and b"upgrade" in options
    )


def check_requests(http1: Http1, data: bytes) -> None:
    ours = read_requests(http1, data)
    if not ours:
        return
    data = data.removeprefix(b"\r\n")  # which h11 refuses
    theirs = read_with_llhttp(data)
    for index, mine in enumerate(ours):
        assert index < len(theirs.messages), theirs.error
        if becomes_another_protocol(mine):
            break
        check_same(mine, theirs.messages[index])
    else:
        assert len(theirs.complete) == len(ours) or http1.read(data).error
    first = read_request_with_h11(data)
    assert first.messages, first.error
    check_same(ours[0], first.messages[0])


def check_passed_request(mine: Message, passed: bytes) -> None:
    for theirs in (read_with_llhttp(passed), read_request_with_h11(passed)):
        assert not theirs.error
        (other,) = theirs.complete
        assert (other.method, other.target, other.body) == (mine.method, mine.target, mine.body)
        assert other.values(b"host") == [mine.authority]
        assert not other.http10


@SETTINGS
@given(data=requests)
def test_requests_that_we_accept_mean_the_same_to_others(http1: Http1, data: bytes) -> None:
    check_requests(http1, data)


@SETTINGS
@given(data=requests)
def test_requests_that_we_pass_on_mean_the_same_to_others(http1: Http1, data: bytes) -> None:
    for mine, passed in zip(read_requests(http1, data), http1.pass_on(data), strict=False):
        if mine.method != b"CONNECT":
            check_passed_request(mine, passed)


@SETTINGS
@given(data=responses)
def test_answers_that_we_accept_mean_the_same_to_others(http1: Http1, data: bytes) -> None:
    ours = http1.read(data, response=True)
    theirs, also = read_with_llhttp(data, response=True), read_response_with_h11(data)
    for index, mine in enumerate(ours.complete):
        assert index < len(theirs.messages), theirs.error
        assert index < len(also.messages), also.error
        check_same(mine, also.messages[index])
        until_close = not mine.values(b"content-length") and not mine.values(b"transfer-encoding")
        theirs.messages[index].complete |= until_close
        check_same(mine, theirs.messages[index])
        if mine.status >= 200:
            break


@SETTINGS
@given(data=responses, http10=st.booleans(), keep_alive=st.booleans())
def test_answers_that_we_pass_on_mean_the_same_to_others(
    http1: Http1, data: bytes, http10: bool, keep_alive: bool
) -> None:
    facts = {"http10": http10, "keep_alive": keep_alive}
    ours = http1.read(data, response=True, facts=facts)
    for mine, passed in zip(
        ours.complete, http1.pass_on(data, response=True, facts=facts), strict=False
    ):
        also = read_response_with_h11(passed + (FINAL if mine.status < 200 else b""))
        assert not also.error
        other = also.complete[0]
        assert (other.status, other.body) == (mine.status, mine.body)
        (llhttps,) = read_with_llhttp(passed, response=True).messages
        assert (llhttps.status, llhttps.body) == (mine.status, mine.body)


# ---- those that must be accepted ----

words = st.text("abcXYZ019-_.~", min_size=1, max_size=8)
values = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40
)
proper_fields = st.lists(st.tuples(words.map("X-{}".format), values), max_size=4)
chunks = st.lists(st.binary(min_size=1, max_size=30), max_size=4)


@st.composite
def proper_requests(draw: st.DrawFn) -> tuple[Message, bytes]:
    method = draw(st.sampled_from("GET POST PUT DELETE PATCH QUERY FOO-BAR".split()))
    path = "/" + draw(st.text("abc/?&=%25;:@!$'()*+,-._~", max_size=20))
    host, fields, body = draw(words), draw(proper_fields), draw(chunks)
    chunked = draw(st.booleans())
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {sum(map(len, body))}"
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", framing]
    lines += [f"{name}:{draw(st.sampled_from(['', ' ', '  ']))}{value}" for name, value in fields]
    if chunked:
        sent = b"".join(b"%x;a=b\r\n%s\r\n" % (len(chunk), chunk) for chunk in body) + b"0\r\n\r\n"
    else:
        sent = b"".join(body)
    head = "".join(line + "\r\n" for line in [*lines, ""]).encode("latin-1")
    expected = Message(method.encode(), path.encode(), host.encode(), body=b"".join(body))
    return expected, head + sent


@SETTINGS
@given(sent=st.lists(proper_requests(), min_size=1, max_size=3), cuts=st.lists(st.integers(0, 600)))
def test_proper_requests_are_accepted_however_they_are_cut(
    http1: Http1, sent: list[tuple[Message, bytes]], cuts: list[int]
) -> None:
    data = b"".join(each for _, each in sent)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    reading = http1.read(*pieces)
    assert not reading.error
    assert len(reading.complete) == len(sent)
    assert reading.complete == http1.read(data).complete
    for message, (expected, _) in zip(reading.complete, sent, strict=True):
        assert message.method == expected.method
        assert message.target == expected.target
        assert message.authority == expected.authority
        assert message.body == expected.body
