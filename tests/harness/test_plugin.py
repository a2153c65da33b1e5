"""The pytest plugin as its users have it: tests that run tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


def test_importing_the_plugin_is_light() -> None:
    """What it loads beyond pytest is small: none of our dependencies, no HTTP client."""
    loaded = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, pytest; before = set(sys.modules); import pysidecar.testing.plugin;"
            "print(*sorted(set(sys.modules) - before))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "pysidecar.testing.plugin" in loaded
    packages = {name.partition(".")[0] for name in loaded}
    assert packages <= {
        "pysidecar",
        "ipaddress",
        "secrets",
        "hmac",
        "_hashlib",
        "_blake2",
        "base64",
    }


def test_the_plugin_is_registered_by_the_package(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(["sidecar_factory*", "sidecar *", "hooked *"])


def test_a_failure_shows_what_the_sidecar_logged(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(sidecar, hooked):
            sidecar.route("10.1.1.1:80", action="refuse")
            hooked.run(["curl", "--noproxy", "*", "-s", "http://10.1.1.1/"])
            assert False, "on purpose"
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*on purpose*",
            "*sidecar 1 (call): log*",
            "*127.*",
            "*sidecar 1 (call): access log*",
            '*"10.1.1.1:80"*',
        ]
    )


def test_a_success_shows_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(sidecar): pass")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*access log*")


def test_a_sidecar_that_does_not_start_says_why(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(sidecar_factory):
            sidecar_factory({"outbound": {"transprot": "unix"}})
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*SidecarError: the sidecar ended with status*", "*transprot*"])


def test_a_sidecar_that_dies_fails_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os, signal
        def test_it(sidecar):
            os.kill(sidecar.pid, signal.SIGABRT)
            sidecar.process.wait()
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*SidecarError: the sidecar ended with status -6*"])


def test_processes_under_the_hook_end_with_the_test(pytester: pytest.Pytester) -> None:
    """Children and daemons too."""
    pytester.makepyfile(
        """
        from pathlib import Path
        from pysidecar.testing.sidecar import wait_until

        SCRIPT = '''
        sleep 3600 &
        echo $! >> "$0"
        setsid sh -c 'echo $$ >> "$0"; exec sleep 3600' "$0" &
        wait
        '''

        def test_it(hooked):
            pids = Path(__file__).with_name("pids")
            hooked.popen(["sh", "-c", SCRIPT, str(pids)])
            assert wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, 10)
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    pids = (pytester.path / "pids").read_text().split()
    assert len(pids) == 2
    assert [pid for pid in pids if is_running(pid)] == []


def is_running(pid: str) -> bool:
    """Not ended, even if nobody waited for it yet (proc(5): "Z" after the command's name)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_two_sidecars_run_side_by_side(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(sidecar, sidecar_factory):
            other = sidecar_factory({"outbound": {"transport": "header"}})
            for each, transport in ((sidecar, "unix"), (other, "header")):
                each.route("10.1.1.1:80", action="refuse")
                each.hooked.run(["curl", "--noproxy", "*", "-s", "http://10.1.1.1/"])
                assert each.wait_for_connection("10.1.1.1:80").transport == transport
                assert len(each.connections()) == 1
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
