"""The sidecar's side of the embedded registry: what a hostile one can do to it, the one inside of a
sidecar, and the command."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pysidecar.address import Address
from pysidecar.cli import main
from pysidecar.config import RegistryEntry
from pysidecar.registry import MAX_INSTANCES, RegistryError, make_registry
from pysidecar.registry.embedded import wire
from pysidecar.registry.embedded.serving import explain
from pysidecar.registry.service import Instance, Registration, ServiceKey
from tests.registry.sides import Side
from tests.registry.test_embedded import ServedEmbedded
from tests.serving import serving
from tests.waiting import PATIENCE, eventually

ECHO = ServiceKey("bolt", "Echo:1.0")
A = Instance(Address("10.0.0.1", 20881))


@contextlib.contextmanager
def hostile(*lines: bytes, greeting: object = 10.0) -> Iterator[RegistryEntry]:
    """A registry that takes everything that it is asked for, and then says this."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                for line in self.rfile:
                    self.wfile.write(answer(json.loads(line)))

    def answer(request: dict[str, Any]) -> bytes:
        taken: dict[str, Any] = {"id": request["id"], "ok": True}
        if request["do"] == "hello":
            taken["timeout"] = greeting
        said = lines if request["do"] == "subscribe" else ()
        return b"".join([json.dumps(taken).encode() + b"\n", *said])

    with serving(Handler) as address:
        yield RegistryEntry.model_validate({"address": str(address)})


def push(*instances: object, service: object = None) -> bytes:
    named = service or {"protocol": "bolt", "name": "Echo:1.0"}
    return json.dumps({"service": named, "instances": instances}).encode() + b"\n"


