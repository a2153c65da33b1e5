"""The real servers of these tests, on free loopback ports, stopped for certain."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pysidecar.testing.processes import end_process
from tests.ports import HAS_IPV6, closed_port, free_port
from tests.waiting import PATIENCE, eventually

__all__ = [
    "HAS_IPV6",
    "Nginx",
    "accepts",
    "closed_port",
    "echo",
    "free_port",
    "git_backend",
    "nginx",
    "nginx_paths",
    "nginx_preamble",
    "plain_environment",
    "postgres",
    "postgres_program",
    "program",
    "redis",
    "running",
]

_UNPRIVILEGED_USER = "nobody"
_SERVER_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def program(name: str) -> str:
    """The path of an installed program; without it a test fails, as the set-up installs it."""
    path = shutil.which(name, path=_SERVER_PATH)
    assert path is not None, f"{name} is not installed; scripts/set_up.py --tests installs it"
    return path


def plain_environment(**more: str) -> dict[str, str]:
    """Our environment without the hook, whatever the tests themselves run under."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "LD_PRELOAD" and not name.startswith("MOSNHOOK_")
    }
    return kept | more


def accepts(port: int) -> bool:
    """Whether something on 127.0.0.1 takes connections to `port`."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    log: Path,
    ready: Callable[[], bool],
    unprivileged: bool = False,
    stop: signal.Signals = signal.SIGTERM,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server until the end of the block; it also ends when this process is killed.

    `ready` is polled; a server that exits instead fails with its log. `unprivileged` is for those
    that refuse to run as root.
    """
    wrapper = [program("setpriv"), "--pdeathsig", stop.name.removeprefix("SIG")]
    if unprivileged:
        wrapper += _unprivileged()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*wrapper, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=plain_environment() if environment is None else environment,
            process_group=0,
        )

    def ready_or_gone() -> bool:
        assert process.poll() is None, f"{command[0]} ended: {log.read_text()}"
        return ready()

    try:
        eventually(ready_or_gone, lambda: f"{command[0]} is ready: {log.read_text()}")
        yield process
    finally:
        assert end_process(process, PATIENCE, stop), f"{command[0]} does not end"
        with contextlib.suppress(ProcessLookupError):  # such as those that fcgiwrap leaves
            os.killpg(process.pid, signal.SIGKILL)


def _unprivileged() -> list[str]:
    """setpriv's options to become an ordinary user, where we are not."""
    if os.geteuid() != 0:
        return []
    group = str(pwd.getpwnam(_UNPRIVILEGED_USER).pw_gid)
    return ["--reuid", _UNPRIVILEGED_USER, "--regid", group, "--clear-groups"]


@dataclass(frozen=True, slots=True)
class Nginx:
    """Ports of 127.0.0.1 (`http` also of ::1, where it exists), and what is served.

    Each port answers ``/whoami`` with one line that names the protocol and the requested host.
    """

    http: int
    h2c: int
    tls: int
    certificate: Path
    files: Path
    """Served, and taken by PUT, under ``/files/``."""
    repositories: Path
    """Bare git repositories, served under ``/git/`` where `git_backend` runs."""

    @property
    def backend_socket(self) -> Path:
        """Where FastCGI for git is expected."""
        return self.repositories.parent / "git.sock"


@contextlib.contextmanager
def nginx(directory: Path) -> Iterator[Nginx]:
    """An nginx with HTTP/1.1, HTTP/2 in clear text and over TLS, WebDAV's PUT and git."""
    here = Nginx(
        http=free_port(),
        h2c=free_port(),
        tls=free_port(),
        certificate=directory / "certificate.pem",
        files=directory / "files",
        repositories=directory / "repositories",
    )
    here.files.mkdir()
    here.repositories.mkdir()
    key = directory / "key.pem"
    _make_certificate(here.certificate, key)
    git_core = subprocess.check_output([program("git"), "--exec-path"], text=True).strip()
    whoami = (
        "location = /whoami { default_type text/plain; "
        'return 200 "nginx $server_protocol host=$host\\n"; }'
    )
    configuration = directory / "nginx.conf"
    configuration.write_text(
        nginx_preamble(directory)
        + f"""
http {{
    {nginx_paths(directory)}
    server {{
        listen 127.0.0.1:{here.http};
        {f"listen [::1]:{here.http};" if HAS_IPV6 else ""}
        client_max_body_size 64m;
        {whoami}
        location /files/ {{ root {directory}; dav_methods PUT; }}
        location /git/ {{
            include /etc/nginx/fastcgi_params;
            fastcgi_pass unix:{here.backend_socket};
            fastcgi_param SCRIPT_FILENAME {git_core}/git-http-backend;
            fastcgi_param GIT_PROJECT_ROOT {here.repositories};
            fastcgi_param GIT_HTTP_EXPORT_ALL "";
            fastcgi_param PATH_INFO $git_path;
            set $git_path "";
            if ($uri ~ ^/git(/.*)$) {{ set $git_path $1; }}
        }}
    }}
    server {{
        listen 127.0.0.1:{here.h2c} http2;
        {whoami}
    }}
    server {{
        listen 127.0.0.1:{here.tls} ssl http2;
        ssl_certificate {here.certificate};
        ssl_certificate_key {key};
        {whoami}
    }}
}}
"""
    )
    command = [
        program("nginx"),
        "-p",
        str(directory),
        "-c",
        str(configuration),
        "-g",
        "daemon off;",
    ]
    with running(
        command, log=directory / "nginx.log", ready=lambda: accepts(here.tls), stop=signal.SIGQUIT
    ):
        yield here


