"""Programs that fetch over HTTP get what they want, and the sidecar knows what they wanted."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.interop.clients import HTTP_CLIENTS, Compiled
from tests.interop.mesh import REFUSING, REFUSING6, WEB, WEB6, Mesh, literal
from tests.interop.servers import HAS_IPV6, Nginx, program

_ONLY_UNIX = pytest.mark.parametrize("transport", ["unix"], indirect=True)
_ONLY_HEADER = pytest.mark.parametrize("transport", ["header"], indirect=True)
_ALSO_IPV6 = (
    *("curl", "wget", "c-glibc-blocking", "c-glibc-polling", "c-musl-blocking", "c-musl-polling"),
    *("python-blocking", "python-uvloop", "node-http", "perl-tiny"),
    # Java does not even try where there is no IPv6 loopback.
    *(("java-socket", "java-nio") if HAS_IPV6 else ()),
)


@pytest.mark.parametrize("name", HTTP_CLIENTS)
def test_a_client_reaches_the_server_and_its_destination_is_recorded(
    mesh: Mesh, compiled: Compiled, name: str
) -> None:
    client = HTTP_CLIENTS[name]
    result, pid = mesh.run(client.command(compiled, WEB, 80))
    client.check_output(result.check().stdout, WEB, 80)
    mesh.check(result.connection, f"{WEB}:80", client.process, pid=pid)


@pytest.mark.parametrize("name", _ALSO_IPV6)
def test_a_client_reaches_an_ipv6_destination(mesh: Mesh, compiled: Compiled, name: str) -> None:
    client = HTTP_CLIENTS[name]
    result, pid = mesh.run(client.command(compiled, WEB6, 80))
    client.check_output(result.check().stdout, WEB6, 80)
    mesh.check(result.connection, f"[{WEB6}]:80", client.process, pid=pid)


def test_without_a_route_the_original_destination_is_the_upstream(mesh: Mesh, web: Nginx) -> None:
    url = f"http://127.0.0.1:{web.http}/whoami"
    result, pid = mesh.run([program("curl"), "-sS", "--fail", url])
    assert result.check().stdout == "nginx HTTP/1.1 host=127.0.0.1\n"
    mesh.check(result.connection, f"127.0.0.1:{web.http}", "curl", pid=pid)
    assert result.connection.upstream == f"127.0.0.1:{web.http}"


def test_the_upstream_is_the_endpoint_of_the_route(mesh: Mesh, web: Nginx) -> None:
    result, _ = mesh.run([program("curl"), "-sS", "--fail", f"http://{WEB}/whoami"])
    assert result.check().connection.upstream == f"127.0.0.1:{web.http}"


def test_curl_speaks_http2_in_clear_text(mesh: Mesh) -> None:
    url = f"http://{WEB}:8080/whoami"
    result, pid = mesh.run([program("curl"), "-sS", "--fail", "--http2-prior-knowledge", url])
    assert result.check().stdout == f"nginx HTTP/2.0 host={WEB}\n"
    mesh.check(result.connection, f"{WEB}:8080", "curl", pid=pid)


def test_curl_speaks_http2_over_tls(mesh: Mesh, web: Nginx) -> None:
    url = f"https://{WEB}/whoami"
    result, pid = mesh.run([program("curl"), "-sS", "--fail", "--cacert", web.certificate, url])
    assert result.check().stdout == f"nginx HTTP/2.0 host={WEB}\n"
    mesh.check(result.connection, f"{WEB}:443", "curl", pid=pid)


def test_curl_makes_connections_side_by_side(mesh: Mesh) -> None:
    urls = [f"http://{WEB}/whoami"] * 20
    outputs = [word for _ in urls for word in ("-o", "-")]
    # One connection for each transfer: it may not be reused.
    header = ("-H", "Connection: close")
    result, pid = mesh.run(
        [
            *(program("curl"), "-sS", "--fail", "--parallel", "--parallel-immediate"),
            *(*header, *outputs, *urls),
        ]
    )
    assert result.check().stdout.splitlines() == [f"nginx HTTP/1.1 host={WEB}"] * 20
    assert len(result.connections) == 20
    for connection in result.connections:
        mesh.check(connection, f"{WEB}:80", "curl", pid=pid)


def test_bulk_data_arrives_unchanged_both_ways(mesh: Mesh, web: Nginx, tmp_path: Path) -> None:
    size = 16 << 20
    blob = tmp_path / "blob"
    blob.write_bytes(random.Random(size).randbytes(size))
    url = f"http://{WEB}/files/{mesh.transport}"
    sent, pid = mesh.run([program("curl"), "-sS", "--fail", "-T", blob, url])
    assert sent.check().connection.bytes_sent > size
    mesh.check(sent.connection, f"{WEB}:80", "curl", pid=pid)
    assert (web.files / mesh.transport).read_bytes() == blob.read_bytes()

    got, pid = mesh.run([program("curl"), "-sS", "--fail", url])
    assert hashlib.sha256(got.check().stdout_bytes).digest() == (
        hashlib.sha256(blob.read_bytes()).digest()
    )
    assert got.connection.bytes_received > size
    mesh.check(got.connection, f"{WEB}:80", "curl", pid=pid)


# ---- Failures ----


@_ONLY_UNIX
@pytest.mark.parametrize(
    ("name", "host"),
    [(name, REFUSING) for name in HTTP_CLIENTS] + [(name, REFUSING6) for name in _ALSO_IPV6],
)
def test_a_refused_connection_is_refused_for_the_client(
    mesh: Mesh, compiled: Compiled, name: str, host: str
) -> None:
    client = HTTP_CLIENTS[name]
    result, pid = mesh.run(client.command(compiled, host, 80))
    assert result.returncode != 0
    assert client.refused in result.stdout + result.stderr
    for connection in result.connections:  # some try twice
        mesh.check(connection, literal(host, 80), client.process, pid=pid, error="ECONNREFUSED")
    assert result.connections


@_ONLY_UNIX
def test_curl_exits_as_for_any_refused_connection(mesh: Mesh) -> None:
    result, _ = mesh.run([program("curl"), "-sS", f"http://{REFUSING}/"])
    assert result.returncode == 7  # CURLE_COULDNT_CONNECT


@_ONLY_HEADER
@pytest.mark.parametrize("name", HTTP_CLIENTS)
def test_with_the_header_transport_a_refused_connection_still_fails(
    mesh: Mesh, compiled: Compiled, name: str
) -> None:
    client = HTTP_CLIENTS[name]
    result, pid = mesh.run(client.command(compiled, REFUSING, 80))
    assert result.returncode != 0
    assert result.connections
    for connection in result.connections:
        mesh.check(connection, f"{REFUSING}:80", client.process, pid=pid, error="ECONNREFUSED")


@_ONLY_UNIX
def test_curl_falls_back_to_the_address_that_answers(mesh: Mesh) -> None:
    result, pid = mesh.run(
        [
            *(program("curl"), "-sS", "--fail", "--resolve"),
            *(f"two.interop.test:80:[{REFUSING6}],{WEB}", "http://two.interop.test/whoami"),
        ]
    )
    assert result.check().stdout == "nginx HTTP/1.1 host=two.interop.test\n"
    refused, served = result.connections
    mesh.check(refused, f"[{REFUSING6}]:80", "curl", pid=pid, error="ECONNREFUSED")
    mesh.check(served, f"{WEB}:80", "curl", pid=pid)
