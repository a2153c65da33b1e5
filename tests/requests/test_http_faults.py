"""HTTP upstreams that fail in every way: each request gets its one answer, none another's."""

from __future__ import annotations

import http.client
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.interop.servers import closed_port
from tests.requests import faulty_http
from tests.requests.fronts import Front, front
from tests.requests.upstreams import Scripted, scripted
from tests.waiting import PATIENCE

_TIMEOUT = 1.0  # seconds, of a request
_BAD = {502}
_STATUS = {
    "closes": {502, 503},
    "resets": {502, 503},
    "silent": {504},
    "closes-in-head": _BAD,
    "resets-in-head": _BAD,
    "garbage": _BAD,
    "two-lengths": _BAD,
    "endless-head": _BAD,
    # A proxy may also mend these (RFC 9112, 6.3 and 5.2).
    "both-lengths": {200, 502},
    "obs-fold": {200, 502},
}
_REASON = {
    "closes-in-body": "upstream_reset",
    "resets-in-body": "upstream_reset",
    "silent-in-body": "timeout",
    "closes-in-chunks": "upstream_reset",
    "resets-in-chunks": "upstream_reset",
    "bad-chunk": "malformed_response",
}
_EXTRA = {"too-much": 200, "twice": 200, "body-of-204": 204, "body-of-304": 304}


@pytest.fixture(scope="module")
def faulty() -> Iterator[Scripted]:
    with scripted(faulty_http.serve) as server:
        yield server


@pytest.fixture(scope="module")
def mesh(faulty: Scripted) -> Iterator[Front]:
    with closed_port() as closed, ExitStack() as stack:
        services: dict[str, Any] = {
            "faulty": {"endpoints": [faulty.address], "timeout": f"{_TIMEOUT}s"},
            "refusing": {"endpoints": [f"127.0.0.1:{closed}"]},
            "half": {"endpoints": [f"127.0.0.1:{closed}", faulty.address]},
            "empty": {"endpoints": []},
        }
        yield stack.enter_context(front("http", services, []))


def _connect(mesh: Front, service: str = "faulty") -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", mesh.port(service), timeout=PATIENCE)


def _get(
    connection: http.client.HTTPConnection, path: str, method: str = "GET"
) -> tuple[int, bytes]:
    connection.request(method, f"/{path}")
    response = connection.getresponse()
    return response.status, response.read()


def _is_fine(mesh: Front) -> None:
    """Whether the service still answers others."""
    with closing(_connect(mesh)) as connection:
        assert _get(connection, "fine") == (200, b"fine")


@pytest.mark.parametrize("fault", _STATUS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_answer_is_a_status_of_our_own(
    mesh: Front, faulty: Scripted, fault: str, method: str
) -> None:
    before = faulty.connections
    with closing(_connect(mesh)) as connection:
        status, body = _get(connection, fault, method)
        assert status in _STATUS[fault]
        assert b"TRAP" not in body
        # Sent again once at most, and only where it may have been too late.
        assert faulty.connections - before <= 2
        assert _get(connection, "fine") == (200, b"fine")
    _is_fine(mesh)


@pytest.mark.parametrize("fault", _REASON)
def test_an_answer_that_is_cut_off_never_looks_complete(mesh: Front, fault: str) -> None:
    with closing(_connect(mesh)) as connection:
        connection.request("GET", f"/{fault}")
        response = connection.getresponse()
        if response.status != 200:  # nothing had left of the answer
            assert (response.status, response.headers["x-sidecar-reason"]) == (502, _REASON[fault])
            response.read()
            return
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    _is_fine(mesh)


@pytest.mark.parametrize("fault", _EXTRA)
def test_what_nobody_asked_for_answers_nobody(mesh: Front, fault: str) -> None:
    for _ in range(5):
        with closing(_connect(mesh)) as connection:
            status, body = _get(connection, fault)
            assert (status, body) == (_EXTRA[fault], b"fine" if status == 200 else b"")
            assert _get(connection, "fine") == (200, b"fine")
    _is_fine(mesh)


def test_an_upstream_that_refuses_is_503_or_502(mesh: Front) -> None:
    with closing(_connect(mesh, "refusing")) as connection:
        for _ in range(3):
            assert _get(connection, "fine")[0] in (502, 503)


def test_a_service_without_endpoints_is_503(mesh: Front) -> None:
    with closing(_connect(mesh, "empty")) as connection:
        assert [_get(connection, "fine")[0] for _ in range(3)] == [503] * 3


def test_a_request_that_no_rule_matches_is_answered(mesh: Front) -> None:
    with closing(_connect(mesh, "")) as connection:
        assert _get(connection, "fine")[0] in (404, 503)


def _answer(mesh: Front, names: list[str]) -> Counter[str]:
    """Asks for them over one connection, or over new ones where it ends."""
    seen: Counter[str] = Counter()
    with closing(_connect(mesh)) as connection:
        for name in names:
            try:
                status, body = _get(connection, name)
            except (http.client.HTTPException, ConnectionError):
                connection.close()
                seen[f"{name}: cut off"] += 1
                continue
            assert b"TRAP" not in body
            if name == "fine":
                assert (status, body) == (200, b"fine")
            seen[f"{name}: {status}"] += 1
    return seen


def test_faults_touch_no_other_request(mesh: Front) -> None:
    """Many connections, and every second request is a fault."""
    faults = [name for name in faulty_http.FAULTS if "silent" not in name and name != "fine"]
    randomness = random.Random(1)
    orders = [
        [name for _ in range(20) for name in (randomness.choice(faults), "fine")] for _ in range(16)
    ]
    with ThreadPoolExecutor(len(orders)) as threads:
        seen: Counter[str] = sum(
            threads.map(lambda names: _answer(mesh, names), orders), Counter[str]()
        )
    assert sum(seen.values()) == 16 * 40
    assert seen["fine: 200"] == 16 * 20
    for name in (*_STATUS, *_REASON):
        assert name in ("both-lengths", "obs-fold") or not seen[f"{name}: 200"]
