"""Changes rules in processes of its own that can be killed: one for each line of standard input.

A line is JSON: ``[what, backend, namespace, settings]``, the answer the process's pid; a line
``wait`` waits for all of them and answers with their exit statuses. Forked, so that nothing but the
change takes time.
"""

from __future__ import annotations

import json
import os
import sys

import pyroute2  # type: ignore[import-untyped]  # noqa: F401  (not each of the processes again)

from pysidecar.interception import rules
from tests.interception.rulesets import RULESETS


def change(what: str, backend: str, namespace: str, name: str) -> None:
    if what == "delete":
        rules.delete(netns=namespace)
    else:
        rules.apply(RULESETS[name], backend, namespace)


def main() -> None:
    children: list[int] = []
    for line in sys.stdin:
        if line == "wait\n":
            print(json.dumps([os.waitpid(child, 0)[1] for child in children]), flush=True)
            children = []
            continue
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            status = 1
            try:
                change(*json.loads(line))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
        print(child, flush=True)


if __name__ == "__main__":
    main()
