"""SOFARegistry's own server, and SOFARPC with its own client of it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typing_extensions import override

from pysidecar.address import Address
from pysidecar.registry.service import Instance, Registration, ServiceKey
from tests.interop.servers import free_port
from tests.mesh.support import Pod
from tests.registry.contract import BACK_WITHIN, Contract, Served, Way, instance
from tests.registry.relay import Relay
from tests.registry.sides import Side
from tests.registry.sofaregistry_server import SofaRegistryServer
from tests.requests.programs import Answer, Program, registered_dubbo, sofa
from tests.takeover.pods import API, PROVIDER, Site, peers, sites
from tests.waiting import eventually

# The server starts in 15 s on two processors that are idle, and once for all tests of this file.
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
]


class _Served(Served):
    kind = "sofaregistry"

    def __init__(self, server: SofaRegistryServer) -> None:
        self.server = server
        self.address = server.address
        self.host = server.host
        """Our own address, as it is seen there."""

    @override
    def start(self) -> None:
        self.server.start()

    @override
    def kill(self) -> None:
        self.server.kill()

    @override
    def pause(self) -> None:
        self.server.pause()

    @override
    def resume(self) -> None:
        self.server.resume()

    @override
    def forget(self) -> None:
        """It remembers nothing."""

    @override
    @contextlib.contextmanager
    def way(self) -> Iterator[Way]:
        with (
            Relay(self.server.bolt) as bolt,
            _naming(bolt.address) as names,
            Relay(names) as http,
        ):

            def cut() -> None:
                bolt.cut()
                http.cut()

            def heal() -> None:
                bolt.heal()
                http.heal()

            yield Way(self.entry(http.address), cut, heal)


@contextlib.contextmanager
def _naming(session_server: Address) -> Iterator[Address]:
    """Says where session servers are: there only."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            with contextlib.suppress(OSError):  # whoever asked did not wait
                self.end_headers()
                self.wfile.write(str(session_server).encode())

        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Address(*server.server_address[:2])  # type: ignore[arg-type]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Served]:
    with SofaRegistryServer(tmp_path_factory.mktemp("sofaregistry")) as server:
        yield _Served(server)


class TestContract(Contract):
    patience = 60.0
    # It pushes 0.8 s after a change, and the first time to a subscriber after as long.
    settled_within = 15.0

    @pytest.mark.soak  # what another one does with the same restart
    @override
    def test_all_is_back_after_a_registry_that_was_killed(self, served: Served) -> None:
        super().test_all_is_back_after_a_registry_that_was_killed(served)

    @pytest.mark.soak  # the server needs a minute to see it
    @pytest.mark.timeout(600)
    @override
    def test_all_is_back_after_a_network_that_was_cut(self, served: Served) -> None:
        super().test_all_is_back_after_a_network_that_was_cut(served)

    def test_a_cut_that_only_we_noticed_is_seen_by_nobody(self, served: _Served) -> None:
        """The server has the old connection yet while all is registered anew, and closes it later:
        which takes nothing away."""
        service = self.service()
        registration = Registration(service, instance(1))
        with (
            served.way() as way,
            Side(way.entry) as cut_off,
            Side(served.entry()) as other,
        ):
            other.subscribe(service)
            cut_off.register(registration)
            self.until(other, service, instance(1))
            known = len(other.told(service)) - 1
            way.cut()
            eventually(lambda: cut_off.state != "connected")
            way.heal()
            back = time.monotonic()
            eventually(lambda: cut_off.has_registered(registration))
            assert time.monotonic() - back < BACK_WITHIN
            cut_off.register(Registration(service, instance(1, weight=50)))
            self.until(other, service, instance(1, weight=50))
            assert all(instance(1).address in seen for seen in other.told(service)[known:])
            cut_off.unregister(Registration(service, instance(1, weight=50)))
            self.until(other, service)

    @pytest.mark.soak
    @pytest.mark.timeout(600)
    def test_a_thousand_services_are_back_at_once(
        self, served: _Served, capsys: pytest.CaptureFixture[str]
    ) -> None:
        services = [self.service() for _ in range(1000)]
        registrations = [Registration(service, instance(1)) for service in services]
        with Side(served.entry()) as provider, Side(served.entry()) as consumer:
            provider.register(*registrations)
            consumer.subscribe(*services)
            eventually(lambda: all(map(consumer.sees, services)), patience=self.patience)

            def is_back(by: Instance, service: ServiceKey) -> float:
                began = time.monotonic()
                consumer.register(Registration(service, by))
                eventually(
                    lambda: (
                        provider.has_registered(*registrations)
                        and by.address in (consumer.sees(service) or ())
                    ),
                    patience=self.patience,
                )
                return time.monotonic() - began

            served.server.cut()
            sides = (provider, consumer)
            eventually(lambda: not any(side.state == "connected" for side in sides))
            time.sleep(10)  # in which they try again
            served.server.heal()
            after_cut = is_back(instance(2), services[0])
            served.kill()
            served.start()
            after_restart = is_back(instance(3), services[1])
            with capsys.disabled():
                print(
                    f"after lost packets {after_cut:.1f} s, after a restart {after_restart:.1f} s"
                )
            assert max(after_cut, after_restart) < BACK_WITHIN


