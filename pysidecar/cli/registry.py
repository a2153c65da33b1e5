"""``pysidecar registry --list``: what the embedded registry says, for people."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any, BinaryIO

from pysidecar.address import Address
from pysidecar.cli.admin import AdminError
from pysidecar.cli.formats import format_age
from pysidecar.cli.views import Entries, Row, View, print_entries
from pysidecar.registry.embedded import wire
from pysidecar.text import printable

__all__ = ["list_registry"]

_TIMEOUT = 10.0  # seconds for each answer


def list_registry(address: Address, *, as_json: bool) -> None:
    """Prints it. Raises AdminError."""
    try:
        with socket.create_connection((address.host, address.port), timeout=_TIMEOUT) as asking:
            entries = list(_entries(asking))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdminError(
            f"no registry answers at {address} ({printable(str(error))}); is one running? "
            "pysidecar registry starts one"
        ) from None
    print_entries(_VIEW, entries, as_json=as_json)


def _entries(asking: socket.socket) -> Iterator[dict[str, Any]]:
    """A service each. Raises OSError, and ValueError and more for what is not of a registry."""
    with asking.makefile("rb") as answers:
        asking.sendall(_request(1, "hello", registry=wire.VERSION, timeout=_TIMEOUT))
        _answer(answers)
        asking.sendall(_request(2, "list"))
        while "listed" in (message := _answer(answers)):
            yield {"service": message["listed"], "instances": message["held"]}
        with contextlib.suppress(OSError):
            asking.sendall(_request(3, "end"))


def _request(number: int, do: str, **parameters: Any) -> bytes:
    return json.dumps({"id": number, "do": do, **parameters}).encode() + b"\n"


def _answer(answers: BinaryIO) -> dict[str, Any]:
    line = answers.readline(wire.MOST_BYTES_OF_ANSWER)
    if not line.endswith(b"\n"):
        raise ValueError("it is not one, or closed the connection")
    message = wire.read_line(line)
    if "closing" in message or message.get("ok") is False:
        raise ValueError(str(message.get("closing") or message.get("error")))
    return message


def _rows(entries: Entries) -> Iterator[Row]:
    for entry in entries:
        service = wire.read_service(entry["service"])
        for held in entry["instances"]:
            instance = wire.read_instance(held["instance"])
            yield (
                [
                    str(service),
                    service.protocol,
                    str(instance.address),
                    str(instance.weight),
                    instance.zone or "-",
                    str(held["owner"]),
                    format_age(float(held["lease"])),
                    " ".join(f"{key}={value}" for key, value in instance.metadata) or "-",
                ],
                "",
            )


def _title(entries: Entries) -> str:
    return f"{len(entries)} services"


_VIEW = View(
    path="",
    columns=("service", "protocol", "address", "weight", "zone", "owner", "lease", "metadata"),
    numbers=("weight", "lease"),
    title=_title,
    rows=_rows,
)
"""A row for each instance."""
