"""The draft of Hessian 2, and Bolt's frames around it."""

from __future__ import annotations

import contextlib
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysidecar.registry import bolt
from pysidecar.registry.bolt import BoltError, Command, Frame, FrameReader, Kind
from pysidecar.registry.draft_hessian import (
    MAX_VALUES,
    HessianError,
    JavaObject,
    Long,
    TypedList,
    TypedMap,
    dumps,
    loads,
)
from pysidecar.registry.sofaregistry_data import read_push
from tests.registry.sofa_captured import Packet, packets

_PACKETS = packets()
_FRAMES = [frame for packet in _PACKETS for frame in FrameReader().feed(packet.data)]


def plain(value: object) -> object:
    """With objects and typed values as tuples, which can be compared."""
    if isinstance(value, JavaObject):
        return (value.class_name, [(name, plain(each)) for name, each in value.fields.items()])
    if isinstance(value, dict):
        name = value.type_name if isinstance(value, TypedMap) else ""
        return (name, [(plain(key), plain(each)) for key, each in value.items()])
    if isinstance(value, list):
        return (value.type_name if isinstance(value, TypedList) else "", list(map(plain, value)))
    return (type(value).__name__, value)


# ---- what real programs wrote ----


def test_all_that_was_captured_is_there() -> None:
    assert len(_PACKETS) == len(_FRAMES) == 28
    assert {frame.class_name.rpartition(".")[2] for frame in _FRAMES} == {
        *("SubscriberRegister", "PublisherRegister", "ConfiguratorRegister", "RegisterResponse"),
        *("ReceivedData", "ReceivedConfigData", "Result"),
    }


@pytest.mark.parametrize("packet", _PACKETS, ids=[packet.name for packet in _PACKETS])
def test_what_was_captured_is_read_and_written_byte_by_byte(packet: Packet) -> None:
    (frame,) = FrameReader().feed(packet.data)
    assert frame.encode() == packet.data
    value = loads(frame.content)
    assert isinstance(value, JavaObject)
    assert value.class_name == frame.class_name
    assert dumps(value) == frame.content


# ---- anything ----

_TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["a" * 31, "a" * 32, "ä" * 31, "\U0001f600" * 16, "x" * 0x7FFF + "\U0001f600" + "y" * 40000]
)
_SIMPLE = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 31), (1 << 31) - 1)
    | st.integers(-(1 << 63), (1 << 63) - 1).map(Long)
    | _TEXT
    | st.binary()
    | st.sampled_from([b"\0" * 15, b"\0" * 16, b"\1" * 0x8000, b"\2" * 0x8001])
)


def _typed_list(values: list[object]) -> TypedList:
    found = TypedList("[string")
    found.extend(values)
    return found


def _typed_map(values: dict[object, object]) -> TypedMap:
    found = TypedMap("java.util.TreeMap")
    found.update(values)
    return found


