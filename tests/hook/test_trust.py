"""Whose page is followed, and whose environment is believed: what another user of the host can do
to a hooked program."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hook.reference import HEADER, Endpoint, Sidecar
from tests.hook.support import (
    MAPPED,
    PORT,
    SANITIZED,
    V4,
    V6,
    EchoServer,
    Result,
    Runner,
)
from tests.talking import Talking

MakeSidecar = Callable[..., Sidecar]
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
needs_plain_hook = pytest.mark.skipif(SANITIZED, reason="its runtime is root's")


def _refused(result: Result) -> bool:
    return result.number("connect") == errno.ECONNREFUSED


# ---- The page ----


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory in which the hook looks for a page by itself (as XDG_RUNTIME_DIR)."""
    directory = tmp_path / "pysidecar"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def connect(
    run: Runner, place: Path, upstream: EchoServer
) -> Iterator[Callable[..., tuple[bool, Result]]]:
    """Connects, and says whether it was by the page in ``place``."""
    with Sidecar(place, fallback=upstream.address) as sidecar:

        def connect(**extra: str) -> tuple[bool, Result]:
            before = len(sidecar.requests)
            variables = {"XDG_RUNTIME_DIR": str(place.parent), **extra}
            result = run("connect", V4, PORT, sidecar=None, timeout=20, status=0, **variables)
            return len(sidecar.requests) > before, result

        yield connect
    assert sidecar.errors == []


Connect = Callable[..., tuple[bool, Result]]


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_page_that_others_can_write_is_not_followed(
    connect: Connect, place: Path, mode: int
) -> None:
    assert connect()[0]
    (place / "hook.policy").chmod(mode)
    for extra in ({}, {"MOSNHOOK_POLICY": str(place / "hook.policy")}):
        followed, result = connect(**extra)
        assert not followed
        assert _refused(result)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_directory_in_which_others_can_put_files_is_not_followed(
    connect: Connect, place: Path, mode: int
) -> None:
    assert connect()[0]
    place.chmod(mode)
    followed, result = connect()
    assert not followed
    assert _refused(result)
    # It was named: a directory of one's own, whatever its mode.
    assert connect(MOSNHOOK_POLICY=str(place / "hook.policy"))[0]


@pytest.mark.parametrize("link", ["file", "directory"])
def test_symbolic_links_are_not_followed(connect: Connect, place: Path, link: str) -> None:
    path = place if link == "directory" else place / "hook.policy"
    aside = path.with_name("aside")
    path.rename(aside)
    path.symlink_to(aside)
    followed, result = connect()
    assert not followed
    assert _refused(result)
    assert connect(MOSNHOOK_POLICY=str(place / "hook.policy"))[0]


@needs_root
@pytest.mark.parametrize("whose", ["directory", "file", "both"])
def test_what_belongs_to_another_user_is_not_followed(
    connect: Connect, place: Path, whose: str
) -> None:
    for name in {"directory": [place], "file": [place / "hook.policy"]}.get(
        whose, [place, place / "hook.policy"]
    ):
        os.chown(name, NOBODY, NOBODY)
    followed, result = connect()
    # Root's page in a directory of another user: put there by root, all the same.
    assert not followed
    assert _refused(result)


