"""``bolt``: a heartbeat of SOFABolt's version 1, as ``docs/requests.md`` names its sources."""

from __future__ import annotations

import itertools
import struct

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.health.kinds.conversation import MOST_BYTES, Conversation, Verdict

__all__ = ["BoltHeartbeat"]

# Protocol, type, command, its version, id, codec; of a request its timeout, of an answer its
# status; lengths of class name, header and content.
_REQUEST = struct.Struct(">BBHBIBiHHI")
_ANSWER = struct.Struct(">BBHBIBHHHI")
_VERSION, _HESSIAN = 1, 1
_IS_ANSWER, _IS_REQUEST = 0, 1
_HEARTBEAT = 0
_SUCCESS = 0


class BoltHeartbeat(Conversation):
    """One heartbeat after the other."""

    def __init__(self, settings: HealthCheck, address: Address) -> None:
        del address
        self._timeout_ms = round(settings.timeout * 1000)
        self._ids = itertools.cycle(range(1, 1 << 31))
        self._id = 0
        self._heard = b""

    @override
    def ask(self) -> bytes:
        self._id = next(self._ids)
        return _REQUEST.pack(
            *(_VERSION, _IS_REQUEST, _HEARTBEAT, 1, self._id, _HESSIAN),
            *(self._timeout_ms, 0, 0, 0),
        )

    @override
    def hear(self, data: bytes) -> Verdict | None:
        self._heard += data
        if len(self._heard) < _ANSWER.size:
            return None
        version, kind, command, _, number, _, status, *lengths = _ANSWER.unpack_from(self._heard)
        if version != _VERSION or kind != _IS_ANSWER:
            raise ValueError("its answer is not Bolt's version 1")
        size = _ANSWER.size + sum(lengths)
        if size > MOST_BYTES:
            raise ValueError("its answer is too long")
        if len(self._heard) < size:
            return None
        self._heard = self._heard[size:]
        if command != _HEARTBEAT or number != self._id:
            raise ValueError("its answer is not that of a heartbeat")
        return Verdict(None if status == _SUCCESS else f"its status is {status}", keep=True)
