#!/usr/bin/env python3
"""Sets up the development environment; with ``--tests`` also the programs that the tests run, with
``--bench`` those that the benchmark compares with, with ``--foreign`` CPython's own tests.

Needs only Python's standard library: it runs before anything is installed. What is already there is
left alone, so that a second call takes a moment: Debian packages are installed only for what is
missing, Python packages and compiled code only when their content hash changed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import glob
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMPS = VENV / "stamps"
NODE = ROOT / "tests" / "interop" / "node"
JAVA = ROOT / "tests" / "interop" / "java"
JAVA_BUILT = ROOT / "build" / "java"
GO = ROOT / "tests" / "interop" / "go"
GO_BUILT = ROOT / "build" / "go"
COLLECTOR = ROOT / "tests" / "tracing" / "otelcol"
POLICY_RC = Path("/usr/sbin/policy-rc.d")
# Servers live in sbin, which is not on every user's PATH.
PROGRAM_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


class SetupError(Exception):
    """Something that the user has to do; printed without a traceback."""


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


# ---- Debian packages ----


def program(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name, path=PROGRAM_PATH) for name in names)


def file(pattern: str) -> Callable[[], bool]:
    return lambda: bool(glob.glob(pattern))


def python_header() -> bool:
    return Path(sysconfig.get_path("include"), "Python.h").exists()


def python_module(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is not None


Requirement = tuple[str, Callable[[], bool]]  # Debian package, whether it is there already

TO_BUILD: list[Requirement] = [
    ("gcc", program("gcc")),
    ("libc6-dev", file("/usr/include/stdio.h")),
    ("python3-venv", python_module("ensurepip")),
    ("python3-dev", python_header),
]
# For HTTP/2 and acceleration, which are left out where they are missing.
TO_HAVE_ALL: list[Requirement] = [
    ("libnghttp2-dev", file("/usr/include/nghttp2/nghttp2.h")),
    ("clang", program("clang")),
    ("libbpf-dev", file("/usr/include/bpf/bpf_helpers.h")),
]
TO_DEMO: list[Requirement] = [
    ("nginx-light", program("nginx")),
    ("curl", program("curl")),
]
TO_RUN_JAVA: list[Requirement] = [
    ("default-jdk-headless", program("java", "javac")),
    ("libzookeeper-java", file("/usr/share/java/zookeeper.jar")),  # the server, without its service
    ("maven", program("mvn")),
]
TO_EXAMPLE: list[Requirement] = [
    *TO_RUN_JAVA,
    ("iproute2", program("ip")),
]
STREAM_MODULE: Requirement = (
    "libnginx-mod-stream",
    file("/usr/lib/nginx/modules/ngx_stream_module.so"),
)
TO_TEST: list[Requirement] = [
    *TO_HAVE_ALL,
    *TO_DEMO,
    *TO_RUN_JAVA,
    ("bpftool", program("bpftool")),
    ("chromium", program("chromium")),
    ("clang-format", program("clang-format")),
    ("conntrack", program("conntrack")),
    ("etcd-server", program("etcd")),
    ("faketime", program("faketime")),
    ("fcgiwrap", program("fcgiwrap")),
    ("git", program("git")),
    ("golang-go", program("go")),
    ("haproxy", program("haproxy")),
    ("iproute2", program("ip", "ss")),
    ("iptables", program("iptables-nft-restore", "iptables-legacy-restore")),
    STREAM_MODULE,
    ("libclang-rt-dev", file("/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a")),
    ("libcmocka-dev", file("/usr/include/cmocka.h")),
    ("musl-tools", program("musl-gcc")),
    ("nftables", program("nft")),
    ("nghttp2-client", program("nghttp", "h2load")),
    ("nghttp2-server", program("nghttpd")),
    ("nodejs", program("node")),
    ("npm", program("npm")),
    ("openssl", program("openssl")),
    ("perl", program("perl")),
    ("procps", program("sysctl")),
    ("postgresql", file("/usr/lib/postgresql/*/bin/pgbench")),
    ("postgresql-client", program("psql")),
    ("redis-server", program("redis-server")),
    ("redis-tools", program("redis-benchmark", "redis-cli")),
    ("wget", program("wget")),
    ("wrk", program("wrk")),
]
TO_TEST_FOREIGN: list[Requirement] = [
    # Only Debian's own Python comes without its tests.
    (f"libpython3.{sys.version_info.minor}-testsuite", python_module("test.test_socket")),
]
TO_BENCH: list[Requirement] = [
    ("haproxy", program("haproxy")),
    ("iproute2", program("ip")),
    ("libnghttp2-dev", file("/usr/include/nghttp2/nghttp2.h")),
    STREAM_MODULE,
    ("microsocks", program("microsocks")),
    ("nftables", program("nft")),
    ("nghttp2-client", program("h2load")),
    ("nginx-light", program("nginx")),
    ("proxychains4", program("proxychains4")),
    ("redsocks", program("redsocks")),
    ("torsocks", program("torsocks")),
]


def install_packages(requirements: Sequence[Requirement]) -> None:
    missing = [package for package, is_there in requirements if not is_there()]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise SetupError(f"missing, and this is not Debian (no apt-get): {' '.join(missing)}")
    if os.geteuid() != 0:
        raise SetupError(
            "missing Debian packages; please run:\n"
            f"    sudo apt-get install --no-install-recommends {' '.join(missing)}"
        )
    say(f"installing Debian packages: {' '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    options = ["-q", "-y", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300"]
    install = ["apt-get", "install", *options, "--no-install-recommends", *missing]
    # The list of packages may be missing or older than the archive, which then has other files.
    subprocess.run(["apt-get", "update", *options], check=True, env=environment)
    with services_held_back():
        subprocess.run(install, check=True, env=environment)
    importlib.invalidate_caches()
    still_missing = [package for package, is_there in requirements if not is_there()]
    if still_missing:
        raise SetupError(
            f"installed, but not found where expected: {' '.join(still_missing)}"
            + (
                "\nThis python3 is not Debian's: its own headers, ensurepip and tests are needed."
                if any("python3" in package for package in still_missing)
                else ""
            )
        )


@contextlib.contextmanager
def services_held_back() -> Iterator[None]:
    """Keeps Debian from starting the servers that it installs: tests start their own.

    invoke-rc.d asks policy-rc.d, where 101 means "not allowed".
    """
    if POLICY_RC.exists():  # a container's or the administrator's own: theirs to decide
        yield
        return
    POLICY_RC.write_text("#!/bin/sh\nexit 101\n")
    POLICY_RC.chmod(0o755)
    try:
        yield
    finally:
        POLICY_RC.unlink()


# ---- Python packages and compiled code, in .venv ----


def content_hash(paths: Sequence[Path], *more: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    digest.update("\0".join(more).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def when_changed(name: str, content: str, *products: Path) -> Iterator[bool]:
    """Whether `content` is new or a product is missing; remembered if the body succeeds."""
    stamp = STAMPS / name
    changed = (
        not stamp.exists()
        or stamp.read_text() != content
        or not all(product.exists() for product in products)
    )
    yield changed
    if changed:
        STAMPS.mkdir(parents=True, exist_ok=True)
        stamp.write_text(content)


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> None:
    subprocess.run(command, check=True, cwd=cwd, env=os.environ | variables)


def make_venv() -> None:
    """Makes `.venv` from the running interpreter, anew when that has changed."""
    interpreter = f"{sys.version}\0{os.path.realpath(sys.executable)}\0{ROOT}"
    with when_changed("interpreter", interpreter, VENV_PYTHON) as changed:
        if changed:
            say(f"making .venv with Python {sys.version.split()[0]}")
            shutil.rmtree(STAMPS, ignore_errors=True)
            run(sys.executable, "-m", "venv", "--clear", VENV)


def install_python_packages(*, bench: bool) -> None:
    pip = (VENV_PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check")
    content = content_hash([ROOT / "pyproject.toml"])
    with when_changed("requirements", content) as changed:
        if changed:
            say("installing Python packages")
            run(*pip, "install", "--upgrade", "pip>=25.1")  # the first with --group
            run(*pip, "install", "--group", "build", "--group", "lint", "--group", "test")
            # The dependencies, without building the package: that comes next.
            run(*pip, "install", *dependencies())
    if bench:
        with when_changed("requirements-bench", content) as changed:
            if changed:
                say("installing Python packages for the benchmark")
                run(*pip, "install", "--group", "bench")


def dependencies() -> list[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return list(project["dependencies"])


def build_package() -> None:
    sources = [
        path
        for pattern in ("hook/*", "pysidecar/dataplane/**/*.[ch]", "pysidecar/dataplane/l4/bpf/*")
        for path in ROOT.glob(pattern)
        if path.is_file()
    ]
    how = [ROOT / "setup.py", ROOT / "pysidecar/dataplane/build_native.py"]
    installed = VENV / "bin" / "pysidecar"
    with when_changed(
        "installed", content_hash([ROOT / "pyproject.toml", *how]), installed
    ) as changed:
        if changed:
            say("installing pysidecar (editable)")
            run(
                # Errors only: setuptools warns of what an editable installation is.
                *(VENV_PYTHON, "-m", "pip", "-qq", "--disable-pip-version-check", "install"),
                *("--no-build-isolation", "--no-deps", "--editable", "."),
                PYSIDECAR_ASSERT="1",
            )
    products = [ROOT / "pysidecar/libmosnhook.so"]
    with when_changed("compiled", content_hash([*sources, *how]), *products) as changed:
        if changed:
            say("compiling the data plane and the hook")
            run(
                *(VENV_PYTHON, "setup.py", "--quiet", "build_clib", "build_ext", "--inplace"),
                *("build_hook", "--inplace", "build_programs", "--inplace"),
                PYSIDECAR_ASSERT="1",
            )


def install_node_packages() -> None:
    """The packages that the Node tests use; their lock file names no registry."""
    if not (NODE / "package.json").exists():
        return
    files = [NODE / "package.json", NODE / "package-lock.json"]
    content = content_hash([path for path in files if path.exists()])
    with when_changed("node", content, NODE / "node_modules") as changed:
        if changed:
            say("installing Node packages")
            run("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error", cwd=NODE)


def build_java_programs() -> None:
    """The programs that speak Bolt, Dubbo, gRPC and HTTP with us, and the libraries that they use;
    each module's class path is ``build/java/MODULE/lib``."""
    files = [
        *JAVA.glob("**/pom.xml"),
        *JAVA.glob("**/*.java"),
        ROOT / "scripts" / "archive_java_classes.py",
    ]
    modules = ("dubbo", "dubbo2", "grpc", "http", "sofa", "sofaregistry")
    products = [JAVA_BUILT / module / "lib" for module in modules]
    with when_changed("java", content_hash(files), *products) as changed:
        if changed:
            say("compiling the Java programs")
            shutil.rmtree(JAVA_BUILT, ignore_errors=True)
            run("mvn", "--quiet", "--batch-mode", "-Dstyle.color=never", "package", cwd=JAVA)
            run(VENV_PYTHON, ROOT / "scripts" / "archive_java_classes.py")


