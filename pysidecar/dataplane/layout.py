"""Reads C structs by ``struct``: one by one through cffi, that takes longer than relaying."""

from __future__ import annotations

from typing import Any

from pysidecar.dataplane._native import ffi

__all__ = ["layout"]

_CODES = {  # of struct
    "uint64_t": "Q",
    "uint32_t": "I",
    "int32_t": "i",
    "uint16_t": "H",
    "uint8_t": "B",
}


def layout(kind: Any, prefix: str = "") -> tuple[str, list[str]]:
    """How ``struct`` reads a C struct of integers and of texts, and the names of what it reads:
    those of the fields, with that of the struct in which they are before them."""
    codes, names, at = "", [], 0
    for name, field in kind.fields:
        codes += "x" * (field.offset - at)
        inner = [f"{prefix}{name}"]
        match field.type.kind:
            case "struct":
                code, inner = layout(field.type, f"{prefix}{name}_")
            case "array":
                code = f"{field.type.length}s"
            case _:
                code = _CODES[field.type.cname]
        codes += code
        names += inner
        at = field.offset + ffi.sizeof(field.type)
    return codes + "x" * (ffi.sizeof(kind) - at), names
