"""HTTP/1.1 between programs that nobody here wrote, through a sidecar."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pysidecar.testing import Request
from tests.interop import servers
from tests.interop.servers import Nginx, free_port, program
from tests.requests import aiohttp_peer, programs
from tests.requests.fronts import Front, front
from tests.requests.programs import Program
from tests.waiting import PATIENCE, eventually

_LONG = 100 << 20  # bytes
_PIECES = 200
_NOBODY = "10.1.2.3"
"""An address that nobody has: hooked programs find the services there."""


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with servers.nginx(tmp_path_factory.mktemp("nginx")) as nginx:
        yield nginx


@pytest.fixture(scope="module")
def node() -> Iterator[Program]:
    """A client."""
    with programs.node() as client:
        yield client


@pytest.fixture(scope="module")
def java() -> Iterator[Program]:
    with programs.java_http() as client:
        yield client


@pytest.fixture(scope="module")
def mesh(web: Nginx) -> Iterator[Front]:
    """Two Node servers, an nginx and an aiohttp, each a service named by the host."""
    with ExitStack() as stack:
        ports = {"web": web.http, "python": stack.enter_context(aiohttp_peer.serving())}
        for name in ("one", "two"):
            port = free_port()
            stack.enter_context(programs.node()).ask("serve", port=port, name=name)
            ports[name] = port
        services = {name: {"endpoints": [f"127.0.0.1:{port}"]} for name, port in ports.items()}
        requests = [{"match": {"host": f"{name}.*"}, "services": name} for name in services]
        routes = [{"match": {"destination": _NOBODY}, "action": "requests", "protocol": "http"}]
        settings = {"outbound": {"routes": routes}}
        yield stack.enter_context(front("http", services, requests, settings=settings))


def _curl(*options: str | Path, check: bool = True) -> str:
    result = subprocess.run(
        [program("curl"), "-sS", *(["--fail"] if check else []), *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=servers.plain_environment(),
    )
    assert result.returncode == 0 or not check, result.stderr
    return result.stdout


def _ask(address: str, request: bytes) -> bytes:
    """Everything that comes for these bytes until the other side closes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# ---- Each request gets its own answer ----


@pytest.mark.parametrize("way", ["http", "undici"])
def test_node_gets_its_own_answers(mesh: Front, node: Program, way: str) -> None:
    bursts = [
        node.start(
            "burst",
            address=mesh.address(),
            host=f"{name}.test",
            path="/echo/1",
            count=300,
            concurrency=8,
            way=way,
        )
        for name in ("one", "two")
    ]
    assert [burst.result(PATIENCE) for burst in bursts] == [{"right": "300"}] * 2


def test_pipelined_requests_are_answered_in_order(mesh: Front, node: Program) -> None:
    answer = node.ask(
        "burst",
        address=mesh.address(),
        host="one.test",
        path="/echo/1",
        count=300,
        concurrency=2,
        pipelining=8,
        way="undici",
    )
    assert answer == {"right": "300"}


@pytest.mark.parametrize("version", ["HTTP_1_1", "HTTP_2"])
@pytest.mark.parametrize("expect", ["false", "true"])
def test_java_gets_its_own_answers(mesh: Front, java: Program, version: str, expect: str) -> None:
    """Its default is to ask for an upgrade to HTTP/2."""
    answer = java.ask(
        "burst",
        address=mesh.address("one"),
        path="/echo/1",
        version=version,
        expect=expect,
        count=200,
        concurrency=8,
        size=1000,
    )
    assert answer == {"right": "200"}


def test_bodies_of_a_mebibyte_each_get_their_own_answer(mesh: Front, node: Program) -> None:
    answer = node.ask(
        "burst",
        address=mesh.address(),
        host="two.test",
        path="/echo/1",
        count=16,
        concurrency=4,
        size=1 << 20,
        way="http",
    )
    assert answer == {"right": "16"}


def test_aiohttp_gets_its_own_answers(mesh: Front) -> None:
    answers = asyncio.run(aiohttp_peer.echoes(mesh.address("python"), 300))
    assert answers == [f"aiohttp {number}" for number in range(300)]


