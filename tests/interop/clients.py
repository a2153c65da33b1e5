"""Clients of HTTP, each in the ways its language goes to the network, under one interface."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from tests.interop.servers import program

__all__ = ["HTTP_CLIENTS", "PROGRAMS", "Client", "Compiled"]

PROGRAMS = Path(__file__).with_name("programs")
_NODE = Path(__file__).with_name("node")

Compiled = Callable[[str], Path]
"""Gives the compiled form of a program in ``programs/``, by its name; see the fixture."""


@dataclass(frozen=True, slots=True)
class Client:
    """A program that fetches ``/whoami`` and prints what it gets."""

    command: Callable[[Compiled, str, int], list[str | Path]]
    process: str
    """The name that the sidecar has to see."""
    refused: str
    """What it prints about a connection that is refused."""
    names_peer: bool = False
    """Whether it prints ``peer HOST PORT`` first."""
    protocol: str = "HTTP/1.1"

    def check_output(self, output: str, host: str, port: int) -> None:
        """Fails unless the client reached `host`:`port`, by its own account and the server's."""
        literal = f"[{host}]" if ":" in host else host
        *before, said = output.splitlines()
        # Those that speak HTTP themselves, over a mere socket, call their host "interop".
        hosts = ("interop",) if self.names_peer else (host, literal)
        assert said in {f"nginx {self.protocol} host={name}" for name in hosts}
        if self.names_peer:
            word, peer_host, peer_port = before[-1].split()
            assert (word, int(peer_port)) == ("peer", port)
            assert ip_address(peer_host) == ip_address(host)


def _url(host: str, port: int) -> str:
    literal = f"[{host}]" if ":" in host else host
    return f"http://{literal}:{port}/whoami"


def _curl(*options: str) -> Callable[[Compiled, str, int], list[str | Path]]:
    def command(_: Compiled, host: str, port: int) -> list[str | Path]:
        return [program("curl"), "-sS", "--globoff", "--fail", *options, _url(host, port)]

    return command


def _wget(_: Compiled, host: str, port: int) -> list[str | Path]:
    return [program("wget"), "-nv", "-O", "-", "--tries=1", "--timeout=20", _url(host, port)]


def _c(name: str, way: str) -> Client:
    return Client(
        lambda compiled, host, port: [compiled(name), way, host, str(port)],
        process=name,
        refused="connect: Connection refused",
        names_peer=True,
        protocol="HTTP/1.0",
    )


def _script(
    interpreter: str,
    script: Path,
    way: str,
    refused: str,
    *,
    names_peer: bool = False,
    protocol: str = "HTTP/1.1",
) -> Client:
    path = sys.executable if interpreter == "python" else program(interpreter)
    return Client(
        lambda _, host, port: [path, script, way, host, str(port)],
        process=Path(path).name,
        refused=refused,
        names_peer=names_peer,
        protocol=protocol,
    )


def _python(way: str) -> Client:
    refused = "ConnectionRefusedError [Errno 111]"
    return _script(
        "python", PROGRAMS / "client.py", way, refused, names_peer=True, protocol="HTTP/1.0"
    )


def _java(way: str, refused: str, *, names_peer: bool = False) -> Client:
    return Client(
        lambda compiled, host, port: [
            *(program("java"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"),
            *("-cp", compiled("Client.java"), "Client", way, host, str(port)),
        ],
        process="java",
        refused=f"java.net.ConnectException{refused}",
        names_peer=names_peer,
        protocol="HTTP/1.0" if names_peer else "HTTP/1.1",
    )


_node = _NODE / "client.mjs"
_perl = PROGRAMS / "client.pl"

HTTP_CLIENTS: dict[str, Client] = {
    "curl": Client(_curl("--verbose"), process="curl", refused="Connection refused"),
    "curl-fastopen": Client(
        _curl("--verbose", "--tcp-fastopen"), process="curl", refused="Connection refused"
    ),
    "curl-bound": Client(
        _curl("--verbose", "--local-port", "19000-19999"),
        process="curl",
        refused="Connection refused",
    ),
    "wget": Client(_wget, process="wget", refused="Connection refused"),
    "c-glibc-blocking": _c("client", "blocking"),
    "c-glibc-polling": _c("client", "polling"),
    "c-musl-blocking": _c("client-musl", "blocking"),
    "c-musl-polling": _c("client-musl", "polling"),
    "python-blocking": _python("blocking"),
    "python-timeout": _python("timeout"),
    "python-asyncio": _python("asyncio"),
    "python-uvloop": _python("uvloop"),
    "python-requests": _script("python", PROGRAMS / "client.py", "requests", "Connection refused"),
    "node-net": _script("node", _node, "net", "ECONNREFUSED", names_peer=True, protocol="HTTP/1.0"),
    "node-http": _script("node", _node, "http", "ECONNREFUSED"),
    "node-fetch": _script("node", _node, "fetch", "ECONNREFUSED"),
    "node-undici": _script("node", _node, "undici", "ECONNREFUSED"),
    "java-socket": _java("socket", ": Connection refused", names_peer=True),
    "java-urlconnection": _java("urlconnection", ": Connection refused"),
    "java-nio": _java("nio", ": Connection refused", names_peer=True),
    "java-httpclient": _java("httpclient", ""),
    "perl-socket": _script(
        "perl", _perl, "socket", "Connection refused", names_peer=True, protocol="HTTP/1.0"
    ),
    "perl-tiny": _script("perl", _perl, "tiny", "Connection refused"),
}
