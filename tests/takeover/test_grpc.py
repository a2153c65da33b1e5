"""gRPC's own Python, synchronous and asyncio, through two sidecars: published, subscribed and
called by the service that each call's path names."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from pysidecar.address import Address
from pysidecar.dataplane import DemandedService, Protocol
from pysidecar.registry.service import ServiceKey
from pysidecar.routing.found import FoundService, FoundServices, Role
from tests.interop.servers import free_port
from tests.launching import PYSIDECAR
from tests.registry.servers import EtcdServer, ServerProcess, ZooKeeperServer
from tests.requests.test_grpc_peers import SERVICE, Service
from tests.takeover.test_flow import CONSUMER, PROVIDER, Pod, _registry
from tests.takeover.test_ports import Ports
from tests.waiting import PATIENCE, eventually

_SERVING = health_pb2.HealthCheckResponse.SERVING


class Application(Service):
    """A server of gRPC, with health checks and reflection, which keeps who called."""

    def __init__(self, name: str = SERVICE) -> None:
        super().__init__()
        self.name = name
        self.peers: set[str] = set()
        self.server = grpc.server(ThreadPoolExecutor(8))
        self.server.add_generic_rpc_handlers((self.handler(name),))
        checks = health.HealthServicer()
        checks.set(name, _SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, self.server)
        reflection.enable_server_reflection((name, reflection.SERVICE_NAME), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Back, with the name of the application where that is asked for."""
        self.peers.add(context.peer())
        return self.name.encode() if request == b"who" else super().unary(request, context)

    def close(self) -> None:
        self.server.stop(None).wait(PATIENCE)


def say(pod: Pod, path: str, service: str, **body: Any) -> None:
    said = pod.say(f"/services/{path}", serviceName=service, protocolType="grpc", **body)
    assert said["success"], said


@contextmanager
def channel(pod: Pod, authority: str = "") -> Iterator[grpc.Channel]:
    """To its consumer port, with nothing that another channel uses."""
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    if authority:
        options.append(("grpc.default_authority", authority))
    with grpc.insecure_channel(f"{pod.host}:{CONSUMER}", options) as made:
        yield made


