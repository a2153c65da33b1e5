"""Our codecs of frames beside those of Java: SOFABolt's and Dubbo's own, from Maven."""

from __future__ import annotations

import random
from base64 import b64decode, b64encode
from typing import Any

import pytest

from tests.codecs.frames import BOLT, DUBBO, Frame, Frames
from tests.requests.programs import Answer, Program

# One process of each Java program for all of these tests.
pytestmark = [pytest.mark.timeout(300)]

SEED = 4711
STATUSES = (*range(10), *range(0x10, 0x13))
V1, V2_WITHOUT_CRC, V2 = 1, 0x21, 0x22


def asked(program: Program, op: str, **values: str | int) -> Answer:
    answer = program.ask(op, **values)
    assert "error" not in answer, answer
    return answer


def decoded(text: str) -> str:
    return b64decode(text).decode()


# ---- Bolt ----


def bolt_line(frame: Frame) -> str:
    """As BoltFrames.describe says it, but for what our codec does not tell."""
    headers = sorted(
        f"{b64encode(name.encode()).decode()}:{b64encode(value.encode()).decode()}"
        for name, value in dict(frame.fields).items()
    )
    answer = frame.kind in ("response", "heartbeat-answer")
    number = frame.status if answer else frame.timeout_ms
    return f"{frame.id} {number} [{','.join(headers)}]"


def bolt_frames(sofa: Program, seed: int, count: int) -> list[tuple[bytes, list[str]]]:
    answer = asked(sofa, "frames", seed=seed, count=count)
    frames = map(b64decode, answer["frames"].split(","))
    return list(zip(frames, (line.split(" ") for line in answer["lines"].split("\n")), strict=True))


def read_by_java(program: Program, frames: list[bytes]) -> list[str]:
    """A line for each frame."""
    joined = ",".join(b64encode(frame).decode() for frame in frames)
    return asked(program, "read", frames=joined)["lines"].split("\n")


KINDS = {
    "RpcRequestCommand": ("request", "oneway"),
    "RpcResponseCommand": ("response",),
    "HeartbeatCommand": ("heartbeat",),
    "HeartbeatAckCommand": ("heartbeat-answer",),
}


def test_bolt_frames_of_java_are_read_as_java_reads_them(sofa: Program, frames: Frames) -> None:
    for data, (name, kind, number, codec, rest, *_, headers) in bolt_frames(sofa, SEED, 300):
        reading = frames.read(BOLT, [data], response=True)
        assert not reading.error
        assert not reading.rest
        [frame] = reading.frames
        assert frame.frame == data
        assert frame.kind in KINDS[name]
        assert (frame.kind == "oneway") == (kind == "2")
        if name.startswith("Heartbeat"):
            headers = "[]"
        timeout = str(max(int(rest), 0))
        assert bolt_line(frame) == f"{number} {timeout} {headers}"
        if kind != "0":
            assert frame.facts["serialization"] == int(codec)


