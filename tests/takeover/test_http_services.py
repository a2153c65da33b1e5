"""HTTP services that publish themselves with a POST: those of examples/takeover, in Python and in
Node, called by curl."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.servers import program
from tests.mesh.support import pods
from tests.takeover.pods import REGISTRY, Site, embedded_registry, sites
from tests.waiting import eventually

_EXAMPLES = Path(__file__).parents[2] / "examples" / "takeover"
_PORT = 8080


@dataclass
class Mesh:
    directory: Path
    provider: Site
    consumer: Site


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    directory = tmp_path_factory.mktemp("http")
    with pods("registry", "provider", "consumer") as made, embedded_registry(made[0], directory):
        section = f'type: embedded, address: "{made[0].ipv4}:{REGISTRY}"'
        with sites(made[1:], directory, section) as (provider, consumer):
            yield Mesh(directory, provider, consumer)


def _answered(mesh: Mesh, service: str, text: str) -> bool:
    return mesh.consumer.get(service, "/you") == text


@pytest.mark.parametrize(
    ("command", "language"),
    [
        ([sys.executable, _EXAMPLES / "http_service.py"], "Python"),
        ([program("node"), _EXAMPLES / "http_service.mjs"], "Node"),
    ],
    ids=["python", "node"],
)
def test_an_http_service_publishes_itself_and_leaves(
    mesh: Mesh, command: list[str | Path], language: str
) -> None:
    service = f"{language.lower()}.example"
    assert mesh.consumer.say("/services/subscribe", serviceName=service, protocolType="http")[
        "success"
    ]
    log = mesh.directory / f"{language}.log"
    with mesh.provider.pod.running(*command, str(_PORT), service, log=log) as process:
        eventually(lambda: _answered(mesh, service, f"{language} greets you\n"), log.read_text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
    # Unpublished before it left: there is nobody to be asked.
    eventually(lambda: "no_endpoint" in _flags(mesh, service))


def _flags(mesh: Mesh, service: str) -> list[str]:
    mesh.consumer.get(service)
    flags: list[str] = mesh.consumer.latest_request()["flags"]
    return flags


def test_a_service_that_is_killed_is_unpublished_and_published_again_when_it_is_back(
    mesh: Mesh,
) -> None:
    service = "killed.example"
    server = [sys.executable, "-m", "http.server", str(_PORT), "--bind", "127.0.0.1"]
    mesh.consumer.say("/services/subscribe", serviceName=service, protocolType="http")
    log = mesh.directory / "killed.log"
    for _ in range(2):
        with mesh.provider.pod.running(*server, log=log) as process:
            mesh.provider.wait_for_port(_PORT)
            # The second time it says nothing: as an application would not that is started anew
            # by somebody else than its sidecar.
            if _ == 0:
                said = mesh.provider.say(
                    "/services/publish", serviceName=service, protocolType="http", port=_PORT
                )
                assert said["success"], said
            eventually(lambda: "Directory listing" in mesh.consumer.get(service))
            process.kill()
        eventually(lambda: "no_endpoint" in _flags(mesh, service))


def test_a_request_for_a_service_that_nobody_subscribed_is_refused_at_once(mesh: Mesh) -> None:
    mesh.consumer.get("never-subscribed.example")
    request = mesh.consumer.latest_request()
    assert request["status"] == 404
    assert request["flags"] == ["no_route"]


def test_curl_is_all_that_it_takes(mesh: Mesh) -> None:
    with subprocess.Popen(
        mesh.provider.pod.command(
            *(sys.executable, "-m", "http.server", str(_PORT), "--bind", "127.0.0.1")
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            mesh.provider.wait_for_port(_PORT)
            for site, path, body in (
                (mesh.provider, "publish", f'"port": {_PORT}'),
                (mesh.consumer, "subscribe", '"properties": {}'),
            ):
                said = site.pod.output(
                    *("curl", "-sS", f"http://127.0.0.1:13330/services/{path}"),
                    *("-d", f'{{"serviceName": "curl.example", "protocolType": "http", {body}}}'),
                )
                assert '"success": true' in said.replace('":true', '": true')
            eventually(lambda: "Directory listing" in mesh.consumer.get("curl.example"))
        finally:
            server.kill()