def build_go_programs() -> None:
    """Go's gRPC, and h2spec: both as ``tests/interop/go/go.mod`` pins them. And OpenTelemetry's
    collector, which is a module of its own, since it wants other versions."""
    build_go_module(
        GO,
        "the Go programs",
        {"peer": "./peer", "h2spec": "github.com/summerwind/h2spec/cmd/h2spec"},
    )
    wanted, there = go_version(COLLECTOR / "go.mod"), installed_go()
    if there < wanted:
        say(f"without OpenTelemetry's collector and its test: it needs Go {dotted(wanted)}")
    else:
        build_go_module(COLLECTOR, "OpenTelemetry's collector", {"otelcol": "."})


def go_version(module: Path) -> tuple[int, ...]:
    """That a module asks for."""
    found = re.search(r"^go ([\d.]+)$", module.read_text(), re.MULTILINE)
    assert found is not None, module
    return tuple(map(int, found[1].split(".")))


def installed_go() -> tuple[int, ...]:
    found = re.search(r"go(\d+(?:\.\d+)*)", subprocess.check_output(["go", "version"], text=True))
    assert found is not None
    return tuple(map(int, found[1].split(".")))


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def build_go_module(module: Path, what: str, programs: dict[str, str]) -> None:
    """Its programs, in ``build/go``, with the package of each."""
    files = [path for path in module.glob("**/*") if path.suffix in (".go", ".mod", ".sum")]
    version = subprocess.check_output(["go", "version"], cwd=module, text=True)
    products = [GO_BUILT / name for name in programs]
    with when_changed(module.name, content_hash(files, version), *products) as changed:
        if changed:
            say(f"compiling {what}")
            GO_BUILT.mkdir(parents=True, exist_ok=True)
            # No longer a download than that of the modules: not of another Go.
            settings = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
            # With Go's own packages, for tests that compile programs of Go.
            settings["GOCACHE"] = str(ROOT / "build" / "go-cache")
            run("go", "build", "-o", f"{GO_BUILT}/", *programs.values(), cwd=module, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="also what `make demo` runs")
    parser.add_argument(
        "--example", action="store_true", help="also what `make example-takeover` runs"
    )
    parser.add_argument("--tests", action="store_true", help="also what the tests run")
    parser.add_argument("--foreign", action="store_true", help="also what `make test-foreign` runs")
    parser.add_argument("--bench", action="store_true", help="also what `make bench` runs")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - this is who says so
        raise SetupError(f"python3 is {sys.version.split()[0]}; expected 3.11 or newer")
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two terminals, one .venv
        requirements = list(TO_BUILD)
        if os.geteuid() == 0:
            requirements += TO_HAVE_ALL
        if arguments.tests:
            requirements += TO_TEST
        elif arguments.demo:
            requirements += TO_DEMO
        if arguments.example:
            requirements += TO_EXAMPLE
        if arguments.foreign:
            requirements += TO_TEST_FOREIGN
        if arguments.bench:
            requirements += TO_BENCH
        install_packages(requirements)
        make_venv()
        install_python_packages(bench=arguments.bench)
        build_package()
        if arguments.tests:
            install_node_packages()
            build_go_programs()
        if arguments.tests or arguments.example:
            build_java_programs()


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"set-up: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"set-up: failed with status {error.returncode}: {' '.join(map(str, error.cmd))}")