def nginx_preamble(directory: Path, workers: int = 1) -> str:
    """The main part of a configuration that keeps all its files in `directory`."""
    # As root, nginx would make its workers "nobody", who may not enter our directory.
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""
{user}
worker_processes {workers};
pid {directory}/nginx.pid;
error_log {directory}/error.log info;
events {{ worker_connections 1024; use epoll; }}
"""


def nginx_paths(directory: Path) -> str:
    """The part inside ``http`` that keeps an nginx's files in `directory`."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    return f"access_log {directory}/access.log; {temporary}"


def _make_certificate(certificate: Path, key: Path) -> None:
    """A self-signed certificate for the name and address that the tests use."""
    subprocess.run(
        [
            *(program("openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=interop"),
            *("-addext", "subjectAltName=DNS:interop.test,IP:10.1.2.3"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )


@contextlib.contextmanager
def git_backend(web: Nginx, directory: Path) -> Iterator[None]:
    """git's own HTTP backend behind `web`."""
    command = [program("fcgiwrap"), "-c", "1", "-s", f"unix:{web.backend_socket}"]
    log = directory / "fcgiwrap.log"
    with running(command, log=log, ready=web.backend_socket.is_socket):
        yield


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[int]:
    """A Redis without persistence; its port."""
    port = free_port()
    command = [
        *(program("redis-server"), "--port", str(port), "--bind", "127.0.0.1"),
        *("--save", "", "--appendonly", "no", "--dir", str(directory)),
    ]
    with running(command, log=directory / "redis.log", ready=lambda: accepts(port)):
        yield port


def postgres_program(name: str) -> str:
    """The path of a program of the newest PostgreSQL; Debian keeps them off the PATH."""
    path = max(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), default=None)
    assert path is not None, "PostgreSQL is not installed; scripts/set_up.py --tests installs it"
    return str(path)


@contextlib.contextmanager
def postgres() -> Iterator[int]:
    """A PostgreSQL with the superuser and database "interop", who needs no password; its port."""
    port = free_port()
    # Not below pytest's directory: PostgreSQL refuses to run as root, and others may not enter it.
    with tempfile.TemporaryDirectory(prefix="pysidecar-postgres-") as home:
        directory = Path(home)
        data = str(directory / "data")
        if os.geteuid() == 0:
            account = pwd.getpwnam(_UNPRIVILEGED_USER)
            os.chown(home, account.pw_uid, account.pw_gid)
        subprocess.run(
            [
                *(program("setpriv"), *_unprivileged(), "--", postgres_program("initdb")),
                *("--pgdata", data, "--username", "interop", "--auth", "trust", "--no-sync"),
                *("--encoding", "UTF8", "--locale", "C"),
            ],
            check=True,
            capture_output=True,
            cwd="/",
            env=plain_environment(),
        )
        settings = {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "16MB",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        is_ready = [postgres_program("pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
        with running(
            [postgres_program("postgres"), "-D", data, *options],
            log=directory / "postgres.log",
            ready=lambda: subprocess.run(is_ready, env=plain_environment()).returncode == 0,
            unprivileged=True,
            stop=signal.SIGINT,  # "fast shutdown": does not wait for clients
        ):
            subprocess.run(
                [
                    *(postgres_program("createdb"), "-h", "127.0.0.1", "-p", str(port)),
                    *("-U", "interop", "interop"),
                ],
                check=True,
                env=plain_environment(),
            )
            yield port


@contextlib.contextmanager
def echo(load: Path, addresses: Sequence[str], log: Path) -> Iterator[int]:
    """``load serve`` on all `addresses`, of which 127.0.0.1 is one; its port."""
    port = free_port()
    command: list[str | Path] = [load, "serve", str(port), *addresses]
    with running(command, log=log, ready=lambda: accepts(port)):
        yield port
