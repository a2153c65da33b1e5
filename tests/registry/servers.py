"""Registries' servers as processes, on ports of their own."""

from __future__ import annotations

import abc
import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pysidecar.address import Address
from tests.ports import free_port
from tests.waiting import eventually


class ServerProcess(abc.ABC):
    """One that runs until it is left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log_file = directory / "server.log"
        self.data = directory / "data"
        self.address = Address("127.0.0.1", free_port())
        self.process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def command(self) -> Sequence[str | Path]:
        """What is run. The directory for data exists."""

    @abc.abstractmethod
    def serves(self) -> bool:
        """Whether it answers."""

    def start(self) -> None:
        """Returns when it serves."""
        self.data.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        eventually(self._is_up, lambda: f"the server:\n{self.log_file.read_text()[-4000:]}", 40.0)

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_file.read_text()[-4000:]
        with contextlib.suppress(OSError):
            return self.serves()
        return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        shutil.rmtree(self.data)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class ZooKeeperServer(ServerProcess):
    """Debian's. Its shortest session is a second."""

    def command(self) -> Sequence[str | Path]:
        settings = self.directory / "zoo.cfg"
        settings.write_text(
            f"tickTime=500\ndataDir={self.data}\nadmin.enableServer=false\nmaxClientCnxns=0\n"
            f"4lw.commands.whitelist=srvr\n{self.listening()}"
        )
        netty = ("buffer", "codec", "common", "handler", "resolver", "transport")
        jars = ("zookeeper", "slf4j-simple", *(f"netty-{name}" for name in netty))
        return (
            *("java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *("-Dzookeeper.forceSync=no", "-cp"),
            ":".join(f"/usr/share/java/{name}.jar" for name in jars),
            *("org.apache.zookeeper.server.quorum.QuorumPeerMain", settings),
        )

    def listening(self) -> str:
        return f"clientPortAddress=127.0.0.1\nclientPort={self.address.port}\n"

    def serves(self) -> bool:
        with socket.create_connection((self.address.host, self.address.port), 1) as connection:
            connection.sendall(b"srvr")
            return b"Mode: " in connection.makefile("rb").read()


class ZooKeeperWithTls(ZooKeeperServer):
    """Whose clients need a certificate, too."""

    def listening(self) -> str:
        self.certificate, self.key = make_certificate(self.directory)
        both = self.directory / "both.pem"
        both.write_text(self.certificate.read_text() + self.key.read_text())
        return (
            f"secureClientPortAddress=127.0.0.1\nsecureClientPort={self.address.port}\n"
            f"serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n"
            f"ssl.keyStore.location={both}\nssl.keyStore.type=PEM\n"
            f"ssl.trustStore.location={self.certificate}\nssl.trustStore.type=PEM\n"
        )

    def serves(self) -> bool:
        with socket.create_connection((self.address.host, self.address.port), 1):
            return True


class EtcdServer(ServerProcess):
    """Debian's, alone."""

    more_options: Sequence[str] = ()
    scheme = "http"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._peers = f"http://127.0.0.1:{free_port()}"

    def command(self) -> Sequence[str | Path]:
        url = f"{self.scheme}://{self.address}"
        return (
            *("etcd", "--data-dir", self.data, "--listen-client-urls", url),
            *("--advertise-client-urls", url, "--listen-peer-urls", self._peers),
            *("--initial-advertise-peer-urls", self._peers),
            *("--initial-cluster", f"default={self._peers}"),
            *("--logger", "zap", "--log-level", "warn", *self.more_options),
        )

    def serves(self) -> bool:
        with socket.create_connection((self.address.host, self.address.port), 1):
            return True


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """One for 127.0.0.1 that signs itself, for servers and clients, and its key."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=registry", "-keyout", key, "-out", certificate),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key
