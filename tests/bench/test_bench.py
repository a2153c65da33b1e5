"""The benchmark: that it runs, that its numbers are what they say, and that its page is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench.document import current_and_generated
from scripts.bench.goals import of_connections, of_requests
from scripts.bench.results import Results, Round

ROOT = Path(__file__).parents[2]


def _bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.bench", *arguments],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_a_short_run_gives_numbers(tmp_path: Path) -> None:
    done = _bench(
        *("--scenario", "requests-64-32,idle", "--side", "direct,relay unix", "--no-plot"),
        *("--rounds", "2", "--seconds", "0.1", "--idle-connections", "50", "--output", tmp_path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["machine"]["cores"] >= 1
    assert document["settings"]["seconds"] == 0.1
    assert document["unavailable"] == {}
    results = Results.read(tmp_path)
    assert results is not None
    measured = [(each.number, each.scenario, each.side) for each in results.rounds]
    assert measured == [
        (0, "requests-64-32", "direct"),
        (0, "requests-64-32", "relay unix"),
        (0, "idle", "direct"),
        (0, "idle", "relay unix"),
        (1, "requests-64-32", "relay unix"),  # another one is the first
        (1, "requests-64-32", "direct"),
        (1, "idle", "relay unix"),
        (1, "idle", "direct"),
    ]
    for each in results.rounds:
        if each.scenario == "requests-64-32":
            assert each.values["rate"] > 100
            assert 0 < each.values["p50"] <= each.values["p99"]
    direct = results.spread("requests-64-32", "direct", "rate")
    relayed = results.spread("requests-64-32", "relay unix", "rate")
    assert direct is not None
    assert relayed is not None
    assert direct.least <= direct.median <= direct.most
    assert "Goals" in done.stdout


def _measured(results: Results) -> dict[str, list[str]]:
    """The sides of each scenario."""
    return {
        scenario.name: [side.name for side in results.sides(scenario)]
        for scenario in results.scenarios
    }


def test_a_short_run_of_requests_has_results_of_its_own(tmp_path: Path) -> None:
    done = _bench(
        *("--scenario", "http-100-32,bolt-100-1-8,dubbo-100-1-8,http-upload,http-idle"),
        *("--side", "direct,relay unix,nginx*,HAProxy*", "--no-plot", "--output", tmp_path),
        *("--rounds", "1", "--seconds", "0.2", "--idle-connections", "50"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = Results.read(tmp_path / "requests")
    assert results is not None
    assert results.failures == []
    of_http = ["direct", "relay unix", "nginx, HTTP", "HAProxy, HTTP"]
    measured = _measured(results)
    assert measured == {
        "http-100-32": of_http,
        "bolt-100-1-8": ["direct", "relay unix"],  # no peer knows it
        "dubbo-100-1-8": ["direct", "relay unix"],
        "http-upload": of_http,
        "http-idle": of_http,
    }
    assert not (tmp_path / "results.json").exists()
    assert "listener, log: http-100-32, rate" in done.stdout


def test_a_short_run_of_http2_compares_with_peers_and_features(tmp_path: Path) -> None:
    done = _bench(
        *("--scenario", "http2-1-32,grpc-1-32,http2-http-1-32,cost-http2-32-8", "--no-plot"),
        *("--side", "direct,listener,*mechanisms,*traces,nginx*,HAProxy*"),
        *("--output", tmp_path, "--rounds", "1", "--seconds", "0.05"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = Results.read(tmp_path / "http2")
    assert results is not None
    assert results.failures == []
    everybody = ["direct", "listener", "nginx, HTTP", "HAProxy, HTTP"]
    measured = _measured(results)
    assert measured == {
        "http2-1-32": everybody,
        "grpc-1-32": everybody,
        "http2-http-1-32": everybody,
        "cost-http2-32-8": ["listener", "listener, mechanisms", "listener, traces"],
    }
    for side in measured["cost-http2-32-8"]:
        rate = results.spread("cost-http2-32-8", side, "of the rate")
        assert rate is not None
        assert rate.median == 1 if side == "listener" else rate.median > 0


def test_the_cost_of_the_log_is_measured_by_the_same_side_without_one() -> None:
    results = Results({}, {}, {})
    results.rounds += [
        Round(0, "http-100-32", "listener", {"rate": 60_000.0}),
        Round(0, "http-100-32", "listener, log", {"rate": 54_000.0}),
        Round(0, "http-100-32", "nginx, HTTP", {"rate": 55_000.0}),
    ]
    measured = {each.goal: each for each in of_requests(results) if each.measured}
    logged = measured["listener, log: http-100-32, rate"]
    assert (logged.measured, logged.reached) == ("0.90 × listener", False)
    listener = measured["listener: http-100-32, rate"]
    assert (listener.measured, listener.reached) == ("1.09 × nginx, HTTP", True)


def test_a_scenario_that_does_not_exist_is_named() -> None:
    done = _bench("--scenario", "requests-65-32")
    assert done.returncode == 2
    assert "there is no scenario 'requests-65-32'" in done.stderr
    assert "requests-64-32" in done.stderr


@pytest.mark.parametrize(("broken", "reached"), [(False, True), (True, None)])
def test_a_broken_round_takes_the_number_away(broken: bool, reached: bool | None) -> None:
    results = Results({}, {}, {})
    for number in range(3):
        results.rounds += [
            Round(number, "bulk-upload", "relay unix", {"rate": 13.0 + number}),
            Round(number, "bulk-upload", "HAProxy", {"rate": 10.0}),
        ]
    if broken:
        results.rounds.append(Round(3, "bulk-upload", "relay unix", error="1 reset"))
    [outcome] = [
        each for each in of_connections(results) if each.goal == "relay unix: bulk-upload, rate"
    ]
    assert outcome.reached is reached
    assert outcome.measured == ("" if broken else "1.40 × HAProxy")


def test_the_page_is_generated_from_the_committed_results() -> None:
    current, generated = current_and_generated()
    assert current == generated, "run `make bench-docs`"
