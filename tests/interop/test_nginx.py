"""nginx as a hooked application: a reverse proxy with epoll, a daemon with forked workers."""

from __future__ import annotations

import contextlib
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.interop.mesh import REFUSING, WEB, Mesh
from tests.interop.servers import free_port, nginx_paths, nginx_preamble, program
from tests.waiting import PATIENCE, eventually

_WORKERS = 2


@dataclass(frozen=True, slots=True)
class _Proxy:
    master: psutil.Process
    plain: int
    """Port that passes on to `WEB`, with a new connection for each request."""
    keeping: int
    """The same, with upstream connections that are kept."""
    failing_over: int
    """Port whose first upstream server refuses."""
    error_log: Path

    def get(self, port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/whoami", timeout=PATIENCE) as answer:
            return bytes(answer.read()).decode()

    @property
    def workers(self) -> set[int]:
        return {child.pid for child in self.master.children()}


@pytest.fixture
def proxy(mesh: Mesh, tmp_path: Path) -> Iterator[_Proxy]:
    plain, keeping, failing_over = free_port(), free_port(), free_port()
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        nginx_preamble(tmp_path, workers=_WORKERS)
        + f"""
http {{
    {nginx_paths(tmp_path)}
    upstream kept {{ server {WEB}:80; keepalive 4; }}
    upstream two {{ server {REFUSING}:80 max_fails=0; server {WEB}:80; }}
    proxy_set_header Host proxied;
    server {{
        listen 127.0.0.1:{plain};
        location / {{ proxy_pass http://{WEB}:80; }}
    }}
    server {{
        listen 127.0.0.1:{keeping};
        location / {{
            proxy_pass http://kept;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host proxied;
        }}
    }}
    server {{
        listen 127.0.0.1:{failing_over};
        location / {{ proxy_pass http://two; }}
    }}
}}
"""
    )
    command = [program("nginx"), "-p", str(tmp_path), "-c", str(configuration)]
    started, _ = mesh.run(command)
    started.check()  # it is a daemon now
    master = psutil.Process(_pid(tmp_path / "nginx.pid"))
    proxy = _Proxy(master, plain, keeping, failing_over, tmp_path / "error.log")
    try:
        eventually(lambda: len(proxy.workers) == _WORKERS, "the workers are there")
        yield proxy
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            master.send_signal(signal.SIGTERM)
        master.wait(PATIENCE)


def _pid(file: Path) -> int:
    eventually(lambda: file.exists() and file.read_text().endswith("\n"), f"{file} is written")
    return int(file.read_text())


def test_the_workers_of_a_daemon_are_captured(mesh: Mesh, proxy: _Proxy) -> None:
    for _ in range(10):
        assert proxy.get(proxy.plain) == "nginx HTTP/1.0 host=proxied\n"
    ours = [
        mesh.sidecar.wait_for_connection(
            f"{WEB}:80", closed=True, matching=lambda found: found.pid in proxy.workers
        )
    ]

    def all_recorded() -> bool:
        ours[:] = [
            found
            for found in mesh.sidecar.connections()
            if found.pid in proxy.workers and found.closed
        ]
        return len(ours) == 10

    eventually(all_recorded, lambda: f"ten connections are recorded, not {ours}")
    for connection in ours:
        mesh.check(connection, f"{WEB}:80", "nginx")


def test_a_kept_upstream_connection_serves_many_requests(mesh: Mesh, proxy: _Proxy) -> None:
    for _ in range(10):
        assert proxy.get(proxy.keeping) == "nginx HTTP/1.1 host=proxied\n"
    kept = [found for found in mesh.sidecar.connections() if found.pid in proxy.workers]
    assert 1 <= len(kept) <= _WORKERS
    assert {found.original_destination for found in kept} == {f"{WEB}:80"}
    assert {found.process for found in kept} == {"nginx"}


def test_a_refusing_upstream_makes_nginx_take_the_next_one(mesh: Mesh, proxy: _Proxy) -> None:
    for _ in range(4):
        assert proxy.get(proxy.failing_over) == "nginx HTTP/1.0 host=proxied\n"
    refused = mesh.sidecar.wait_for_connection(
        f"{REFUSING}:80", closed=True, matching=lambda found: found.pid in proxy.workers
    )
    mesh.check(refused, f"{REFUSING}:80", "nginx", error="ECONNREFUSED")
    if mesh.transport == "unix":
        assert "connect() failed (111: Connection refused)" in proxy.error_log.read_text()