def test_java_reads_what_is_passed_on(sofa: Program, frames: Frames) -> None:
    sent = bolt_frames(sofa, SEED + 1, 200)
    passed, expected = [], []
    for index, (data, line) in enumerate(sent):
        answer = line[1] == "0"
        facts = {"version": (V1, V2_WITHOUT_CRC, V2)[index % 3], "options": index // 3 % 2}
        changed = not answer and not line[0].startswith("Heartbeat")
        passed.append(
            frames.pass_on(
                BOLT,
                data,
                index,
                response=answer,
                facts=facts if answer else None,
                set_headers=[("app", "mesh")] if changed else [],
                remove_headers=["uid"] if changed else [],
            )
        )
        line[2] = str(index)
        if changed:
            pairs = [pair for pair in line[-1][1:-1].split(",") if pair]
            pairs = [pair for pair in pairs if decoded(pair.split(":")[0]) not in ("app", "uid")]
            line[-1] = f"[{','.join(sorted([*pairs, 'YXBw:bWVzaA==']))}]"
        expected.append(" ".join(line))
        assert passed[-1][0] == (2 if facts["version"] > 1 else 1) or not answer
    assert read_by_java(sofa, passed) == expected


def test_java_reads_bolt_frames_of_our_own(sofa: Program, frames: Frames) -> None:
    for version in (V1, V2_WITHOUT_CRC, V2):
        facts = {"version": version, "serialization": 1, "options": 1 if version > 1 else 0}
        heartbeat = frames.heartbeat(BOLT, facts, 3)
        answer = frames.answer_heartbeat(BOLT, heartbeat)
        rejection, status = frames.reject(BOLT, facts, 5, 1)
        assert read_by_java(sofa, [heartbeat, answer, rejection]) == [
            "HeartbeatCommand 1 3 1 -1 0 0 []",
            "HeartbeatAckCommand 0 3 1 0 0 0 []",
            f"RpcResponseCommand 0 5 1 {status} 46 0 []",
        ]


def test_what_java_refuses_or_waits_for_is_not_passed_on(sofa: Program, frames: Frames) -> None:
    """A frame with any changes that we take is one to Java, too, of the same length."""
    chance = random.Random(SEED)
    changed = []
    for data, _ in bolt_frames(sofa, SEED + 2, 300):
        if len(data) > 1000:
            continue
        copy = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            copy[chance.randrange(min(len(copy), 26))] = chance.choice((0, 1, 2, 127, 128, 255))
        changed.append(bytes(copy))
    taken = 0
    for data, line in zip(changed, read_by_java(sofa, changed), strict=True):
        reading = frames.read(BOLT, [data], response=True)
        whole = reading.frames and reading.frames[0].frame == data
        if whole and reading.frames[0].status in STATUSES:  # Java does not take any others
            assert line != "error", data
            assert line.split(" ")[2] == str(reading.frames[0].id)
            taken += 1
    assert 20 < taken < len(changed) - 20


# ---- Dubbo ----


def test_values_of_java_end_where_they_are_said_to(dubbo: Program, frames: Frames) -> None:
    """Objects of all kinds, in each other, as Dubbo's own serializer writes them."""
    answer = asked(dubbo, "values", seed=SEED, count=1500)
    for entry in answer["streams"].split(","):
        stream, *ends = entry.split(":")
        assert frames.skip(b64decode(stream), len(ends)) == [int(end) for end in ends]


def test_what_is_skipped_ends_where_java_ends_it(dubbo: Program, frames: Frames) -> None:
    """With any changes: Java refuses more (classes that there are not), and less where it is
    lenient about malformed text; where both take it, it has one end."""
    chance = random.Random(SEED)
    streams = []
    for entry in asked(dubbo, "values", seed=SEED + 1, count=600)["streams"].split(","):
        data = bytearray(b64decode(entry.split(":")[0]))
        if len(data) > 2000:
            continue
        for _ in range(chance.randrange(1, 3)):
            data[chance.randrange(len(data))] = chance.choice(
                (chance.randrange(32), chance.randrange(128), chance.randrange(256))
            )
        streams.append(bytes(data))
    joined = ",".join(b64encode(stream).decode() for stream in streams)
    ends = asked(dubbo, "skips", streams=joined)["ends"].split(",")
    both = 0
    for stream, end in zip(streams, map(int, ends), strict=True):
        skipped = frames.skip(stream)
        if skipped and end >= 0:
            assert skipped == [end], stream
            both += 1
    assert both > 50


def dubbo_frames(dubbo: Program, op: str, seed: int, count: int) -> list[tuple[bytes, list[str]]]:
    answer = asked(dubbo, op, seed=seed, count=count)
    frames = map(b64decode, answer["frames"].split(","))
    return list(zip(frames, (line.split(" ") for line in answer["lines"].split("\n")), strict=True))


def test_dubbo_requests_of_java(dubbo: Program, frames: Frames) -> None:
    for data, (kind, number, *rest) in dubbo_frames(dubbo, "requests", SEED, 400):
        reading = frames.read(DUBBO, [data])
        assert not reading.error
        assert not reading.rest
        [frame] = reading.frames
        assert frame.id == int(number)
        assert frame.last == (kind == "readonly")
        assert frame.kind == ("heartbeat" if kind == "readonly" else kind)
        if frame.kind != "heartbeat":
            *texts, count = rest
            path, version, method, group, timeout = (decoded(text[1:]) for text in texts)
            assert (frame.service, frame.version, frame.method) == (path, version, method)
            assert (frame.group, frame.timeout_ms) == (group, int(timeout))
            assert len(frame.fields) == int(count)


def test_dubbo_responses_of_java(dubbo: Program, frames: Frames) -> None:
    for data, (kind, number, status) in dubbo_frames(dubbo, "responses", SEED, 200):
        [frame] = frames.read(DUBBO, [data], response=True).frames
        assert frame.id == int(number)
        assert frame.kind == ("heartbeat-answer" if kind == "heartbeat" else "response")
        assert frame.status == int(status)
        assert frame.succeeded == (kind != "error")
        assert frame.service_failed == (kind == "exception")


def test_java_reads_dubbo_frames_of_our_own(dubbo: Program, frames: Frames) -> None:
    heartbeat = frames.heartbeat(DUBBO, {}, 3)
    answer = frames.answer_heartbeat(DUBBO, heartbeat)
    rejection, status = frames.reject(DUBBO, {"serialization": 23}, 2**64 - 1, 1, "no route")
    lines = read_by_java(dubbo, [heartbeat, answer, rejection])
    kinds = [line.split(" ") for line in lines]
    assert kinds[0] == ["heartbeat", "3", "true", "0"]
    assert kinds[1][:3] == ["heartbeat-answer", "3", "20"]
    assert kinds[2][:3] == ["response", str(2**64 - 1), str(status)]
    assert decoded(kinds[2][3]) == "no route"


def test_split_frames_of_java(dubbo: Program, sofa: Program, frames: Frames) -> None:
    """One byte at a time, and at once."""
    chance = random.Random(SEED)
    cases: list[tuple[str, list[Any]]] = [
        (BOLT, bolt_frames(sofa, SEED + 3, 40)),
        (DUBBO, dubbo_frames(dubbo, "requests", SEED + 2, 40)),
    ]
    for codec, sent in cases:
        data = b"".join(frame for frame, _ in sent if len(frame) < 1000)
        whole = frames.read(codec, [data], response=True)
        assert not whole.error
        assert len(whole.frames) > 10
        single = [data[i : i + 1] for i in range(len(data))]
        assert frames.read(codec, single, response=True) == whole
        cuts = sorted(chance.sample(range(1, len(data)), 100))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert frames.read(codec, pieces, response=True) == whole
