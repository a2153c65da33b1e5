"""What strangers, and a full disk, make of the embedded registry: one in this process, whose limits
a test can lower, and clients that say what no sidecar says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from pysidecar.address import Address
from pysidecar.errors import StartError
from pysidecar.registry.embedded import server as server_module
from pysidecar.registry.embedded import state as state_module
from pysidecar.registry.embedded import store as store_module
from pysidecar.registry.embedded.server import RegistryServer
from pysidecar.registry.embedded.state import State
from tests.users import USERS, needs_root, start_script
from tests.waiting import PATIENCE, eventually


class Serving:
    """A registry, in a thread."""

    def __init__(self, state_file: Path | None = None) -> None:
        self._state_file = state_file
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="registry")

    def __enter__(self) -> Self:
        self._thread.start()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)

        async def start() -> None:
            self.state = State(self._state_file) if self._state_file else None
            self.server = RegistryServer(listener, self.state)
            await self.server.start()

        asyncio.run_coroutine_threadsafe(start(), self._loop).result(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        await self.server.stop()
        while len(asyncio.all_tasks()) > 1 or self.server.connections:
            await asyncio.sleep(0.005)

    @property
    def address(self) -> Address:
        return self.server.address


class Talk:
    """A connection, a line at a time."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection((address.host, address.port), timeout=PATIENCE)
        self._lines = self.socket.makefile("rb")
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.socket.close()

    def send(self, do: str, **parameters: Any) -> None:
        self._number += 1
        request = {"id": self._number, "do": do, **parameters}
        self.socket.sendall(json.dumps(request).encode() + b"\n")

    def read(self) -> dict[str, Any] | None:
        """None: it was closed."""
        try:
            line = self._lines.readline()
        except ConnectionError:
            return None
        message = json.loads(line) if line else None
        assert message is None or isinstance(message, dict)
        return message

    def ask(self, do: str, **parameters: Any) -> dict[str, Any]:
        """The answer, whatever is pushed before it."""
        self.send(do, **parameters)
        while True:
            message = self.read()
            assert message is not None
            if message.get("id") == self._number and "listed" not in message:
                return message

    def closing(self) -> str:
        """Why it is closed."""
        reason = "nothing"
        while (message := self.read()) is not None:
            reason = message.get("closing", reason)
        return reason

    def register(self, name: str, number: int = 1, **more: Any) -> dict[str, Any]:
        instance = {"address": f"10.0.0.{number}:20881", **more}
        return self.ask("register", service=service(name), instance=instance)


def service(name: str) -> dict[str, str]:
    return {"protocol": "bolt", "name": name}


@contextlib.contextmanager
def greeted(serving: Serving, timeout: float = 10.0) -> Iterator[Talk]:
    with Talk(serving.address) as talk:
        assert talk.ask("hello", registry=1, timeout=timeout)["ok"]
        yield talk


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving() as found:
        yield found


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n",
        b"\n",
        b"\0\n",
        b"\xff\xfe\n",
        b"[]\n",
        b'"hello"\n',
        b"{}\n",
        b'{"id": 1}\n',
        b'{"id": "1", "do": "renew"}\n',
        b'{"id": true, "do": "renew"}\n',
        b'{"id": 1e400, "do": "renew"}\n',
        b'{"id": NaN, "do": "renew"}\n',
        b'{"id": 99999999999999999999, "do": "renew"}\n',
        b'{"id": ' + b"9" * 5000 + b', "do": "renew"}\n',
        b'{"id": 1, "do": "_closed"}\n',
        b'{"id": 1, "do": ["renew"]}\n',
        b"[" * 60_000 + b"\n",
        b'{"a":' * 12_000 + b"\n",
        b"x" * 70_000,
        b'{"id": 1, "do": "renew", "x": "' + b"x" * 70_000 + b'"}\n',
    ],
    ids=lambda garbage: repr(garbage[:24]),
)
@pytest.mark.parametrize("hello", [True, False], ids=["greeted", "stranger"])
def test_what_is_no_request_closes_that_connection_only(
    serving: Serving, garbage: bytes, hello: bool
) -> None:
    with greeted(serving) as other, Talk(serving.address) as talk:
        if hello:
            talk.ask("hello", registry=1, timeout=10)
        with contextlib.suppress(ConnectionError):
            talk.socket.sendall(garbage)
            assert talk.closing() != "the registry ends"
        assert other.ask("renew")["ok"]


