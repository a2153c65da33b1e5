"""Applying and deleting: all or nothing, ours alone, whoever is killed when."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysidecar.direction import Direction
from pysidecar.interception import rules
from pysidecar.interception.rules import RulesError, programs
from pysidecar.interception.rules.model import ROUTE_TABLE
from tests.interception.rulesets import RULESETS
from tests.interception.support import Pair, iptables_rules, output, snapshot
from tests.namespaces import ip

BACKENDS = ("nft", "iptables-nft", "iptables-legacy")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_ruleset = pytest.mark.parametrize("name", RULESETS)


@pytest.fixture
def busy_pod(pair: Pair) -> str:
    """Has rules, routes and policy rules of others, and the tables that iptables never removes."""
    foreign = (Path(__file__).parent / "foreign.iptables").read_text()
    for program in ("iptables-nft-restore", "iptables-legacy-restore"):
        output(pair.pod, program, stdin=foreign)
    # Look like ours, but are not: another protocol, another table.
    ip("-n", pair.pod, "rule", "add", "fwmark", "15007", "lookup", str(ROUTE_TABLE))
    ip("-n", pair.pod, "rule", "add", "from", "127.0.0.0/8", "iif", "lo", "lookup", "99",
       "protocol", "150")  # fmt: skip
    ip("-n", pair.pod, "route", "add", "10.99.0.0/16", "dev", "eth0", "table", str(ROUTE_TABLE))
    output(pair.pod, "nft", "add table inet pysidecar_other")
    for name in RULESETS:
        rules.apply(RULESETS[name], "iptables-nft", pair.pod)
        rules.delete(netns=pair.pod)
    return pair.pod


def everything(namespace: str) -> str:
    return f"{snapshot(namespace)}\n{iptables_rules(namespace)}"


@each_ruleset
@each_backend
def test_applying_twice_changes_nothing_and_deleting_leaves_what_was(
    busy_pod: str, backend: str, name: str
) -> None:
    before = everything(busy_pod)
    assert not rules.is_applied(RULESETS[name], backend, busy_pod)
    assert rules.problems(RULESETS[name], backend, busy_pod) == []
    assert everything(busy_pod) == before
    assert rules.apply(RULESETS[name], backend, busy_pod)
    assert rules.is_applied(RULESETS[name], backend, busy_pod)
    once = everything(busy_pod)
    assert once != before
    assert not rules.apply(RULESETS[name], backend, busy_pod)
    assert everything(busy_pod) == once
    assert rules.delete(netns=busy_pod)
    assert everything(busy_pod) == before
    assert not rules.delete(netns=busy_pod)
    assert everything(busy_pod) == before


@each_backend
def test_other_settings_and_another_backend_replace_what_was(busy_pod: str, backend: str) -> None:
    before = everything(busy_pod)
    outcomes: dict[str, str] = {}
    inbound = [name for name in RULESETS if name != "outbound"]
    for name in inbound:
        rules.apply(RULESETS[name], backend, busy_pod)
        outcomes[name] = iptables_rules(busy_pod) + _without_handles(busy_pod)
        rules.delete(netns=busy_pod)
    for other in BACKENDS:
        for name in random.Random(other).sample(inbound, len(inbound)):
            rules.apply(RULESETS[name], other, busy_pod)
            assert rules.apply(RULESETS[name], backend, busy_pod) == (other != backend)
            assert iptables_rules(busy_pod) + _without_handles(busy_pod) == outcomes[name]
    rules.delete(netns=busy_pod)
    assert everything(busy_pod) == before


def _without_handles(namespace: str) -> str:
    return "".join(
        output(namespace, *command.split())
        for command in (
            "nft -s list table inet firewall",
            "nft -s list tables",
            "ip -d rule show",
            "ip -d -6 rule show",
            "ip -d route show table all",
            "ip -d -6 route show table all",
        )
    )


@each_backend
def test_what_someone_changed_is_put_right(busy_pod: str, backend: str) -> None:
    ruleset = RULESETS["tproxy_source"]
    rules.apply(ruleset, backend, busy_pod)
    if backend == "nft":
        output(busy_pod, "nft", "flush chain inet pysidecar_inbound output")
    else:
        output(busy_pod, backend, "-t", "raw", "-F", "PYSIDECAR_IN_OUTPUT")
    assert not rules.is_applied(ruleset, backend, busy_pod)
    assert rules.apply(ruleset, backend, busy_pod)
    ip("-n", busy_pod, "-6", "rule", "del", "from", "::1", "iif", "lo", "lookup", str(ROUTE_TABLE))
    assert not rules.is_applied(ruleset, backend, busy_pod)
    assert rules.apply(ruleset, backend, busy_pod)
    assert rules.is_applied(ruleset, backend, busy_pod)


def test_a_direction_is_deleted_alone(pair: Pair) -> None:
    rules.apply(RULESETS["tproxy_source"], "nft", pair.pod)
    inbound = snapshot(pair.pod)
    rules.apply(RULESETS["outbound"], "nft", pair.pod)
    assert rules.delete([Direction.OUTBOUND], pair.pod)
    assert snapshot(pair.pod) == inbound


@pytest.mark.parametrize(
    ("backend", "rounds"),
    [
        ("nft", 12),
        ("iptables-legacy", 6),
        pytest.param("nft", 1000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_many_rounds_leave_what_was(busy_pod: str, backend: str, rounds: int) -> None:
    before = everything(busy_pod)
    files = len(os.listdir("/proc/self/fd"))
    for number in range(rounds):
        assert rules.apply(list(RULESETS.values())[number % len(RULESETS)], backend, busy_pod)
        assert rules.delete(netns=busy_pod)
    assert everything(busy_pod) == before
    assert len(os.listdir("/proc/self/fd")) == files


def test_show_is_what_is_sent(pair: Pair) -> None:
    """The text does by itself what apply does."""
    for ruleset in RULESETS.values():
        text = rules.show(ruleset)
        for line in text.splitlines():
            if line.startswith("ip "):
                output(pair.pod, *line.split())
        sent = text[text.index("# nft -f -") :]
        output(pair.pod, "nft", "-f", "-", stdin=sent)
        assert rules.is_applied(ruleset, "nft", pair.pod)
        assert not rules.apply(ruleset, "nft", pair.pod)
        rules.delete(netns=pair.pod)


class Changing:
    """Processes that change rules."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.interception.changing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def start(self, what: str, backend: str, namespace: str, name: str = "") -> int:
        return int(self._ask(json.dumps([what, backend, namespace, name])))

    def wait(self) -> list[int]:
        statuses: list[int] = json.loads(self._ask("wait"))
        return statuses

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def stop(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture
def changing() -> Iterator[Changing]:
    processes = Changing()
    yield processes
    processes.stop()


@each_backend
@pytest.mark.parametrize("what", ["apply", "delete"])
@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_at_any_point_delete_cleans(
    busy_pod: str, changing: Changing, backend: str, what: str, times: int
) -> None:
    before = everything(busy_pod)
    chance = random.Random(f"{backend} {what} {times}")
    durations = []
    for change in ("apply", "delete", "apply"):
        started = time.monotonic()
        changing.start(change, backend, busy_pod, "tproxy_source")
        assert changing.wait() == [0]
        durations.append(time.monotonic() - started)
    duration = durations[1 if what == "delete" else 2]
    killed = 0
    for _ in range(times):
        if what == "apply":
            rules.delete(netns=busy_pod)
        pid = changing.start(what, backend, busy_pod, "tproxy_source")
        time.sleep(chance.uniform(0, duration))  # the point at which it is killed
        os.kill(pid, signal.SIGKILL)
        killed += changing.wait() == [signal.SIGKILL]
        rules.delete(netns=busy_pod)
        assert everything(busy_pod) == before
        rules.apply(RULESETS["tproxy_source"], backend, busy_pod)
    assert killed > 0
    rules.delete(netns=busy_pod)


@each_backend
def test_concurrent_changes_come_one_after_the_other(
    busy_pod: str, changing: Changing, backend: str
) -> None:
    before = everything(busy_pod)
    names = ["tproxy", "tproxy_source", "redirect", "tproxy_ipv4"]
    for name in names * 2:
        changing.start("apply", backend, busy_pod, name)
        changing.start("delete", backend, busy_pod)
    changing.start("apply", backend, busy_pod, "outbound")
    assert set(changing.wait()) == {0}
    for name in names:
        changing.start("apply", backend, busy_pod, name)
    assert set(changing.wait()) == {0}
    assert sum(rules.is_applied(RULESETS[name], backend, busy_pod) for name in names) == 1
    rules.delete(netns=busy_pod)
    assert everything(busy_pod) == before


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a script in the place of a program; ``$real`` is the program."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(program: str, script: str) -> None:
        real = programs.find(program)
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\nreal={real}\n{script}\n")
        path.chmod(0o755)

    return put


Instead = Callable[[str, str], None]
_FAIL_WHEN_COMMITTING = """
case "$*" in *-c*|*--test*|*list*) exec $real "$@";; esac
echo "Error: out of luck" >&2; exit 1
"""


@pytest.mark.parametrize(
    ("backend", "program"), [("nft", "nft"), ("iptables-legacy", "ip6tables-legacy-restore")]
)
@pytest.mark.parametrize("previous", [None, "redirect", "tproxy"])
def test_a_failure_half_way_leaves_what_was(
    busy_pod: str, instead: Instead, backend: str, program: str, previous: str | None
) -> None:
    if previous is not None:
        rules.apply(RULESETS[previous], backend, busy_pod)
    before = everything(busy_pod)
    # The IPv4 rules are in force already when those for IPv6 fail, the first time only.
    once = f'if [ -e "$0.used" ]; then exec $real "$@"; fi\n{_FAIL_WHEN_COMMITTING}'
    instead(program, once.replace("echo", 'touch "$0.used"; echo'))
    with pytest.raises(RulesError, match="out of luck"):
        rules.apply(RULESETS["tproxy_source"], backend, busy_pod)
    assert everything(busy_pod) == before


def test_a_missing_kernel_feature_is_named_and_nothing_changed(
    pair: Pair, instead: Instead
) -> None:
    instead(
        "nft",
        'input=$(cat); case "$input" in *tproxy*) echo "Error: No such file" >&2; exit 1;; esac; '
        'echo "$input" | $real "$@"',
    )
    before = snapshot(pair.pod)
    found = rules.problems(RULESETS["tproxy_source"], "nft", pair.pod)
    assert [sentence.split(":")[0] for sentence in found] == [
        "the kernel lacks TPROXY for IPv4",
        "the kernel lacks TPROXY for IPv6",
    ]
    assert "nft_tproxy" in found[0]
    with pytest.raises(RulesError, match="TPROXY for IPv4"):
        rules.apply(RULESETS["tproxy_source"], "nft", pair.pod)
    assert snapshot(pair.pod) == before
    assert rules.problems(RULESETS["redirect"], "nft", pair.pod) == []


def test_a_missing_program_is_named(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(pair.pod)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        patch.setattr(programs, "_SYSTEM_PATH", "/nowhere")
        assert "the program nft is not installed" in rules.problems(RULESETS["tproxy"])[0]
        assert "iptables-save" in rules.problems(RULESETS["tproxy"], "iptables")[0]
        with pytest.raises(RulesError, match="nft is not installed"):
            rules.apply(RULESETS["tproxy_source"], "nft", pair.pod)
        assert not rules.delete(netns=pair.pod)  # what cannot have been made
    assert snapshot(pair.pod) == before


def test_a_missing_capability_is_named(pair: Pair) -> None:
    code = (
        "from pysidecar.interception import rules\n"
        "from tests.interception.rulesets import RULESETS\n"
        "print(rules.problems(RULESETS['tproxy']))\n"
        "print(rules.problems(RULESETS['tproxy'], 'iptables'))\n"
    )
    command = ["setpriv", "--bounding-set", "-net_admin,-net_raw", sys.executable, "-c", code]
    text = subprocess.check_output(command, text=True, cwd=Path(__file__).parents[2])
    nft, iptables = text.splitlines()
    assert "CAP_NET_ADMIN is missing" in nft
    assert "CAP_NET_RAW is missing" in iptables


def test_a_namespace_that_is_not_there_is_named() -> None:
    assert "psc-nowhere" in rules.problems(RULESETS["tproxy"], netns="psc-nowhere")[0]
    with pytest.raises(RulesError, match="psc-nowhere"):
        rules.delete(netns="psc-nowhere")


def test_ipv6_that_is_disabled_is_named(pair: Pair) -> None:
    output(pair.pod, "sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1")
    assert "IPv6 is disabled" in rules.problems(RULESETS["tproxy"], "nft", pair.pod)[0]
    assert rules.problems(RULESETS["tproxy_ipv4"], "nft", pair.pod) == []


def test_a_loopback_that_is_down_is_named(pair: Pair) -> None:
    ip("-n", pair.pod, "link", "set", "lo", "down")
    with contextlib.suppress(AssertionError):
        ip("-n", pair.pod, "-6", "addr", "add", "::1", "dev", "lo")
    assert "loopback" in rules.problems(RULESETS["tproxy_ipv4"], "nft", pair.pod)[0]


def test_our_own_namespace_stays_where_it_is(pair: Pair) -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    rules.apply(RULESETS["tproxy_source"], "nft", pair.pod)
    assert os.stat("/proc/self/ns/net").st_ino == own
    assert os.stat("/proc/thread-self/ns/net").st_ino == own
    assert "pysidecar_inbound" not in subprocess.check_output(["nft", "list", "tables"], text=True)


def test_conntrack_is_read_in_the_namespace(pair: Pair) -> None:
    use = rules.conntrack(pair.pod)
    assert use is not None
    assert use.limit > 0
    assert use.entries == 0
