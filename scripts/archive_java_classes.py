#!/usr/bin/env python3
"""Archives the classes of the Java programs that the tests run, so that these start sooner.

Each program does once what tests ask of it, and its JVM writes ``build/java/MODULE/classes.jsa`` as
it ends; tests/requests/programs.py uses it. Needs only Python's standard library.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

_JAVA = Path(__file__).resolve().parent.parent / "build" / "java"
_PATIENCE = 120  # seconds
_CALL = {"op": "call", "method": "echo", "text": "hi", "timeout": 20000}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _sofa() -> list[dict[str, object]]:
    port, bare = _free_port(), _free_port()
    where = {"library": "sofarpc", "address": f"127.0.0.1:{port}"}
    return [
        {"op": "serve", "library": "sofarpc", "port": port, "name": "n", "services": "a"},
        {**_CALL, **where, "service": "a"},
        {**_CALL, **where, "service": "a", "kind": "callback"},
        {"op": "serve", "library": "bolt", "port": bare, "name": "n"},
        {**_CALL, "library": "bolt", "address": f"127.0.0.1:{bare}"},
        {**_CALL, "library": "bolt", "address": f"127.0.0.1:{bare}", "protocol": 2},
    ]


def _dubbo() -> list[dict[str, object]]:
    port, triple = _free_port(), _free_port()
    return [
        {"op": "begin", "application": "a", "registry": "N/A", "port": port, "triple": triple},
        {"op": "serve", "name": "n", "services": "1.0 "},
        {**_CALL, "service": "1.0 ", "url": f"dubbo://[::1]:{port}"},
        {"op": "serve", "name": "n", "services": "2.0 ", "protocol": "tri"},
        {**_CALL, "service": "2.0 ", "url": f"tri://127.0.0.1:{triple}", "protocol": "tri"},
    ]


def _dubbo2() -> list[dict[str, object]]:
    """It has no triple."""
    port = _free_port()
    return [
        {"op": "begin", "application": "a", "registry": "N/A", "port": port},
        {"op": "serve", "name": "n", "services": "1.0 "},
        {**_CALL, "service": "1.0 ", "url": f"dubbo://[::1]:{port}"},
    ]


def _grpc() -> list[dict[str, object]]:
    port = _free_port()
    where = {"address": f"127.0.0.1:{port}"}
    return [
        {"op": "serve", "port": port, "name": "n"},
        {**_CALL, **where},
        {"op": "forms", "count": 2, "size": 10, **where},
    ]


_PROGRAMS = {
    "grpc": ("peer.Grpc", _grpc),
    "sofa": ("peer.Sofa", _sofa),
    "dubbo": ("peer.Registered", _dubbo),
    "dubbo2": ("peer.Registered", _dubbo2),
}


def _archive(module: str) -> str:
    """What went wrong, if anything did: then there is no archive, and all starts as it did."""
    main, commands = _PROGRAMS[module]
    archive = _JAVA / module / "classes.jsa"
    archive.unlink(missing_ok=True)
    command = [
        *("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx512m"),
        *(f"-XX:ArchiveClassesAtExit={archive}", "-Xlog:disable", "-Xlog:all=error:stderr"),
        *("--add-opens=java.base/java.lang=ALL-UNNAMED", "-Dsofa.middleware.log.disable=true"),
        *(f"-Duser.home={_JAVA / module}", "-cp", f"{_JAVA}/{module}/lib/*", main),
    ]
    with subprocess.Popen(
        command,
        cwd=_JAVA / module,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        given = "".join(
            urlencode({"id": number, **values}) + "\n" for number, values in enumerate(commands())
        )
        try:
            problem = _speak(process, given.splitlines(keepends=True))
            _, errors = process.communicate(timeout=_PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            process.kill()
            return f"{module}: {error}"
    return problem or ("" if archive.exists() else f"{module}: no archive: {errors[-500:]}")


def _speak(process: subprocess.Popen[str], commands: Sequence[str]) -> str:
    """One command after the other: they would be carried out at once."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()  # it is ready
    for command in commands:
        process.stdin.write(command)
        process.stdin.flush()
        answer = process.stdout.readline()
        if "error=" in answer or not answer:
            return f"{command.strip()}: {answer.strip()}"
    return ""


def main() -> None:
    with ThreadPoolExecutor(2) as threads:
        for problem in threads.map(_archive, _PROGRAMS):
            if problem:
                print(f"Java's classes are not archived: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