@pytest.mark.parametrize(
    ("do", "parameters"),
    [
        ("register", {}),
        ("register", {"service": service("a"), "instance": None}),
        ("register", {"service": service("a"), "instance": {"address": "localhost:1"}}),
        ("register", {"service": service("a"), "instance": {"address": "10.0.0.1:0"}}),
        ("register", {"service": service(""), "instance": {"address": "10.0.0.1:1"}}),
        ("register", {"service": service("a" * 513), "instance": {"address": "10.0.0.1:1"}}),
        (
            "register",
            {"service": service("a"), "instance": {"address": "10.0.0.1:1", "weight": 1.5}},
        ),
        (
            "register",
            {"service": service("a"), "instance": {"address": "10.0.0.1:1", "warmup": -1}},
        ),
        (
            "register",
            {"service": service("a"), "instance": {"address": "10.0.0.1:1", "metadata": {"a": 1}}},
        ),
        ("unregister", {"service": service("a")}),
        ("unregister", {"service": service("a"), "address": 7}),
        ("subscribe", {"service": "a"}),
        ("unsubscribe", {"service": {"protocol": "bolt"}}),
        ("hello", {"registry": 1, "timeout": 10}),
        ("hello", {"registry": 2, "timeout": 10}),
    ],
)
def test_a_request_that_cannot_be_is_answered_with_why(
    serving: Serving, do: str, parameters: dict[str, Any]
) -> None:
    with greeted(serving) as talk:
        answer = talk.ask(do, **parameters)
        assert answer["ok"] is False
        assert "expected" in answer["error"]
        assert talk.ask("renew")["ok"]
        assert not serving.server.store.services


def test_any_text_is_kept_as_it_is(tmp_path: Path) -> None:
    odd = "\ud800\0\x1b[2J\u202e\U0001f600"
    with Serving(tmp_path / "state") as keeping, greeted(keeping) as talk:
        assert talk.register(odd, metadata={odd: odd}, zone=odd)["ok"]
        talk.send("subscribe", service=service(odd))
        assert (talk.read() or {})["ok"]
        pushed = talk.read()
        assert pushed
        assert pushed["service"] == service(odd)
        assert pushed["instances"][0]["metadata"] == {odd: odd}
    with Serving(tmp_path / "state") as again:
        assert [each.name for each in again.server.store.services] == [odd]


def test_several_changes_are_pushed_as_one_and_the_last_counts(serving: Serving) -> None:
    with greeted(serving) as talk, greeted(serving) as watching:
        watching.ask("subscribe", service=service("a"))
        assert watching.read() == {"service": service("a"), "instances": []}
        requests = [
            {
                "id": n,
                "do": "register",
                "service": service("a"),
                "instance": {"address": "10.0.0.1:1", "weight": n},
            }
            for n in range(50)
        ]
        talk.socket.sendall(b"".join(json.dumps(each).encode() + b"\n" for each in requests))
        pushes = 0
        while True:
            pushed = watching.read()
            assert pushed
            pushes += 1
            if pushed["instances"][0]["weight"] == 49:
                break
        assert pushes < 25


