"""Runs an example of takeover in two pods, which are network namespaces, and shows each hop.

    make example-takeover                   # SOFARPC for Java
    make example-takeover EXAMPLE=dubbo     # Dubbo 3 for Java, with ZooKeeper
    make example-takeover EXAMPLE=anthunder # SOFA's SDK for Python

Needs root. Everything that is made here is removed again.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.markup import escape

from scripts.showing import TIMEOUT, console, ended_after, requests_in, show_hops, wait_for

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build"
PYSIDECAR: str | Path = Path(sys.executable).with_name("pysidecar")
NAMES = ("Ada", "Grace", "Edsger")
PREFIX = "pysidecar-example"
PROVIDER, CONSUMER = "10.80.0.1", "10.80.0.2"  # the pods
EMBEDDED = f"{PROVIDER}:15010"
ZOOKEEPER = f"{PROVIDER}:2181"


@dataclass(frozen=True)
class Pod:
    """A network namespace, with a sidecar of its own; ``{config}`` in a command is that one's."""

    name: str
    address: str
    directory: Path
    settings: str

    @property
    def config(self) -> Path:
        return self.directory / f"{self.name}.yaml"

    @property
    def access_log(self) -> Path:
        return self.directory / f"{self.name}.jsonl"

    def inside(self, command: Sequence[str | Path]) -> list[str]:
        # With setpriv it ends when we do, be it by SIGKILL.
        wrapper = ["setpriv", "--pdeathsig", "KILL", "--", "ip", "netns", "exec", self.name]
        return [*wrapper, *map(str, command)]

    @contextmanager
    def running(self, title: str, command: Sequence[str | Path], ready: str) -> Iterator[None]:
        """A program here, from when its output says that it is ready."""
        console.print(f"[dim]{self.address}$[/] {escape(title)}")
        log = self.directory / f"{self.name}-{len(list(self.directory.iterdir()))}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.inside(command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self.directory,
            )
        with ended_after(process):

            def says_so() -> bool:
                text = log.read_text(errors="replace")
                if process.poll() is not None:
                    sys.exit(f"example: {title} ended:\n{text}")
                return ready in text

            wait_for(says_so, f"{title}: {ready}", 2 * TIMEOUT)
            yield

    @contextmanager
    def sidecar(self) -> Iterator[None]:
        self.config.write_text(
            f"{self.settings}\n"
            f"access_log: {{path: {self.access_log}}}\n"
            f"outbound: {{control_socket: {self.directory}/{self.name}/hook.sock}}\n"
        )
        command = [PYSIDECAR, "run", "-c", self.config]
        # The last line that it writes when it serves.
        with self.running("pysidecar run -c sidecar.yaml", command, "admin: http"):
            yield


@dataclass(frozen=True)
class Example:
    """What differs from one SDK to the other. A command is shown as its title."""

    provider: Sequence[str | Path]
    consumer: Sequence[str | Path]
    provider_title: str
    consumer_title: str
    ready: str
    service: str = "example.Greeter:1.0"
    consumer_port: str = "127.0.0.1:12220"
    registry: str = f'registry: {{type: embedded, address: "{EMBEDDED}"}}'
    provider_settings: str = "takeover: {}"
    consumer_settings: str = "takeover: {}"


def java(module: str, name: str, *arguments: str) -> list[str | Path]:
    classes = f"{BUILD}/examples/{module}:{BUILD}/java/{_LIBRARIES[module]}/lib/*"
    options = ("--add-opens=java.base/java.lang=ALL-UNNAMED", "-XX:TieredStopAtLevel=1")
    return ["java", *options, "-cp", classes, f"example.{name}", *arguments]


_LIBRARIES = {"sofarpc": "sofa", "dubbo": "dubbo"}