def test_wrk_sees_no_error(mesh: Front) -> None:
    output = subprocess.run(
        [
            *(program("wrk"), "-t2", "-c32", "-d1s", "-H", "Host: web.test"),
            f"http://{mesh.address()}/whoami",
        ],
        capture_output=True,
        text=True,
        check=True,
        env=servers.plain_environment(),
    ).stdout
    assert "Socket errors" not in output
    assert "Non-2xx" not in output
    assert int(re.findall(r"(\d+) requests in", output)[0]) > 100


def test_different_services_are_pipelined_over_one_connection(mesh: Front) -> None:
    order = [("one", "two", "web")[i % 3] for i in range(60)]
    requests = [
        b"GET /%s HTTP/1.1\r\nHost: %s.test\r\n%s\r\n"
        % (
            b"whoami" if name == "web" else b"status/200",
            name.encode(),
            b"Connection: close\r\n" if i == len(order) - 1 else b"",
        )
        for i, name in enumerate(order)
    ]
    answers = re.findall(
        rb"(nginx|one|two)(?: HTTP/1.1 host=web| 200)", _ask(mesh.address(), b"".join(requests))
    )
    assert [answer.decode().replace("nginx", "web") for answer in answers] == order


# ---- An nginx that passes requests on ----


@pytest.fixture(scope="module", params=["listener", "hooked"])
def proxy(
    request: pytest.FixtureRequest, mesh: Front, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of one that keeps its connections to the sidecar, or as it believes: to a server."""
    hooked = request.param == "hooked"
    directory = tmp_path_factory.mktemp("proxy")
    port = free_port()
    file = directory / "nginx.conf"
    file.write_text(
        servers.nginx_preamble(directory)
        + f"""
http {{
    {servers.nginx_paths(directory)}
    upstream kept {{ server {f"{_NOBODY}:80" if hooked else mesh.address()}; keepalive 32; }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 0;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        location / {{ proxy_pass http://kept; }}
        location /bytes {{ proxy_pass http://kept; proxy_buffering off; }}
    }}
}}
"""
    )
    with servers.running(
        [program("nginx"), "-p", directory, "-c", file, "-g", "daemon off;"],
        log=directory / "nginx.log",
        ready=lambda: servers.accepts(port),
        environment=servers.plain_environment(**(mesh.sidecar.environment if hooked else {})),
    ):
        yield port


def test_nginx_keeps_its_connections_and_mixes_nothing_up(
    mesh: Front, node: Program, proxy: int
) -> None:
    path = f"/echo/1/{proxy}"
    bursts = [
        node.start(
            "burst",
            address=f"127.0.0.1:{proxy}",
            host=f"{name}.test",
            path=path,
            count=300,
            concurrency=8,
            way="http",
        )
        for name in ("one", "two")
    ]
    assert [burst.result(PATIENCE) for burst in bursts] == [{"right": "300"}] * 2

    def logged() -> list[Request]:
        found = [each for each in mesh.sidecar.requests() if each.path == path]
        return found if len(found) == 600 else []

    requests = eventually(logged, "600 lines")
    assert {(each.status, each.flags) for each in requests} == {(200, ())}
    assert len({each.source for each in requests}) <= 16


def test_nginx_gets_bodies_and_answers_without_one(mesh: Front, proxy: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy, timeout=PATIENCE)
    for method, status in [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404), ("GET", 200)]:
        connection.request(method, f"/status/{status}", headers={"Host": "one.test"})
        response = connection.getresponse()
        assert (response.status, response.headers["x-method"]) == (status, method)
        assert response.read() == (b"one 200" if (method, status) == ("GET", 200) else b"")
    content = os.urandom(3 << 20)
    pieces = iter([content[:1000], content[1000:]])  # in chunks
    connection.request("PUT", "/digest", body=pieces, headers={"Host": "two.test"})
    answer = connection.getresponse().read().decode()
    assert answer == f"{hashlib.sha256(content).hexdigest()} {len(content)}"
    connection.close()


def test_a_client_that_leaves_nginx_takes_no_other_answer_with_it(mesh: Front, proxy: int) -> None:
    path = f"/bytes/{_LONG + proxy}"
    with socket.create_connection(("127.0.0.1", proxy), timeout=PATIENCE) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: one.test\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    left = mesh.sidecar.wait_for_request("one", path=path)
    assert left.flags == ("downstream_closed",)
    url = f"http://127.0.0.1:{proxy}/echo/1"
    assert _curl("-H", "Host: one.test", "-d", "a", url, url) == "one aone a"


# ---- The parts of HTTP ----


def test_curl_keeps_its_connection(mesh: Front) -> None:
    url = f"http://{mesh.address()}/echo"
    output = _curl("-v", "--stderr", "-", "-H", "Host: one.test", "-d", "a", url, url, url)
    assert output.count("one a") == 3
    assert output.count("Re-using existing connection") == 2


def test_curl_uploads_in_chunks(mesh: Front, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    output = _curl(
        *("-H", "Host: one.test", "-H", "Transfer-Encoding: chunked", "-T", tmp_path / "file"),
        f"http://{mesh.address()}/digest",
    )
    assert output == f"{hashlib.sha256(content).hexdigest()} {len(content)}"


def test_a_body_waits_for_100_continue(mesh: Front, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2 << 20))
    common = [
        *("-v", "--stderr", "-", "-H", "Host: one.test", "-H", "Expect: 100-continue"),
        *("--expect100-timeout", "20", "--data-binary", f"@{tmp_path / 'file'}"),
    ]
    output = _curl(*common, f"http://{mesh.address()}/digest")
    assert "< HTTP/1.1 100 Continue" in output
    assert f" {2 << 20}" in output
    refused = _curl(*common, f"http://{mesh.address()}/early/403", check=False)
    assert "100 Continue" not in refused
    assert "< HTTP/1.1 403 " in refused


def test_answers_without_a_body_leave_the_connection_usable(mesh: Front) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", mesh.port("one"), timeout=PATIENCE)
    for method, status in [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404), ("GET", 200)]:
        connection.request(method, f"/status/{status}")
        response = connection.getresponse()
        assert (response.status, response.headers["x-method"]) == (status, method)
        assert response.read() == (b"one 200" if (method, status) == ("GET", 200) else b"")
        assert not response.will_close
    connection.close()


def test_a_client_that_says_that_it_sends_no_more_gets_its_answer(mesh: Front) -> None:
    address = ("127.0.0.1", mesh.port("one"))
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        connection.sendall(b"PUT /echo/100 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"one body")


def test_http_1_0_gets_no_chunks(mesh: Front) -> None:
    answer = _ask(mesh.address("one"), b"GET /bytes/100000 HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert len(body) == 100_000


def test_http_1_0_may_keep_its_connection(mesh: Front) -> None:
    kept = b"PUT /echo HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n"
    last = b"PUT /echo HTTP/1.0\r\nContent-Length: 1\r\n\r\n"
    answer = _ask(mesh.address("one"), kept + b"1" + kept + b"2" + last + b"3")
    assert re.findall(rb"one \d", answer) == [b"one 1", b"one 2", b"one 3"]


def test_trailers_go_both_ways(mesh: Front, node: Program) -> None:
    answer = node.ask(
        "trailers", address=mesh.address(), host="two.test", text="body", trailer="and more"
    )
    assert answer == {"body": "body", "trailer": "two and more"}


def test_headers_of_one_connection_go_no_further(mesh: Front) -> None:
    output = _curl(
        *("-H", "Host: one.test", "-H", "Connection: x-mine, keep-alive", "-H", "X-Mine: 1"),
        *(
            "-H",
            "Keep-Alive: timeout=5",
            "-H",
            "Proxy-Connection: keep-alive",
            "-H",
            "TE: trailers",
        ),
        *("-H", "X-Yours: 2", f"http://{mesh.address()}/headers"),
    )
    assert '"x-yours","2"' in output.lower()
    for name in ("x-mine", "keep-alive", "proxy-connection"):
        assert f'"{name}"' not in output.lower()


def test_an_early_answer_arrives_and_is_the_only_one(mesh: Front) -> None:
    connection = socket.create_connection(("127.0.0.1", mesh.port("one")), timeout=PATIENCE)
    with connection, connection.makefile("rb") as answers:
        connection.sendall(
            b"PUT /early/403 HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n123"
        )
        assert answers.readline() == b"HTTP/1.1 403 Forbidden\r\n"
        connection.sendall(bytes(100_000 - 3))
        connection.sendall(b"GET /status/200 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        rest = answers.read()
    assert rest.count(b"one early") == 1
    # A proxy may close instead of reading the rest.
    assert rest.endswith((b"one early", b"one 200", b"0\r\n\r\n"))


def test_websockets_pass(mesh: Front, node: Program) -> None:
    small = node.start("websocket", address=mesh.address(), host="one.test", count=200, size=100)
    large = node.start("websocket", address=mesh.address(), host="two.test", count=3, size=5 << 20)
    assert small.result(PATIENCE) == large.result(PATIENCE) == {"code": "1000"}


def test_connect_is_refused(mesh: Front) -> None:
    request = b"CONNECT one.test:80 HTTP/1.1\r\nHost: one.test:80\r\nConnection: close\r\n\r\n"
    assert re.match(rb"HTTP/1.1 (400|405|501) ", _ask(mesh.address(), request))


def test_a_stream_flows_both_ways_at_once(mesh: Front) -> None:
    """Each piece is sent when the last has come back."""
    connection = socket.create_connection(("127.0.0.1", mesh.port("one")), timeout=PATIENCE)
    with connection, connection.makefile("rb") as answers:
        connection.sendall(b"PUT /stream HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        while answers.readline() != b"\r\n":
            pass
        begin = time.monotonic()
        for i in range(_PIECES):
            piece = b"%05d" % i
            connection.sendall(b"5\r\n" + piece + b"\r\n")
            assert (answers.readline(), answers.readline()) == (b"5\r\n", piece + b"\r\n")
        # Nothing waits for a delayed acknowledgement, which comes after 40 ms.
        assert time.monotonic() - begin < _PIECES * 0.03
        connection.sendall(b"0\r\n\r\n")
        assert answers.readline() == b"0\r\n"


def test_aiohttp_streams_and_talks_by_websocket(mesh: Front) -> None:
    streamed, messages = asyncio.run(aiohttp_peer.converse(mesh.address("python"), 100))
    assert streamed == [str(number) for number in range(100)]
    assert messages == [f"aiohttp {number}" for number in range(100)]


# ---- Long bodies ----


def test_a_long_body_goes_up_unchanged(mesh: Front) -> None:
    piece = os.urandom(1 << 20)
    digest = hashlib.sha256()
    for _ in range(_LONG // len(piece)):
        digest.update(piece)
    connection = http.client.HTTPConnection("127.0.0.1", mesh.port("one"), timeout=PATIENCE)
    pieces = (piece for _ in range(_LONG // len(piece)))
    connection.request("PUT", "/digest", body=pieces, headers={"Content-Length": str(_LONG)})
    assert connection.getresponse().read().decode() == f"{digest.hexdigest()} {_LONG}"
    connection.close()


def _download(port: int, path: str) -> tuple[int, str]:
    """The size and the hash of what comes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", path)
    response = connection.getresponse()
    digest, size = hashlib.sha256(), 0
    while piece := response.read(1 << 20):
        digest.update(piece)
        size += len(piece)
    connection.close()
    return size, digest.hexdigest()


def test_a_long_body_comes_down_unchanged(mesh: Front, web: Nginx) -> None:
    content = os.urandom(1 << 20) * (_LONG >> 20)
    (web.files / "long").write_bytes(content)
    found = _download(mesh.port("web"), "/files/long")
    assert found == (_LONG, hashlib.sha256(content).hexdigest())


def test_a_long_body_in_chunks_comes_down_unchanged(mesh: Front) -> None:
    output = _curl(
        *("-v", "--stderr", "-", "-o", "/dev/null", "-w", "%{size_download}\n"),
        f"http://{mesh.address('one')}/bytes/{_LONG}",
    )
    assert f"\n{_LONG}\n" in output
