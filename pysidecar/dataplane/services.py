"""The table of services in the data plane's own form: see ``struct dp_services``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pysidecar.dataplane._native import ffi

__all__ = ["PackedServices"]

_KINDS = {
    "services": "struct dp_service[]",
    "endpoints": "struct dp_endpoint[]",
    "rules": "struct dp_rule[]",
    "predicates": "struct dp_predicate[]",
    "targets": "struct dp_target[]",
    "headers": "struct dp_header[]",
    "entrances": "struct dp_entrance[]",
    "resiliences": "struct dp_resilience[]",
    "handlings": "struct dp_handling[]",
    "texts": "struct dp_text[]",
    "characters": "char[]",
}
_COUNTS = {name: f"{name.removesuffix('s')}_count" for name in _KINDS}


@dataclass(frozen=True, slots=True)
class PackedServices:
    """An array for each pointer of ``struct dp_services``, see ``pack_array``. The default is a
    table without anything in it."""

    services: bytes = b""
    endpoints: bytes = b""
    rules: bytes = b""
    predicates: bytes = b""
    targets: bytes = b""
    headers: bytes = b""
    entrances: bytes = b""
    resiliences: bytes = b""
    handlings: bytes = b""
    texts: bytes = bytes(8)  # the empty one
    characters: bytes = b""

    def to_native(self) -> tuple[Any, Any]:
        """The struct, and what has to be kept as long as that."""
        arrays = {
            field.name: ffi.from_buffer(_KINDS[field.name], getattr(self, field.name))
            for field in fields(self)
        }
        counts = {_COUNTS[name]: len(array) for name, array in arrays.items()}
        return ffi.new("struct dp_services *", {**arrays, **counts}), arrays
