"""A way of interception is one module and one registration: those of docs/extending.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysidecar.address import Address
from tests.interception.support import (
    ANY,
    CLIENT,
    LIMIT,
    POD,
    Pair,
    application,
    ask,
    iptables_rules,
    snapshot,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"
# As if the module were in the package, and the line in its registration.
LAUNCHER = """
import sys
import pysidecar.interception
import pysidecar.modes

directory, line = sys.argv[1:3]
del sys.argv[1:3]
pysidecar.interception.__path__.append(directory)
pysidecar.modes.INBOUND.update(eval("{" + line + "}"))
from pysidecar.cli import main
main()
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str | Path]:
    """``pysidecar`` with the way of the document."""
    module, line = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    package = tmp_path / "package"
    package.mkdir()
    (package / "plain.py").write_text(module)
    launcher = tmp_path / "launcher.py"
    launcher.write_text(LAUNCHER)
    return [sys.executable, launcher, package, line.strip()]


def run(command: list[str | Path], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=2 * LIMIT)


def test_the_command_line_knows_it(command: list[str | Path]) -> None:
    assert "[tproxy|redirect|plain]" in run(command, "rules", "show", "--help").stdout
    shown = run(command, "rules", "show", "--mode", "plain")
    assert "redirect to :15006" in shown.stdout
    shown = run(command, "rules", "show", "--mode", "plain", "--backend", "iptables")
    assert "--to-ports 15006" in shown.stdout


def test_the_configuration_knows_it(command: list[str | Path], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("inbound: {mode: plain}")
    assert run(command, "check", "-c", config).stdout == "OK\n"
    config.write_text("inbound:\n  mode: plain\n  preserve_source: true\n")
    assert (
        "expected preserve_source: false with mode plain"
        in run(command, "check", "-c", config).stderr
    )
    config.write_text("inbound: {mode: plane}")
    assert "'tproxy', 'redirect' or 'plain'" in run(command, "check", "-c", config).stderr
    assert '"plain"' in run(command, "check", "--schema").stdout


@pytest.fixture
def serving(
    pair: Pair, command: list[str | Path], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A sidecar in the pod that takes connections this way. Its access log."""
    access_log = tmp_path / "access.jsonl"
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        "inbound: {mode: plain, application_address: [127.0.0.1, '::1']}\n"
        f"manage_rules: true\nrules_backend: {request.param}\naccess_log: {{path: {access_log}}}\n"
        f"outbound: {{control_socket: {tmp_path}/hook.sock}}\n"
    )
    inside = ["ip", "netns", "exec", pair.pod]
    with subprocess.Popen(
        [*inside, *command, "run", "-c", config, "--until-stdin-ends"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        try:
            assert any("admin: http" in line for line in process.stderr), "it did not start"
            yield access_log
        finally:
            process.stdin.close()
            process.stderr.read()
            assert process.wait(LIMIT) == 0


@pytest.mark.parametrize("serving", ["nft", "iptables-nft"], indirect=True)
def test_connections_come_by_it(pair: Pair, serving: Path) -> None:
    with application(pair.pod, *(Address(host, 8080) for host in ANY.values())):
        for version in (4, 6):
            ask(pair.client, Address(POD[version], 8080))
        deadline = time.monotonic() + LIMIT
        while serving.read_text().count("\n") < 2:
            assert time.monotonic() < deadline, "the connections are not logged"
            time.sleep(0.01)
    records = [json.loads(line) for line in serving.read_text().splitlines()]
    # Each may be another worker's, and those of IPv6 are in brackets.
    records.sort(key=lambda record: "[" in record["original_destination"])
    assert [record["direction"] for record in records] == ["inbound", "inbound"]
    for record, version in zip(records, (4, 6), strict=True):
        assert Address.parse(record["original_destination"]) == Address(POD[version], 8080)
        assert Address.parse(record["source"]).host == CLIENT[version]
    rules = snapshot(pair.pod) + iptables_rules(pair.pod)
    assert "pysidecar_inbound" in rules or "PYSIDECAR_IN_" in rules
