"""Runs one module of CPython's own test suite and writes down what became of each test.

Imports nothing of ours: it runs in the interpreter whose tests they are, natively and hooked. Each
line that it writes is a JSON list: a test's id, and ``begin``, ``ok``, ``skip`` or ``fail``. A test
that never ends is seen from outside by the line that is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import traceback
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from test import support
from test.support import os_helper


class _Writer(unittest.TestResult):
    def __init__(self, results: TextIO) -> None:
        super().__init__()
        self._results = results
        self._outcome = "ok"

    def _write(self, test: Any, outcome: str) -> None:
        self._results.write(json.dumps([test.id(), outcome]) + "\n")
        self._results.flush()

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self._outcome = "ok"
        self._write(test, "begin")

    def stopTest(self, test: Any) -> None:
        super().stopTest(test)
        self._write(test, self._outcome)

    def _failed(self, test: Any, error: Any) -> None:
        self._outcome = "fail"
        print(f"==== {test.id()}", *traceback.format_exception(*error), sep="\n", flush=True)

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self._failed(test, err)

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self._failed(test, err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._failed(test, err)

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self._outcome = "skip"


def _flat(suite: Any) -> Iterator[Any]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _flat(test)
        else:
            yield test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", help="such as test_socket")
    parser.add_argument("results", type=Path, help="the file to append to")
    parser.add_argument("--only", type=Path, help="a file of ids: the tests that are to be run")
    parser.add_argument("--but", type=Path, help="a file of ids: the tests that are not")
    parser.add_argument("--resource", action="append", default=[], help="as regrtest's -u")
    arguments = parser.parse_args()
    only = arguments.only and set(arguments.only.read_text().splitlines())
    but = set(arguments.but.read_text().splitlines()) if arguments.but else set()
    support.use_resources = arguments.resource
    warnings.simplefilter("default")
    with (
        arguments.results.open("a") as results,
        os_helper.temp_cwd(f"foreign-{os.getpid()}"),
    ):
        suite = unittest.defaultTestLoader.loadTestsFromName(f"test.{arguments.module}")
        chosen = [
            test
            for test in _flat(suite)
            if (only is None or test.id() in only) and test.id() not in but
        ]
        unittest.TestSuite(chosen).run(_Writer(results))


if __name__ == "__main__":
    main()
