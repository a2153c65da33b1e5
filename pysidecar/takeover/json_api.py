"""HTTP interfaces to which applications of this host send JSON, and that always answer with it."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from pysidecar.address import Address
from pysidecar.takeover.bodies import BodyError
from pysidecar.takeover.table import TableError
from pysidecar.web.gate import Gate, Limits, current_connection
from pysidecar.web.peer import uid_of
from pysidecar.web.server import GatedServer, is_for_us

__all__ = ["Answer", "Handler", "JsonApi", "Settled", "Stranger"]

log = logging.getLogger(__name__)

MAX_BODY = 65536

LIMITS = Limits(
    connections=256,
    of_a_peer=96,
    # More than a body may have: one that is too long is answered, and not just cut off.
    request_bytes=16 * MAX_BODY,
    request_timeout=10.0,
    answer_timeout=30.0,
    idle_timeout=120.0,
)

Answer = dict[str, Any]
Handler = Callable[[Any, int], Awaitable[Answer]]
"""Gets what the JSON says, and the uid of who sent it. Raises BodyError or TableError."""


Settled = Callable[[], Awaitable[None]]
"""Returns when requests go as the table is now: applications call as soon as they have an
answer."""


class Stranger(Exception):
    """Why a request is none of an application of this host."""


class JsonApi:
    """Answers to POST requests by their path. ``failed`` makes the answer that says what went
    wrong. An answer is sent when ``settled`` has returned."""

    def __init__(
        self,
        listener: socket.socket,
        name: str,
        handlers: Mapping[str, Handler],
        failed: Callable[[str], Answer],
        settled: Settled | None = None,
    ) -> None:
        self.address = Address(*listener.getsockname()[:2])
        self.gate = Gate(listener, name, LIMITS)
        self._handlers = handlers
        self._failed = failed
        self._settled = settled
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._server = GatedServer(application, self.gate)

    async def start(self) -> None:
        """Answers from here on."""
        await self._server.start()

    async def stop(self) -> None:
        """Ends at once, also when a client is slow."""
        await self._server.stop()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request)
        connection = current_connection()
        connection.begin_answer()
        status = 200
        try:
            answer = await self._answer(request, body, _user(request, self.address.port))
        except Stranger as error:
            status, answer = 403, self._refuse(str(error))
        except (BodyError, TableError) as error:
            answer = self._refuse(str(error))
        except Exception:
            log.exception("%s: no answer to %s", self.gate.name, request.path)
            answer = self._failed("an error of the sidecar: its log has more")
        response = web.json_response(answer, status=status)
        if status != 200 or body is None:
            response.force_close()
        await response.prepare(request)
        await response.write_eof()
        if response.keep_alive:
            connection.end_answer()
        return response

    async def _answer(self, request: web.Request, body: bytes | None, uid: int) -> Answer:
        handler = self._handlers.get(request.path)
        if handler is None or request.method != "POST":
            raise BodyError(f"expected POST to one of {', '.join(self._handlers)}")
        if body is None:
            raise BodyError(f"expected a body of at most {MAX_BODY} bytes")
        answer = await handler(_parse(body), uid)
        if self._settled is not None:
            await self._settled()
        return answer

    def _refuse(self, reason: str) -> Answer:
        self.gate.complain(f"refused: {reason}")
        return self._failed(reason)


def _user(request: web.Request, port: int) -> int:
    """Who sent it. Raises Stranger."""
    if "Origin" in request.headers:
        raise Stranger("expected no Origin: this is not for web pages")
    if len(request.headers.getall("Host", [])) != 1 or not is_for_us(request, port):
        raise Stranger(f"Host: expected localhost:{port} or a loopback address with that port")
    uid = uid_of(current_connection().peer)
    if uid is None:
        raise Stranger("expected a user of this host")
    return uid


async def _read(request: web.Request) -> bytes | None:
    """The body; None where it is too long."""
    body = bytearray()
    try:
        async for piece in request.content.iter_any():
            if len(body) <= MAX_BODY:
                body += piece
    except web.RequestPayloadError:
        raise web.HTTPBadRequest(text="the body is not as its headers say\n") from None
    return bytes(body) if len(body) <= MAX_BODY else None


def _parse(body: bytes) -> Any:
    """Raises BodyError."""
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except RecursionError:
        raise BodyError("expected JSON that is less deep") from None
    except UnicodeDecodeError as error:
        raise BodyError(f"expected JSON in UTF-8; byte {error.start} is not") from None
    except json.JSONDecodeError as error:
        raise BodyError(
            f"expected JSON, which ends at character {error.pos}: {error.msg}"
        ) from None
    except ValueError as error:  # such as a number with thousands of digits
        raise BodyError(f"expected JSON: {error}") from None


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")
