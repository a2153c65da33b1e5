"""Real servers that stop and die under load: what was under way fails in the protocol's own words,
all else is answered, and none gets another's answer."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import pytest

from tests.interop.servers import HAS_IPV6, free_port
from tests.requests import programs
from tests.requests.fronts import front
from tests.requests.programs import Program
from tests.waiting import PATIENCE, eventually

pytestmark = pytest.mark.timeout(240)

_COUNT = 3000


@dataclass(frozen=True)
class Kind:
    protocol: str
    start: Callable[[], AbstractContextManager[Program]]
    serve: dict[str, str]
    call: dict[str, str]
    late: str
    """What the client calls it when there is no answer in time."""
    lost: set[str]
    """The same, when the connection ends."""
    host: str = "127.0.0.1"


KINDS = [
    Kind(
        "http",
        programs.node,
        serve={},
        call={"host": "both", "path": "/echo/1", "way": "http"},
        late="error 504",
        lost={"error 502", "error 503"},
    ),
    Kind(
        "bolt",
        programs.sofa,
        serve={"library": "sofarpc", "services": "a"},
        call={"library": "sofarpc", "service": "a"},
        late="error SofaTimeOutException",
        lost={"error SofaRpcException"},
    ),
    pytest.param(
        Kind(
            "dubbo",
            programs.dubbo,
            serve={"services": "1.0 a"},
            call={"service": "1.0 a"},
            late="error RpcException",
            lost={"error RpcException"},
            host="[::1]",
        ),
        marks=pytest.mark.skipif(not HAS_IPV6, reason="Dubbo wants ::1"),
    ),
]


def _so_far(client: Program, result: str) -> int:
    return int(client.ask("progress").get(result, "0"))


@pytest.mark.parametrize("kind", KINDS, ids=["http", "bolt", "dubbo"])
def test_servers_that_stop_and_die(kind: Kind) -> None:
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        client, stopped, killed = (stack.enter_context(kind.start()) for _ in range(3))
        for server, port in zip((stopped, killed), ports, strict=True):
            server.ask("serve", port=port, name=str(port), **kind.serve)
        service = {"endpoints": [f"127.0.0.1:{port}" for port in ports], "timeout": "500ms"}
        mesh = stack.enter_context(front(kind.protocol, {"both": service}, [], host=kind.host))
        address = f"{kind.host}:{mesh.port('both')}"
        load = client.start(
            "burst", address=address, jitter=2, count=_COUNT, concurrency=16, **kind.call
        )
        eventually(lambda: _so_far(client, "right") > 100, "answers")
        stopped.process.send_signal(signal.SIGSTOP)
        eventually(lambda: _so_far(client, kind.late) >= 4, "timeouts")
        stopped.process.send_signal(signal.SIGCONT)
        before = _so_far(client, "right")
        eventually(lambda: _so_far(client, "right") > before + 200, "answers again")
        killed.process.kill()
        seen = load.result(2 * PATIENCE)
    assert set(seen) <= {"right", kind.late, *kind.lost}
    assert sum(map(int, seen.values())) == _COUNT
    assert int(seen["right"]) > _COUNT / 2