def failure(call: Callable[[], object]) -> tuple[Any, str]:
    """The status with which it fails."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    return error.code(), error.details()


def ask(pod: Pod, service: str = SERVICE, text: bytes = b"who") -> bytes:
    """One call, by a connection of its own."""
    with channel(pod) as made:
        answer: bytes = made.unary_unary(f"/{service}/Unary")(text, timeout=PATIENCE)
        return answer


@dataclass
class Mesh:
    """A pod that provides, and one that calls."""

    registry: str
    provider: Pod
    consumer: Pod

    @contextmanager
    def serving(self, *names: str) -> Iterator[list[Application]]:
        """Applications that are published there and subscribed here, until they are not any more.
        Each is called once."""
        with ExitStack() as stack:
            made = [Application(name) for name in names]
            for each in made:
                stack.callback(each.close)
                say(self.provider, "publish", each.name, port=each.port)
                stack.callback(say, self.provider, "unpublish", each.name)
                say(self.consumer, "subscribe", each.name)
                stack.callback(say, self.consumer, "unsubscribe", each.name)
            for name in names:
                eventually(lambda name=name: answers(self.consumer, name))  # type: ignore[misc]
            yield made


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    address = f"127.0.0.1:{free_port()}"
    with _registry(address, tmp_path_factory.mktemp("grpc") / "registry.db"):
        provider, consumer = Pod(address), Pod(address)
        with provider.sidecar, consumer.sidecar:
            yield Mesh(address, provider, consumer)


@pytest.fixture
def application(mesh: Mesh) -> Iterator[Application]:
    """The only one of the mesh."""
    with mesh.serving(SERVICE) as (made,):
        yield made


def answers(pod: Pod, service: str = SERVICE) -> bool:
    try:
        return ask(pod, service) == service.encode()
    except grpc.RpcError:
        return False


def test_calls_go_from_application_to_application(mesh: Mesh, application: Application) -> None:
    provider, consumer = mesh.provider, mesh.consumer
    with channel(consumer) as made:
        unary = made.unary_unary(f"/{SERVICE}/Unary")
        answer, call = unary.with_call(b"x" * 100_000, timeout=PATIENCE)
        assert answer == b"x" * 100_000
        assert ("x-sum", "100000") in call.trailing_metadata()
        parts = [b"%d," % at for at in range(100)]
        server_stream = made.unary_stream(f"/{SERVICE}/ServerStream")
        assert len(list(server_stream(b"100", timeout=PATIENCE))) == 100
        client_stream = made.stream_unary(f"/{SERVICE}/ClientStream")
        assert client_stream(iter(parts), timeout=PATIENCE) == b"".join(parts)
        both_stream = made.stream_stream(f"/{SERVICE}/BothStream")
        assert list(both_stream(iter(parts), timeout=PATIENCE)) == parts
        assert failure(lambda: unary(b"fail", timeout=PATIENCE))[0] is grpc.StatusCode.NOT_FOUND
    consumer.called(SERVICE, f"{provider.host}:{PROVIDER}")
    provider.called(SERVICE, f"127.0.0.1:{application.port}")
    # Nobody but its own sidecar came to the application.
    assert {peer.rpartition(":")[0] for peer in application.peers} == {"ipv4:127.0.0.1"}


@pytest.mark.parametrize("server", [ZooKeeperServer, EtcdServer])
def test_other_registries_carry_it(server: type[ServerProcess], tmp_path: Path) -> None:
    kind = {ZooKeeperServer: "zookeeper", EtcdServer: "etcd"}[server]
    with server(tmp_path / kind) as registry:
        provider, consumer = (Pod(str(registry.address), kind) for _ in range(2))
        mesh = Mesh(str(registry.address), provider, consumer)
        with provider.sidecar, consumer.sidecar, mesh.serving(SERVICE) as (application,):
            assert application.peers
            consumer.called(SERVICE, f"{provider.host}:{PROVIDER}")


@pytest.mark.usefixtures("application")
def test_asyncio_calls_go_the_same_way(mesh: Mesh) -> None:

    async def messages() -> AsyncIterator[bytes]:
        for at in range(100):
            yield b"%d" % at

    async def calls() -> None:
        async with grpc.aio.insecure_channel(f"{mesh.consumer.host}:{CONSUMER}") as made:
            unary = made.unary_unary(f"/{SERVICE}/Unary")
            texts = [b"%d" % at for at in range(100)]
            many = (unary(text, timeout=PATIENCE) for text in texts)
            assert await asyncio.gather(*many) == texts
            stream = made.stream_stream(f"/{SERVICE}/BothStream")
            assert [each async for each in stream(messages(), timeout=PATIENCE)] == texts

    asyncio.run(calls())


def test_each_call_goes_to_the_service_of_its_path(mesh: Mesh) -> None:
    """Two applications in a pod, one connection; an HTTP service of the same host beside them."""
    names = ("a.One", "a.Two")
    mesh.consumer.subscribe(mesh.consumer.host)
    with mesh.serving(*names), channel(mesh.consumer) as made:
        for name in names * 5:
            assert made.unary_unary(f"/{name}/Unary")(b"who", timeout=PATIENCE) == name.encode()
    mesh.consumer.say("/services/unsubscribe", serviceName=mesh.consumer.host, protocolType="http")


@pytest.mark.usefixtures("application")
def test_what_nobody_subscribed_or_provides_is_answered_at_once(mesh: Mesh) -> None:
    provider, consumer = mesh.provider, mesh.consumer
    unimplemented = grpc.StatusCode.UNIMPLEMENTED
    long = "a." + "b" * 5000
    with channel(consumer) as made:
        for path in ("/a.Unknown/M", f"/{SERVICE}x/M", f"//{SERVICE}/M", f"/x/{SERVICE}/M", "/a/"):
            assert failure(lambda p=path: made.unary_unary(p)(b"", timeout=PATIENCE)) == (  # type: ignore[misc]
                *(unimplemented, "no_route"),
            )
        wrong_case = f"/{SERVICE.upper()}/Unary"
        for path in (f"/{long}/M", wrong_case):
            assert failure(lambda p=path: made.unary_unary(p)(b"", timeout=PATIENCE))[0] is (  # type: ignore[misc]
                unimplemented
            )
        # An unknown method is the application's to refuse.
        found = failure(lambda: made.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=PATIENCE))
        assert found[0] is unimplemented
        assert "no_route" not in found[1]
        say(consumer, "subscribe", "a.Missing")
        missing = made.unary_unary("/a.Missing/M")
        eventually(
            lambda: (
                failure(lambda: missing(b"", timeout=PATIENCE))
                == (*(grpc.StatusCode.UNAVAILABLE, "no_endpoint"),)
            )
        )
        assert made.unary_unary(f"/{SERVICE}/Unary")(b"hi", timeout=PATIENCE) == b"hi"
        say(consumer, "unsubscribe", "a.Missing")
    with grpc.insecure_channel(f"{provider.host}:{PROVIDER}") as made:
        unknown = made.unary_unary("/a.Unknown/M")
        assert failure(lambda: unknown(b"", timeout=PATIENCE))[0] is unimplemented


def _check(made: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    status: int = health_pb2_grpc.HealthStub(made).Check(request, timeout=PATIENCE).status
    return status


def _reflected(made: grpc.Channel) -> set[str]:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(made)
    (listed,) = stub.ServerReflectionInfo(iter([asked]), timeout=PATIENCE)
    return {each.name for each in listed.list_services_response.service}


@pytest.mark.usefixtures("application")
def test_health_and_reflection_reach_the_application(mesh: Mesh) -> None:
    with channel(mesh.consumer) as made:
        assert _check(made, SERVICE) == _SERVING
        assert SERVICE in _reflected(made)


def test_the_authority_says_whose_health_it_is(mesh: Mesh) -> None:
    names = ("a.One", "a.Two")
    with mesh.serving(*names):
        for name in names:
            with channel(mesh.consumer, name) as made:
                assert _check(made, name) == _SERVING
                assert name in _reflected(made)
        with channel(mesh.consumer) as made:  # clients take it for "there are no checks"
            found = failure(lambda: _check(made, names[0]))
            assert found == (grpc.StatusCode.UNIMPLEMENTED, "no_route")


@pytest.mark.usefixtures("application")
def test_streams_outlive_a_reload_and_an_unpublish(mesh: Mesh) -> None:
    provider, consumer = mesh.provider, mesh.consumer
    turn = threading.Semaphore(0)

    def messages() -> Iterator[bytes]:
        for at in range(3):
            yield b"%d" % at
            turn.acquire(timeout=PATIENCE)

    with channel(consumer) as made:
        answers_of = made.stream_stream(f"/{SERVICE}/BothStream")(messages(), timeout=PATIENCE)
        assert next(answers_of) == b"0"
        provider.sidecar.configure({"takeover": {"on_demand_timeout": "1s"}})
        consumer.sidecar.configure({"takeover": {"on_demand_timeout": "1s"}})
        say(provider, "unpublish", SERVICE)
        eventually(lambda: not answers(consumer))
        for text in (b"1", b"2"):
            turn.release()
            assert next(answers_of) == text
        turn.release()
        assert list(answers_of) == []


@pytest.mark.usefixtures("application")
def test_a_sidecar_that_is_killed_is_back_with_its_services(mesh: Mesh) -> None:
    """Nobody says anything anew, and a channel connects again by itself."""
    provider, consumer = mesh.provider, mesh.consumer
    with channel(consumer) as made:
        unary = made.unary_unary(f"/{SERVICE}/Unary")
        for pod in (provider, consumer):
            call = made.unary_stream(f"/{SERVICE}/ServerStream")(b"forever", timeout=PATIENCE)
            assert next(call) == b"0"
            pod.sidecar.kill()
            assert failure(lambda call=call: list(call))[0] is grpc.StatusCode.UNAVAILABLE  # type: ignore[misc]
            pod.sidecar.start()
            eventually(
                lambda: _succeeds(lambda: unary(b"hi", timeout=PATIENCE, wait_for_ready=True))
            )


def _succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except grpc.RpcError:
        return False
    return True


@pytest.mark.usefixtures("application")
def test_a_call_subscribes_on_demand(mesh: Mesh) -> None:
    consumer = Pod(mesh.registry, on_demand=True, on_demand_timeout="60s")
    with consumer.sidecar:
        assert ask(consumer) == SERVICE.encode()
        (entry,) = consumer.sidecar.admin_json(f"/services?service={SERVICE}")
        assert (entry["protocol"], entry["role"]) == ("grpc", "subscribed")


@pytest.mark.usefixtures("application")
def test_frames_that_are_none_end_their_connection_only(mesh: Mesh) -> None:
    provider, consumer = mesh.provider, mesh.consumer
    with channel(consumer) as made:
        unary = made.unary_unary(f"/{SERVICE}/Unary")
        assert unary(b"hi", timeout=PATIENCE) == b"hi"
        for pod, port in ((consumer, CONSUMER), (provider, PROVIDER)):
            with socket.create_connection((pod.host, port), PATIENCE) as stranger:
                stranger.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100)
                while stranger.recv(1 << 16):
                    pass
        assert unary(b"hi", timeout=PATIENCE) == b"hi"


@pytest.mark.usefixtures("application")
def test_a_hooked_consumer_calls_an_address_of_nobodys(mesh: Mesh) -> None:
    """What its call names is all that counts."""
    sidecar = mesh.consumer.sidecar
    route = {"match": {"destination": "10.96.0.0/16"}, "action": "requests"}
    sidecar.configure({"outbound": {"routes": [route]}})
    code = (
        "import grpc; channel = grpc.insecure_channel('10.96.1.2:50051'); "
        f"print(channel.unary_unary('/{SERVICE}/Unary')(b'who', timeout={PATIENCE}).decode())"
    )
    command = [*PYSIDECAR, "exec", "-c", str(sidecar.config_file), "--", sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.stdout == f"{SERVICE}\n", answer.stderr


def test_rules_choose_by_the_service_of_a_call() -> None:
    servers = {name: Application(name) for name in ("a.One", "b.Two")}
    services = ", ".join(
        f"{name[0]}: {{protocol: grpc, endpoints: ['127.0.0.1:{server.port}']}}"
        for name, server in servers.items()
    )
    rules = "[{match: {service: a.One}, services: a}, {match: {service: 'b.*'}, services: b}]"
    ports = Ports(more=f"services: {{{services}}}\nrequests: {rules}")
    try:
        with grpc.insecure_channel(str(ports.consumer)) as made:
            for name in servers:
                unary = made.unary_unary(f"/{name}/Unary")
                assert unary(b"who", timeout=PATIENCE) == name.encode()
            unknown = made.unary_unary("/a.Two/Unary")
            assert failure(lambda: unknown(b"", timeout=PATIENCE)) == (
                *(grpc.StatusCode.UNIMPLEMENTED, "no_route"),
            )
    finally:
        ports.close()
        for server in servers.values():
            server.close()


def test_what_others_subscribed_takes_no_calls_away() -> None:
    """Another user subscribed the same name with the other protocol, and health checks."""
    server = Application()
    ports = Ports()
    try:
        one = ((Address("127.0.0.1", server.port), 1),)
        for with_endpoints, without in (("grpc", "tri"), ("tri", "grpc")):
            ports.find(
                FoundServices(
                    (
                        FoundService(ServiceKey("grpc", health.SERVICE_NAME), Role.SUBSCRIBED),
                        FoundService(ServiceKey(without, SERVICE), Role.SUBSCRIBED),
                        FoundService(ServiceKey(with_endpoints, SERVICE), Role.SUBSCRIBED, one),
                    )
                )
            )
            options = [("grpc.default_authority", SERVICE)]
            with grpc.insecure_channel(str(ports.consumer), options) as made:
                unary = made.unary_unary(f"/{SERVICE}/Unary")
                assert unary(b"who", timeout=PATIENCE) == SERVICE.encode()
                assert _check(made, SERVICE) == _SERVING
    finally:
        ports.close()
        server.close()


def test_what_is_wanted_on_demand_is_what_the_call_names() -> None:
    ports = Ports(", on_demand: true, on_demand_timeout: 100ms")
    variant = (("tri-service-version", "1.0"), ("tri-service-group", "blue"))
    try:
        for metadata in ((), (("tri-consumer-appname", "shop"),), variant):
            with grpc.insecure_channel(str(ports.consumer)) as made:
                unary = made.unary_unary(f"/{SERVICE}/Unary")
                found = failure(
                    lambda: unary(b"", metadata=metadata, timeout=PATIENCE)  # noqa: B023
                )
                assert found == (grpc.StatusCode.UNIMPLEMENTED, "no_route")
        wanted = set(ports.plane.take_wanted())
    finally:
        ports.close()
    assert wanted == {
        DemandedService(Protocol.GRPC, SERVICE, "", ""),
        DemandedService(Protocol.GRPC, SERVICE, "", "", triple=True),
        DemandedService(Protocol.GRPC, SERVICE, "1.0", "blue", triple=True),
    }
