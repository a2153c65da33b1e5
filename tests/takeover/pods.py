"""Pods whose sidecars take over, each with the fixed ports of the SDKs for itself."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pysidecar.interception.rules.namespace import inside
from tests.launching import PYSIDECAR
from tests.mesh.support import Pod, PodSidecar
from tests.waiting import PATIENCE, eventually

__all__ = [
    "API",
    "CONSUMER",
    "PROVIDER",
    "Capture",
    "Packet",
    "Site",
    "embedded_registry",
    "peers",
    "sites",
]

API, DUBBO_API, CONSUMER, PROVIDER = 13330, 22222, 12220, 20881
REGISTRY = 15010
_TAKEOVER = """
takeover: {{dubbo_api: "127.0.0.1:{dubbo_api}", consumer: "127.0.0.1:{consumer}"{more}}}
registry: {{{registry}, session_timeout: {session_timeout}}}
outbound:
  when_away: wait:30s
"""


@dataclass
class Site:
    """A pod with its sidecar, which the tests start and kill."""

    pod: Pod
    sidecar: PodSidecar

    @property
    def prefix(self) -> list[str]:
        """Runs a command there."""
        return self.pod.command()

    @property
    def hooked(self) -> list[str | Path]:
        """Runs a command there as ``pysidecar exec`` does."""
        return [*self.prefix, *PYSIDECAR, "exec", "-c", self.sidecar.config_file, "--"]

    def say(self, path: str, *, api: int = API, **body: Any) -> dict[str, Any]:
        """To the mesh API, as an application of this pod."""

        def ask() -> dict[str, Any]:
            request = urllib.request.Request(
                f"http://127.0.0.1:{api}{path}", json.dumps(body).encode()
            )
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                found: dict[str, Any] = json.load(answer)
                return found

        return inside(self.pod.name, ask)

    def get(self, host: str, path: str = "/", port: int = CONSUMER) -> str:
        """What curl gets for a service at the consumer port."""
        url = f"http://127.0.0.1:{port}{path}"
        return self.pod.output(
            *("curl", "-sS", "--max-time", "10", "--noproxy", "*", "-H", f"Host: {host}", url)
        )

    def latest_request(self) -> dict[str, Any]:
        """As the sidecar's admin interface tells of it: the one that ended last."""
        [found] = self.sidecar.get_json("/requests?limit=1")
        record: dict[str, Any] = found
        return record

    def wait_for_port(self, port: int) -> None:
        """Until somebody listens there."""
        eventually(
            lambda: self.pod.output("ss", "-Hltn", f"sport = :{port}"), f"a listener at {port}"
        )


@contextlib.contextmanager
def sites(
    pods: Sequence[Pod],
    directory: Path,
    registry: str,
    *,
    started: Sequence[int] | None = None,
    takeover: Mapping[int, str] | None = None,
    session_timeout: str = "2s",
) -> Iterator[list[Site]]:
    """Sidecars in those pods, of which ``started`` (by default all) run. ``registry`` is the
    section of that name, without its braces; ``takeover`` more of that one, by pod."""
    made = []
    for index, pod in enumerate(pods):
        more = (takeover or {}).get(index, "")
        config = _TAKEOVER.format(
            dubbo_api=DUBBO_API,
            consumer=CONSUMER,
            registry=registry,
            session_timeout=session_timeout,
            more=more and f", {more}",
        )
        made.append(Site(pod, PodSidecar(pod, directory, config)))
    with contextlib.ExitStack() as stack:
        for index, site in enumerate(made):
            if started is None or index in started:
                stack.enter_context(site.sidecar)
            else:
                stack.callback(_kill, site.sidecar)
        yield made


def _kill(sidecar: PodSidecar) -> None:
    if hasattr(sidecar, "process"):
        sidecar.kill()


def embedded_registry(pod: Pod, directory: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """``pysidecar registry`` there, at port REGISTRY."""
    return pod.running(
        *(*PYSIDECAR, "registry", "--listen", f"{pod.ipv4}:{REGISTRY}"),
        *("--state", directory / "registry.db"),
        log=directory / "registry.log",
    )


def peers(pod: Pod, port: int) -> set[str]:
    """The addresses of those that are connected to a port there."""
    lines = pod.output("ss", "-Htn", "state", "established", f"sport = :{port}").splitlines()
    return {line.split()[-1].rpartition(":")[0].strip("[]") for line in lines}


@dataclass(frozen=True)
class Packet:
    """Of TCP."""

    source: tuple[str, int]
    destination: tuple[str, int]
    payload: bytes


@dataclass
class Capture:
    """What passes a device of a pod, by an AF_PACKET socket there."""

    pod: Pod
    device: str
    _packets: list[Packet] = field(default_factory=list)

    def __enter__(self) -> Capture:
        self._socket = inside(
            self.pod.name,
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)),
        )
        self._socket.bind((self.device, 3))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while True:
            try:
                data, address = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                if self._over.is_set():
                    return
                continue
            # Loopback shows each packet twice, as it leaves and as it comes.
            if self.device != "lo" or address[2] != socket.PACKET_OUTGOING:
                packet = _packet(data)
                if packet is not None:
                    self._packets.append(packet)

    @property
    def packets(self) -> list[Packet]:
        """So far."""
        return list(self._packets)


def _packet(data: bytes) -> Packet | None:
    if len(data) >= 40 and (data[0] >> 4, data[9]) == (4, socket.IPPROTO_TCP):
        start, size = (data[0] & 15) * 4, struct.unpack_from("!H", data, 2)[0]
        hosts = [str(ip_address(data[at : at + 4])) for at in (12, 16)]
    elif len(data) >= 60 and (data[0] >> 4, data[6]) == (6, socket.IPPROTO_TCP):
        start, size = 40, struct.unpack_from("!H", data, 4)[0]
        size += start if size else 0
        hosts = [str(ip_address(data[at : at + 16])) for at in (8, 24)]
    else:
        return None
    total = size or len(data)  # 0: of a segment that is longer
    source, destination = struct.unpack_from("!HH", data, start)
    payload = data[start + (data[start + 12] >> 4) * 4 : total]
    return Packet((hosts[0], source), (hosts[1], destination), payload)
