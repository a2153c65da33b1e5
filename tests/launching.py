"""``pysidecar run`` in processes of their own, as users run it, and what such a one says."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pysidecar.address import Address
from pysidecar.interception.rules.namespace import inside
from tests.waiting import PATIENCE, eventually

PYSIDECAR = (sys.executable, "-m", "pysidecar")


def launch(
    config: Path, *options: str, prefix: Sequence[str | Path] = (), **popen: Any
) -> subprocess.Popen[bytes]:
    """``prefix`` is a command that runs it."""
    popen.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen([*prefix, *PYSIDECAR, "run", "-c", config, *options], **popen)


class Launched:
    """One whose log is a file. Killed when it is left."""

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        prefix: Sequence[str | Path] = (),
        namespace: str | None = None,
    ) -> None:
        self.config_file = directory / f"{name}.yaml"
        self.log_file = directory / f"{name}.log"
        self.access_log_file = directory / f"{name}.jsonl"
        self._prefix = prefix
        self._namespace = namespace
        self.admin: Address
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self.process = launch(self.config_file, prefix=self._prefix, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def get(self, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
        """Asks the admin interface: the status, and what it answers."""

        def ask() -> tuple[int, str]:
            admin = http.client.HTTPConnection(self.admin.host, self.admin.port, timeout=PATIENCE)
            try:
                admin.request(method, path, headers={"Host": host} if host else {})
                response = admin.getresponse()
                return response.status, response.read().decode()
            finally:
                admin.close()

        return inside(self._namespace, ask)

    def get_json(self, path: str) -> Any:
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    @contextlib.contextmanager
    def tracing(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """``pysidecar debug trace``, to which events come from here on."""
        command = [*PYSIDECAR, "debug", "trace", "--admin", str(self.admin), *options]
        with subprocess.Popen(
            [*self._prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                eventually(lambda: self.trace_readers == 1, "the trace")
                yield process
            finally:
                process.kill()

    @property
    def trace_readers(self) -> int:
        found = re.search(r"^pysidecar_trace_readers (\d+)", self.get("/metrics")[1], re.MULTILINE)
        assert found
        return int(found[1])

    def access_log(self, count: int = 1) -> list[dict[str, Any]]:
        """The records, when there are at least so many."""

        def lines() -> list[str]:
            text = self.access_log_file.read_text() if self.access_log_file.exists() else ""
            found = text.splitlines()
            return found if len(found) >= count else []

        return [json.loads(line) for line in eventually(lines, f"{count} records")]

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL, if it has not ended."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
