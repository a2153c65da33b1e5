"""Runs pytest with the arguments given, and what fails of many tests at a time once more by itself.

Some four thousand tests of sockets, processes and timers run beside each other: one of them may
meet a moment in which the machine does nothing for it. A test that fails once more, one at a
time, fails. So does a run in which more than a few fail, or in which the C code was caught at
something, which is never the machine's doing: a sanitizer's report, an assertion, a crash. What
passed only by itself is named in the end, since that is worth a look, too.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

MOST_REPEATED = 5
TIMEOUT = 150
"""Seconds for a test that says nothing else: beside others, more than pyproject.toml has."""
CAUGHT = re.compile(r"Sanitizer|runtime error:|Assertion .* failed|crashed while running")


class Failures:
    """A plugin of pytest that keeps what has failed: the text of each report, by the test's id."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Also of the set-up and of the end of a test."""
        if report.failed:
            # Those that share a worker have its group in their ids.
            name = re.sub(r"@[\w-]+$", "", report.nodeid)
            text = "\n".join([report.longreprtext, *(text for _, text in report.sections)])
            self.texts[name] = self.texts.get(name, "") + text


def main(arguments: list[str]) -> int:
    """Returns pytest's exit status, of the repetition where there was one."""
    failures = Failures()
    status = pytest.main([f"--timeout={TIMEOUT}", *arguments], plugins=[failures])
    names = list(failures.texts)
    if (
        status != pytest.ExitCode.TESTS_FAILED
        or len(names) > MOST_REPEATED
        or any(map(CAUGHT.search, failures.texts.values()))
    ):
        return status
    print(f"\n{len(names)} failed; once more, one at a time", flush=True)
    again = subprocess.run([sys.executable, "-m", "pytest", *names], check=False).returncode
    if again == 0:
        print("passed only by themselves:", *names, sep="\n  ", flush=True)
    return again


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
