"""A deployment: every server of a service is replaced, one after the other, under load."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.interop.servers import free_port
from tests.requests import programs
from tests.requests.fronts import front
from tests.requests.programs import Program
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(240)

_COUNT = 6000
_SERVERS = 3
_EACH = 200  # requests between two steps


def _answered(client: Program) -> int:
    return int(client.ask("progress").get("right", "0"))


def _wait_for_more(client: Program) -> None:
    before = _answered(client)
    eventually(lambda: _answered(client) > before + _EACH, "answers")


@pytest.mark.parametrize("told_first", [True, False], ids=["removed", "stopped"])
def test_no_request_of_a_deployment_fails(told_first: bool) -> None:
    """The sidecar is told of a server's end before, or only after it has happened."""
    resilience = {} if told_first else {"retries": {"attempts": 2}}
    old, new = ([free_port() for _ in range(_SERVERS)] for _ in range(2))
    with ExitStack() as stack:
        client, server = (stack.enter_context(programs.node()) for _ in range(2))

        def serve(port: int) -> None:
            server.ask("serve", port=port, name=str(port))

        for port in old:
            serve(port)
        endpoints = [f"127.0.0.1:{port}" for port in old]
        mesh = stack.enter_context(
            front("http", {"orders": {"endpoints": endpoints, **resilience}}, [])
        )
        load = client.start(
            "burst",
            address=mesh.address("orders"),
            host="orders",
            path="/echo/10",  # milliseconds: so that the load goes on until the last step
            way="http",
            count=_COUNT,
            concurrency=16,
        )
        for i, (leaving, coming) in enumerate(zip(old, new, strict=True)):
            serve(coming)
            _wait_for_more(client)
            endpoints[i] = f"127.0.0.1:{coming}"
            if not told_first:
                server.ask("retire", port=leaving)
            _wait_for_more(client)
            mesh.sidecar.configure({"services": {"orders": {"endpoints": list(endpoints)}}})
            if told_first:
                server.ask("retire", port=leaving)
        assert not load.done()
        seen = load.result()
        failed = [request for request in mesh.sidecar.requests() if request.status != 200]
        assert seen == {"right": str(_COUNT)}, failed
        served = {request.upstream for request in mesh.sidecar.requests()}
    assert served == {f"127.0.0.1:{port}" for port in (*old, *new)}
