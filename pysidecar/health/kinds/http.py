"""``http``: a GET in HTTP/1.1, which is to be answered with 200 to 299."""

from __future__ import annotations

import re

from typing_extensions import override

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.health.kinds.conversation import MOST_BYTES, Conversation, Verdict

__all__ = ["HttpGet"]

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\n(?:connection:[^\r]*close|transfer-encoding:)", re.IGNORECASE)
_WITHOUT_BODY = (204, 304)


class HttpGet(Conversation):
    """One answer after the other. A body without a length ends the connection: nobody reads it."""

    def __init__(self, settings: HealthCheck, address: Address) -> None:
        host = settings.host or str(address)
        self._request = (
            f"GET {settings.path} HTTP/1.1\r\nHost: {host}\r\n"
            "User-Agent: pysidecar-health-check\r\nAccept: */*\r\n\r\n"
        ).encode()
        self._heard = b""

    @override
    def ask(self) -> bytes:
        self._heard = b""
        return self._request

    @override
    def hear(self, data: bytes) -> Verdict | None:
        self._heard += data
        while (end := self._heard.find(b"\r\n\r\n")) >= 0:
            head, body = self._heard[: end + 2], self._heard[end + 4 :]
            found = _STATUS.match(head)
            if found is None:
                raise ValueError("its answer is not HTTP/1.1")
            status = int(found[2])
            if status >= 200:
                return self._judge(status, head, body, old=found[1] == b"0")
            self._heard = body
        if len(self._heard) > MOST_BYTES:
            raise ValueError("the head of its answer is too long")
        return None

    def _judge(self, status: int, head: bytes, body: bytes, *, old: bool) -> Verdict | None:
        problem = None if 200 <= status <= 299 else f"its answer is {status}"
        if old or _CLOSES.search(head):
            return Verdict(problem, keep=False)
        length = _LENGTH.search(head)
        size = 0 if status in _WITHOUT_BODY else int(length[1]) if length else -1
        if size < 0 or size > MOST_BYTES or len(body) > size:
            return Verdict(problem, keep=False)
        return Verdict(problem, keep=True) if len(body) == size else None
