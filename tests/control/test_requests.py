"""``/requests`` and ``pysidecar requests``: which are asked for, and what is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pysidecar.access_log import describe_request
from pysidecar.address import Address
from pysidecar.cli.requests import REQUESTS
from pysidecar.config import Config
from pysidecar.dataplane import (
    FAILURES,
    Direction,
    EndpointSums,
    Flag,
    Protocol,
    RequestRecord,
    ServiceSums,
)
from pysidecar.selection import REQUEST_FILTERS, SelectionError, select_requests
from tests.control.observed import FLAGGED, REQUEST, Shown, answers, tally


def parameters(query: str) -> list[tuple[str, str]]:
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    return [(key, value) for key, _, value in pairs]


def fits(query: str, record: RequestRecord = REQUEST) -> bool:
    return select_requests(parameters(query)).fits(record)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("service=orders", "service=order"),
        ("protocol=http", "protocol=bolt"),
        ("direction=outbound", "direction=inbound"),
        ("method=GET", "method=get"),
        ("path=/v2/", "path=/v1"),
        ("path=/v2/orders", "path=/v2/orders?token"),
        ("status=200", "status=20"),
        ("status=2xx", "status=none"),
        ("source=10.0.0.0/8", "source=10.1.2.4"),
        ("upstream=:8080", "upstream=:80"),
        ("upstream=[fd00::9]:8080", "upstream=fd00::8"),
        ("connection=17", "connection=1"),
        ("slower=2ms", "slower=3ms"),
        ("service=payments&service=orders&status=2xx", "service=orders&status=5xx"),
    ],
)
def test_a_filter_leaves_out_what_does_not_fit(right: str, wrong: str) -> None:
    assert fits(right)
    assert not fits(wrong)


@pytest.mark.parametrize("flag", Flag)
def test_flags_choose(flag: Flag) -> None:
    record = REQUEST._replace(flags=(flag,))
    failed = flag in (*FAILURES, Flag.SERVICE_ERROR)
    assert fits(f"flag={flag.name.lower()}", record)
    assert not fits(f"flag={flag.name.lower()}")
    assert fits("flag=failed", record) == failed
    assert not fits("flag=failed")
    assert fits("flag=failed", REQUEST._replace(status_class=5))


def test_what_is_unknown_fits_no_value() -> None:
    unknown = REQUEST._replace(
        source=None,
        upstream=None,
        status=None,
        status_class=0,
        service=None,
        method=None,
        path=None,
    )
    for query in ("source=0.0.0.0/0", "upstream=::/0", "status=0", "service=None", "path=/"):
        assert not fits(query, unknown)
    assert fits("status=none", unknown)


def test_what_is_cut_is_found() -> None:
    name = "orders-" * 20
    assert fits(f"service={name}", REQUEST._replace(service=name[:64]))
    assert fits(f"method={name}", REQUEST._replace(method=name[:32]))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("service=", "a text"),
        ("protocol=spdy", "tcp, http, bolt, dubbo, http2, grpc or auto"),
        ("direction=sideways", "outbound or inbound"),
        ("path=", "what the path begins with"),
        ("status=6xx", "a status, a class such as 5xx, or none"),
        ("flag=slow", "failed, no_route"),
        ("source=10.0.0.1/8", "an address, a prefix"),
        ("connection=x", "the id of a connection"),
        ("slower=5", "a duration"),
        ("list=oldest", "newest, failed or slowest, once"),
        ("list=newest&list=slowest", "once"),
        ("limit=0", "a whole number from 1"),
        ("format=xml", "json or ndjson"),
        ("pid=1", "one of service, protocol"),
    ],
)
def test_a_wrong_value_is_a_bad_request_that_says_what_is_right(query: str, expected: str) -> None:
    [(status, body)] = answers(Shown(), f"/requests?{query}")
    assert status == 400
    assert body.startswith(f"{query.partition('=')[0]}: ")
    assert expected in body.partition("expected ")[2]


def test_an_unknown_key_is_not_echoed_as_it_is() -> None:
    with pytest.raises(SelectionError) as raised:
        select_requests([("\x1b[31m" + "x" * 1000, "")])
    assert "\x1b" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_each_list_up_to_a_limit() -> None:
    newest = [REQUEST._replace(connection=number) for number in range(25)]
    slowest = [REQUEST._replace(connection=number) for number in range(100, 103)]
    failed = [REQUEST._replace(connection=number) for number in range(200, 202)]

    def shown(query: str) -> list[int]:
        [(_, body)] = answers(Shown(newest, slowest, failed), f"/requests?{query}")
        return [entry["connection"] for entry in json.loads(body)]

    assert shown("") == list(range(25))
    assert shown("list=newest&limit=12") == list(range(12))
    assert shown("list=slowest") == [100, 101, 102]
    assert shown("list=failed") == [200, 201]
    assert shown("connection=7&connection=24&connection=30") == [7, 24]


def test_an_entry_is_what_the_access_log_says() -> None:
    [(_, array), (_, lines)] = answers(
        Shown([REQUEST, FLAGGED]), "/requests", "/requests?format=ndjson"
    )
    expected = [describe_request(record, query=False) for record in (REQUEST, FLAGGED)]
    assert json.loads(array) == expected
    assert [json.loads(line) for line in lines.splitlines()] == expected
    assert "secret" not in array


def test_a_query_is_shown_where_the_configuration_says_so() -> None:
    config = Config.model_validate({"access_log": {"query": True}})
    [(_, body)] = answers(Shown([REQUEST], config=config), "/requests")
    assert json.loads(body)[0]["path"] == "/v2/orders?token=secret"


def test_however_many_ask_a_turn_of_the_loop_makes_one_piece() -> None:
    shown = Shown([REQUEST] * 200)
    bodies = answers(shown, "/requests", "/requests?limit=150", "/requests?status=404")
    assert len(set(shown.asked)) == len(shown.asked) == 20 + 15 + 20
    assert [len(json.loads(body)) for _, body in bodies] == [200, 150, 0]


# ---- the table ----


def rows(records: Sequence[RequestRecord]) -> list[tuple[dict[str, str], str]]:
    entries: list[dict[str, Any]] = [describe_request(record, query=False) for record in records]
    return [
        (dict(zip(REQUESTS.columns, cells, strict=True)), style)
        for cells, style in REQUESTS.rows(entries)
    ]


def test_a_row_says_what_matters() -> None:
    [(row, style)] = rows([REQUEST])
    assert row.pop("time").endswith(":00.000")
    assert style == ""
    assert row == {
        "protocol": "http",
        "service": "orders",
        "method": "GET",
        "path": "/v2/orders",
        "status": "200",
        "upstream": "[fd00::9]:8080",
        "attempts": "1",
        "sent": "120 B",
        "received": "2.0 KiB",
        "first byte": "2.2ms",
        "took": "2.5ms",
        "flags": "-",
    }


@pytest.mark.parametrize(
    ("fields", "style"),
    [
        ({"flags": (Flag.TIMEOUT,)}, "red"),
        ({"status": 503}, "red"),
        ({"status": 503, "protocol": Protocol.BOLT}, ""),
        ({"flags": (Flag.SERVICE_ERROR,)}, "red"),
        ({"flags": (Flag.RETRIED,)}, "yellow"),
        ({"flags": (Flag.RETRIED, Flag.TIMEOUT)}, "red"),
        ({"flags": (Flag.UPGRADED,), "direction": Direction.INBOUND}, ""),
        ({"status": None, "method": None, "path": None, "service": None, "upstream": None}, ""),
    ],
)
def test_what_went_wrong_is_in_colour(fields: dict[str, Any], style: str) -> None:
    [(_, found)] = rows([REQUEST._replace(**fields)])
    assert found == style


# ---- documentation ----


def documented(section: str) -> list[str]:
    """The words in the first column of a section's tables in docs/requests.md."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "requests.md").read_text()
    [found] = re.findall(rf"^### {section}\n(.*?)^##", text, re.MULTILINE | re.DOTALL)
    return [
        word
        for column in re.findall(r"^\| (`.*?`) \|", found, re.MULTILINE)
        for word in re.findall(r"`(\w+)`", column)
    ]


def test_every_field_is_documented() -> None:
    traced = REQUEST._replace(trace_id="1" * 32, span_id="1" * 16)
    described = describe_request(traced, query=False)
    assert sorted([*documented("A line a request"), "type"]) == sorted(described)


def test_every_flag_is_documented() -> None:
    assert documented("Flags") == [flag.name.lower() for flag in Flag]


def test_every_parameter_is_documented() -> None:
    known = [*(each.key for each in REQUEST_FILTERS), "list", "limit", "format"]
    assert sorted(documented("Looking at requests")) == sorted(known)


def test_every_field_of_a_service_is_documented() -> None:
    sums = tally({"2xx": 1})
    shown = Shown(
        service_sums=[ServiceSums(1, "orders", Protocol.HTTP, sums)],
        endpoint_sums=[EndpointSums(1, Address("10.0.0.1", 80), 1, False, sums)],
    )
    [(_, body)] = answers(shown, "/services")
    [service] = json.loads(body)
    assert sorted(documented("Looking at services")) == sorted(service)
