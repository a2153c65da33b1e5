"""Our codecs of frames: whatever is written here by their formats' descriptions, they read."""

from __future__ import annotations

import itertools
import struct
import zlib
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.codecs.frames import BOLT, DUBBO, Frame, Frames

V1, V2_WITHOUT_CRC, V2 = 1, 0x21, 0x22

# Of SOFARPC 5.13.2 and of Dubbo 3.3.6, as they came over a connection.
SOFARPC_REQUEST = b64decode(
    "AQEAAQEAAAABAQAAJxAALAF5AAABTGNvbS5hbGlwYXkuc29mYS5ycGMuY29yZS5yZXF1ZXN0LlNvZmFSZXF1ZXN0"
    "AAAAGHNvZmFfaGVhZF90YXJnZXRfc2VydmljZQAAAA9wZWVyLkVjaG86MS4wOmEAAAADYXBwAAAACGNvbnN1bWVy"
    "AAAAG3JwY190cmFjZV9jb250ZXh0LnNvZmFScGNJZAAAAAEwAAAACHByb3RvY29sAAAABGJvbHQAAAAWcnBjX3Ry"
    "YWNlX2NvbnRleHQuc2FtcAAAAAR0cnVlAAAAHXJwY190cmFjZV9jb250ZXh0LnNvZmFUcmFjZUlkAAAAHmMwMDAw"
    "MjAyMTc5NTY3MzExODU2MTEwMDExMDcyOAAAAAdzZXJ2aWNlAAAAD3BlZXIuRWNobzoxLjA6YQAAAB1ycGNfdHJh"
    "Y2VfY29udGV4dC5zeXNQZW5BdHRycwAAAAAAAAAecnBjX3RyYWNlX2NvbnRleHQuc29mYVBlbkF0dHJzAAAAAAAA"
    "ABVzb2ZhX2hlYWRfbWV0aG9kX25hbWUAAAAEZWNobwAAAAR0eXBlAAAABHN5bmNPvGNvbS5hbGlwYXkuc29mYS5y"
    "cGMuY29yZS5yZXF1ZXN0LlNvZmFSZXF1ZXN0lQ10YXJnZXRBcHBOYW1lCm1ldGhvZE5hbWUXdGFyZ2V0U2Vydmlj"
    "ZVVuaXF1ZU5hbWUMcmVxdWVzdFByb3BzDW1ldGhvZEFyZ1NpZ3NvkE4EZWNobw9wZWVyLkVjaG86MS4wOmFNA2Fw"
    "cAhjb25zdW1lcghwcm90b2NvbARib2x0EXJwY190cmFjZV9jb250ZXh0TQlzb2ZhUnBjSWQBMARzYW1wBHRydWUL"
    "c3lzUGVuQXR0cnMAC3NvZmFUcmFjZUlkHmMwMDAwMjAyMTc5NTY3MzExODU2MTEwMDExMDcyOAxzb2ZhUGVuQXR0"
    "cnMAegR0eXBlBHN5bmN6VnQAB1tzdHJpbmduARBqYXZhLmxhbmcuU3RyaW5negJoaQ=="
)
DUBBO_REQUEST = b64decode(
    "2rvCAAN5CrTyhCb/AAAAmQUyLjAuMglwZWVyLkVjaG8FMS4wLjAEZWNobxJMamF2YS9sYW5nL1N0cmluZzsCaGlI"
    "BHBhdGgJcGVlci5FY2hvEnJlbW90ZS5hcHBsaWNhdGlvbghjb25zdW1lcglpbnRlcmZhY2UJcGVlci5FY2hvB3Zl"
    "cnNpb24FMS4wLjAHdGltZW91dAUxMDAwMAVncm91cARibHVlWg=="
)


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


CUTS = st.lists(st.integers(0, 1 << 16), max_size=20)