# ---- SOFARPC ----

_SERVICE = ServiceKey("bolt", "peer.Echo:1.0:theirs")


@pytest.fixture(scope="module")
def sofarpc() -> Iterator[Program]:
    with sofa() as program:
        yield program


def test_a_provider_of_sofarpc_is_found(served: _Served, sofarpc: Program) -> None:
    with Side(served.entry()) as side:
        port = free_port()
        side.subscribe(_SERVICE)
        eventually(lambda: side.sees(_SERVICE) == {})
        where = {"registry": "sofa", "at": str(served.address), "host": served.host}
        common = {
            "library": "sofarpc",
            "name": "found",
            "services": "theirs",
            "application": "theirs",
        }
        assert not sofarpc.ask("serve", port=port, **common, **where)
        seen = eventually(lambda: side.sees(_SERVICE), "SOFARPC's provider")
        (found,) = seen.values()
        assert found.address == Address(served.host, port)
        assert (found.weight, found.zone, found.warmup) == (100, "", 0.0)
        assert abs(found.started - time.time()) < 600
        assert {("appName", "theirs"), ("serialization", "hessian2")} <= set(found.metadata)
        assert not sofarpc.ask("stop", name="found")
        eventually(lambda: side.sees(_SERVICE) == {}, "its leave")


def test_a_consumer_of_sofarpc_finds_us(served: _Served, sofarpc: Program) -> None:
    service = ServiceKey("bolt", "peer.Echo:1.0:ours")
    with Side(served.entry()) as side:
        port = free_port()
        assert not sofarpc.ask(
            *("serve",),
            library="sofarpc",
            name="ours",
            services="ours",
            host=served.host,
            port=port,
        )
        provided = Registration(
            service,
            Instance(
                Address(served.host, port), warmup=1.0, metadata=(("serialization", "hessian2"),)
            ),
        )
        side.register(provided)
        call = {
            "library": "sofarpc",
            "service": "ours",
            "method": "echo",
            "text": "hello",
            "registry": "sofa",
            "at": str(served.address),
        }
        answer = sofarpc.call(**call)
        assert answer["value"].endswith("ours hello"), answer
        side.unregister(provided)
        eventually(lambda: "error" in sofarpc.call(**call), "the end of it")


# ---- a whole sidecar ----

_APPLICATION = 12200  # where SOFARPC is expected that tells its sidecar no port


@dataclass
class Taken:
    """A pod with a sidecar, which is the server's own namespace; and SOFARPC in it, which knows of
    no registry but that sidecar."""

    site: Site
    program: Program

    def ask(self, op: str, **values: str | int) -> Answer:
        at = {"registry": "mesh", "at": f"http://127.0.0.1:{API}"}
        return self.program.ask(op, library="sofarpc", application="taken", **at, **values)


