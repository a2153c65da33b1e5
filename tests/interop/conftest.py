"""Real servers, one set for the whole run, and a sidecar for each transport in front of them."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysidecar.testing import Sidecar
from tests.interop import servers
from tests.interop.clients import PROGRAMS, Compiled
from tests.interop.mesh import Mesh, routes
from tests.interop.servers import Nginx

# Kept between runs: with cgo, Go compiles its own library first, which takes its time.
_GO_CACHE = Path(__file__).parents[2] / "build" / "go-cache"


@pytest.fixture(scope="session", autouse=True)
def plain_surroundings() -> Iterator[None]:
    """No proxy of the user's between the programs and us, and their messages in English."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        patch.setenv("LC_ALL", "C.UTF-8")
        yield


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compiles a program of ``programs/`` on its first use: ``compiled("client")`` is the C program
    with glibc, ``"client-musl"`` with musl, ``"client.go"`` and ``"Client.java"`` (the directory of
    its classes) are what they look like."""
    directory = tmp_path_factory.mktemp("compiled")

    @functools.cache
    def compile_once(name: str) -> Path:
        output = directory / name
        command: list[str | Path]
        environment = servers.plain_environment()
        if name.endswith(".go"):
            command = [servers.program("go"), "build", "-o", output, PROGRAMS / name]
            # Its own standard library is all it needs: no module, no download.
            environment |= {
                "CGO_ENABLED": "1",
                "GO111MODULE": "off",
                "GOFLAGS": "",
                "GOTOOLCHAIN": "local",
                "GOCACHE": str(_GO_CACHE),
            }
        elif name.endswith(".java"):
            command = [servers.program("javac"), "-Xlint:all", "-Werror", "-d", output]
            command += [PROGRAMS / name]
        else:
            source, _, libc = name.partition("-")
            compiler = servers.program("musl-gcc" if libc == "musl" else "gcc")
            command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-pthread"]
            command += ["-o", output, PROGRAMS / f"{source}.c"]
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=directory
        )
        assert result.returncode == 0, result.stderr
        return output

    return compile_once


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    directory = tmp_path_factory.mktemp("nginx")
    with servers.nginx(directory) as nginx, servers.git_backend(nginx, directory):
        yield nginx


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with servers.redis(tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture(scope="session")
def postgres_port() -> Iterator[int]:
    with servers.postgres() as port:
        yield port


@pytest.fixture(scope="session")
def refusing_port() -> Iterator[int]:
    with servers.closed_port() as port:
        yield port


@pytest.fixture(scope="session")
def echo_port(tmp_path_factory: pytest.TempPathFactory, compiled: Compiled) -> Iterator[int]:
    log = tmp_path_factory.mktemp("echo") / "log"
    with servers.echo(compiled("load"), ["127.0.0.1"], log) as port:
        yield port


@pytest.fixture(scope="session", params=["unix", "header"])
def transport(request: pytest.FixtureRequest) -> str:
    """How the hook tells the original destination."""
    return str(request.param)


@pytest.fixture(scope="session")
def mesh(
    transport: str,
    web: Nginx,
    redis_port: int,
    postgres_port: int,
    refusing_port: int,
    echo_port: int,
) -> Iterator[Mesh]:
    """A sidecar that all tests of a transport share, in front of all servers."""
    ports = {80: web.http, 8080: web.h2c, 443: web.tls, 6379: redis_port, 5432: postgres_port}
    table = routes(ports, refusing=refusing_port, echo=echo_port)
    with Sidecar({"outbound": {"transport": transport, "routes": table}}) as sidecar:
        yield Mesh(sidecar, transport)
