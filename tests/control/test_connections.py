"""``/connections``: which are asked for, and that nothing else waits for them."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pysidecar.address import Address
from pysidecar.dataplane import (
    Action,
    ConnectionPath,
    ConnectionRecord,
    Direction,
    End,
    Transport,
)
from pysidecar.selection import SelectionError, select
from tests.control.conftest import RunningSidecar, exchange
from tests.control.observed import Shown, answers
from tests.launching import PYSIDECAR
from tests.waiting import PATIENCE, eventually

RECORD = ConnectionRecord(
    id=7,
    opened=datetime(2026, 1, 2, tzinfo=UTC),
    duration_ms=1.5,
    transport=Transport.UNIX,
    direction=Direction.OUTBOUND,
    action=Action.RELAY,
    path=ConnectionPath.LOCAL,
    end=End.NONE,
    source=Address("10.1.2.3", 40000),
    original_destination=Address("10.0.0.9", 5432),
    upstream=Address("fd00::9", 5433),
    bytes_sent=1,
    bytes_received=2,
    rtt_ms=None,
    pid=4321,
    uid=4294967294,
    process="a-long-process-name"[:15],
    route=2,
    errno=0,
)


def fits(query: str, record: ConnectionRecord = RECORD) -> bool:
    pairs = [pair.partition("=") for pair in query.split("&")]
    return select([(key, value) for key, _, value in pairs]).fits(record)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("direction=outbound", "direction=inbound"),
        ("transport=unix", "transport=header"),
        ("action=relay", "action=refuse"),
        ("path=local", "path=full"),
        ("source=10.1.2.3", "source=10.1.2.4"),
        ("source=10.1.2.3:40000", "source=10.1.2.3:40001"),
        ("source=10.1.0.0/16", "source=10.2.0.0/16"),
        ("destination=:5432", "destination=:5433"),
        ("destination=0.0.0.0/0", "destination=::/0"),
        ("upstream=fd00::/8", "upstream=fd00::8"),
        ("upstream=[fd00::9]:5433", "upstream=[fd00::9]:5432"),
        ("process=a-long-process-name", "process=a-long"),
        ("pid=4321", "pid=432"),
        ("uid=4294967294", "uid=0"),
        ("route=2", "route=0"),
        ("route=2&route=none", "route=none"),
        ("uid=0&uid=4294967294&pid=4321", "uid=4294967294&pid=1"),
    ],
)
def test_a_filter_leaves_out_what_does_not_fit(right: str, wrong: str) -> None:
    assert fits(right)
    assert not fits(wrong)


def test_what_is_unknown_fits_no_value() -> None:
    unknown = RECORD._replace(
        source=None, original_destination=None, upstream=None, pid=None, uid=None, process=None
    )
    for query in (
        *("source=0.0.0.0/0", "destination=:5432", "upstream=::/0"),
        *("pid=0", "uid=0", "process=None"),
    ):
        assert not fits(query, unknown)
    assert fits("route=none", RECORD._replace(route=None))


@pytest.mark.parametrize(
    ("query", "open_", "closed"),
    [
        ("limit=5", True, 0),
        ("closed=3", True, 3),
        ("state=open&closed=3", True, 0),
        ("state=closed", False, 10**9),
        ("state=closed&closed=3", False, 3),
        ("state=closed&state=open", True, 10**9),
    ],
)
def test_states(query: str, open_: bool, closed: int) -> None:
    pairs = [pair.partition("=") for pair in query.split("&")]
    selection = select([(key, value) for key, _, value in pairs])
    assert (selection.open, selection.closed) == (open_, closed)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("direction=sideways", "outbound or inbound"),
        ("transport=", "unix, header, redirect, tproxy or listener"),
        ("action=RELAY", "relay, refuse, direct or requests"),
        ("path=x", "relay, local, full or direct"),
        ("source=10.0.0.1/8", "an address, a prefix"),
        ("destination=10.0.0.1:0", "an address, a prefix"),
        ("upstream=:x", "an address, a prefix"),
        ("upstream=fe80::1%eth0", "an address, a prefix"),
        ("process=", "the name of a process"),
        ("pid=-1", "a whole number"),
        ("uid=%D9%A3", "a whole number"),
        ("uid=12345678901", "a whole number"),
        ("route=first", "a whole number, or none"),
        ("state=half", "open or closed"),
        ("limit=0", "a whole number from 1"),
        ("limit=1&limit=2", "once"),
        ("closed=1e3", "a whole number from 0"),
        ("format=xml", "json or ndjson"),
        ("format=json&format=json", "json or ndjson"),
        ("transprot=unix", "one of direction, transport"),
    ],
)
def test_a_wrong_value_is_a_bad_request_that_says_what_is_right(
    shared_sidecar: RunningSidecar, query: str, expected: str
) -> None:
    status, body = shared_sidecar.get(f"/connections?{query}")
    key = query.partition("=")[0]
    assert status == 400
    assert body.startswith(f"{key}: ")
    assert expected in body.partition("expected ")[2]


def test_an_unknown_key_is_not_echoed_as_it_is() -> None:
    with pytest.raises(SelectionError) as raised:
        select([("\x1b[31m" + "x" * 1000, "")])
    assert "\x1b" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.fixture(scope="module")
def shared_sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    running = RunningSidecar(tmp_path_factory.mktemp("sidecar"))
    try:
        yield running
    finally:
        running.kill()


# ---- a running sidecar ----


@pytest.fixture
def two_destinations(sidecar: RunningSidecar, echo: Address) -> Iterator[Sequence[str]]:
    """Connections that are open: two to 10.1.0.1, one to 10.2.0.1; and one that closed."""
    sidecar.write_config(
        f"routes: [{{match: {{destination: 10.9.0.0/16}}, action: refuse}}, "
        f"{{match: {{destination: 10.0.0.0/8}}, endpoints: ['{echo}']}}]"
    )
    assert "reloaded" in sidecar.reload()
    wanted = ["10.1.0.1", "10.1.0.1", "10.2.0.1"]
    with contextlib.ExitStack() as stack:
        for host in wanted:
            client = stack.enter_context(sidecar.connect(Address(host, 80)))
            assert exchange(client, b"x") == b"x"
        with sidecar.connect(Address("10.9.0.1", 80)), contextlib.suppress(ConnectionError):
            sidecar.access_log(1)
        yield wanted


def shown(sidecar: RunningSidecar, query: str) -> list[str]:
    entries = sidecar.get_json(f"/connections?{query}")
    return sorted(entry["original_destination"] for entry in entries)


def test_filters_limit_and_states_together(
    sidecar: RunningSidecar, two_destinations: Sequence[str]
) -> None:
    first, second, refused = "10.1.0.1:80", "10.2.0.1:80", "10.9.0.1:80"
    assert shown(sidecar, "") == [first, first, second]
    assert shown(sidecar, "closed=9") == [first, first, second, refused]
    assert shown(sidecar, "destination=10.1.0.0/16") == [first, first]
    assert shown(sidecar, "destination=10.1.0.0/16&limit=1") == [first]
    assert shown(sidecar, "destination=10.2.0.1&destination=10.1.0.1&closed=9&limit=9") == [
        *(first, first, second)
    ]
    assert shown(sidecar, "state=closed") == [refused]
    assert shown(sidecar, "route=0&closed=9") == [refused]
    assert shown(sidecar, "route=1&action=relay&closed=9") == [first, first, second]
    assert shown(sidecar, "uid=4294967294") == []
    entries = sidecar.get_json("/connections?closed=9&limit=4")
    assert [entry["route"] for entry in entries] == [1, 1, 1, 0]


@pytest.mark.parametrize("as_asked", ["format", "header"])
def test_an_object_a_line(
    sidecar: RunningSidecar, two_destinations: Sequence[str], as_asked: str
) -> None:
    connection = http.client.HTTPConnection(sidecar.admin.host, sidecar.admin.port)
    with contextlib.closing(connection):
        if as_asked == "format":
            connection.request("GET", "/connections?closed=9&format=ndjson")
        else:
            headers = {"Accept": "application/x-ndjson"}
            connection.request("GET", "/connections?closed=9", headers=headers)
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/x-ndjson; charset=utf-8"
        lines = response.read().decode().splitlines()
    assert len(lines) == len(two_destinations) + 1
    ids = [json.loads(line)["id"] for line in lines]
    assert sorted(ids) == sorted(
        entry["id"] for entry in sidecar.get_json("/connections?closed=9&format=json")
    )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYSIDECAR, "connections", *arguments], capture_output=True, text=True, timeout=PATIENCE
    )


def test_the_command_has_the_same_filters(
    sidecar: RunningSidecar, two_destinations: Sequence[str]
) -> None:
    admin = ("--admin", str(sidecar.admin))
    done = run(
        *admin, "--destination", "10.1.0.0/16", "--uid", "4294967294", "--uid", "0", "--json"
    )
    assert len(json.loads(done.stdout)) == 2
    assert len(json.loads(run(*admin, "--limit", "1", "--json").stdout)) == 1
    assert len(json.loads(run(*admin, "--state", "closed", "--json").stdout)) == 1
    assert len(run(*admin, "--path", "relay", "--transport", "header").stdout.splitlines()) == 4


def test_the_command_says_what_is_wrong_before_it_asks() -> None:
    done = run("--admin", "127.0.0.1:1", "--source", "nowhere")
    assert done.returncode == 2
    assert "'--source': expected an address, a prefix" in done.stderr


# ---- the loop meanwhile ----


@pytest.mark.parametrize("query", ["", "format=ndjson", "uid=0"])
def test_however_many_ask_a_turn_of_the_loop_makes_one_piece(query: str) -> None:
    shown = Shown(connections=[RECORD] * 200)
    path = f"/connections?{query}"
    bodies = {body for _, body in answers(shown, path, path, path)}
    assert len(set(shown.asked)) == len(shown.asked) == 60
    [body] = bodies
    count = 0 if query == "uid=0" else 200
    if query == "format=ndjson":
        assert len([json.loads(line) for line in body.splitlines()]) == count
    else:
        assert len(json.loads(body)) == count


def test_no_more_is_looked_at_than_is_asked_for() -> None:
    shown = Shown(connections=[RECORD] * 200, closed=[RECORD] * 9)
    [(_, body)] = answers(shown, "/connections?limit=15&closed=5")
    assert len(json.loads(body)) == 15
    assert len(shown.asked) == 2
    [(_, body)] = answers(shown, "/connections?limit=203&closed=5")
    assert len(json.loads(body)) == 203


def test_a_client_that_leaves_ends_its_walk(sidecar: RunningSidecar, echo: Address) -> None:
    for _ in range(40):
        with socket.create_connection((sidecar.admin.host, sidecar.admin.port), PATIENCE) as client:
            client.sendall(b"GET /connections HTTP/1.1\r\nHost: localhost\r\n\r\n")
    eventually(lambda: sidecar.get("/ready")[0] == 200)
    assert "Traceback" not in Path(sidecar.log_file).read_text()