def test_thirty_thousand_instances_are_cut() -> None:
    instances = [
        {"address": f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:1", "weight": 1 << 70}
        for n in range(30_000)
    ]
    with hostile(push(*instances)) as entry, Side(entry) as side:
        side.subscribe(ECHO)
        eventually(lambda: side.sees(ECHO))
        seen = side.sees(ECHO) or {}
        assert len(seen) == MAX_INSTANCES
        assert {each.weight for each in seen.values()} == {10_000}
        assert side.state == "connected"


def test_what_nobody_asked_for_is_ignored() -> None:
    other = {"protocol": "bolt", "name": "Other"}
    said = [
        push({"address": "10.0.0.1:1"}, service=other),
        b'{"id": 999, "ok": true}\n',
        b'{"id": 1}\n',
        push({"address": "10.0.0.1:20881"}),
    ]
    with hostile(*said) as entry, Side(entry) as side:
        side.subscribe(ECHO)
        eventually(lambda: side.sees(ECHO))
        assert side.state == "connected"
        assert side.sees(ECHO) == {A.address: A}


@pytest.mark.parametrize(
    "said",
    [
        b"\n",
        b"\xff\n",
        b"[]\n",
        b"{}\n",
        b'{"id": "1"}\n',
        b'{"service": 1, "instances": []}\n',
        b'{"service": {"protocol": "bolt", "name": "Echo:1.0"}}\n',
        push(7),
        push({"address": "evil.example:80"}),
        push({"address": "10.0.0.1:99999"}),
        push({"address": "10.0.0.1:80", "weight": "1"}),
        push({"address": "10.0.0.1:80", "metadata": {"a": {}}}),
        b'{"a":' * 50_000 + b"\n",
        b"[" * 200_000 + b"\n",
        b'{"closing": "\x1b[2J"}\n',
        b'{"closing": "\\u001b[2J"}\n',
        b"x" * (17 << 20),
    ],
    ids=lambda said: repr(said[:40]),
)
def test_nonsense_costs_the_session_and_nothing_more(said: bytes) -> None:
    with hostile(said) as entry, Side(entry) as side:
        side.subscribe(ECHO)
        eventually(lambda: side.state.startswith("away: "))
        assert "\x1b" not in side.state
        assert side.sees(ECHO) is None


@pytest.mark.parametrize("greeting", [None, "10", 0.0, -1.0, 1e9, True])
def test_a_lease_that_cannot_be_is_no_session(greeting: object) -> None:
    with hostile(greeting=greeting) as entry, Side(entry) as side:
        eventually(lambda: side.state.startswith("away: "))


def test_a_registry_that_tells_of_much_is_not_silent() -> None:
    """Its answer comes behind what it says first, for longer than it may be silent."""
    lease, sessions, renewed = 3.0, [], threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                for line in self.rfile:
                    request = json.loads(line)
                    if request["do"] == "hello":
                        sessions.append(self)
                    if request["do"] == "renew":
                        self.tell()
                    answer = {"id": request["id"], "ok": True, "timeout": lease}
                    self.wfile.write(json.dumps(answer).encode() + b"\n")
                    if request["do"] == "renew":
                        renewed.set()

        def tell(self) -> None:
            until = time.monotonic() + lease
            while time.monotonic() < until:
                self.wfile.write(push())
                time.sleep(0.05)

    with serving(Handler) as address:
        entry = RegistryEntry.model_validate({"address": str(address)})
        with Side(entry) as side:
            side.subscribe(ECHO)
            assert renewed.wait(PATIENCE)
            eventually(lambda: side.state == "connected")
            assert len(sessions) == 1


def test_of_several_addresses_one_that_answers_is_taken(tmp_path: Path) -> None:
    with ServedEmbedded(tmp_path) as served, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        entry = RegistryEntry.model_validate(
            {"address": f"127.0.0.1:{closed.getsockname()[1]},{served.address}"}
        )
        with Side(entry) as side:
            eventually(lambda: side.state == "connected")
            listed = CliRunner().invoke(main, ["registry", "--list", str(served.address)])
            assert listed.output.startswith("service\tprotocol\taddress")
            side.register(Registration(ECHO, Instance(A.address, 7, metadata=(("app", "a\x1b"),))))

            def line() -> list[str] | None:
                listed = CliRunner().invoke(main, ["registry", "--list", str(served.address)])
                lines = listed.output.splitlines()
                return lines[1].split("\t") if len(lines) > 1 else None

            cells = eventually(line)
            assert cells[:6] == [
                "Echo:1.0",
                "bolt",
                "10.0.0.1:20881",
                "7",
                "-",
                f"uid {os.getuid()}",
            ]
            assert cells[7] == "app=a\N{REPLACEMENT CHARACTER}"
            command = ["registry", "--list", str(served.address), "--json"]
            (entry_listed,) = json.loads(CliRunner().invoke(main, command).output)
            assert entry_listed["instances"][0]["instance"]["weight"] == 7


def test_the_command_says_what_it_is_and_ends_in_order(tmp_path: Path) -> None:
    with ServedEmbedded(tmp_path) as served:
        # It is waited for with its first line.
        eventually(lambda: f"pysidecar registry --list {served.address}" in served.log)
        assert f"registry: {{type: embedded, address: {served.address}}}" in served.log
        assert "no authentication" not in served.log
        second = CliRunner().invoke(main, ["registry", "--listen", str(served.address)])
        assert second.exit_code == 1
        assert "in use by another pysidecar, pid" in second.output
        with Side(served.entry()) as side:
            side.register(Registration(ECHO, A))
            eventually(lambda: side.has_registered(Registration(ECHO, A)))
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(PATIENCE) == 0
            eventually(lambda: side.state.startswith("away: "))
        assert "Traceback" not in served.log


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--list", "127.0.0.1:1"], "no registry answers at 127.0.0.1:1"),
        (["--list", "localhost"], "Invalid value for --list"),
        (["--listen", "everywhere"], "Invalid value for --listen"),
        (["--list", "127.0.0.1:1", "--listen", "127.0.0.1:1"], "expected --list alone"),
        (["--json"], "expected --json with --list only"),
        (["--listen", "192.0.2.1:1"], "this machine does not have that address"),
    ],
)
def test_a_command_that_cannot_be_says_why(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(main, ["registry", *arguments])
    assert result.exit_code != 0
    assert says in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("listening", "shown"),
    [
        ("0.0.0.0", "address: ADDRESS-OF-THIS-HOST:15010}"),
        ("::", "address: ADDRESS-OF-THIS-HOST:15010}"),
        ("10.0.0.5", "address: 10.0.0.5:15010}"),
        ("fd00::5", 'address: "[fd00::5]:15010"}'),
    ],
)
def test_the_line_to_copy_has_an_address_that_can_be_connected_to(
    listening: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        explain(Address(listening, 15010), Path("state"))
    assert shown in caplog.text
    assert "no authentication" in caplog.text


def test_a_sidecar_without_an_address_has_its_own() -> None:
    with Side(RegistryEntry()) as side:
        side.subscribe(ECHO)
        eventually(lambda: side.sees(ECHO) == {})
        side.register(Registration(ECHO, A))
        eventually(lambda: side.sees(ECHO) == {A.address: A})
        heavier = Instance(A.address, weight=200)
        side.register(Registration(ECHO, heavier))
        eventually(lambda: side.sees(ECHO) == {A.address: heavier})
        side.unregistered([Registration(ECHO, heavier)], 5)
        eventually(lambda: side.sees(ECHO) == {})
        with Side(RegistryEntry()) as other:  # another sidecar's
            other.subscribe(ECHO)
            side.register(Registration(ECHO, A))
            eventually(lambda: other.sees(ECHO) == {})


def test_sessions_inside_end_with_what_they_registered() -> None:
    async def run() -> None:
        registry = make_registry(RegistryEntry())
        told: list[int] = []
        watching = await registry.open(lambda service, instances: told.append(len(instances)))
        await watching.subscribe(ECHO)
        session = await registry.open(lambda service, instances: None)
        await session.register(Registration(ECHO, A))
        await asyncio.sleep(0)
        await session.close()
        await session.close()
        assert await session.closed() == "it was closed"
        with pytest.raises(RegistryError):
            await session.register(Registration(ECHO, A))
        await asyncio.sleep(0)
        assert told[-1] == 0
        await watching.close()

    asyncio.run(run())


# ---- long lines ----

_texts = st.text(st.characters(codec="utf-8"), max_size=8)
_told = st.builds(
    Instance,
    st.sampled_from([Address("10.0.0.1", 1), Address("2001:db8::1", 65535)]),
    weight=st.integers(0, 10_000),
    started=st.floats(0, 1 << 40),
    zone=_texts,
    metadata=st.dictionaries(_texts, _texts).map(lambda found: tuple(sorted(found.items()))),
)


@settings(deadline=None)
@given(_texts.filter(bool), st.lists(_told), st.sampled_from([None, 0, 3]))
def test_a_long_push_is_read_as_a_short_one(
    name: str, instances: list[Instance], indent: int | None
) -> None:
    service = ServiceKey("http", name, version='"instances":[', group="\\")
    plain = {
        "service": wire.plain_service(service),
        "instances": list(map(wire.plain_instance, instances)),
    }
    line = json.dumps(plain, indent=indent).encode()
    assert wire.read_long_push(line) == (service, instances)
    short = json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()
    assert wire.read_long_push(short) == (service, instances)


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 1000))
def test_nothing_in_a_long_push_is_a_crash(noise: bytes, at: int) -> None:
    whole = push(*[{"address": "10.0.0.1:1"}] * 20)
    with contextlib.suppress(ValueError):
        wire.read_long_push(whole[:at] + noise + whole[at + len(noise) :])