def read_one(frames: Frames, codec: str, data: bytes, cuts: Sequence[int], **how: Any) -> Frame:
    reading = frames.read(codec, pieces(data, cuts), **how)
    assert not reading.error
    assert not reading.rest
    [frame] = reading.frames
    assert frame.frame == data
    return frame


def test_a_request_of_sofarpc(frames: Frames) -> None:
    frame = read_one(frames, BOLT, SOFARPC_REQUEST, range(len(SOFARPC_REQUEST)))
    assert (frame.kind, frame.id, frame.timeout_ms) == ("request", 1, 10000)
    assert (frame.service, frame.method) == ("peer.Echo:1.0:a", "echo")
    assert dict(frame.fields)["app"] == "consumer"
    assert len(frame.fields) == 11


def test_a_request_of_dubbo(frames: Frames) -> None:
    frame = read_one(frames, DUBBO, DUBBO_REQUEST, range(len(DUBBO_REQUEST)))
    assert (frame.kind, frame.timeout_ms) == ("request", 10000)
    assert (frame.service, frame.version, frame.method) == ("peer.Echo", "1.0.0", "echo")
    assert frame.group == "blue"
    assert dict(frame.fields)["interface"] == "peer.Echo"


# ---- Bolt ----

Headers = list[tuple[str | None, str | None]]

NAMES = ("service", "sofa_head_target_service", "sofa_head_method_name", "app", "App", "uid")
TEXTS = st.text(max_size=20)
HEADERS = st.lists(
    st.tuples(
        st.none() | TEXTS | st.sampled_from(NAMES),
        st.none() | TEXTS,
    ),
    max_size=8,
)
VERSIONS = st.sampled_from([V1, V2_WITHOUT_CRC, V2])


def bolt_string(text: str | None) -> bytes:
    if text is None:
        return struct.pack(">i", -1)
    return struct.pack(">i", len(text.encode())) + text.encode()


def bolt_frame(
    version: int,
    kind: str,
    number: int,
    headers: Headers,
    *,
    rest: int = 0,  # timeout or status
    options: int = 0,
    content: bytes = b"",
    name: bytes = b"any.Class",
) -> bytes:
    section = b"".join(bolt_string(text) for header in headers for text in header)
    answer = kind == "response"
    frame = bytes([1]) if version == V1 else bytes([2, version & 15])
    frame += struct.pack(">BHBIB", {"oneway": 2}.get(kind, 1 - answer), 1 + answer, 1, number, 1)
    frame += b"" if version == V1 else bytes([options])
    frame += struct.pack(">H" if answer else ">i", rest)
    frame += struct.pack(">HHI", len(name), len(section), len(content)) + name + section + content
    if version == V2 and options & 1:
        frame += struct.pack(">I", zlib.crc32(frame))
    return frame


def present(headers: Headers) -> list[tuple[str, str]]:
    return [(a, b) for a, b in headers if a is not None and b is not None]


@settings(deadline=None)
@given(
    version=VERSIONS,
    kind=st.sampled_from(["request", "oneway"]),
    number=st.integers(0, 2**32 - 1),
    headers=HEADERS,
    timeout=st.integers(-(2**31), 2**31 - 1),
    options=st.integers(0, 127),
    content=st.binary(max_size=100),
    cuts=CUTS,
)
def test_bolt_requests(
    frames: Frames,
    version: int,
    kind: str,
    number: int,
    headers: Headers,
    timeout: int,
    options: int,
    content: bytes,
    cuts: list[int],
) -> None:
    data = bolt_frame(
        version, kind, number, headers, rest=timeout, options=options, content=content
    )
    frame = read_one(frames, BOLT, data, cuts)
    named = dict(present(headers))
    assert (frame.kind, frame.id, frame.timeout_ms) == (kind, number, max(timeout, 0))
    assert frame.service == (named.get("sofa_head_target_service") or named.get("service", ""))
    assert frame.method == named.get("sofa_head_method_name", "")
    assert list(frame.fields) == present(headers)
    assert frame.facts["version"] == version
    assert frame.facts["options"] == (0 if version == V1 else options)