def _compound(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    lists = st.lists(values, max_size=5)
    maps: st.SearchStrategy[dict[object, object]] = st.dictionaries(
        st.text(max_size=3) | st.integers(0, 99), values, max_size=4
    )
    fields = st.dictionaries(st.text(max_size=40), values, max_size=4)
    return (
        lists
        | lists.map(_typed_list)
        | maps
        | maps.map(_typed_map)
        | st.builds(JavaObject, st.sampled_from(["a.B", "ä.C" * 20]), fields)
    )


_VALUES = st.recursive(_SIMPLE, _compound, max_leaves=20)


@given(_VALUES)
def test_what_is_written_is_read_again(value: object) -> None:
    assert plain(loads(dumps(value))) == plain(value)


@given(_VALUES, st.data())
def test_a_value_that_ends_too_early_is_an_error(value: object, data: st.DataObject) -> None:
    written = dumps(value)
    end = data.draw(st.integers(0, len(written) - 1))
    with pytest.raises(HessianError):
        loads(written[:end])


@given(st.sampled_from(_FRAMES), st.data())
def test_bytes_that_were_changed_are_an_error_or_another_value(
    frame: Frame, data: st.DataObject
) -> None:
    content = bytearray(frame.content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.binary(max_size=4))
        content[place : place + data.draw(st.integers(0, 4))] = new
    with contextlib.suppress(HessianError):
        value = loads(bytes(content))
        if isinstance(value, JavaObject):
            read_push(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_or_a_value(data: bytes) -> None:
    with contextlib.suppress(HessianError):
        loads(data)


@given(st.lists(st.integers(0, 1000)))
def test_frames_come_out_however_the_stream_is_split(cuts: list[int]) -> None:
    stream = b"".join(packet.data for packet in _PACKETS)
    found: list[Frame] = []
    reader, start = FrameReader(), 0
    for end in (*sorted(cut * len(stream) // 1000 for cut in cuts), len(stream)):
        found += reader.feed(stream[start:end])
        start = end
    assert found == _FRAMES


@given(st.sampled_from(_PACKETS), st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_frames_that_were_changed_are_an_error_or_others(
    packet: Packet, place: int, new: bytes
) -> None:
    data = bytearray(packet.data)
    data[place : place + len(new)] = new
    with contextlib.suppress(BoltError):
        list(FrameReader().feed(bytes(data)))


# ---- what only others write ----


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("67", 0.0),
        ("68", 1.0),
        ("69 80", -128.0),
        ("6a ff 00", -256.0),
        ("6b 3f c0 00 00", 1.5),
        ("44 3f f8 00 00 00 00 00 00", 1.5),
        ("64 00 00 00 00 00 00 00 07", Long(7)),
        ("77 ff ff ff ff", Long(-1)),
        ("56 91 92 7a", [1, 2]),  # a list without a length
        ("56 6c 00 00 00 01 91 7a", [1]),
        ("73 00 01 61 01 62", "ab"),  # chunks
        ("62 00 01 61 21 62", b"ab"),
        ("02 c3 a4 62", "äb"),
    ],
)
def test_values_that_we_do_not_write_are_read(data: str, value: object) -> None:
    assert plain(loads(bytes.fromhex(data))) == plain(value)


def test_a_text_is_followed_by_what_looks_like_its_rest() -> None:
    assert loads(bytes.fromhex("56 01 c3a4 90 00 90 7a")) == ["ä", 0, "", 0]


@pytest.mark.parametrize("form", ["4a 01", "4b 00 01", "52 00 00 00 01"])
def test_a_reference_is_the_very_object(form: str) -> None:
    value = loads(bytes.fromhex(f"56 56 91 7a {form} 7a"))
    assert isinstance(value, list)
    assert value[0] is value[1]
    assert value[0] == [1]


def test_types_are_referred_to_by_their_number() -> None:
    name = "74 00 02 5b 61"
    value = loads(bytes.fromhex(f"56 56 {name} 6e 01 91 7a 76 90 92 92 93 4d 75 90 7a 7a"))
    assert plain(value) == plain([_named([1]), _named([2, 3]), TypedMap("[a")])


def _named(values: list[object]) -> TypedList:
    found = TypedList("[a")
    found.extend(values)
    return found


# ---- what costs an error, and neither memory nor time ----


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "ends in the middle"),
        (b"NN", "after the value"),
        (b"\x30", "begins no value"),
        (b"rt\0\1aS\0\1a", "begins no value"),
        (b"V" * 1000, "nested more than"),
        (b"M\1a" * 1000, "nested more than"),
        (b"Vl\x7f\xff\xff\xffz", "says it has 2147483647"),
        (b"Vl\xff\xff\xff\xffz", "says it has -1"),
        (b"Vt\0\1av\x90I\x7f\xff\xff\xff", "expected a length"),
        (b"v\x90\x90", "type 0 of 0"),
        (b"o\x90", "class 0 of 0"),
        (b"oI\xff\xff\xff\xff", "class -1 of 0"),
        (b"J\0", "reference 0 of 0"),
        (b"R\xff\xff\xff\xff", "reference -1 of 0"),
        (b"O\x91aI\x7f\xff\xff\xff", "expected a length"),
        (b"OI\x7f\xff\xff\xff", "expected a length"),
        (b"O\x91a\x90" * 300 + b"N", "more than 256 classes"),
        (b"Ox", "expected an int"),
        (b"O\x91a\x91N", "expected a string"),
        (b"s\0\1ax", "expected a string"),
        (b"b\0\1ax", "expected bytes"),
        (b"S\xff\xffa", "ends too early"),
        (b"MVzNz", "keys are not simple"),
        (b"\2\xf0\x9f\x98\x80", "no Unicode"),
        (b"\1\xf0\x9f\x98\x80", "no Unicode"),
        (b"\1\xed\xa0\xbd", "half of a surrogate pair"),
        (b"S\xff\xff\xc3\xa4" + b"\x80" * (1 << 18), "no Unicode"),
        (b"\1\xc0\x80", "no Unicode"),
        (b"V" + b"\x90" * (MAX_VALUES + 1) + b"z", "more than 250000 values"),
        (b"s\0\0" * (MAX_VALUES + 1) + b"\0", "more than 250000 values"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, problem: str) -> None:
    began = time.process_time()
    with pytest.raises(HessianError, match=problem):
        loads(data)
    assert time.process_time() - began < 5  # seconds: nothing of it takes one


def test_a_million_elements_are_an_error() -> None:
    with pytest.raises(HessianError, match="more than"):
        loads(b"Vl" + struct.pack(">i", 1_000_000) + b"\1a" * 1_000_000 + b"z")


def test_what_contains_itself_is_read_and_not_followed() -> None:
    value = loads(b"VJ\0z")
    assert isinstance(value, list)
    assert value[0] is value
    with pytest.raises(HessianError, match="nested"):
        dumps(value)


@pytest.mark.parametrize("value", [1 << 31, Long(1 << 63), object(), 1.5])
def test_what_java_cannot_hold_is_not_written(value: object) -> None:
    with pytest.raises(HessianError):
        dumps(value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\2\0", "no Bolt v1: begins with 0200"),
        (b"HTTP", "no Bolt v1: begins with 4854"),
        (b"\1\3", "no Bolt v1: begins with 0103"),
        (struct.pack(">BBHBIBHHHI", 1, 0, 2, 1, 1, 1, 0, 1025, 0, 0), "class name has 1025 bytes"),
        (struct.pack(">BBHBIBHHHI", 1, 0, 2, 1, 1, 1, 0, 0, 16385, 0), "header has 16385 bytes"),
        (
            struct.pack(">BBHBIBiHHI", 1, 1, 1, 1, 1, 1, 0, 0, 0, (16 << 20) + 1),
            "content has 16777217 bytes",
        ),
    ],
)
def test_a_frame_that_cannot_be_is_refused_before_it_is_there(data: bytes, problem: str) -> None:
    with pytest.raises(BoltError, match=problem):
        list(FrameReader().feed(data))


@given(
    st.builds(
        Frame,
        st.sampled_from([Kind.REQUEST, Kind.ONE_WAY]),
        st.sampled_from([Command.HEARTBEAT, Command.REQUEST]),
        st.integers(0, (1 << 32) - 1),
        st.text(st.characters(codec="ascii"), max_size=1024),
        st.binary(max_size=100),
        timeout=st.integers(-(1 << 31), (1 << 31) - 1),
        codec=st.integers(0, 255),
        header=st.binary(max_size=100),
    )
    | st.builds(
        Frame,
        st.just(Kind.RESPONSE),
        st.sampled_from([Command.HEARTBEAT, Command.RESPONSE]),
        st.integers(0, (1 << 32) - 1),
        status=st.integers(0, 65535),
    )
)
def test_frames_are_read_as_they_were_written(frame: Frame) -> None:
    assert list(FrameReader().feed(frame.encode())) == [frame]


def test_the_largest_frame_is_read() -> None:
    frame = Frame(Kind.REQUEST, Command.REQUEST, 1, "a", b"x" * bolt.MAX_CONTENT)
    reader, data = FrameReader(), frame.encode()
    found = [
        each
        for start in range(0, len(data), 1 << 16)
        for each in reader.feed(data[start : start + (1 << 16)])
    ]
    assert found == [frame]