@pytest.mark.parametrize(
    "instances",
    [
        b"{}",
        b'{"address":"10.0.0.1:1"} {"address":"10.0.0.1:1"}',
        b'{"address":"10.0.0.1:1"},,{"address":"10.0.0.1:1"}',
        b'{"address":"10.0.0.1:1"}',  # and no end
        b'{"address":"10.0.0.1:1","zone":"%b"}]}' % (b"z" * 200_000),
        b"[" * 200_000,
        b" " * 400_000,
    ],
    ids=itertools.count(),
)
def test_a_long_push_that_is_none_is_an_error(instances: bytes) -> None:
    said = b'{"service":{"protocol":"http","name":"a"},"instances":[' + instances
    with pytest.raises(ValueError, match=r"."):
        wire.read_long_push(said)


def test_instances_that_say_the_same_share_it() -> None:
    said: list[dict[str, object]] = [
        {"address": "10.0.0.1:1", "metadata": {"a": "1"}},
        {"address": "10.0.0.2:1", "metadata": {"a": "1"}},
        {"address": "10.0.0.3:1"},
        {"address": "10.0.0.4:1", "metadata": {"a": "2"}},
        {"address": "10.0.0.5:1", "metadata": None},
    ]
    read = list(map(wire.InstanceReader().read, json.loads(json.dumps(said))))
    assert read == list(map(wire.read_instance, said))
    assert read[0].metadata is read[1].metadata


@pytest.mark.parametrize("metadata", [{"a": 1}, [], "a", {"a": None}, False])
def test_metadata_that_is_none_is_an_error_wherever_it_is(metadata: object) -> None:
    read = wire.InstanceReader().read
    read({"address": "10.0.0.1:1", "metadata": {"a": "1"}})
    with pytest.raises(ValueError, match="metadata"):
        read({"address": "10.0.0.2:1", "metadata": metadata})
