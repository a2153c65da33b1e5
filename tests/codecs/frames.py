"""Our codecs of frames, in terms that tests can compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BOLT, DUBBO = "codec_bolt", "codec_dubbo"
KINDS = ("request", "oneway", "heartbeat", "response", "interim", "heartbeat-answer")
ROOM = 1 << 16  # more than a frame may become longer, and than those of our own are


@dataclass(frozen=True)
class Frame:
    """What a message says, and the bytes that it is."""

    kind: str
    id: int
    frame: bytes
    service: str = ""
    version: str = ""
    group: str = ""
    method: str = ""
    timeout_ms: int = 0
    status: int = 0
    succeeded: bool = False
    service_failed: bool = False
    last: bool = False
    facts: dict[str, int] = field(default_factory=dict)
    fields: tuple[tuple[str, str], ...] = ()


@dataclass
class Reading:
    """What a connection brought; ``error`` is empty if it may go on."""

    frames: list[Frame] = field(default_factory=list)
    error: str = ""
    rest: bytes = b""


class Frames:
    """The codecs by cffi."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi, self._lib = ffi, lib
        self._limits = ffi.new("struct limits *", {"frame_bytes": 1 << 24})

    # ---- reading ----

    def read(self, codec: str, pieces: Sequence[bytes], *, response: bool = False) -> Reading:
        """What a connection brings, of which the pieces come one by one."""
        decoder = self._ffi.new("struct decoder *", {"limits": self._limits, "response": response})
        message = self._ffi.new("struct message *")
        consumed = self._ffi.new("size_t *")
        reading = Reading()
        for piece in pieces:
            reading.rest += piece
            event = self._lib.CODEC_HEAD
            while event == self._lib.CODEC_HEAD:
                data = self._ffi.from_buffer("uint8_t[]", reading.rest)
                event = getattr(self._lib, codec).decode(
                    decoder, data, len(reading.rest), consumed, message
                )
                if event == self._lib.CODEC_HEAD:
                    reading.frames.append(self._frame(message))
                if event == self._lib.CODEC_ERROR:
                    reading.error = self._ffi.string(message.problem).decode()
                    return reading
                reading.rest = reading.rest[consumed[0] :]
        return reading

    def _text(self, text: Any) -> str:
        # Java's halves of surrogate pairs too.
        if not text.size:
            return ""
        return decode(bytes(self._ffi.buffer(text.at, text.size)))

    def _frame(self, message: Any) -> Frame:
        return Frame(
            kind=KINDS[message.kind],
            id=message.id,
            frame=bytes(self._ffi.buffer(message.frame.at, message.frame.size)),
            service=self._text(message.service),
            version=self._text(message.version),
            group=self._text(message.group),
            method=self._text(message.method),
            timeout_ms=message.timeout_ms,
            status=message.status,
            succeeded=message.succeeded,
            service_failed=message.service_failed,
            last=message.last,
            facts={
                name: getattr(message.facts, name)
                for name in ("heartbeat", "version", "serialization", "options")
            },
            fields=tuple(
                (self._text(each.name), self._text(each.value))
                for each in message.fields[0 : message.field_count]
            ),
        )

    # ---- writing ----

    def pass_on(
        self,
        codec: str,
        frame: bytes,
        number: int,
        *,
        response: bool = False,
        facts: dict[str, int] | None = None,
        set_headers: Sequence[tuple[str, str]] = (),
        remove_headers: Sequence[str] = (),
    ) -> bytes:
        """A frame as it is passed on; ``facts`` are of the request that it answers."""
        new = self._ffi.new
        kept = [new("char[]", text.encode()) for pair in set_headers for text in pair]
        kept += [new("char[]", text.encode()) for text in remove_headers]
        texts = [{"at": each, "size": len(each) - 1} for each in kept]
        fields = new(
            "struct field[]",
            [{"name": texts[2 * i], "value": texts[2 * i + 1]} for i in range(len(set_headers))],
        )
        removed = new("struct text[]", texts[2 * len(set_headers) :])
        rewrite = new(
            "struct rewrite *",
            {
                "set": fields,
                "set_count": len(set_headers),
                "remove": removed,
                "remove_count": len(remove_headers),
            },
        )
        adjustment = new(
            "struct adjustment *", {"id": number, "rewrite": rewrite, "facts": facts or {}}
        )
        decoder = new("struct decoder *", {"limits": self._limits, "response": response})
        message, consumed = new("struct message *"), new("size_t *")
        encoder, size = new("struct encoder *"), len(frame) + ROOM
        room = new("uint8_t[]", size)
        data = self._ffi.from_buffer("uint8_t[]", frame)
        functions = getattr(self._lib, codec)
        event = functions.decode(decoder, data, len(frame), consumed, message)
        assert event == self._lib.CODEC_HEAD
        size = functions.encode(encoder, message, adjustment, room, size)
        return bytes(self._ffi.buffer(room, size))

    def reject(
        self, codec: str, facts: dict[str, int], number: int, flag: int, reason: str = ""
    ) -> tuple[bytes, int]:
        """An answer of our own, and the status in it."""
        text = self._ffi.new("char[]", reason.encode())
        status = self._ffi.new("uint32_t *")
        rejection = self._ffi.new(
            "struct rejection *",
            {"flag": flag, "status": status, "reason": {"at": text, "size": len(text) - 1}},
        )
        room = self._ffi.new("uint8_t[]", ROOM)
        size = getattr(self._lib, codec).reject(
            self._ffi.new("struct facts *", facts), number, rejection, room, ROOM
        )
        return bytes(self._ffi.buffer(room, size)), status[0]

    def heartbeat(self, codec: str, facts: dict[str, int], number: int) -> bytes:
        """One of our own."""
        room = self._ffi.new("uint8_t[]", ROOM)
        size = getattr(self._lib, codec).heartbeat(
            self._ffi.new("struct facts *", facts), number, room, ROOM
        )
        return bytes(self._ffi.buffer(room, size))

    def answer_heartbeat(self, codec: str, frame: bytes) -> bytes:
        """What we answer to one."""
        decoder = self._ffi.new("struct decoder *", {"limits": self._limits})
        message, consumed = self._ffi.new("struct message *"), self._ffi.new("size_t *")
        data = self._ffi.from_buffer("uint8_t[]", frame)
        functions = getattr(self._lib, codec)
        event = functions.decode(decoder, data, len(frame), consumed, message)
        assert event == self._lib.CODEC_HEAD
        room = self._ffi.new("uint8_t[]", ROOM)
        size = functions.answer_heartbeat(message, room, ROOM)
        return bytes(self._ffi.buffer(room, size))

    # ---- Hessian ----

    def skip(self, stream: bytes, count: int = 1) -> list[int]:
        """Where each of the first values ends; it stops at what is none."""
        hessian = self._ffi.new("struct hessian *")
        data = self._ffi.from_buffer("uint8_t[]", stream)
        self._lib.hessian_begin(hessian, data, len(stream))
        ends: list[int] = []
        while len(ends) < count and self._lib.hessian_skip(hessian):
            ends.append(hessian.at - data)
        return ends


def decode(text: bytes) -> str:
    """UTF-8, in which Java writes each half of a surrogate pair by itself."""
    return (
        text.decode("utf-8", "surrogatepass")
        .encode("utf-16-le", "surrogatepass")
        .decode("utf-16-le", "replace")
    )
