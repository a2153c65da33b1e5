"""What gRPC says in fields: deadlines, statuses, paths."""

from __future__ import annotations

from typing import Any

import pytest

Codecs = tuple[Any, Any]


def text(ffi: Any, value: bytes) -> Any:
    """A struct text of what the caller keeps."""
    made = ffi.new("struct text *")
    made.at, made.size = ffi.from_buffer(value), len(value)
    return made[0]


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (b"1S", 1000),
        (b"50m", 50),
        (b"1n", 1),
        (b"1500u", 2),
        (b"0m", 1),
        (b"2H", 7_200_000),
        (b"99999999H", 2**31 - 1),
        (b"", 0),
        (b"S", 0),
        (b"1x", 0),
        (b"-1S", 0),
        (b"123456789S", 0),
    ],
)
def test_a_deadline_is_read(codecs: Codecs, value: bytes, ms: int) -> None:
    ffi, lib = codecs
    assert lib.grpc_timeout_ms(text(ffi, value)) == ms


@pytest.mark.parametrize(
    ("value", "status"), [(b"0", 0), (b"14", 14), (b"16", 16), (b"17", 2), (b"", 2), (b"a", 2)]
)
def test_a_status_is_read(codecs: Codecs, value: bytes, status: int) -> None:
    ffi, lib = codecs
    assert lib.grpc_status_of(text(ffi, value)) == status


@pytest.mark.parametrize(
    ("value", "is_grpc"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;x=y", True),
        (b"application/grpc-web", False),
        (b"application/json", False),
    ],
)
def test_the_type_tells_grpc(codecs: Codecs, value: bytes, is_grpc: bool) -> None:
    ffi, lib = codecs
    assert lib.grpc_is_type(text(ffi, value)) == is_grpc


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        (b"/a.B/C", (b"a.B", b"C")),
        (b"/x/a.B/C", (b"x/a.B", b"C")),
        (b"/a", None),
        (b"//C", None),
        (b"/a/", None),
    ],
)
def test_a_path_is_a_service_and_a_method(
    codecs: Codecs, path: bytes, parts: tuple[bytes, bytes] | None
) -> None:
    ffi, lib = codecs
    service, method = ffi.new("struct text *"), ffi.new("struct text *")
    assert lib.grpc_split_path(text(ffi, path), service, method) == (parts is not None)
    if parts:
        found = tuple(ffi.buffer(each.at, each.size)[:] for each in (service, method))
        assert found == parts
