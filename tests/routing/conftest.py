"""``shim.c`` with the sources that it is about, compiled with assertions."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cffi import FFI

from pysidecar.config import Config, parse
from pysidecar.dataplane import PackedServices, Protocol, Scope
from pysidecar.dataplane import ffi as native
from pysidecar.routing.found import NOTHING_FOUND, FoundServices
from pysidecar.routing.services import ServiceNumbers, pack_services

ROOT = Path(__file__).resolve().parents[2]
DATA_PLANE = ROOT / "pysidecar" / "dataplane"
SHIM = Path(__file__).with_name("shim.c")
FLAGS = "-std=gnu11 -D_GNU_SOURCE -O1 -g -Wall -Wextra -Werror -fPIC -shared -UNDEBUG".split()
PARTS = {
    "base": ("map", "places", "ring", "slab", "trace"),
    "upstream": ("cluster", "endpoint", "latency", "maglev", "service", "shared", "weighing"),
    "l7": ("rulebook", "router"),
}
NO_RULE = 0xFFFFFFFF


def _declarations() -> str:
    text = SHIM.read_text()
    structures = re.findall(r"^struct shim_\w+ \{.*?^\};", text, re.DOTALL | re.MULTILINE)
    functions = re.findall(r"^(?!static)(\w[^;{}]*?\bshim_\w+\([^{}]*?\))\n\{", text, re.MULTILINE)
    return "\n".join(["struct shim;", *structures, *(f"{each};" for each in functions)])


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """cffi's ``ffi`` and ``lib``."""
    library = tmp_path_factory.mktemp("routing") / "shim.so"
    sources = [
        SHIM,
        *(DATA_PLANE / folder / f"{part}.c" for folder, parts in PARTS.items() for part in parts),
    ]
    sanitize = (
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        if "libasan" in os.environ.get("LD_PRELOAD", "")
        else []
    )
    include = [f"-I{ROOT / 'hook'}", f"-I{DATA_PLANE}"]
    subprocess.run(
        ["gcc", *FLAGS, *sanitize, *include, *map(str, sources), "-o", str(library)], check=True
    )
    ffi = FFI()
    ffi.cdef(_declarations())
    return ffi, ffi.dlopen(str(library))


@dataclass(frozen=True)
class Request:
    """What a codec would have read of one."""

    protocol: Protocol = Protocol.HTTP
    service: str = ""
    group: str = ""
    version: str = ""
    method: str = ""
    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class Routed(NamedTuple):
    """Where it goes. ``rule`` is None where none matches, ``path`` where it is left alone."""

    rule: int | None
    service: int | None
    timeout_ms: int
    hash: int
    path: str | None
    host: str


@dataclass
class Router:
    """A worker's."""

    ffi: Any
    lib: Any
    numbers: ServiceNumbers = field(default_factory=ServiceNumbers)
    config: Config = field(default_factory=Config)

    def __post_init__(self) -> None:
        self._raw = self.lib.shim_open()

    def load(self, text: str) -> None:
        """A configuration takes effect."""
        self.use(parse(text))

    def use(self, config: Config, found: FoundServices = NOTHING_FOUND) -> None:
        self.config = config
        self.set(pack_services(config, self.numbers, found=found))

    def set(self, packed: PackedServices) -> None:
        services, kept = packed.to_native()
        assert self.lib.shim_set(self._raw, int(native.cast("uintptr_t", services)))
        del kept

    def route(self, request: Request, scope: Scope = Scope.OUTBOUND) -> Routed:
        texts = {
            name: self.ffi.new("char[]", getattr(request, name).encode())
            for name in ("service", "group", "version", "method", "path")
        }
        headers = [
            tuple(self.ffi.new("char[]", part.encode()) for part in each)
            for each in request.headers
        ]
        raw = self.ffi.new(
            "struct shim_request *",
            {
                **texts,
                "names": [name for name, _ in headers],
                "values": [value for _, value in headers],
                "header_count": len(headers),
            },
        )
        result = self.ffi.new("struct shim_routed *")
        self.lib.shim_route(self._raw, scope, request.protocol, raw, result)
        return Routed(
            None if result.rule == NO_RULE else int(result.rule),
            None if result.service < 0 else int(result.service),
            int(result.timeout_ms),
            int(result.hash),
            self.ffi.string(result.path).decode() if result.rewritten else None,
            self.ffi.string(result.host).decode(),
        )

    def entrance(self, listener: int) -> tuple[Protocol, int | None, Scope]:
        protocol, scope = self.ffi.new("uint32_t *"), self.ffi.new("uint32_t *")
        service = self.ffi.new("int64_t *")
        self.lib.shim_entrance(self._raw, listener, protocol, scope, service)
        number = None if service[0] < 0 else int(service[0])
        return Protocol(protocol[0]), number, Scope(scope[0])

    @property
    def generation(self) -> int:
        return int(self.lib.shim_generation(self._raw))

    def close(self) -> None:
        self.lib.shim_close(self._raw)


@pytest.fixture
def router(shim: tuple[Any, Any]) -> Iterator[Router]:
    router = Router(*shim)
    yield router
    router.close()


def numbers_of(router: Router) -> Mapping[str, int]:
    """Of the services in its configuration."""
    return {
        name: router.numbers.of(name, service.protocol)
        for name, service in router.config.services.items()
    }
