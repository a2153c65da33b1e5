"""Chromium as a hooked application, with its sandbox on: processes whose system calls are filtered
must not be made to do others, and its network service does everything without blocking."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import queue
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from pysidecar.testing import Sidecar
from tests.interop.clients import PROGRAMS
from tests.interop.servers import plain_environment, program
from tests.serving import serving
from tests.waiting import eventually

_UID = 65534  # Chromium's sandbox is not for root
_DOWNLOAD = hashlib.sha256(b"seed").digest() * (1 << 20)  # 32 MiB
_WAYS: dict[str, dict[str, Any]] = {
    "unix": {},
    "header": {"outbound": {"transport": "header"}},
}
_PATIENCE = 90.0
# What keeps Chromium from looking for what is not there: none of it is about the sandbox.
_QUIET = """
    --headless --no-first-run --disable-background-networking --disable-component-update
    --disable-sync --disable-quic --disable-dev-shm-usage --enable-logging=stderr
""".split()


class _Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    results: ClassVar[queue.SimpleQueue[dict[str, Any]]] = queue.SimpleQueue()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        match self.path.split("/"):
            case ["", "socket"]:
                self._websocket()
            case ["", "download"]:
                self._answer(_DOWNLOAD, "application/octet-stream")
            case ["", "number", number]:
                self._answer(number.encode())
            case ["", ""]:
                self._answer((PROGRAMS / "browser.html").read_bytes(), "text/html")
            case _:
                self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(body)
        if self.path == "/result":
            self.results.put(json.loads(body))

    def _websocket(self) -> None:
        """Echoes text (RFC 6455); nothing here is longer than 64 KiB."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header(
            "Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        )
        self.end_headers()
        self.close_connection = True
        while len(head := self.rfile.read(2)) == 2:
            size = head[1] & 0x7F
            if size == 126:
                size = int.from_bytes(self.rfile.read(2))
            mask = self.rfile.read(4)
            data = bytes(byte ^ mask[n % 4] for n, byte in enumerate(self.rfile.read(size)))
            length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2)
            self.wfile.write(head[:1] + length + data)
            if head[0] & 0xF == 8:  # a close, which is echoed too
                return


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    with serving(_Page) as address:
        yield str(address)


@contextlib.contextmanager
def _chromium(directory: Path, url: str, environment: dict[str, str]) -> Iterator[psutil.Popen]:
    """Runs until the end of the block, with all of its processes."""
    command = [program("chromium"), *_QUIET, f"--user-data-dir={directory / 'profile'}", url]
    with (directory / "log").open("wb") as log:
        running = psutil.Popen(
            ["setpriv", *_becoming_nobody(), "--", *command],
            env=plain_environment(HOME=str(directory), **environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield running
    finally:
        children = running.children(recursive=True)
        running.terminate()
        _, alive = psutil.wait_procs([running, *children], timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def _becoming_nobody() -> list[str]:
    if os.geteuid() != 0:
        return ["--pdeathsig", "TERM"]
    return [f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups", "--pdeathsig", "TERM"]


def _processes(browser: psutil.Popen, kind: str) -> dict[int, str]:
    """Of one kind, and how the kernel filters their system calls: 0 not at all, 2 by a program."""
    found = {}
    for process in browser.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            if f"--type={kind}" in process.cmdline():
                status = Path(f"/proc/{process.pid}/status").read_text()
                found[process.pid] = status.partition("Seccomp:\t")[2].partition("\n")[0]
    return found


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where the other user may write; pytest's own are closed to it."""
    with tempfile.TemporaryDirectory(prefix="pysidecar-chromium-") as name:
        if os.geteuid() == 0:
            os.chown(name, _UID, _UID)
        yield Path(name)


@pytest.fixture(scope="module")
def sandbox() -> None:
    """Where the kernel lets an ordinary user make namespaces, which the sandbox is made of."""
    command = ["setpriv", *_becoming_nobody(), "--", "unshare", "--user", "--pid", "--net", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"Chromium's sandbox does not work here: {done.stderr.strip()}")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.usefixtures("sandbox")
def test_a_page_loads_in_its_sandbox(
    page: str, directory: Path, refusing_port: int, way: str
) -> None:
    run = tempfile.TemporaryDirectory(prefix="pysidecar-run-")
    os.chmod(run.name, 0o755)
    settings = {"control_socket": f"{run.name}/hook.sock", "control_socket_mode": "0666"}
    outbound = {"outbound": {**_WAYS[way].get("outbound", {}), **settings}}
    with run, Sidecar({**_WAYS[way], **outbound}) as sidecar:
        url = f"http://{page}/#{refusing_port}"
        with _chromium(directory, url, sidecar.environment) as browser:
            result = _result(directory, browser)
            renderers, gpu = _processes(browser, "renderer"), _processes(browser, "gpu-process")
        connections = sidecar.connections()
    assert result == {
        "download": hashlib.sha256(_DOWNLOAD).hexdigest(),
        "echo": True,
        "numbers": [str(number) for number in range(12)],
        "websocket": True,
        "refused": "refused",
    }
    assert set(renderers.values()) == {"2"}, "renderers are in their sandbox"
    assert gpu
    log = (directory / "log").read_text(errors="replace")
    assert "exited unexpectedly" not in log
    assert "seccomp-bpf failure" not in log
    assert sum(each.original_destination == page for each in connections) > 1
    assert sum(each.bytes_received for each in connections) > len(_DOWNLOAD)


def _result(directory: Path, browser: psutil.Popen) -> dict[str, Any]:
    def is_there() -> bool:
        assert browser.poll() is None, (directory / "log").read_text(errors="replace")
        return not _Page.results.empty()

    eventually(
        is_there, lambda: (directory / "log").read_text(errors="replace"), patience=_PATIENCE
    )
    return _Page.results.get()