def test_who_does_not_read_is_closed_and_nobody_waits_for_it(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_SLOW", 0.5)
    large = {f"key{n}": "x" * 500 for n in range(100)}
    with greeted(serving) as talk, greeted(serving) as slow, greeted(serving) as quick:
        for watching in (slow, quick):
            watching.ask("subscribe", service=service("a"))
        quick.read()
        for weight in range(200):
            talk.register("a", weight=weight, metadata=large)
            while (quick.read() or {})["instances"][0]["weight"] != weight:
                pass
        eventually(lambda: len(serving.server.connections) == 2)
        assert len(serving.server.subscriptions) == 1


def test_a_slow_reader_is_told_the_last_state(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_MOST_UNREAD", 10_000)
    large = {f"key{n}": "x" * 500 for n in range(100)}
    with greeted(serving) as talk, greeted(serving) as slow:
        slow.ask("subscribe", service=service("a"))
        slow.ask("subscribe", service=service("b"))
        for weight in range(300):
            talk.register("a", weight=weight, metadata=large)
        talk.register("b")
        seen: dict[str, dict[str, Any]] = {}
        pushes = 0
        while seen.get("b") is None or seen.get("a", {}).get("weight") != 299:
            pushed = slow.read()
            assert pushed
            pushes += 1
            if pushed["instances"]:
                seen[pushed["service"]["name"]] = pushed["instances"][0]
        assert pushes < 250


def test_who_says_nothing_is_closed(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_GREETING_TIMEOUT", 0.1)
    with Talk(serving.address) as talk:
        assert talk.closing() == "nothing"


def test_who_is_silent_loses_its_lease_and_the_connection(serving: Serving) -> None:
    with greeted(serving, timeout=0.5) as talk:
        talk.register("a")
        assert talk.closing() == "it was silent for too long"
    eventually(lambda: not serving.server.store.services)


def test_a_lease_goes_on_without_its_connection_and_passes_to_the_next(serving: Serving) -> None:
    with greeted(serving, timeout=1) as talk:
        talk.register("a")
        talk.register("b")
    with greeted(serving, timeout=30) as again:
        assert again.register("a")["ok"]
        eventually(lambda: [each.name for each in serving.server.store.services] == ["a"])
        assert again.ask("renew")["ok"]


def test_connections_are_bounded_and_strangers_make_room(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 3)
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(greeted(serving)) for _ in range(2)]
        stranger = stack.enter_context(Talk(serving.address))
        eventually(lambda: len(serving.server.connections) == 3)
        talks.append(stack.enter_context(greeted(serving)))
        assert stranger.closing() == "another client needs the place"
        with Talk(serving.address) as one_more:
            assert one_more.closing() == "there are 3 connections already"
        assert all(talk.ask("renew")["ok"] for talk in talks)


def test_registrations_are_bounded(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_REGISTRATIONS", 3)
    monkeypatch.setattr(store_module, "MAX_INSTANCES", 2)
    monkeypatch.setattr(store_module, "MOST_BYTES", 1000)
    with greeted(serving) as talk:
        assert talk.register("a", 1)["ok"]
        assert talk.register("a", 2)["ok"]
        assert talk.register("a", 3)["error"] == "the service has 2 instances, the limit"
        assert talk.register("a", 2, weight=7)["ok"]  # replaced
        assert "bytes" in talk.register("b", 1, metadata={"x": "x" * 2000})["error"]
        assert talk.register("b", 1)["ok"]
        assert talk.register("c", 1)["error"] == "the registry has 3 registrations, the limit"
        assert talk.ask("unregister", service=service("a"), address="10.0.0.2:20881")["ok"]
        assert talk.register("c", 1)["ok"]


def test_subscriptions_are_bounded(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MOST_SUBSCRIPTIONS", 2)
    with greeted(serving) as talk:
        for name in ("a", "b"):
            assert talk.ask("subscribe", service=service(name))["ok"]
        assert "limit" in talk.ask("subscribe", service=service("c"))["error"]
        talk.ask("unsubscribe", service=service("a"))
        assert talk.ask("subscribe", service=service("c"))["ok"]
    eventually(lambda: not serving.server.subscriptions and not serving.server.watchers)


_OTHER = """
with socket.socket() as talk, talk.makefile("rb") as lines:
    talk.connect((sys.argv[1], int(sys.argv[2])))
    for request in sys.argv[3:]:
        talk.sendall(request.encode() + b"\\n")
        os.write(1, lines.readline())
    sys.stdin.read()
"""


def as_other(serving: Serving, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What another user is answered."""
    hello = {"do": "hello", "registry": 1, "timeout": 10}
    lines = [json.dumps({"id": 7, **request}) for request in (hello, *requests)]
    address = serving.address
    with start_script(USERS[0], _OTHER, address.host, address.port, *lines) as other:
        output, errors = other.communicate()
    assert not errors
    return [json.loads(line) for line in output.splitlines()][1:]


@needs_root
def test_another_user_takes_nothing_away_and_has_a_quarter_of_the_room(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MOST_REGISTRATIONS", 8)
    instance = {"address": "10.0.0.1:20881"}
    with greeted(serving) as talk:
        talk.register("a")
        answers = as_other(
            serving,
            {"do": "register", "service": service("a"), "instance": {**instance, "weight": 0}},
            {"do": "unregister", "service": service("a"), **instance},
            *(
                {"do": "register", "service": service(name), "instance": instance}
                for name in ("b", "c", "d")
            ),
        )
        assert [answer.get("error") for answer in answers] == [
            "it was registered by uid 0",
            "it was registered by uid 0",
            None,
            None,
            f"uid {USERS[0]} has 2 registrations, the limit",
        ]
        assert talk.register("b")["ok"]  # root may take it


# ---- the state on disk ----


def test_a_registry_that_starts_again_remembers_for_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_RETURN", 0.3)
    with Serving(tmp_path / "state") as serving, greeted(serving, timeout=0.5) as talk:
        talk.register("a", 1, metadata={"app": "prov"})
        talk.register("a", 2)
        talk.register("b")
        talk.ask("unregister", service=service("a"), address="10.0.0.2:20881")
    for _ in range(2):  # the second time it was not the client who said it
        with Serving(tmp_path / "state") as again:
            (held,) = again.server.store.held(again.server.store.services[0])
            assert held.instance.metadata == (("app", "prov"),)
            assert held.lease.owner.startswith("uid ")
            assert len(again.server.store.services) == 2
    with Serving(tmp_path / "state") as again:
        eventually(lambda: not again.server.store.services)
    with Serving(tmp_path / "state") as again:
        assert not again.server.store.services


def test_a_disk_that_is_full_costs_the_memory_of_restarts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state_module, "_RETRY_PAUSE", 0.05)
    caplog.set_level("INFO")
    path = tmp_path / "state"
    with Serving(path) as serving, greeted(serving) as talk:
        assert serving.state
        serving.state.database.execute("PRAGMA max_page_count = 4")
        for number in range(200):
            assert talk.register("a", number % 250, metadata={"x": "x" * 500})["ok"]
        eventually(lambda: f"cannot write {path}: database or disk is full" in caplog.text)
        talk.ask("unregister", service=service("a"), address="10.0.0.7:20881")
        serving.state.database.execute("PRAGMA max_page_count = 100000")
        eventually(lambda: f"{path} is written again" in caplog.text)
        assert caplog.text.count("cannot write") == 1
    with Serving(path) as again:
        assert len(again.server.store.held(again.server.store.services[0])) == 199


@pytest.mark.parametrize("content", [b"not a database\n" * 100, b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(StartError, match="remove it, or give another --state"):
        State(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE held (value)")
    before = path.read_bytes()
    with pytest.raises(StartError, match="is another program's database"):
        State(path)
    assert path.read_bytes() == before


def test_a_state_is_used_by_one_registry(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Serving(path), pytest.raises(StartError, match="another process uses it"):
        State(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_entries_that_cannot_be_read_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    with Serving(path) as serving, greeted(serving) as talk:
        talk.register("a")
        talk.register("b")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE held SET instance = '[' WHERE service LIKE '%\"a\"%'")
    with Serving(path) as again:
        assert [each.name for each in again.server.store.services] == ["b"]
    assert "1 entries cannot be read" in caplog.text
