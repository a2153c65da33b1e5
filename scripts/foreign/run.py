"""Runs modules of CPython's test suite, in processes that are stopped when they hang."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path

__all__ = ["MODULES", "run_module"]

# What opens, accepts, polls or hands on TCP connections.
MODULES = """
    test_asyncio.test_ssl test_asyncio.test_subprocess test_subprocess test_socket test_ssl
    test_asyncio.test_base_events test_asyncio.test_buffered_proto test_asyncio.test_events
    test_asyncio.test_selector_events test_asyncio.test_sendfile test_asyncio.test_server
    test_asyncio.test_sock_lowlevel test_asyncio.test_sslproto test_asyncio.test_streams
    test_asyncio.test_transports test_asyncio.test_unix_events
    test_asynchat test_asyncore test_docxmlrpc test_eintr test_epoll test_ftplib test_httplib
    test_httpservers test_imaplib test_logging test_nntplib test_os test_poll test_poplib
    test_robotparser test_select test_selectors test_smtpd test_smtplib test_socketserver
    test_telnetlib test_urllib2_localnet test_wsgiref test_xmlrpc
""".split()  # the longest first

# What regrtest would be told by -u: these do without anything that is not on this host.
_RESOURCES = {"test_socketserver": "network", "test_eintr": "walltime"}

STALL = 60.0
"""Seconds without a test's beginning or end, after which the one that runs is taken as hanging."""

_SUITE = Path(__file__).with_name("suite.py")
# The virtual environment's has the same standard library, but its tests want to see a plain one.
_PYTHON = getattr(sys, "_base_executable", sys.executable)


def run_module(
    module: str,
    directory: Path,
    environment: Mapping[str, str],
    *,
    only: Collection[str] | None = None,
) -> dict[str, str]:
    """What became of each test, and (under its name) of the module: ``ok``, ``skip``, ``fail``,
    ``hang``, or ``crash``.

    `directory` is the run's own, for what is printed and for temporary files. After a hang or a
    crash the tests behind it are run in another process.
    """
    directory.mkdir(parents=True)
    results, done = directory / "results", directory / "done"
    command = [_PYTHON, str(_SUITE), module, str(results), "--but", str(done)]
    if module in _RESOURCES:
        command += ["--resource", _RESOURCES[module]]
    if only is not None:
        (directory / "only").write_text("\n".join(only))
        command += ["--only", str(directory / "only")]
    outcomes: dict[str, str] = {}
    while True:
        done.write_text("\n".join(outcomes))
        results.write_text("")
        how = _run(command, results, directory, environment)
        outcomes |= map(json.loads, results.read_text().splitlines())
        begun = [test for test, outcome in outcomes.items() if outcome == "begin"]
        if not begun:
            return outcomes | {module: "ok" if how == "end" else how}
        outcomes |= dict.fromkeys(begun, "crash" if how == "end" else how)


def _run(command: list[str], results: Path, directory: Path, environment: Mapping[str, str]) -> str:
    """How the process ended: ``end``, ``crash`` or ``hang``."""
    with (directory / "output").open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**environment, "TMPDIR": str(directory), "PYTHONFAULTHANDLER": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        size, changed = 0, time.monotonic()
        while process.poll() is None:
            if (now := results.stat().st_size) != size:
                size, changed = now, time.monotonic()
            elif time.monotonic() - changed > STALL:
                return "hang"
            time.sleep(0.05)
        return "end" if process.returncode == 0 else "crash"
    finally:
        # Children too, and of a process that ended in order as well.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