@pytest.fixture(scope="module")
def taken(served: _Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taken]:
    pod = Pod(served.server.namespace, served.address.host, "")
    registry = f'type: sofaregistry, address: "{served.address}"'
    directory = tmp_path_factory.mktemp("taken")
    with (
        sites([pod], directory, registry, session_timeout="20s") as (site,),
        sofa(prefix=site.prefix) as program,
    ):
        yield Taken(site, program)


_ECHO: dict[str, str | int] = {"method": "echo", "text": "hi", "timeout": 5000}


def test_sofarpc_without_a_sidecar_calls_a_provider_that_has_one(
    served: _Served, sofarpc: Program, taken: Taken
) -> None:
    where = {"library": "sofarpc", "registry": "sofa", "at": str(served.address)}

    def call() -> Answer:
        return sofarpc.call(**where, service="behind", **_ECHO)

    assert not taken.ask("serve", port=_APPLICATION, name="taken", services="behind")
    eventually(lambda: "value" in call(), lambda: f"{call()} {taken.site.sidecar.log}", 60.0)
    assert call() == {"value": "taken/behind hi"}
    record = taken.site.latest_request()
    assert (record["direction"], record["path"]) == ("inbound", "peer.Echo:1.0:behind")
    assert record["upstream"] == f"127.0.0.1:{_APPLICATION}"
    assert record["source"].startswith(f"{served.host}:")
    assert peers(taken.site.pod, _APPLICATION) == {"::ffff:127.0.0.1"}  # the sidecar only
    assert served.host in peers(taken.site.pod, PROVIDER)
    assert not taken.ask("stop", name="taken")
    eventually(lambda: "error" in call(), "its leave")


def test_a_consumer_with_a_sidecar_calls_a_provider_of_sofarpc_that_has_none(
    served: _Served, sofarpc: Program, taken: Taken
) -> None:
    port = free_port()
    where = {"library": "sofarpc", "registry": "sofa", "at": str(served.address)}
    served_at: dict[str, str | int] = {"host": served.host, "port": port}
    assert not sofarpc.ask("serve", name="bare", services="bare", **served_at, **where)

    def call() -> Answer:
        answer = taken.ask("call", service="bare", **_ECHO)
        answer.pop("ms", None)
        return answer

    eventually(lambda: "value" in call(), lambda: f"{call()} {taken.site.sidecar.log}", 60.0)
    assert call() == {"value": "bare/bare hi"}
    record = taken.site.latest_request()
    assert (record["direction"], record["upstream"]) == ("outbound", f"{served.host}:{port}")
    assert not sofarpc.ask("stop", name="bare")

    def no_endpoint() -> bool:
        call()
        return "no_endpoint" in taken.site.latest_request()["flags"]

    eventually(no_endpoint, "its leave")


# ---- Dubbo ----


def test_dubbo_finds_us_and_is_found(served: _Served) -> None:
    theirs = ServiceKey("dubbo", "peer.Echo", "1.0", "blue")
    ours = ServiceKey("dubbo", "peer.Echo", "2.0")
    port = free_port()
    with (
        registered_dubbo(2) as provider,
        registered_dubbo(2) as other,
        Side(served.entry()) as side,
    ):
        side.subscribe(theirs)
        provider.ask("begin", application="ours", registry="N/A", port=port)
        provider.ask("serve", name="ours", services="2.0 ")
        metadata = (("application", "ours"),)
        here = Instance(Address(served.host, port), metadata=metadata)
        side.register(Registration(ours, here))
        registry = f"sofa://{served.address}"
        other.ask("begin", application="theirs", registry=registry, port=free_port())
        assert not other.ask("serve", name="theirs", services="1.0 blue")
        (found,) = eventually(lambda: side.sees(theirs), "Dubbo's provider").values()
        assert (found.weight, found.warmup) == (100, 600.0)
        assert ("application", "theirs") in found.metadata
        answer = other.call(service="2.0 ", method="echo", text="hello")
        assert answer["value"].endswith("hello"), answer
