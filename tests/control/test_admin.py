"""The admin interface of a running sidecar."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families

from pysidecar.address import Address
from tests.control.conftest import RunningSidecar, exchange
from tests.waiting import eventually


def metric(sidecar: RunningSidecar, name: str, **labels: str) -> float:
    status, body = sidecar.get("/metrics")
    assert status == 200
    return sum(
        sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_ready(sidecar: RunningSidecar) -> None:
    eventually(lambda: sidecar.get("/ready")[0] == 200)
    ready = sidecar.get_json("/ready")
    assert (ready["state"], ready["descriptors"]["state"]) == ("serving", "enough")


def test_config_is_the_one_in_effect(sidecar: RunningSidecar) -> None:
    config = sidecar.get_json("/config")
    assert config["outbound"]["control_socket"] == str(sidecar.control_socket)
    assert config["outbound"]["idle_timeout"] == "1h"


def test_metrics_count_connections(sidecar: RunningSidecar, echo: Address) -> None:
    relayed = {"direction": "outbound", "transport": "header", "action": "relay"}
    with sidecar.connect(echo) as client:
        exchange(client, b"12345")
        assert metric(sidecar, "pysidecar_connections_active", **relayed) == 1
        assert metric(sidecar, "pysidecar_connections_opened_total") == 1
        assert metric(sidecar, "pysidecar_connections_closed_total") == 0
    eventually(lambda: metric(sidecar, "pysidecar_connections_closed_total", **relayed) == 1)
    assert metric(sidecar, "pysidecar_connections_active") == 0
    assert metric(sidecar, "pysidecar_sent_bytes_total") == 5
    assert metric(sidecar, "pysidecar_received_bytes_total") == 5
    assert metric(sidecar, "pysidecar_connection_duration_seconds_count") == 1
    assert metric(sidecar, "pysidecar_connection_errors_total") == 0
    assert metric(sidecar, "pysidecar_build_info") == 1


def test_metrics_count_errors_by_reason(sidecar: RunningSidecar) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        # With transport header the answer comes after the upstream's: an abort or an end.
        with (
            sidecar.connect(Address(*closed.getsockname())) as client,
            contextlib.suppress(ConnectionResetError),
        ):
            assert client.recv(1) == b""
    eventually(
        lambda: metric(sidecar, "pysidecar_connection_errors_total", reason="upstream_connect") == 1
    )
    assert metric(sidecar, "pysidecar_endpoint_connect_failures_total") == 1


def test_metrics_name_ejected_endpoints(sidecar: RunningSidecar, echo: Address) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = Address(*closed.getsockname())
        sidecar.write_config(
            "routes: [{match: {destination: 10.1.2.3}, "
            f"endpoints: ['{dead}', '{dead}', '{echo}']}}]"
        )
        assert "reloaded" in sidecar.reload()
        with sidecar.connect(Address("10.1.2.3", 80)) as client:
            exchange(client, b"12345")
        labels = {"direction": "outbound", "route": "0", "endpoint": str(dead)}
        assert metric(sidecar, "pysidecar_endpoint_ejected", **labels) == 1
        assert metric(sidecar, "pysidecar_endpoint_ejected") == 1
        sidecar.write_config("ejection_time: 0s")
        assert "reloaded" in sidecar.reload()
        assert metric(sidecar, "pysidecar_endpoint_ejected") == 0


def test_a_reload_keeps_what_is_known_of_endpoints(sidecar: RunningSidecar, echo: Address) -> None:
    """Fifty of them are dead: after the first connections none is tried, whatever else changes."""

    def serve(dead: Sequence[Address], before: str = "", *more: Address) -> None:
        endpoints = ", ".join(f"'{endpoint}'" for endpoint in (*dead, echo, *more))
        sidecar.write_config(
            f"ejection_time: 1h\nroutes: [{before}{{match: {{destination: 10.1.2.3}}, "
            f"endpoints: [{endpoints}]}}]"
        )
        assert "reloaded" in sidecar.reload()

    def connect(times: int) -> None:
        for _ in range(times):
            with sidecar.connect(Address("10.1.2.3", 80)) as client:
                assert exchange(client, b"12345") == b"12345"

    with contextlib.ExitStack() as stack:
        closed = [stack.enter_context(socket.socket()) for _ in range(50)]
        for each in closed:
            each.bind(("127.0.0.1", 0))
        dead = [Address(*each.getsockname()) for each in closed]
        serve(dead)
        connect(2)
        assert metric(sidecar, "pysidecar_endpoint_connect_failures_total") == 50
        serve(dead, "{match: {destination: 10.9.9.9}, endpoints: ['127.0.0.1:9']}, ", echo)
        assert metric(sidecar, "pysidecar_endpoint_ejected") == 50
        connect(120)
        assert metric(sidecar, "pysidecar_endpoint_connect_failures_total") == 50


def test_only_our_own_names_are_answered(sidecar: RunningSidecar) -> None:
    for host, status in (
        ("127.0.0.1:15000", 200),
        ("[::1]:15000", 200),
        ("localhost", 200),
        ("evil.example:15000", 403),
        ("127.0.0.1.evil.example", 403),
    ):
        assert sidecar.get("/connections", host=host)[0] == status, host


def test_it_only_reads(sidecar: RunningSidecar) -> None:
    assert sidecar.get("/connections", method="POST")[0] == 405
    assert sidecar.get("/no-such-page")[0] == 404


def test_a_wrong_number_is_a_bad_request(sidecar: RunningSidecar) -> None:
    for closed in ("-1", "x", "", "9999999999", "%D9%A3"):
        status, body = sidecar.get(f"/connections?closed={closed}")
        assert status == 400, closed
        assert "expected a whole number" in body


def test_closed_connections_are_the_latest(sidecar: RunningSidecar, echo: Address) -> None:
    for size in (1, 2, 3):
        with sidecar.connect(echo) as client:
            exchange(client, b"x" * size)
        sidecar.access_log(size)
    sizes = [entry["bytes_sent"] for entry in sidecar.get_json("/connections?closed=2")]
    assert sizes == [2, 3]