@settings(deadline=None)
@given(
    version=VERSIONS,
    headers=HEADERS,
    options=st.integers(0, 127),
    content=st.binary(max_size=100),
    new=st.lists(st.tuples(st.sampled_from(["app", "uid", "x-new"]), TEXTS), max_size=3),
    removed=st.lists(st.sampled_from(NAMES), max_size=2),
)
def test_rewritten_bolt_requests(
    frames: Frames,
    version: int,
    headers: Headers,
    options: int,
    content: bytes,
    new: list[tuple[str, str]],
    removed: list[str],
) -> None:
    def write(number: int, headers: Headers) -> bytes:
        return bolt_frame(
            version, "request", number, headers, rest=5, options=options, content=content
        )

    written = frames.pass_on(
        BOLT, write(7, headers), 2**32 - 1, set_headers=new, remove_headers=removed
    )
    gone = {name.lower() for name, _ in new} | {name.lower() for name in removed}
    kept: Headers = [
        (name, value) for name, value in headers if name is None or folded(name) not in gone
    ]
    assert written == write(2**32 - 1, [*kept, *new])


def folded(text: str) -> str:
    """As names are compared: only the letters of ASCII."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


@settings(deadline=None)
@given(
    version=VERSIONS,
    asked=VERSIONS,
    headers=HEADERS,
    options=st.integers(0, 1),
    content=st.binary(max_size=100),
    status=st.integers(0, 0xFFFF),
)
def test_bolt_answers_in_the_protocol_of_the_request(
    frames: Frames,
    version: int,
    asked: int,
    headers: Headers,
    options: int,
    content: bytes,
    status: int,
) -> None:
    def write(version: int, number: int) -> bytes:
        return bolt_frame(
            version, "response", number, headers, rest=status, options=options, content=content
        )

    data = write(version, 7)
    facts = {"version": asked, "options": options}
    passed = frames.pass_on(BOLT, data, 9, response=True, facts=facts)
    # Its own version, if it is of the right protocol.
    assert passed == write(version if (version == V1) == (asked == V1) else asked, 9)
    frame = read_one(frames, BOLT, data, [], response=True)
    assert (frame.status, frame.succeeded) == (status, status == 0)
    failed = dict(present(headers)).get("sofa_head_response_error") == "true"
    assert frame.service_failed == (status == 2 or (status == 0 and failed))


# ---- Hessian ----


@st.composite
def hessian_ints(draw: st.DrawFn, minimum: int = -(2**31), maximum: int = 2**31 - 1) -> bytes:
    """In any form that has room for it."""
    value = draw(st.integers(max(minimum, -50), min(maximum, 50)) | st.integers(minimum, maximum))
    forms = [b"I" + struct.pack(">i", value)]
    if -16 <= value <= 47:
        forms.append(bytes([0x90 + value]))
    if -2048 <= value <= 2047:
        forms.append(bytes([0xC8 + (value >> 8), value & 255]))
    if -262144 <= value <= 262143:
        forms.append(bytes([0xD4 + (value >> 16)]) + struct.pack(">H", value & 0xFFFF))
    return draw(st.sampled_from(forms))


def hessian_int(value: int) -> bytes:
    return bytes([0x90 + value]) if value <= 47 else b"I" + struct.pack(">i", value)


@st.composite
def hessian_strings(draw: st.DrawFn, *, chunked: bool = True) -> bytes:
    def encoded(text: str) -> tuple[int, bytes]:
        """UTF-16 units, and the bytes: each half of a surrogate pair by itself, or whole."""
        data, units = b"", 0
        for letter in text:
            pair = letter.encode("utf-16-be", "surrogatepass")
            if len(pair) == 4 and draw(st.booleans()):
                for half in (pair[:2], pair[2:]):
                    data += half.decode("utf-16-be", "surrogatepass").encode(
                        "utf-8", "surrogatepass"
                    )
            else:
                data += letter.encode("utf-8", "surrogatepass")
            units += len(pair) // 2
        return units, data

    result = b""
    while chunked and draw(st.integers(0, 3)) == 0:
        units, data = encoded(draw(st.text(max_size=5)))
        result += b"R" + struct.pack(">H", units) + data
    units, data = encoded(draw(st.text(max_size=40)))
    forms = [b"S" + struct.pack(">H", units), bytes([0x30 | units >> 8, units & 255])]
    if units < 32:
        forms.append(bytes([units]))
    return result + draw(st.sampled_from(forms)) + data


@st.composite
def hessian_binaries(draw: st.DrawFn) -> bytes:
    result = b""
    while draw(st.integers(0, 3)) == 0:
        data = draw(st.binary(max_size=5))
        result += b"A" + struct.pack(">H", len(data)) + data
    data = draw(st.binary(max_size=40))
    forms = [b"B" + struct.pack(">H", len(data)), bytes([0x34, len(data)])]
    if len(data) < 16:
        forms.append(bytes([0x20 + len(data)]))
    return result + draw(st.sampled_from(forms)) + data


def of_size(first: int, last: int, size: int) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda tag, data: bytes([tag]) + data,
        st.integers(first, last),
        st.binary(min_size=size, max_size=size),
    )


SCALARS = st.one_of(
    st.sampled_from([b"N", b"T", b"F", b"\x5b", b"\x5c"]),
    hessian_ints(),
    hessian_strings(),
    hessian_binaries(),
    hessian_ints(0).map(lambda number: b"\x51" + number),
    *(
        of_size(*form)
        for form in (
            (0xD8, 0xEF, 0),  # longs
            (0xF0, 0xFF, 1),
            (0x38, 0x3F, 2),
            (0x59, 0x59, 4),
            (0x4C, 0x4C, 8),
            (0x5D, 0x5D, 1),  # doubles
            (0x5E, 0x5E, 2),
            (0x5F, 0x5F, 4),
            (0x44, 0x44, 8),
            (0x4A, 0x4A, 8),  # dates
            (0x4B, 0x4B, 4),
        )
    ),
)
TYPES = hessian_strings() | hessian_ints(0)


@st.composite
def hessian_holders(draw: st.DrawFn, inner: st.SearchStrategy[bytes]) -> bytes:
    values = draw(st.lists(inner, max_size=6))
    joined = b"".join(values)
    count = hessian_int(len(values))
    match draw(st.integers(0, 8)):
        case 0:
            return b"\x55" + draw(TYPES) + joined + b"Z"
        case 1:
            return b"V" + draw(TYPES) + count + joined
        case 2:
            return b"\x57" + joined + b"Z"
        case 3:
            return b"\x58" + count + joined
        case 4:
            return bytes([0x70 + len(values)]) + draw(TYPES) + joined
        case 5:
            return bytes([0x78 + len(values)]) + joined
        case 6:
            return b"H" + joined + draw(inner) * (len(values) % 2) + b"Z"
        case 7:
            return b"M" + draw(TYPES) + joined + draw(inner) * (len(values) % 2) + b"Z"
    # An object, of the class that is defined in front of it: it is the newest one. Its number is
    # put in when all of the stream is there.
    names = b"".join(draw(hessian_strings()) for _ in values)
    return b"C" + draw(hessian_strings()) + count + names + PLACEHOLDER + joined


PLACEHOLDER = b"\xfe\xff\xfe\xff<class>\xff\xfe"  # in no text
VALUES = st.recursive(SCALARS, hessian_holders, max_leaves=12)


def numbered(stream: bytes) -> bytes:
    """With the numbers of the classes, which count from 0 in the order of their definitions."""
    first, *others = stream.split(PLACEHOLDER)
    for number, part in enumerate(others):
        tag = bytes([0x60 + number]) if number % 2 and number < 16 else b"O" + hessian_int(number)
        first += tag + part
    return first


@settings(deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(values=st.lists(VALUES, min_size=1, max_size=4))
def test_values_of_hessian(frames: Frames, values: list[bytes]) -> None:
    stream = numbered(b"".join(values))
    [*_, end] = ends = frames.skip(stream, len(values))
    assert len(ends) == len(values)
    assert end == len(stream)
    assert frames.skip(stream + b"N", len(values)) == ends  # what follows does not matter
    assert len(frames.skip(stream[:-1], len(values))) == len(values) - 1  # no value twice


# ---- Dubbo ----


def dubbo_frame(flags: int, status: int, number: int, body: bytes) -> bytes:
    return struct.pack(">HBBQI", 0xDABB, flags, status, number, len(body)) + body


def dubbo_string(text: str) -> bytes:
    data = text.encode("utf-16-be", "surrogatepass")
    units = [data[i : i + 2] for i in range(0, len(data), 2)]
    return (
        b"S"
        + struct.pack(">H", len(units))
        + b"".join(
            unit.decode("utf-16-be", "surrogatepass").encode("utf-8", "surrogatepass")
            for unit in units
        )
    )


@settings(deadline=None)
@given(
    texts=st.tuples(TEXTS, TEXTS, TEXTS, TEXTS),
    number=st.integers(0, 2**64 - 1),
    two_way=st.booleans(),
    arguments=st.lists(VALUES, max_size=3),
    types=st.lists(st.sampled_from(["I", "[[J", "Lp/Bean;", "[Lp/Bean;"]), min_size=3, max_size=3),
    attachments=st.dictionaries(TEXTS.filter(lambda name: name != ""), VALUES, max_size=4),
    timeout=st.integers(0, 2**31 - 1) | st.none(),
    cuts=CUTS,
)
def test_dubbo_requests(
    frames: Frames,
    texts: tuple[str, str, str, str],
    number: int,
    two_way: bool,
    arguments: list[bytes],
    types: list[str],
    attachments: dict[str, bytes],
    timeout: int | None,
    cuts: list[int],
) -> None:
    path, version, method, group = texts
    body = b"".join(dubbo_string(text) for text in ("2.0.2", path, version, method))
    body += dubbo_string("".join(types[: len(arguments)])) + b"".join(arguments) + b"H"
    for name, value in attachments.items():
        if name not in ("group", "timeout"):
            body += dubbo_string(name) + value
    body += dubbo_string("group") + dubbo_string(group)
    if timeout is not None:
        body += dubbo_string("timeout")
        body += dubbo_string(str(timeout)) if number % 2 else b"I" + struct.pack(">i", timeout)
    data = dubbo_frame(0x82 | two_way << 6, 0, number, numbered(body + b"Z"))
    frame = read_one(frames, DUBBO, data, cuts)
    assert (frame.kind, frame.id) == ("request" if two_way else "oneway", number)
    assert (frame.service, frame.version, frame.method) == (path, version, method)
    assert (frame.group, frame.timeout_ms) == (group, timeout or 0)
    assert dict(frame.fields)["group"] == group
    passed = frames.pass_on(DUBBO, data, 3)
    assert passed == data[:4] + struct.pack(">Q", 3) + data[12:]


@settings(deadline=None)
@given(
    flags=st.integers(0, 255), status=st.integers(0, 255), body=st.binary(max_size=80), cuts=CUTS
)
def test_any_frame_of_dubbo_passes_or_is_an_error(
    frames: Frames, flags: int, status: int, body: bytes, cuts: list[int]
) -> None:
    """Whatever is in it, its borders are known; what it does not say is empty."""
    data = dubbo_frame(flags, status, 5, body)
    reading = frames.read(DUBBO, pieces(data, cuts), response=True)
    if flags & 0x20 and len(body) > 64:
        assert reading.error == "the event is too long"
    else:
        [frame] = reading.frames
        assert frame.frame == data
