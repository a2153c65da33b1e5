"""The whole way, on one machine: two sidecars, the embedded registry, HTTP on both ends."""

from __future__ import annotations

import http.client
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from pysidecar.testing import Sidecar
from tests.interop.servers import free_port
from tests.waiting import eventually

API, CONSUMER, PROVIDER = 13330, 12220, 20881


class _Application(http.server.ThreadingHTTPServer):
    """Says who it is, and keeps who asked."""

    daemon_threads = True

    def __init__(self, name: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.name = name
        self.delay = 0.0
        self.left = False
        self.peers: set[str] = set()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def leave(self) -> None:
        """Connections that are open get one more answer."""
        self.left = True
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        application = self.server
        assert isinstance(application, _Application)
        application.peers.add(self.client_address[0])
        self.close_connection = application.left
        if application.delay:
            time.sleep(application.delay)
        body = f"{application.name} {self.headers['host']}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        if application.left:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Sidecar(Sidecar):
    """With takeover, at its own loopback address."""

    def __init__(self, registry: str, kind: str, **takeover: Any) -> None:
        self._takeover, self._registry = takeover, {"type": kind, "address": registry}
        super().__init__()

    @override
    def _default_settings(self) -> dict[str, Any]:
        return {
            **super()._default_settings(),
            "takeover": {
                "api": f"{self.address}:{API}",
                "consumer": f"{self.address}:{CONSUMER}",
                "provider": f"{self.address}:{PROVIDER}",
                "state": str(self.directory / "takeover.json"),
                **self._takeover,
            },
            "registry": self._registry,
        }


class Pod:
    """Its sidecar, and what an application there says and asks."""

    def __init__(self, registry: str, kind: str = "embedded", **takeover: Any) -> None:
        self.sidecar = _Sidecar(registry, kind, **takeover)

    @property
    def host(self) -> str:
        return self.sidecar.address

    def say(self, path: str, **body: Any) -> dict[str, Any]:
        """To the mesh API."""
        client = http.client.HTTPConnection(self.host, API, timeout=10)
        client.request("POST", path, json.dumps(body), {"Content-Type": "text/plain"})
        answer = client.getresponse()
        assert answer.status == 200
        found: dict[str, Any] = json.loads(answer.read())
        client.close()
        return found

    def publish(self, service: str, port: int) -> None:
        assert self.say("/services/publish", serviceName=service, protocolType="http", port=port)[
            "success"
        ]

    def subscribe(self, service: str) -> None:
        assert self.say("/services/subscribe", serviceName=service, protocolType="http")["success"]

    def get(self, service: str) -> tuple[int, str]:
        client = http.client.HTTPConnection(self.host, CONSUMER, timeout=10)
        try:
            client.request("GET", "/", headers={"Host": service})
            answer = client.getresponse()
            return answer.status, answer.read().decode()
        finally:
            client.close()

    def called(self, service: str, upstream: str) -> None:
        """Its sidecar did."""
        requests = self.sidecar.requests
        eventually(
            lambda: any(
                (each.service, each.upstream) == (service, upstream) for each in requests()
            ),
            lambda: str(requests()),
        )

    def gets(self, service: str, text: str) -> None:
        """Sooner or later."""
        eventually(lambda: self.get(service) == (200, text), lambda: str(self.get(service)))

    def provides_and_calls(self, application: _Application) -> Pod:
        """Both by the application's name."""
        name = application.name
        self.publish(name, application.server_port)
        self.subscribe(name)
        self.gets(name, f"{name} {name}")
        return self


@contextmanager
def _registry(address: str, state: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pysidecar", "registry"),
            *("--listen", address, "--state", str(state)),
        ]
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    with _registry(address, tmp_path / "registry.db"):
        yield address


@pytest.fixture
def pods(registry: str) -> Iterator[Callable[..., Pod]]:
    with ExitStack() as stack:

        def start(**settings: Any) -> Pod:
            pod = Pod(registry, **settings)
            stack.enter_context(pod.sidecar)
            return pod

        yield start


@pytest.fixture
def application() -> Iterator[Callable[..., _Application]]:
    started: list[_Application] = []

    def start(name: str, port: int = 0) -> _Application:
        started.append(_Application(name, port))
        return started[-1]

    yield start
    for each in started:
        each.leave()


def test_a_call_goes_from_application_to_application(
    pods: Callable[..., Pod], application: Callable[..., _Application]
) -> None:
    provider, consumer = pods(), pods()
    orders = application("orders")
    assert consumer.get("orders")[0] == 404
    provider.publish("orders", orders.server_port)
    eventually(lambda: provider.sidecar.admin_json("/takeover")["registered"] == 1)
    consumer.subscribe("orders")
    # At once: the call waits until the registry has told.
    assert consumer.get("orders") == (200, "orders orders")
    consumer.called("orders", f"{provider.host}:{PROVIDER}")
    provider.called("orders", f"127.0.0.1:{orders.server_port}")


def test_who_provides_it_itself_calls_itself_without_the_way_round(
    pods: Callable[..., Pod], application: Callable[..., _Application]
) -> None:
    orders = application("orders")
    pod = pods().provides_and_calls(orders)
    pod.called("orders", f"127.0.0.1:{orders.server_port}")


def test_an_application_that_is_gone_is_unpublished_until_it_is_back(
    pods: Callable[..., Pod], application: Callable[..., _Application]
) -> None:
    one, two, consumer = pods(), pods(), pods()
    first, second = application("first"), application("second")
    one.publish("orders", first.server_port)
    two.publish("orders", second.server_port)
    consumer.subscribe("orders")
    for name in ("first", "second"):
        eventually(lambda name=name: consumer.get("orders")[1] == f"{name} orders")  # type: ignore[misc]
    port = first.server_port
    first.leave()
    eventually(lambda: all(consumer.get("orders")[0] == 200 for _ in range(20)))
    again = application("again", port)
    eventually(lambda: consumer.get("orders")[1] == "again orders")
    again.delay = 0


@pytest.mark.parametrize("how", ["the sidecar stops", "the application unpublishes and stops"])
def test_a_provider_that_leaves_in_order_loses_no_request(
    pods: Callable[..., Pod], application: Callable[..., _Application], how: str
) -> None:
    leaving, staying, consumer = pods(), pods(), pods()
    leaves = application("leaving")
    for pod, served in ((leaving, leaves), (staying, application("staying"))):
        served.delay = 0.01
        pod.publish("orders", served.server_port)
    consumer.subscribe("orders")
    for name in ("leaving", "staying"):
        eventually(lambda name=name: consumer.get("orders")[1] == f"{name} orders")  # type: ignore[misc]
    done = threading.Event()
    failed: list[object] = []
    answered: list[str] = []

    def call() -> None:
        while not done.is_set():
            try:
                status, text = consumer.get("orders")
            except OSError as error:
                failed.append(error)
                continue
            (answered if status == 200 else failed).append(text)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for each in callers:
        each.start()
    if how == "the sidecar stops":
        leaving.sidecar.stop(timeout=20)
    else:
        assert leaving.say("/services/unpublish", serviceName="orders", protocolType="http")[
            "success"
        ]
        leaves.leave()
    count = len(answered)
    eventually(lambda: len(answered) > count + 20)
    done.set()
    for each in callers:
        each.join()
    assert not failed
    assert set(answered[count + 8 :]) == {"staying orders"}


def test_a_call_subscribes_its_service_on_demand(
    pods: Callable[..., Pod], application: Callable[..., _Application]
) -> None:
    provider, consumer = pods(), pods(on_demand=True, on_demand_timeout="20s")
    orders = application("orders")
    provider.publish("orders.example", orders.server_port)
    assert consumer.get("orders.example") == (200, "orders orders.example")
    assert consumer.get("Orders.example:80")[0] == 200
    assert provider.get("orders.example")[0] == 404  # there it is not configured


def test_a_killed_sidecar_remembers_what_nobody_repeats(
    pods: Callable[..., Pod], application: Callable[..., _Application]
) -> None:
    provider, consumer = pods(), pods()
    orders = application("orders")
    provider.publish("orders", orders.server_port)
    consumer.subscribe("orders")
    for pod in (provider, consumer):  # as soon as the applications have their answers
        pod.sidecar.kill()
        pod.sidecar.start()
    consumer.gets("orders", "orders orders")


def test_calls_go_on_while_the_registry_is_away(
    tmp_path: Path, application: Callable[..., _Application]
) -> None:
    address, state = f"127.0.0.1:{free_port()}", tmp_path / "registry.db"
    provider, consumer = Pod(address), Pod(address)
    orders, late = application("orders"), application("late")
    leaving = application("leaving")
    with provider.sidecar, consumer.sidecar:
        with _registry(address, state):
            provider.publish("orders", orders.server_port)
            consumer.subscribe("orders")
            provider.publish("leaving", leaving.server_port)
            consumer.subscribe("leaving")
            consumer.gets("orders", "orders orders")
            consumer.gets("leaving", "leaving leaving")
        eventually(lambda: "away" in provider.sidecar.admin_json("/takeover")["registry"]["state"])
        before = time.monotonic()
        provider.say("/services/unpublish", serviceName="leaving", protocolType="http")
        assert time.monotonic() - before < 5  # nobody can hear of it now
        for _ in range(5):
            assert consumer.get("orders") == (200, "orders orders")
            assert consumer.get("leaving") == (200, "leaving leaving")  # as long as it listens
        leaving.leave()
        eventually(lambda: not provider.sidecar.admin_json("/services?service=leaving"))
        provider.publish("late", late.server_port)
        consumer.subscribe("late")
        eventually(lambda: consumer.get("late")[0] == 503)
        # Also when it comes back without a memory.
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{state}{suffix}").unlink()
        with _registry(address, state):
            back = time.monotonic()
            consumer.gets("late", "late late")
            assert time.monotonic() - back < 10
            for _ in range(5):
                assert consumer.get("orders") == (200, "orders orders")


def test_what_is_published_and_subscribed_is_seen(
    pods: Callable[..., Pod], application: Callable[..., _Application]
) -> None:
    pod = pods()
    orders = application("orders")
    assert "serviceName" in pod.say("/services/publish", port=1)["errorMessage"]
    pod.publish("orders", orders.server_port)
    pod.subscribe("orders")

    def seen() -> dict[str, Any] | None:
        entries = pod.sidecar.admin_json("/services?service=orders")
        found = {each["role"]: each for each in entries}
        done = found["published"]["registered"] and found["subscribed"]["instances"]
        return found if done else None

    found = eventually(seen)
    (publication,) = found["published"]["publications"]
    assert publication["address"] == f"127.0.0.1:{orders.server_port}"
    assert publication["listens"]
    assert found["published"]["endpoints"][0]["address"] == publication["address"]
    assert found["subscribed"]["known"]
    assert found["subscribed"]["instances"][0]["address"] == f"{pod.host}:{PROVIDER}"
    status = pod.sidecar.admin_json("/takeover")
    assert status["registry"]["state"] == "connected"
    assert [status[key] for key in ("published", "registered", "subscribed")] == [1, 1, 1]
    admin = http.client.HTTPConnection(pod.sidecar.admin.host, pod.sidecar.admin.port, timeout=10)
    admin.request("GET", "/metrics")
    assert b'pysidecar_registry_connected{type="embedded"} 1.0' in admin.getresponse().read()
    admin.close()
    assert pod.say("/services/unpublish", serviceName="orders", protocolType="http")["success"]
    (left,) = pod.sidecar.admin_json("/services?service=orders")
    assert left["role"] == "subscribed"


def test_the_configuration_publishes_and_subscribes_for_those_without_an_sdk(
    pods: Callable[..., Pod], application: Callable[..., _Application]
) -> None:
    orders = application("orders")
    provided = {"service": "orders", "protocol": "http", "port": orders.server_port}
    pods(publish=[provided])
    consumer = pods(subscribe=[{"service": "orders", "protocol": "http"}])
    consumer.gets("orders", "orders orders")


def test_a_sidecar_that_is_back_knows_its_services_with_the_first_call(
    pods: Callable[..., Pod], application: Callable[..., _Application]
) -> None:
    pod = pods().provides_and_calls(application("orders"))
    state = pod.sidecar.directory / "takeover.json"
    eventually(lambda: state.exists() and pod.host in state.read_text())
    for _ in range(3):
        pod.sidecar.kill()
        restart = threading.Thread(target=pod.sidecar.start)
        restart.start()
        answers: list[tuple[int, str]] = []

        def first_answer(answers: list[tuple[int, str]] = answers) -> bool:
            with suppress(OSError, http.client.HTTPException):
                answers.append(pod.get("orders"))
            return bool(answers)

        eventually(first_answer)
        restart.join()
        assert answers == [(200, "orders orders")]
