"""Does what it reads, line by line: each an expression in JSON, evaluated under the hook.

Answers each line with ``["ok", repr(value)]`` or ``["error", errno]``.
"""

from __future__ import annotations

import errno
import json
import sys
from typing import Any


def main() -> None:
    names: dict[str, Any] = {}
    exec(
        "import array, errno, fcntl, os, select, signal, socket, struct, tempfile, termios, time",
        names,
    )
    for line in sys.stdin:
        code = json.loads(line)
        answer: list[str | None]
        try:
            try:
                compiled = compile(code, "<test>", "eval")
            except SyntaxError:
                exec(code, names)
                answer = ["ok", "None"]
            else:
                answer = ["ok", repr(eval(compiled, names))]
        except OSError as error:
            answer = ["error", errno.errorcode.get(error.errno or 0, str(error))]
        print(json.dumps(answer), flush=True)


main()
