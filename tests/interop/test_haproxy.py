"""HAProxy as the sidecar: whatever accepts PROXY protocol v2 can stand behind the hook."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.testing.other_proxy import hooked_to
from tests.interop import servers
from tests.interop.clients import HTTP_CLIENTS, Compiled
from tests.interop.mesh import WEB, WEB6, literal
from tests.interop.servers import Nginx, accepts, free_port, plain_environment, program, running
from tests.users import needs_root
from tests.waiting import PATIENCE, eventually


@dataclass(frozen=True, slots=True)
class _HAProxy:
    """Addresses that take PROXY headers."""

    naming: Address
    """Leads to the web server, and names the original destination in a response header."""
    transparent: Address
    """Leads to the original destination."""
    log: Path

    def wait_for(self, destination: str, count: int = 1) -> None:
        """Until HAProxy logged `count` connections to `destination`."""
        line = re.compile(rf"captured {re.escape(destination)}$", re.MULTILINE)
        eventually(
            lambda: len(line.findall(self.log.read_text())) == count,
            lambda: f"HAProxy logs {destination}, not {self.log.read_text()}",
        )


@pytest.fixture
def haproxy_user() -> str:
    """A line of the configuration: the user as which it runs, by default ours."""
    return ""


@pytest.fixture
def haproxy(web: Nginx, tmp_path: Path, haproxy_user: str) -> Iterator[_HAProxy]:
    here = _HAProxy(
        Address("127.0.0.1", free_port()),
        Address("127.0.0.1", free_port()),
        tmp_path / "haproxy.log",
    )
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(
        f"""
global
    maxconn 200
    log stdout format raw local0
    {haproxy_user}
defaults
    log global
    timeout connect {PATIENCE:g}s
    timeout client {PATIENCE:g}s
    timeout server {PATIENCE:g}s
    log-format "captured %[dst]:%[dst_port]"
frontend naming
    mode http
    bind {here.naming} accept-proxy
    http-response set-header X-Original-Destination "%[dst]:%[dst_port]"
    default_backend web
backend web
    mode http
    server web 127.0.0.1:{web.http}
frontend transparent
    mode tcp
    bind {here.transparent} accept-proxy
    default_backend original
backend original
    mode tcp
    # "0.0.0.0" without a port: to the address and port that the client wanted.
    server original 0.0.0.0
"""
    )
    command = [program("haproxy"), "-db", "-f", str(configuration)]
    with running(command, log=here.log, ready=lambda: accepts(here.transparent.port)):
        yield here


def _run(command: Sequence[str | Path], environment: dict[str, str]) -> str:
    result = subprocess.run(
        command,
        env=plain_environment(**environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("host", [WEB, WEB6])
def test_haproxy_learns_the_original_destination(
    haproxy: _HAProxy, tmp_path: Path, host: str
) -> None:
    with hooked_to([haproxy.naming], tmp_path / "hook.policy") as environment:
        url = f"http://{literal(host, 8123)}/whoami"
        output = _run([program("curl"), "-sS", "--globoff", "--include", url], environment)
    # HAProxy writes IPv6 addresses without brackets.
    assert f"x-original-destination: {host}:8123" in output.splitlines()
    haproxy.wait_for(f"{host}:8123")


@needs_root
@pytest.mark.parametrize("haproxy_user", ["uid 65534"])
def test_haproxy_may_be_another_user_if_the_page_names_it(
    haproxy: _HAProxy, tmp_path: Path
) -> None:
    url = f"http://{literal(WEB, 8123)}/whoami"
    command = [program("curl"), "-sS", "--include", url]
    with hooked_to([haproxy.naming], tmp_path / "named", served_by=65534) as environment:
        assert f"x-original-destination: {WEB}:8123" in _run(command, environment).splitlines()
    haproxy.wait_for(f"{WEB}:8123")


@pytest.mark.parametrize("name", HTTP_CLIENTS)
def test_clients_reach_their_destination_through_haproxy(
    haproxy: _HAProxy, web: Nginx, compiled: Compiled, tmp_path: Path, name: str
) -> None:
    client = HTTP_CLIENTS[name]
    with hooked_to([haproxy.transparent], tmp_path / "hook.policy") as environment:
        output = _run(client.command(compiled, "127.0.0.1", web.http), environment)
    client.check_output(output, "127.0.0.1", web.http)
    haproxy.wait_for(f"127.0.0.1:{web.http}")


def test_many_connections_are_told_apart_through_haproxy(
    haproxy: _HAProxy, compiled: Compiled, tmp_path: Path
) -> None:
    addresses = [f"127.0.2.{i}" for i in range(1, 9)]
    with (
        servers.echo(compiled("load"), ["127.0.0.1", *addresses], tmp_path / "echo.log") as port,
        hooked_to([haproxy.transparent], tmp_path / "hook.policy") as environment,
    ):
        command: list[str | Path] = [compiled("load"), "churn", "400", "16", str(port), *addresses]
        assert _run(command, environment) == "churned 400 failed 0\n"
    for address in addresses:
        haproxy.wait_for(f"{address}:{port}", count=50)
