"""nginx as a hooked proxy with the smallest of buffers: it goes by what the kernel tells it
(FIONREAD, EPOLLRDHUP) whether there is more to read, and stalls where that is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import socketserver
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pysidecar.testing import Sidecar
from tests.interop.servers import accepts, free_port, nginx_paths, nginx_preamble, program, running
from tests.serving import serving
from tests.waiting import PATIENCE

_ACCELERATED = {"mode": "require", "receive": True, "after_bytes": 1, "after_round_trips": 0}
_WAYS: dict[str, dict[str, Any]] = {
    "unix": {"acceleration": "off"},
    "header": {"acceleration": "off", "outbound": {"transport": "header"}},
    "default": {"acceleration": {"after_bytes": 1}},
    "full": {"acceleration": _ACCELERATED},
    "local": {"acceleration": {**_ACCELERATED, "path": "local"}},
    "full, header": {"acceleration": _ACCELERATED, "outbound": {"transport": "header"}},
}
_STORED = bytes(range(256)) * 1200  # 300 KiB: more than nginx keeps in memory
_LIMITED = _STORED[:24_000]
_LINES = b"1234567890" * 10 + b"F"


class _Web(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        path = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        getattr(self, f"answer_{path.strip('/')}")()

    def _send(self, header: str, *parts: bytes) -> None:
        self.wfile.write(f"HTTP/1.1 {header}\r\nConnection: close\r\n\r\n".encode())
        for part in parts:
            self.wfile.write(part)

    def answer_limited(self) -> None:
        self._send(f"200 OK\r\nContent-Length: {len(_LIMITED)}", _LIMITED)

    def answer_stored(self) -> None:
        self._send(f"200 OK\r\nContent-Length: {len(_STORED)}", _STORED)

    def answer_unsized(self) -> None:
        """A body that ends with the connection."""
        self._send("200 OK", _STORED)

    def answer_short(self) -> None:
        """Ends before it should."""
        self._send("200 OK\r\nContent-Length: 100", b"unfinished")

    def answer_chunked(self) -> None:
        """Ends in the middle of a chunk."""
        self._send("200 OK\r\nTransfer-Encoding: chunked", b"64\r\nunfinished")

    def answer_upgrade(self) -> None:
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: lines\r\nConnection: Upgrade\r\n\r\n"
        )
        self.wfile.write(b"hello\n")  # at once
        while line := self.rfile.readline():
            self.wfile.write(line)
        self.wfile.write(b"bye\n")


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


@dataclass(frozen=True, slots=True)
class _Proxy:
    way: str
    sidecar: Sidecar
    http: int
    streams: Mapping[str, int]
    """Ports of streams, by `tcp_nodelay`."""
    store: Path
    backends: frozenset[str]

    def request(self, path: str, headers: str = "") -> tuple[bytes, bytes]:
        """Header and body of the answer, as far as it came."""
        with self.connect(self.http) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
            header, _, body = _read_all(connection).partition(b"\r\n\r\n")
        return header, body

    def connect(self, port: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def _read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size and (part := connection.recv(size - len(received))):
        received += part
    return received


@contextlib.contextmanager
def _fastcgi(directory: Path) -> Iterator[str]:
    """Answers with a body of 300 KiB, or with part of a header."""
    script = directory / "script"
    (directory / "body").write_bytes(_STORED)
    script.write_text(
        "#!/bin/sh\n"
        "printf 'Content-Type: application/octet-stream\\r\\n\\r\\n'\n"
        f"cat {directory}/body\n"
        "cat\n"  # the request's own
    )
    script.chmod(0o755)
    port = free_port()
    command = [program("fcgiwrap"), "-c", "2", "-s", f"tcp:127.0.0.1:{port}"]
    with running(command, log=directory / "fcgiwrap.log", ready=lambda: accepts(port)):
        yield f"127.0.0.1:{port}"


def _configuration(directory: Path, http: int, streams: Mapping[str, int], to: list[str]) -> str:
    web, echo, fastcgi = to
    small = "proxy_buffer_size 1k; proxy_buffers 4 1k; proxy_busy_buffers_size 1k;"
    return (
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;"
        + nginx_preamble(directory)
        + f"""
