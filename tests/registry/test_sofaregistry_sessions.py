"""Sessions with a server of SOFARegistry that does not do what it should."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field

import pytest

from pysidecar.address import Address
from pysidecar.config import RegistryEntry
from pysidecar.registry import (
    MAX_INSTANCES,
    Registry,
    RegistryError,
    Session,
    make_registry,
    sofaregistry,
)
from pysidecar.registry import servers as servers_module
from pysidecar.registry.bolt import Command, Frame, FrameReader, Kind
from pysidecar.registry.draft_hessian import JavaObject, Long, dumps, loads
from pysidecar.registry.service import Instance, Registration, ServiceKey
from pysidecar.registry.sofaregistry_data import (
    DEFAULT_ZONE,
    MODEL,
    Identity,
    publisher,
    read_push,
    read_url,
    subscriber,
    write_url,
)
from tests.registry.sofa_captured import packets
from tests.waiting import PATIENCE

ECHO = ServiceKey("bolt", "org.example.Echo:1.0")
HERE = Registration(ECHO, Instance(Address("10.1.2.3", 20881)))

# ---- what is said ----


def captured(class_name: str, program: str) -> list[JavaObject]:
    """Those that a program said."""
    found = []
    for packet in packets():
        for frame in FrameReader().feed(packet.data):
            if packet.name.startswith(program) and frame.class_name == MODEL + class_name:
                value = loads(frame.content)
                assert isinstance(value, JavaObject)
                found.append(value)
    return found


def test_a_registration_is_what_sofarpc_says() -> None:
    (theirs,) = captured("PublisherRegister", "sofarpc")
    fields = theirs.fields
    boxes = fields["dataList"]
    assert isinstance(boxes, list)
    instance = read_url(boxes[0].fields["data"], DEFAULT_ZONE)
    assert instance is not None
    identity = Identity(str(fields["registId"]), fields["version"], fields["timestamp"])  # type: ignore[arg-type]
    ours = publisher(
        Registration(ServiceKey("bolt", "Echo:1.0"), instance), identity, "", wanted=True
    )
    # It names no instance of the registry, which means the default one.
    assert dumps(ours) == dumps(theirs).replace(b"o\x90N", b"o\x90\x13DEFAULT_INSTANCE_ID")


def test_what_is_taken_back_is_what_the_client_for_java_says() -> None:
    *_, theirs = captured("PublisherRegister", "java-client")
    fields = theirs.fields
    service = ServiceKey("bolt", "com.example.Echo:1.0")
    instance = Instance(Address("10.77.0.7", 20881), metadata=(("appName", "reg-pub"),))
    identity = Identity(str(fields["registId"]), fields["version"], fields["timestamp"])  # type: ignore[arg-type]
    assert dumps(publisher(Registration(service, instance), identity, "", wanted=False)) == dumps(
        theirs
    )


def test_a_subscription_is_what_sofarpc_says() -> None:
    (theirs,) = captured("SubscriberRegister", "sofarpc")
    fields = theirs.fields
    identity = Identity(str(fields["registId"]), fields["version"], fields["timestamp"])  # type: ignore[arg-type]
    ours = subscriber(ServiceKey("bolt", "Echo:1.0"), identity, "", wanted=True)
    ours.fields["appName"] = "cons"
    assert dumps(ours) == dumps(theirs).replace(b"globalNFN", b"globalNF\x13DEFAULT_INSTANCE_ID")


def test_what_was_pushed_to_sofarpc_is_understood() -> None:
    push = read_push(captured("ReceivedData", "sofarpc")[0])
    assert push is not None
    assert (push.data_id, push.segment, push.unusable) == (
        *("Echo:1.0@DEFAULT", "DefaultDataCenter"),
        0,
    )
    assert push.subscriptions == ("b1468923-0ab1-4ebd-99fe-f94b41ca4105",)
    assert push.instances == (
        Instance(
            Address("10.77.0.7", 12200),
            started=1795641468.975,
            metadata=(("appName", "prov"), ("rpcVer", "51302"), ("serialization", "hessian2")),
        ),
    )


@pytest.mark.parametrize(
    ("service", "data_id", "group"),
    [
        (ServiceKey("bolt", "a.B:1.0"), "a.B:1.0@DEFAULT", "SOFA"),
        (ServiceKey("bolt", "a.B:1.0:u1"), "a.B:1.0:u1@DEFAULT", "SOFA"),
        (ServiceKey("bolt", "a.B:1.0", group="OTHER"), "a.B:1.0@DEFAULT", "OTHER"),
        (ServiceKey("dubbo", "a.B"), "a.B@dubbo", "SOFA"),
        (ServiceKey("dubbo", "a.B", "2.0"), "a.B:2.0@dubbo", "SOFA"),
        (ServiceKey("dubbo", "a.B", "2.0", "blue"), "a.B:2.0:blue@dubbo", "SOFA"),
        (ServiceKey("http", "shop.example"), "shop.example@http", "SOFA"),
    ],
)
def test_services_have_the_names_that_others_look_for(
    service: ServiceKey, data_id: str, group: str
) -> None:
    fields = subscriber(service, Identity("1", 1, 1), "", wanted=True).fields
    assert (fields["dataId"], fields["group"]) == (data_id, group)


@pytest.mark.parametrize("name", ["a#@#b", "a\nb", "a" * 1025])
def test_a_name_that_the_registry_cannot_take_is_refused(name: str) -> None:
    with pytest.raises(RegistryError, match="cannot name"):
        subscriber(ServiceKey("bolt", name), Identity("1", 1, 1), "", wanted=True)


_EVERYTHING = Instance(
    Address("2001:db8::7", 20881),
    weight=7,
    started=1764144000.125,
    warmup=120.0,
    zone="z1",
    metadata=(
        *(("_SERIALIZETYPE", "2"), ("a=b", "x&y"), ("appName", "one"), ("application", "two")),
        *(("empty", ""), ("odd", " ä%41 ?&=,;|%\"'/<>:#\n"), ("p", "13"), ("serialization", "4")),
    ),
)


@pytest.mark.parametrize("protocol", ["bolt", "dubbo", "http"])
@pytest.mark.parametrize("instance", [_EVERYTHING, HERE.instance])
def test_what_is_written_of_an_instance_is_read_again(protocol: str, instance: Instance) -> None:
    text = write_url(Registration(ServiceKey(protocol, "a.B", "1.0", "g"), instance))
    zone = instance.zone or DEFAULT_ZONE
    assert read_url(text, zone, bolt=protocol == "bolt") == instance


@pytest.mark.parametrize(
    ("text", "instance"),
    [
        ("10.0.0.1:80", Instance(Address("10.0.0.1", 80))),
        ("10.0.0.1:80?", Instance(Address("10.0.0.1", 80))),
        ("10.0.0.1:80/path?weight=3", Instance(Address("10.0.0.1", 80), weight=3)),
        ("bolt://10.0.0.1:80?_WEIGHT=4", Instance(Address("10.0.0.1", 80), weight=4)),
        ("10.0.0.1:80?weight=x&_WEIGHT=4", Instance(Address("10.0.0.1", 80), weight=4)),
        ("10.0.0.1:80?weight=-1", Instance(Address("10.0.0.1", 80), weight=0)),
        ("10.0.0.1:80?_WARMUPTIME=2500", Instance(Address("10.0.0.1", 80), warmup=2.5)),
        (
            "dubbo://10.0.0.1:80/a.B?side=provider&interface=a.B&dubbo=2.0.2&timestamp=1000",
            Instance(Address("10.0.0.1", 80), started=1.0, warmup=600.0),
        ),
        *((text, None) for text in ("", "?", "host:80", "10.0.0.1", "10.0.0.1:0", "::1:80")),
        ("override://10.0.0.1:80?weight=3", None),
        (
            "10.0.0.1:80?" + "a&" * 127 + "weight=3",
            Instance(Address("10.0.0.1", 80), weight=3, metadata=(("a", ""),)),
        ),
        (
            "10.0.0.1:80?" + "a&" * 128 + "weight=3",
            Instance(Address("10.0.0.1", 80), metadata=(("a", ""),)),
        ),
        ("10.0.0.1:80?a=" + "x" * 20_000, None),
    ],
)
def test_instances_that_others_wrote_are_read(text: str, instance: Instance | None) -> None:
    assert read_url(text, DEFAULT_ZONE) == instance


@pytest.mark.parametrize("number", ["9" * 19, "9" * 400, "1e400", "nan", "inf", "\u0661", "0x1"])
def test_a_number_that_is_none_or_too_large_does_no_harm(number: str) -> None:
    names = ("weight", "startTime", "warmupTime", "timestamp", "warmup")
    query = "&".join(f"{name}={number}" for name in names)
    for scheme in ("", "dubbo://"):
        instance = read_url(f"{scheme}10.0.0.1:80?{query}", "")
        assert instance is not None
        assert 0 <= instance.weight < 1 << 53
        assert 0 <= instance.started < 1 << 53


@pytest.mark.parametrize(
    "metadata", [(("a", "x" * 20_000),), tuple((f"a{n:03}", "") for n in range(128))]
)
def test_metadata_that_nobody_would_read_is_refused(
    metadata: tuple[tuple[str, str], ...],
) -> None:
    with pytest.raises(RegistryError, match="metadata"):
        write_url(Registration(ECHO, Instance(Address("10.1.2.3", 1), metadata=metadata)))


def _received(zones: object, **fields: object) -> JavaObject:
    some = {"dataId": "a", "segment": "s", "version": Long(1), "subscriberRegistIds": ["1"]}
    return JavaObject(MODEL + "ReceivedData", {**some, "data": zones, **fields})


def _box(text: object) -> JavaObject:
    return JavaObject(MODEL + "DataBox", {"data": text})


def test_zones_that_all_have_one_list_are_cut() -> None:
    boxes = [_box(f"10.1.{n >> 8}.{n & 255}:80") for n in range(1000)]
    push = read_push(_received({f"z{n}": boxes for n in range(100_000)}))
    assert push is not None
    assert len(push.instances) == 1000
    assert push.unusable


def test_more_instances_than_there_may_be_are_cut() -> None:
    boxes = [_box(f"10.1.{n >> 8}.{n & 255}:80") for n in range(MAX_INSTANCES + 1)]
    push = read_push(_received({"z": boxes}))
    assert push is not None
    assert (len(push.instances), push.unusable) == (MAX_INSTANCES, 1)


def test_what_has_no_address_is_left_out() -> None:
    itself: list[object] = []
    itself.append(itself)
    boxes = [None, 1, "x", itself, _box(None), _box(itself), _box("?"), _box("10.1.2.3:20881")]
    push = read_push(_received({"z": boxes}))
    assert push is not None
    assert [each.address for each in push.instances] == [HERE.instance.address]
    assert push.unusable == 7


def test_of_two_at_one_address_the_later_one_counts() -> None:
    boxes = [_box(f"10.1.2.3:20881?startTime={n}000&weight={n}") for n in (2, 3, 1)]
    push = read_push(_received({"z": boxes}))
    assert push is not None
    assert [each.weight for each in push.instances] == [3]


# ---- a server ----


@dataclass
class Server:
    """By default it answers everything as the real one does."""

    servers: str = ""
    """What it says where its session servers are; empty: itself."""
    status: int = 200
    reads: bool = True
    answers: bool = True
    answer: Callable[[Frame, JavaObject], Frame | None] | None = None
    """To a registration."""
    asked: list[str] = field(default_factory=list)
    requests: list[JavaObject] = field(default_factory=list)
    heartbeats: int = 0
    responses: list[Frame] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def start(self) -> None:
        self._http = await asyncio.start_server(self._serve_http, "127.0.0.1", 0)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self._bolt = await asyncio.start_server(self._serve_bolt, sock=listener)
        self.address = Address(*self._http.sockets[0].getsockname())
        self.servers = self.servers or str(Address(*self._bolt.sockets[0].getsockname()))

    def stop(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self._http.close()
        self._bolt.close()

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
        if self.status:
            head = f"HTTP/1.1 {self.status} X\r\nLocation: http://127.0.0.1:1/\r\n"
            head += f"Content-Length: {len(self.servers)}\r\nConnection: close\r\n\r\n"
            writer.write((head + self.servers).encode())
            writer.close()

    async def _serve_bolt(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        if not self.reads:
            return
        frames = FrameReader()
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                for frame in frames.feed(data):
                    if (answer := self._take(frame)) and self.answers:
                        writer.write(answer.encode())

    def _take(self, frame: Frame) -> Frame | None:
        if frame.kind == Kind.RESPONSE:
            self.responses.append(frame)
            return None
        if frame.command == Command.HEARTBEAT:
            self.heartbeats += 1
            return Frame(Kind.RESPONSE, Command.HEARTBEAT, frame.id)
        request = loads(frame.content)
        assert isinstance(request, JavaObject)
        self.requests.append(request)
        return self.answer(frame, request) if self.answer else response(frame)

    def push(self, zones: object, **fields: object) -> None:
        """To whoever subscribed last."""
        ids = [self.requests[-1].fields["registId"]]
        self.say(dumps(_received(zones, **{"subscriberRegistIds": ids, **fields})))

    def say(self, content: bytes, kind: int = Kind.REQUEST, class_name: str = "") -> None:
        frame = Frame(kind, Command.REQUEST, 7, class_name or MODEL + "ReceivedData", content)
        self.writers[-1].write(frame.encode())


def response(frame: Frame, **fields: object) -> Frame:
    """As the real one answers a registration, and otherwise."""
    all_fields = {"success": True, "refused": False, "message": "so it is"} | fields
    content = dumps(JavaObject(MODEL + "RegisterResponse", all_fields))
    return Frame(Kind.RESPONSE, Command.RESPONSE, frame.id, content=content)


Seen = list[tuple[ServiceKey, list[Instance]]]


@contextlib.asynccontextmanager
async def session(server: Server, timeout: str = "30s") -> AsyncIterator[tuple[Session, Seen]]:
    """One with it, and what is pushed."""
    seen: Seen = []
    await server.start()
    try:
        opened = await _registry(server.address, timeout=timeout).open(
            lambda service, instances: seen.append((service, list(instances)))
        )
        try:
            yield opened, seen
        finally:
            await opened.close()
    finally:
        server.stop()


def _registry(*addresses: Address, timeout: str = "30s", zone: str = "") -> Registry:
    text = ",".join(map(str, addresses))
    entry = {"type": "sofaregistry", "address": text, "session_timeout": timeout, "zone": zone}
    return make_registry(RegistryEntry.model_validate(entry))


async def until(ask: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not ask():
            await asyncio.sleep(0.005)


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


def test_a_registration_keeps_its_id_and_its_version_goes_up() -> None:
    async def test() -> None:
        server = Server()
        async with session(server) as (opened, _):
            await opened.register(HERE)
            await opened.register(HERE)
            await opened.unregister(HERE)
        fields = [request.fields for request in server.requests]
        assert len({each["registId"] for each in fields}) == 1
        assert [each["eventType"] for each in fields] == ["REGISTER", "REGISTER", "UNREGISTER"]
        versions = [each["version"] for each in fields]
        assert versions == sorted(set(versions))  # type: ignore[type-var]

    run(test)


def test_it_keeps_its_id_in_the_next_session() -> None:
    async def test() -> None:
        server = Server()
        await server.start()
        registry = _registry(server.address)
        for _ in range(2):
            opened = await registry.open(lambda *_: None)
            await opened.register(HERE)
            await opened.close()
        server.stop()
        before, after = (request.fields for request in server.requests)
        assert before["registId"] == after["registId"]
        assert before["version"] < after["version"]  # type: ignore[operator]

    run(test)


def test_the_zone_is_that_of_the_instance_or_of_this_host() -> None:
    async def test() -> None:
        server = Server()
        await server.start()
        opened = await _registry(server.address, zone="z1").open(lambda *_: None)
        await opened.register(HERE)
        await opened.register(Registration(ECHO, Instance(Address("10.1.2.4", 1), zone="z2")))
        await opened.close()
        server.stop()
        assert [request.fields["zone"] for request in server.requests] == ["z1", "z2"]

    run(test)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda frame: response(frame, success=False), "not taken: so it is"),
        (lambda frame: response(frame, refused=True), "refused: so it is"),
        (lambda frame: Frame(Kind.RESPONSE, 2, frame.id, status=4), "status 4 of Bolt"),
        (lambda frame: Frame(Kind.RESPONSE, 2, frame.id, content=b"V"), "cannot be read"),
        (lambda frame: Frame(Kind.RESPONSE, 2, frame.id, content=b"N"), "no object"),
        (lambda frame: Frame(Kind.RESPONSE, 2, frame.id, codec=11), "codec 11"),
        (lambda frame: None, r"no answer within 0\.2 s"),
    ],
)
def test_a_call_that_fails_leaves_the_session_alone(
    answer: Callable[[Frame], Frame | None], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sofaregistry, "_ANSWER_TIMEOUT", 0.2)

    async def test() -> None:
        server = Server(answer=lambda frame, _: answer(frame))
        async with session(server) as (opened, _):
            with pytest.raises(RegistryError, match=problem):
                await opened.register(HERE)
            with pytest.raises(RegistryError, match=problem):
                await opened.subscribe(ECHO)
            server.answer = None
            await opened.register(HERE)
            await opened.subscribe(ECHO)

    run(test)


def test_a_late_answer_is_nobody_elses() -> None:
    late: list[Frame] = []

    def keep(frame: Frame, _: JavaObject) -> None:
        late.append(response(frame, success=False))

    async def test() -> None:
        server = Server(answer=keep)
        async with session(server) as (opened, _):
            task = asyncio.create_task(opened.register(HERE))
            await until(lambda: late)
            task.cancel()
            server.answer = None
            server.writers[-1].write(late[0].encode())
            await opened.register(HERE)

    run(test)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "closed the connection"),
        (b"HTTP/1.1 400 Bad Request", "no Bolt v1"),
        (b"\1\1\0\1\1" + b"\xff" * 30, "class name has 65535 bytes"),
        (
            Frame(Kind.REQUEST, Command.REQUEST, 1, MODEL + "ReceivedData", b"Vz").encode(),
            "no object",
        ),
        (
            Frame(Kind.REQUEST, 1, 1, MODEL + "ReceivedData", b"V" + b"\1a" * 1_000_000).encode(),
            "more than 250000 values",
        ),
        (
            Frame(
                *(Kind.REQUEST, Command.REQUEST, 1, MODEL + "ReceivedData"),
                dumps(_received({"z": "not a list"})),
            ).encode(),
            "no lists",
        ),
    ],
)
def test_a_server_that_talks_nonsense_loses_the_session(data: bytes | None, reason: str) -> None:
    async def test() -> None:
        server = Server()
        async with session(server) as (opened, _):
            await opened.register(HERE)
            server.answers = False
            call = asyncio.create_task(opened.register(HERE))
            await until(lambda: len(server.requests) == 2)
            if data is None:
                server.writers[-1].close()
            else:
                server.writers[-1].write(data)
            async with asyncio.timeout(PATIENCE):
                assert reason in await opened.closed()
            for waiting in (call, opened.register(HERE), opened.subscribe(ECHO)):
                with pytest.raises(RegistryError, match=reason):
                    await waiting

    run(test)


def test_a_silent_server_loses_the_session() -> None:
    async def test() -> None:
        server = Server(answers=False)
        async with session(server, "200ms") as (opened, _):
            async with asyncio.timeout(PATIENCE):
                assert await opened.closed() == "it has been silent for 0.2 s"
        assert server.heartbeats == 1

    run(test)


def test_heartbeats_keep_the_session() -> None:
    async def test() -> None:
        server = Server()
        async with session(server, "100ms") as (opened, _):
            await until(lambda: server.heartbeats > 4)
            await opened.register(HERE)

    run(test)


def test_a_server_that_says_much_and_reads_nothing_loses_the_session() -> None:
    async def test() -> None:
        server = Server(reads=False)
        async with session(server, "400ms") as (opened, _):
            await until(lambda: len(server.writers) == 2)
            frame = Frame(Kind.REQUEST, Command.REQUEST, 1, MODEL + "ReceivedConfigData").encode()

            async def flood() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        server.writers[-1].write(frame * 1000)
                        await server.writers[-1].drain()

            flooding = asyncio.create_task(flood())
            try:
                async with asyncio.timeout(PATIENCE):
                    assert await opened.closed() == "it has not read for 0.2 s"
            finally:
                flooding.cancel()

    run(test)


def test_pushes_are_answered_and_told() -> None:
    async def test() -> None:
        server = Server()
        async with session(server) as (opened, seen):
            await opened.subscribe(ECHO)
            await opened.subscribe(ECHO)
            assert len(server.requests) == 1
            server.push({})
            await until(lambda: server.responses)
            assert seen == [(ECHO, [])]
            (answer,) = server.responses
            assert (answer.id, answer.status, answer.class_name) == (7, 0, MODEL + "Result")
            assert answer.content == captured_result()
            server.push({"z1": [_box("10.1.2.3:20881")]}, version=Long(2))
            await until(lambda: len(seen) == 2)
            assert seen[1] == (ECHO, [Instance(Address("10.1.2.3", 20881), zone="z1")])

    run(test)


def captured_result() -> bytes:
    return dumps(captured("Result", "java-client")[0])


def test_what_is_older_or_of_nobody_is_not_told() -> None:
    async def test() -> None:
        server = Server()
        async with session(server) as (opened, seen):
            await opened.subscribe(ECHO)
            server.push({"z": [_box("10.1.2.3:1")]}, version=Long(5))
            server.push({}, version=Long(4))
            server.push({}, version=Long(5))
            server.push(None, version=Long(6))
            server.push({}, version=Long(7), subscriberRegistIds=["another", None, 3])
            await until(lambda: len(server.responses) == 5)
            assert len(seen) == 1
            server.push({}, version=None)  # of a server that counts none
            server.push({}, version=Long(8))
            await until(lambda: len(seen) == 3)

    run(test)


def test_what_was_unsubscribed_is_not_told() -> None:
    async def test() -> None:
        server = Server()
        async with session(server) as (opened, seen):
            await opened.subscribe(ECHO)
            await opened.unsubscribe(ECHO)
            await opened.unsubscribe(ECHO)
            first, second = (request.fields for request in server.requests)
            assert second["eventType"] == "UNREGISTER"
            assert second["version"] > first["version"]  # type: ignore[operator]
            server.push({})
            await until(lambda: server.responses)
            await opened.subscribe(ECHO)
            server.push({"z": [_box("10.1.2.3:1")]}, version=Long(1))
            await until(lambda: seen)
            assert [len(instances) for _, instances in seen] == [1]

    run(test)


def test_data_centers_are_put_together() -> None:
    async def test() -> None:
        server = Server()
        async with session(server) as (opened, seen):
            await opened.subscribe(ECHO)
            for number in range(100):
                server.push({"z": [_box(f"10.1.2.{number}:1")]}, segment=f"dc{number}")
            server.push({}, segment="dc1", version=Long(2))
            await until(lambda: len(server.responses) == 101)
            assert len(seen) == 65  # 64 data centers, and one again
            addresses = {each.address.host for each in seen[-1][1]}
            assert addresses == {f"10.1.2.{number}" for number in range(64) if number != 1}

    run(test)


def test_a_large_push_is_told_before_the_next_and_the_loop_goes_on() -> None:
    async def test() -> None:
        server = Server()
        async with session(server) as (opened, seen):
            await opened.subscribe(ECHO)
            boxes = [_box(f"10.1.{n >> 8}.{n & 255}:80?weight=3") for n in range(20_000)]
            server.push({"z": boxes})
            server.push({}, version=Long(2))
            turns = 0
            async with asyncio.timeout(PATIENCE):
                while len(seen) < 2:
                    await asyncio.sleep(0.001)
                    turns += 1
            assert [len(instances) for _, instances in seen] == [20_000, 0]
            assert turns > 30  # it takes some tenths of a second

    run(test)


def test_a_server_that_pushes_without_measure_loses_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sofaregistry, "_MAX_HELD", 20_000)

    async def test() -> None:
        server = Server()
        async with session(server) as (opened, seen):
            services = [ServiceKey("bolt", f"org.example.Echo{n}:1.0") for n in range(3)]
            boxes = [_box("10.1.2.3:1?a=" + "x" * 8000)]
            for service in services[:2]:
                for _ in range(3):  # what replaces another one, or is of nobody, does not count
                    await opened.subscribe(service)
                    for version in (1, 2):
                        server.push({"z": boxes}, version=Long(version))
                    await until(lambda: len(server.responses) == 2)
                    server.responses.clear()
                    await opened.unsubscribe(service)
                await opened.subscribe(service)
                server.push({"z": boxes})
                await until(lambda: server.responses)
                server.responses.clear()
            assert len(seen) == 14
            await opened.subscribe(services[2])
            server.push({"z": boxes})
            async with asyncio.timeout(PATIENCE):
                assert "pushes more than 20000 bytes" in await opened.closed()

    run(test)


def test_what_cannot_be_used_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        server = Server()
        async with session(server) as (opened, seen):
            await opened.subscribe(ECHO)
            for version in (1, 2, 3):
                server.push({"z": [_box("somewhere:80")]}, version=Long(version))
            await until(lambda: len(seen) == 3)

    with caplog.at_level(logging.WARNING):
        run(test)
    (record,) = [each for each in caplog.records if each.name == sofaregistry.__name__]
    assert "names 1 instances of org.example.Echo:1.0 that cannot be used" in record.getMessage()


def test_requests_of_the_server_that_nobody_understands_are_refused() -> None:
    async def test() -> None:
        server = Server()
        async with session(server) as (opened, _):
            await opened.register(HERE)
            server.say(b"", class_name="something.Else")
            server.say(b"", kind=Kind.ONE_WAY, class_name="something.Else")
            server.say(b"", class_name=MODEL + "ReceivedConfigData")
            heartbeat = Frame(Kind.REQUEST, Command.HEARTBEAT, 9)
            server.writers[-1].write(heartbeat.encode())
            await until(lambda: len(server.responses) == 3)
            found = [(each.id, each.command, each.status) for each in server.responses]
            assert found == [(7, 2, 6), (7, 2, 0), (9, 0, 0)]

    run(test)


# ---- opening ----


@pytest.mark.parametrize(
    ("servers", "status", "problem"),
    [
        (" ", 200, "knows of no session server"),
        ("what;ever:1", 200, "knows of no session server"),
        ("127.0.0.1:1", 200, "of its session servers, 127.0.0.1:1: "),
        ("x", 302, "HTTP status 302"),
        ("x", 500, "HTTP status 500"),
        ("127.0.0.1:1;" * 6000, 200, "without an end"),
        ("x", 0, "no answer within 1 s"),
    ],
)
def test_a_session_that_cannot_be_opened_says_why(
    servers: str, status: int, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers_module, "_OPEN_TIME", 1.0)

    async def test() -> None:
        server = Server(servers=servers, status=status)
        await server.start()
        try:
            with pytest.raises(RegistryError, match=problem) as caught:
                await _registry(server.address).open(lambda *_: None)
            assert str(server.address) in str(caught.value)
        finally:
            server.stop()

    run(test)


def test_addresses_are_tried_in_turn_and_the_good_one_first_from_then_on() -> None:
    async def test() -> None:
        bad, good = Server(status=500), Server()
        await bad.start()
        await good.start()
        registry = _registry(bad.address, good.address)
        for _ in range(3):
            await (await registry.open(lambda *_: None)).close()
        bad.stop()
        good.stop()
        assert (len(bad.asked), len(good.asked)) == (1, 3)

    run(test)


def test_session_servers_are_asked_for_in_the_own_zone_and_then_in_any() -> None:
    async def test() -> None:
        server = Server(servers=" ")
        await server.start()
        with pytest.raises(RegistryError):
            await _registry(server.address, zone="z&1").open(lambda *_: None)
        server.stop()
        zones = [path.partition("zone=")[2].partition("&")[0] for path in server.asked]
        assert zones == ["z%261", ""]

    run(test)


def test_a_session_server_that_is_away_is_passed_over() -> None:
    async def test() -> None:
        server = Server()
        await server.start()
        server.servers = f"127.0.0.1:1;{server.servers}?weight=3;127.0.0.1:2;nonsense"
        for _ in range(5):
            await (await _registry(server.address).open(lambda *_: None)).close()
        server.stop()

    run(test)
