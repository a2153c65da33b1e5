"""``dubbo``: a heartbeat of Dubbo's own protocol. A server sends such ones, too."""

from __future__ import annotations

import itertools
import struct

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.health.kinds.conversation import MOST_BYTES, Conversation, Verdict

__all__ = ["DubboHeartbeat"]

_HEAD = struct.Struct(">HBBQI")  # magic, flags, status, id, length of the body
_MAGIC = 0xDABB
_REQUEST, _TWO_WAY, _EVENT, _HESSIAN = 0x80, 0x40, 0x20, 2
_OK = 20
_NULL = b"N"  # of Hessian 2: an event without data is a heartbeat


class DubboHeartbeat(Conversation):
    """One heartbeat after the other."""

    def __init__(self, settings: HealthCheck, address: Address) -> None:
        del settings, address
        self._ids = itertools.count(1)
        self._id = 0
        self._heard = b""
        self._reply = b""

    @override
    def ask(self) -> bytes:
        self._id = next(self._ids)
        flags = _REQUEST | _TWO_WAY | _EVENT | _HESSIAN
        return _HEAD.pack(_MAGIC, flags, 0, self._id, len(_NULL)) + _NULL

    @override
    def hear(self, data: bytes) -> Verdict | None:
        self._heard += data
        while len(self._heard) >= _HEAD.size:
            magic, flags, status, number, length = _HEAD.unpack_from(self._heard)
            if magic != _MAGIC:
                raise ValueError("its answer is not Dubbo's")
            if length > MOST_BYTES:
                raise ValueError("its answer is too long")
            if len(self._heard) < _HEAD.size + length:
                return None
            self._heard = self._heard[_HEAD.size + length :]
            if flags & _REQUEST:
                self._answer(flags, number)
            elif number == self._id and flags & _EVENT:
                problem = None if status == _OK else f"its status is {status}"
                return Verdict(problem, keep=True)
        return None

    def _answer(self, flags: int, number: int) -> None:
        if flags & _EVENT and flags & _TWO_WAY and len(self._reply) < MOST_BYTES:
            self._reply += _HEAD.pack(_MAGIC, _EVENT | _HESSIAN, _OK, number, len(_NULL)) + _NULL

    @override
    def take_reply(self) -> bytes:
        reply, self._reply = self._reply, b""
        return reply