@needs_root
@needs_plain_hook
def test_a_squatted_directory_in_tmp_is_not_followed(run: Runner, upstream: EchoServer) -> None:
    """/tmp/pysidecar-<uid> of a user who has no sidecar, made by another one."""
    uid = 54321
    squatted = Path(f"/tmp/pysidecar-{uid}")
    with tempfile.TemporaryDirectory(prefix="hook-") as name, contextlib.ExitStack() as stack:
        place = Path(name)  # unlike tmp_path within reach of others
        place.chmod(0o755)
        library, program = place / "libmosnhook.so", place / "connect"
        shutil.copy(run.library, library)
        shutil.copy(run.programs("connect"), program)
        target = place / "target"
        target.mkdir(mode=0o755)
        evil = stack.enter_context(Sidecar(target, fallback=upstream.address))

        def connect() -> Result:
            done = subprocess.run(
                [*_as(uid), str(program), V4, str(PORT)],
                env={"LD_PRELOAD": str(library), "PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            )
            return Result.parse(done.stdout)

        def give_to(owner: int) -> None:
            for path in (target, evil.policy_path, evil.control_path):
                os.chown(path, owner, owner)

        stack.callback(squatted.unlink, missing_ok=True)
        give_to(uid)
        squatted.symlink_to(target)
        os.chown(squatted, NOBODY, NOBODY, follow_symlinks=False)
        assert _refused(connect())
        squatted.unlink()
        target.rename(squatted)
        stack.callback(squatted.rename, target)
        target = squatted
        evil.policy_path = squatted / "hook.policy"
        evil.control_path = squatted / "hook.sock"
        evil.publish()
        assert connect()["connect"] == "0", "its own, without which the test would show nothing"
        for owner in (NOBODY, uid):
            give_to(owner)
            os.chown(target, NOBODY, NOBODY)
            assert _refused(connect())
    assert len(evil.requests) == 1


def _as(uid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


def test_a_sign_of_life_in_the_future_is_none(
    run: Runner, sidecar: Sidecar, upstream: EchoServer
) -> None:
    """As a page has it that outlived a reboot."""
    sidecar.fallback = upstream.address
    assert run("connect", "-e", V4, PORT, sidecar=sidecar)["echo"] == "hello"
    sidecar.freeze()
    for seconds in (0.5, 3600, 300 * 365 * 86400):
        sidecar.beat(seconds_ago=-seconds)
        assert _refused(run("connect", V4, PORT, sidecar=sidecar))


# ---- Programs with more privileges than their callers ----

# In a mount namespace of its own: a file system for setuid programs, an /etc whose ld.so.preload
# names the hook, and the page.
_PRIVATE = """
set -e
mount -t tmpfs -o mode=755 none /mnt
cp "$LIBRARY" /mnt/libmosnhook.so
cp "$PROGRAM" /mnt/program
chmod 4755 /mnt/program
install -m 600 /dev/null /mnt/victim
cp -a /etc /mnt/etc
echo /mnt/libmosnhook.so >/mnt/etc/ld.so.preload
mount --bind /mnt/etc /etc
mkdir -p /run/pysidecar
mount --bind "$PAGES" /run/pysidecar
setpriv --reuid=65534 --regid=65534 --clear-groups env -i $VARIABLES /mnt/program "$@" || exit $?
echo "victim=$(cat /mnt/victim | tr '\\n' ' ')"
"""


@pytest.fixture(params=["preloaded", "linked"])
def setuid(
    request: pytest.FixtureRequest, run: Runner, place: Path, tmp_path: Path
) -> Callable[..., Result]:
    """Runs programs/privileged.c, setuid root, as another user, with these variables. The hook
    comes from /etc/ld.so.preload; musl has no such file, so there the program is linked to it."""
    if request.param == "preloaded":
        program = run.programs("privileged")
    else:
        program = tmp_path / "privileged"
        subprocess.run(
            [
                *("musl-gcc", "-std=gnu11", "-o", str(program)),
                str(Path(__file__).parent / "programs/privileged.c"),
                *("-Wl,--no-as-needed", "-Wl,-rpath,/mnt", str(run.library)),
            ],
            check=True,
        )

    def run_setuid(*variables: str) -> Result:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", _PRIVATE, "sh", V4, str(PORT)],
            env={
                "PATH": os.environ["PATH"],
                "LIBRARY": str(run.library),
                "PROGRAM": str(program),
                "PAGES": str(place),
                "VARIABLES": " ".join(variables),
            },
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        result = Result.parse(done.stdout)
        assert (result["secure"], result["euid"]) == ("1", "0")
        return result

    return run_setuid


@needs_root
@needs_plain_hook
def test_a_setuid_program_believes_no_variable(
    setuid: Callable[..., Result],
    run: Runner,
    place: Path,
    tmp_path: Path,
    make_sidecar: MakeSidecar,
    upstream: EchoServer,
) -> None:
    tmp_path.chmod(0o755)
    evil = make_sidecar(fallback=errno.EDOM)  # in tmp_path
    result = setuid(
        "MOSNHOOK_LOG=/mnt/victim",
        f"MOSNHOOK_POLICY={evil.policy_path}",
        f"XDG_RUNTIME_DIR={tmp_path}",
        "MOSNHOOK_WHEN_AWAY=direct",
        "MOSNHOOK_DISABLE=1",
        "LD_PRELOAD=/mnt/libmosnhook.so",
        "KEPT=yes",
    )
    assert result["victim"] == ""
    assert _refused(result), "there is no page in /run/pysidecar, and so no sidecar"
    assert evil.requests == []
    assert [name for name in result.values if name.startswith("MOSNHOOK")] == []
    assert result["KEPT"] == "yes"


@needs_root
@needs_plain_hook
def test_a_setuid_program_is_captured_by_roots_page_only(
    setuid: Callable[..., Result], place: Path, upstream: EchoServer
) -> None:
    with Sidecar(place, fallback=upstream.address) as sidecar:
        assert setuid()["connect"] == "0"
        (request,) = sidecar.requests
        assert (request.uid, request.command) == (0, "program")
        for path in (sidecar.policy_path, place):
            os.chown(path, NOBODY, NOBODY)
            assert _refused(setuid())
            os.chown(path, 0, 0)
        assert len(sidecar.requests) == 1
    assert sidecar.errors == []


# ---- Who listens where the sidecar did ----

_LISTENS = """
import os, socket, sys
host, port, opened_as, runs_as, accepts = sys.argv[1], *map(int, sys.argv[2:])
os.setegid(opened_as)
os.seteuid(opened_as)
listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((host, port))
listener.listen()
os.seteuid(0)
os.setresuid(runs_as, runs_as, runs_as)
print("ready", flush=True)
connections = [listener.accept()[0]] if accepts else []
sys.stdin.readline()  # the client has ended
listener.setblocking(False)
while True:
    try:
        connections.append(listener.accept()[0])
    except BlockingIOError:
        break
print(*(connection.recv(4096).hex() for connection in connections), flush=True)
"""


class _Listener(Talking):
    """A process of another user that listens there; it ``accepts`` the first connection at once, or
    all of them at the end only."""

    def __init__(
        self, address: Endpoint, runs_as: int, *, opened_as: int | None = None, accepts: bool
    ) -> None:
        users = [runs_as if opened_as is None else opened_as, runs_as, int(accepts)]
        super().__init__(
            subprocess.Popen(
                [sys.executable, "-c", _LISTENS, *map(str, [*address[:2], *users])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        assert self.read() == "ready\n"

    def received(self) -> bytes:
        """What clients sent."""
        self.write("")
        return bytes.fromhex(self.read().strip())


def _listener_of_the_dead(
    make_sidecar: MakeSidecar, server_uid: int, host: str = "127.0.0.1"
) -> tuple[Sidecar, Endpoint]:
    """A sidecar that was just killed, so that its page looks alive, and where it listened."""
    sidecar = make_sidecar(transport=HEADER, listeners=[host], server_uid=server_uid)
    address: Endpoint = sidecar.listeners[0].getsockname()[:2]
    sidecar.kill()
    return sidecar, address


SERVER = 1337


@needs_root
@pytest.mark.parametrize("accepts", [False, True])
@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
@pytest.mark.parametrize(
    ("host", "destination"),
    [("127.0.0.1", V4), ("127.0.0.1", MAPPED), ("::1", V6)],
)
@pytest.mark.parametrize("server_uid", [0, SERVER])
def test_nothing_is_sent_to_another_users_listener(
    run: Runner,
    make_sidecar: MakeSidecar,
    host: str,
    destination: str,
    mode: str,
    accepts: bool,
    server_uid: int,
) -> None:
    sidecar, address = _listener_of_the_dead(make_sidecar, server_uid, host)
    option = ["-n"] if mode == "nonblocking" else []
    with _Listener(address, NOBODY, accepts=accepts) as squatter:
        sidecar.beat()
        assert _refused(run("connect", *option, "-e", destination, PORT, sidecar=sidecar))
        assert squatter.received() == b""


@needs_root
@pytest.mark.parametrize("accepts", [False, True])
@pytest.mark.parametrize("opened_as", [SERVER, 0])
def test_the_user_whom_the_page_names_is_sent_to(
    run: Runner, make_sidecar: MakeSidecar, accepts: bool, opened_as: int
) -> None:
    """Also where it opened its listener as root, as proxies do."""
    sidecar, address = _listener_of_the_dead(make_sidecar, SERVER)
    with _Listener(address, SERVER, opened_as=opened_as, accepts=accepts) as proxy:
        sidecar.beat()
        assert run("connect", V4, PORT, sidecar=sidecar)["connect"] == "0"
        assert proxy.received().startswith(b"\r\n\r\n\0\r\nQUIT\n")


def test_where_the_kernel_cannot_be_asked_nothing_is_sent(
    run: Runner, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar(transport=HEADER)
    assert _refused(run("sandbox", "no-netlink", V4, PORT, sidecar=sidecar))
    assert run("sandbox", "no-unix", V4, PORT, sidecar=sidecar)["connect"] == "0"


@pytest.mark.parametrize("mode", ["blocking", "nonblocking"])
def test_who_listens_at_a_park_gets_nobody(
    run: Runner, make_sidecar: MakeSidecar, upstream: EchoServer, mode: str
) -> None:
    """As long as the page is a dead sidecar's, and the control socket its successor's."""
    sidecar = make_sidecar(parks=["127.0.0.1"], fallback=upstream.address)
    park = sidecar.parks.pop()
    address = park.getsockname()
    park.close()
    option = ["-n"] if mode == "nonblocking" else []
    with socket.create_server(address):
        assert _refused(run("connect", *option, "-e", V4, PORT, sidecar=sidecar))
    assert sidecar.requests == []