http {{
    {nginx_paths(directory)}
    proxy_http_version 1.1;
    proxy_read_timeout {PATIENCE:.0f};
    fastcgi_read_timeout {PATIENCE:.0f};
    server {{
        listen 127.0.0.1:{http};
        location / {{ proxy_pass http://{web}; {small} proxy_max_temp_file_size 0; }}
        location /limited {{ proxy_pass http://{web}; {small} proxy_limit_rate 16000; }}
        location /unbuffered/ {{ proxy_pass http://{web}/; {small} proxy_buffering off; }}
        location /store/ {{ proxy_pass http://{web}/; root {directory}; proxy_store on; }}
        location /upgrade {{
            proxy_pass http://{web};
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }}
        location /fastcgi {{
            include /etc/nginx/fastcgi_params;
            fastcgi_pass {fastcgi};
            fastcgi_param SCRIPT_FILENAME {directory}/script;
            fastcgi_buffer_size 1k;
            fastcgi_buffers 4 1k;
            fastcgi_busy_buffers_size 1k;
        }}
    }}
}}
stream {{
    proxy_buffer_size 1;
    server {{ listen 127.0.0.1:{streams["on"]}; proxy_pass {echo}; tcp_nodelay on; }}
    server {{ listen 127.0.0.1:{streams["off"]}; proxy_pass {echo}; tcp_nodelay off; }}
    server {{
        listen 127.0.0.1:{streams["large"]};
        proxy_pass {echo};
        proxy_buffer_size 16k;
    }}
}}
"""
    )


@pytest.fixture(scope="module", params=_WAYS)
def proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_Proxy]:
    way = str(request.param)
    directory = tmp_path_factory.mktemp("proxy")
    http, streams = free_port(), {name: free_port() for name in ("on", "off", "large")}
    with (
        serving(_Web) as web,
        serving(_Echo) as echo,
        _fastcgi(directory) as fastcgi,
        Sidecar(_WAYS[way]) as sidecar,
    ):
        to = [str(web), str(echo), fastcgi]
        file = directory / "nginx.conf"
        file.write_text(_configuration(directory, http, streams, to))
        command = [program("nginx"), "-p", str(directory), "-c", str(file), "-g", "daemon off;"]
        environment = {**os.environ, **sidecar.environment}
        with running(
            command,
            log=directory / "nginx.log",
            ready=lambda: accepts(http),
            environment=environment,
        ):
            yield _Proxy(way, sidecar, http, streams, directory / "store", frozenset(to))


def test_a_rate_limit_delays_and_loses_nothing(proxy: _Proxy) -> None:
    began = time.monotonic()
    _, body = proxy.request("/limited", "Connection: close\r\n")
    assert hashlib.sha256(body).digest() == hashlib.sha256(_LIMITED).digest()
    assert time.monotonic() - began > 0.5  # nginx limits by the second, the first one free


@pytest.mark.parametrize("path", ["/stored", "/unsized", "/unbuffered/unsized"])
def test_a_body_is_whole_through_small_buffers(proxy: _Proxy, path: str) -> None:
    header, body = proxy.request(path, "Connection: close\r\n")
    assert header.startswith(b"HTTP/1.1 200 ")
    if b"chunked" in header:
        body = _dechunked(body)
    assert body == _STORED


def _dechunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        parts.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(parts)


def test_an_upgraded_connection_goes_both_ways_to_its_end(proxy: _Proxy) -> None:
    with proxy.connect(proxy.http) as connection:
        connection.sendall(
            b"GET /upgrade HTTP/1.1\r\nHost: x\r\nUpgrade: lines\r\nConnection: Upgrade\r\n\r\n"
        )
        reader = connection.makefile("rb")
        assert reader.readline().startswith(b"HTTP/1.1 101 ")
        while reader.readline().strip():
            pass
        assert reader.readline() == b"hello\n"
        for number in range(20):
            line = b"%d %s\n" % (number, _LINES * number)
            connection.sendall(line[:3])
            connection.sendall(line[3:])
            assert reader.readline() == line
        connection.shutdown(socket.SHUT_WR)
        # nginx closes both sides when one has ended: what comes before is up to it.
        assert reader.read() in (b"", b"bye\n")


@pytest.mark.parametrize("path", ["/short", "/chunked", "/unbuffered/short"])
def test_an_unfinished_answer_is_passed_on_as_one(proxy: _Proxy, path: str) -> None:
    header, body = proxy.request(path)  # kept alive: nginx must close it nevertheless
    assert header.startswith(b"HTTP/1.1 200 ")
    assert b"unfinished" in body
    assert not body.endswith(b"0\r\n\r\n")  # the end of a chunked body


def test_a_stored_answer_is_whole_and_an_unfinished_one_is_not_stored(proxy: _Proxy) -> None:
    _, body = proxy.request("/store/stored", "Connection: close\r\n")
    assert body == _STORED
    assert (proxy.store / "stored").read_bytes() == _STORED
    proxy.request("/store/short")
    assert [file.name for file in proxy.store.iterdir()] == ["stored"]


def test_fastcgi_answers_whole(proxy: _Proxy) -> None:
    with proxy.connect(proxy.http) as connection:
        connection.sendall(
            b"POST /fastcgi HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n" % len(_LINES)
        )
        connection.sendall(_LINES)
        header, _, body = _read_all(connection).partition(b"\r\n\r\n")
    if b"chunked" in header:
        body = _dechunked(body)
    assert body == _STORED + _LINES


@pytest.mark.parametrize("kind", ["on", "off", "large"])
def test_a_stream_comes_back_whole_and_ends(proxy: _Proxy, kind: str) -> None:
    with proxy.connect(proxy.streams[kind]) as connection:
        for _ in range(3):  # accelerated after the first bytes, so more than once
            connection.sendall(_LINES)
            assert _read_exactly(connection, len(_LINES)) == _LINES
        connection.shutdown(socket.SHUT_WR)
        assert _read_all(connection) == b""


def test_it_was_the_way_that_is_tested(proxy: _Proxy) -> None:
    """Runs after the others, and makes a connection nevertheless, should it run alone."""
    test_a_stream_comes_back_whole_and_ends(proxy, "on")
    # The others' may have ended before it was worth while.
    wanted = proxy.way.split(",")[0]
    path = wanted if wanted in ("full", "local") else "relay"
    found = proxy.sidecar.wait_for_connection(
        process="nginx", closed=True, matching=lambda each: each.path == path
    )
    assert {each.original_destination for each in proxy.sidecar.connections()} <= proxy.backends
    assert found.transport == ("header" if "header" in proxy.way else "unix")
    if path == "relay":
        assert {each.path for each in proxy.sidecar.connections()} == {path}
