"""Asks a running sidecar through its admin interface."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from urllib.parse import urlencode

from pysidecar.address import Address
from pysidecar.text import printable

__all__ = ["AdminAnswer", "AdminError", "Parameters", "ask"]

_TIMEOUT = 5.0  # seconds without a byte
_REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.SERVICE_UNAVAILABLE)

Parameters = Sequence[tuple[str, str]]
"""Of a request."""


class AdminError(Exception):
    """Why the admin interface gives no answer; the text says what to do."""


class AdminAnswer:
    """An answer, of which the head is there. What reads the rest raises AdminError."""

    def __init__(self, address: Address, response: http.client.HTTPResponse) -> None:
        self._address = address
        self._response = response

    @property
    def ok(self) -> bool:
        """Whether it is what was asked for."""
        return self._response.status == HTTPStatus.OK

    def read(self) -> bytes:
        """All of it."""
        with _network_errors(self._address):
            return self._response.read()

    def lines(self) -> Iterator[bytes]:
        """Each as soon as it is there."""
        while True:
            with _network_errors(self._address):
                line = self._response.readline()
            if not line:
                return
            yield line

    def unexpected(self) -> AdminError:
        """Whoever answers is something else."""
        return AdminError(
            f"http://{self._address}/ is not a sidecar's admin interface: it answered "
            f"{self._response.status} {self._response.reason}"
        )


@contextlib.contextmanager
def ask(address: Address, path: str, parameters: Parameters) -> Iterator[AdminAnswer]:
    """The answer, to be read in the context. Raises AdminError where there is none, or it says what
    is wrong with the question."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT)
    with contextlib.closing(connection):
        with _network_errors(address):
            connection.request("GET", f"{path}?{urlencode(parameters)}")
            response = connection.getresponse()
        answer = AdminAnswer(address, response)
        if response.status in _REFUSALS:
            reason = answer.read().decode(errors="replace").strip()
            raise AdminError(f"http://{address}/ refuses: {printable(reason)}")
        yield answer


@contextlib.contextmanager
def _network_errors(address: Address) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise AdminError(
            f"no sidecar answers at http://{address}/ ({error or type(error).__name__}); is one "
            "running? Its log names its admin address, which -c or --admin tell this command"
        ) from None