def examples(provider_config: Path) -> Mapping[str, Example]:
    return {
        "sofarpc": Example(
            java("sofarpc", "Provider"),
            java("sofarpc", "Consumer", *NAMES),
            "java example.Provider",
            f"java example.Consumer {' '.join(NAMES)}",
            "is published",
        ),
        "dubbo": Example(
            [PYSIDECAR, "exec", "-c", provider_config, "--", *java("dubbo", "Provider", ZOOKEEPER)],
            java("dubbo", "Consumer", *NAMES),
            "pysidecar exec -c sidecar.yaml -- java example.Provider",
            f"java example.Consumer {' '.join(NAMES)}",
            "is registered",
            service="example.Greeter",
            consumer_port="[::1]:12220",
            registry=f'registry: {{type: zookeeper, address: "{ZOOKEEPER}"}}',
            consumer_settings=(
                "takeover: {subscribe: [{service: example.Greeter, protocol: dubbo}]}"
            ),
        ),
        "anthunder": Example(
            [sys.executable, HERE / "anthunder_provider.py"],
            [sys.executable, HERE / "anthunder_consumer.py", *NAMES],
            "python anthunder_provider.py",
            f"python anthunder_consumer.py {' '.join(NAMES)}",
            "is published",
        ),
    }


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    name = sys.argv[1] if len(sys.argv) > 1 else "sofarpc"
    if os.geteuid() != 0:
        sys.exit(
            "example: needs root, since its pods are network namespaces: "
            f"sudo make example-takeover EXAMPLE={name}"
        )
    remove_leftovers()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pysidecar-")))
        names = [f"{PREFIX}-{os.getpid()}-{role}" for role in ("provider", "consumer")]
        known = examples(directory / f"{names[0]}.yaml")
        if name not in known:
            sys.exit(f"example: there is no {name}; expected one of: {', '.join(known)}")
        example = known[name]
        if name in _LIBRARIES:
            compile_java(name)
        stack.enter_context(namespaces(names))
        provider, consumer = (
            Pod(names[0], PROVIDER, directory, f"{example.provider_settings}\n{example.registry}"),
            Pod(names[1], CONSUMER, directory, f"{example.consumer_settings}\n{example.registry}"),
        )
        run(example, provider, consumer, stack)


def run(example: Example, provider: Pod, consumer: Pod, stack: ExitStack) -> None:
    stack.enter_context(registry(example, provider))
    stack.enter_context(provider.sidecar())
    stack.enter_context(provider.running(example.provider_title, example.provider, example.ready))
    stack.enter_context(consumer.sidecar())
    console.print(f"[dim]{consumer.address}$[/] {escape(example.consumer_title)}")
    done = subprocess.run(consumer.inside(example.consumer), capture_output=True, text=True)
    for line in done.stdout.splitlines():
        console.print(f"  {escape(line)}")
    if done.returncode != 0:
        sys.exit(f"example: the consumer failed:\n{done.stderr}")
    sent, received = (
        requests_in(pod.access_log, example.service, len(NAMES))[-1] for pod in (consumer, provider)
    )
    console.print(f"\nThe last of {len(NAMES)} calls, as both sidecars saw it:")
    show_hops(sent, received, example.consumer_port)


@contextmanager
def registry(example: Example, pod: Pod) -> Iterator[None]:
    if "zookeeper" in example.registry:
        config = pod.directory / "zoo.cfg"
        host, port = ZOOKEEPER.split(":")
        config.write_text(
            f"dataDir={pod.directory}/zookeeper\nclientPort={port}\nclientPortAddress={host}\n"
            "tickTime=500\nadmin.enableServer=false\n"
        )
        jars = ":".join(f"/usr/share/java/{name}.jar" for name in ("zookeeper", "slf4j-simple"))
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        command: Sequence[str | Path] = ["java", "-cp", jars, main, config]
        with pod.running("java … QuorumPeerMain zoo.cfg", command, "binding to port"):
            yield
        return
    command = [PYSIDECAR, "registry", "--listen", EMBEDDED, "--state", pod.directory / "registry"]
    with pod.running(f"pysidecar registry --listen {EMBEDDED}", command, EMBEDDED):
        yield


# ---- Namespaces ----


@contextmanager
def namespaces(names: Sequence[str]) -> Iterator[None]:
    """Two, with a wire between them."""
    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        first, second = names
        ip("link", "add", "eth0", "netns", first,
           "type", "veth", "peer", "eth0", "netns", second)  # fmt: skip
        for name, address in zip(names, (PROVIDER, CONSUMER), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield


def remove_leftovers() -> None:
    """Of examples that were killed."""
    for line in ip("netns", "list").splitlines():
        found = re.match(rf"({PREFIX}-(\d+)-\w+)", line)
        if found and not psutil.pid_exists(int(found[2])):
            ip("netns", "delete", found[1])


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"example: ip {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def compile_java(name: str) -> None:
    output = BUILD / "examples" / name
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    libraries = f"{BUILD}/java/{_LIBRARIES[name]}/lib/*"
    subprocess.run(
        ["javac", "-d", output, "-cp", libraries, *(HERE / name).glob("*.java")], check=True
    )


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
