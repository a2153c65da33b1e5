"""What receiving calls say: by default on every connection what they say without a hook, and with
`receive: true` so, too, but for the differences that docs/acceleration.md lists."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pysidecar.testing import Sidecar
from tests.acceleration.support import (
    PORT,
    V4,
    Application,
    CallError,
    HookedApplication,
    compile_program,
    receive,
)
from tests.interop.servers import plain_environment

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close resets
_FIRST_BYTE = {"after_bytes": 1, "after_round_trips": 0}
_FORMS: dict[str, Any] = {
    "default": _FIRST_BYTE,
    "full": {"mode": "require", "receive": True, "blocking_sockets": True, **_FIRST_BYTE},
}
_FORMS["local"] = _FORMS["full"] | {"path": "local"}


def _call(application: Application, code: str) -> Any:
    """What it returns, or the errno's name."""
    try:
        return application(code)
    except CallError as error:
        return str(error)


def _wait_for(application: Application, events: str) -> None:
    application(f"p = select.poll(); p.register(s, {events})")
    assert application("p.poll(10000) != []")


# ---- What is done: each returns what the application was told ----


def _how_much_there_is(application: Application) -> Any:
    told = []
    application("n = array.array('i', [7]); s.setblocking(False)")
    for _ in range(3):
        application("fcntl.ioctl(s, termios.FIONREAD, n)")
        told.append(application("n[0]"))
        application.deliver(b"abcdef")
        application("fcntl.ioctl(s, termios.FIONREAD, n)")
        told.append(application("n[0]"))
        told.append(application("s.recv(2)"))
        application("fcntl.ioctl(s, termios.FIONREAD, n)")
        told.append(application("n[0]"))
        told.append(application("s.recv(100)"))
    application.far.close()
    _wait_for(application, "select.POLLIN")
    application("fcntl.ioctl(s, termios.FIONREAD, n)")
    return [*told, application("n[0]"), application("s.recv(1)")]


def _elapsed(application: Application, code: str, at_most: float) -> Any:
    application("before = time.monotonic()")
    told = _call(application, code)
    seconds = application("time.monotonic() - before")
    assert 0.99 < seconds < at_most
    return told


_ONE_SECOND = "s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack('ll', 1, 0))"


def _receive_timeout(application: Application) -> Any:
    application(_ONE_SECOND)
    return [
        _elapsed(application, call, 1.9)
        for call in ("s.recv(1)", "os.read(s.fileno(), 1)", "s.recv(9, socket.MSG_WAITALL)")
    ]


def _receive_timeout_of_all(application: Application) -> Any:
    """It is not counted anew when a part comes."""
    application(_ONE_SECOND)
    application("import threading; before = time.monotonic(); told = []")
    application(
        "def receive():\n"
        "    told.append(s.recv(9, socket.MSG_WAITALL))\n"
        "    told.append(time.monotonic() - before)\n"
        "t = threading.Thread(target=receive); t.start()"
    )
    for _ in range(2):
        application("time.sleep(0.4)")
        application.far.sendall(b"part")
    application("t.join(20)")
    data, seconds = application("told")
    assert 0.99 < seconds < 1.35
    return data


def _waiting_for_all(application: Application) -> Any:
    told = []
    for flags in ("socket.MSG_WAITALL", "0"):
        application.begin(f"s.recv(12, {flags})")
        for part in (b"one ", b"two ", b"three"):
            application.far.sendall(part)
            application.answers(0.05)
        told.append(application.end()[:4])
        application.far.sendall(b"x")
        application("s.setblocking(False)")
        rest = b""
        while not rest.endswith(b"x"):
            _wait_for(application, "select.POLLIN")
            rest += application("s.recv(100)")
        application("s.setblocking(True)")
    return told


def _peeking(application: Application) -> Any:
    application("s.setblocking(False)")
    told = [_call(application, "s.recv(1, socket.MSG_PEEK)")]
    application.deliver(b"abcdef")
    peeks = [application(f"s.recv({size}, socket.MSG_PEEK)") for size in (3, 100)]
    return [*told, *peeks, application("s.recv(100)"), _call(application, "s.recv(1)")]


def _splicing(application: Application) -> Any:
    application("r, w = os.pipe(); f = tempfile.TemporaryFile(); s.setblocking(False)")
    into_pipe = "os.splice(s.fileno(), w, 100)"
    told = [_call(application, into_pipe)]
    application.deliver(b"spliced")
    for wrong in ("f.fileno()", "s.fileno()", "-1"):
        told.append(_call(application, f"os.splice(s.fileno(), {wrong}, 100)"))
    told.append(_call(application, "os.splice(s.fileno(), w, 100, flags=64)"))
    told += [_call(application, into_pipe), application("os.read(r, 100)")]
    application.far.close()
    _wait_for(application, "select.POLLIN")
    return [*told, _call(application, into_pipe)]


def _splicing_from_others(application: Application) -> Any:
    """Sockets that are no connections."""
    application("r, w = os.pipe(); l = socket.create_server(('127.0.0.1', 0)); n = socket.socket()")
    application("f = tempfile.TemporaryFile()")
    return [
        _call(application, f"os.splice({source}.fileno(), {target}, 100)")
        for source in ("l", "n")
        for target in ("w", "f.fileno()")
    ]


def _least_amount(application: Application) -> Any:
    application("s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10); p = select.poll()")
    application("p.register(s, select.POLLIN)")
    application.far.sendall(b"12345")
    told = [[events for _, events in application("p.poll(300)")]]
    application.far.sendall(b"67890")
    told.append([events for _, events in application("p.poll(10000)")])
    return [*told, application("s.recv(10, socket.MSG_WAITALL)")]


def _read_to_the_end(application: Application) -> Any:
    application("s.shutdown(socket.SHUT_WR)")
    assert application.far.recv(1) == b""
    application.far.sendall(b"the last")
    application.far.close()
    return [application("b''.join(iter(lambda: s.recv(3), b''))"), _call(application, "s.recv(1)")]


def _reset_in_the_middle(application: Application) -> Any:
    application.deliver(b"half")
    application.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    application.far.close()
    _wait_for(application, "0")
    return [_call(application, call) for call in ("s.recv(9)", "s.recv(9)", "s.recv(9)")]


def _reset_told_by_send(application: Application) -> Any:
    application.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    application.far.close()
    _wait_for(application, "0")
    return [_call(application, call) for call in ("s.send(b'x')", "s.send(b'x')", "s.send(b'')")]


def _broken_pipe_and_then_the_end(application: Application) -> Any:
    application.far.close()
    _wait_for(application, "select.POLLIN")
    application("s.send(b'x')")
    _wait_for(application, "0")
    return [_call(application, call) for call in ("s.send(b'x')", "s.recv(1)", "s.recv(1)")]


def _nothing_and_urgent(application: Application) -> Any:
    application("s.setblocking(False)")
    calls = ("s.recv(0)", "s.recv(1, socket.MSG_OOB)", "s.recv(1, socket.MSG_ERRQUEUE)")
    return [_call(application, call) for call in calls]


def _sending_a_file(application: Application) -> Any:
    application("f = tempfile.TemporaryFile(); f.write(bytes(100000)); f.flush()")
    application.begin("sum(os.sendfile(s.fileno(), f.fileno(), at, 50000) for at in (0, 50000))")
    assert receive(application.far, 100000) == bytes(100000)
    application.far.sendall(b"thanks")
    return [application.end(), application("s.recv(100)")]


def _edges(application: Application) -> Any:
    application("s.setblocking(False); e = select.epoll()")
    application(
        "e.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)"
    )
    told = [application("[one for _, one in e.poll(10)]")]
    told.append(application("e.poll(0.05)"))
    for data in (b"abc", b"def"):
        application.far.sendall(data)
        told.append([one & ~4 for one in application("[one for _, one in e.poll(10)]")])
        told.append(application("s.recv(100)"))
    told.append(_call(application, "s.recv(100)"))
    application.far.close()
    told.append([one & ~4 for one in application("[one for _, one in e.poll(10)]")])
    return [*told, application("s.recv(1)")]


def _accepted_and_closed_by_both(application: Application) -> Any:
    """No connection of ours: what a server sees of a client."""
    application("l = socket.create_server(('127.0.0.1', 0))")
    application("c = socket.create_connection(l.getsockname()); a = l.accept()[0]")
    application("a.sendall(b'bye'); a.shutdown(socket.SHUT_WR)")
    told = [_call(application, "c.recv(9)") for _ in range(2)]
    application("c.close()")
    return [*told, _call(application, "a.recv(1)"), _call(application, "a.recv(1)")]


def _signal_without_restart(application: Application) -> Any:
    application("import ctypes; libc = ctypes.CDLL(None, use_errno=True); b = bytes(1)")
    application("old = signal.signal(signal.SIGALRM, lambda *_: None)")
    application("signal.siginterrupt(signal.SIGALRM, True)")
    application("old = signal.setitimer(signal.ITIMER_REAL, 0.2)")
    application.begin("[libc.recv(s.fileno(), b, 1, 0), errno.errorcode.get(ctypes.get_errno())]")
    if not application.answers(2):
        application.far.sendall(b"x")
    return application.end()


def _empty_datagram(application: Application) -> Any:
    application("u = socket.socket(type=socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0))")
    application("u.sendto(b'', u.getsockname())")
    return application("u.recvfrom(10) == (b'', u.getsockname())")


_SCRIPTS: list[Callable[[Application], Any]] = [
    _how_much_there_is,
    _receive_timeout,
    _receive_timeout_of_all,
    _waiting_for_all,
    _peeking,
    _splicing,
    _splicing_from_others,
    _least_amount,
    _read_to_the_end,
    _reset_in_the_middle,
    _reset_told_by_send,
    _broken_pipe_and_then_the_end,
    _nothing_and_urgent,
    _sending_a_file,
    _edges,
    _accepted_and_closed_by_both,
    _signal_without_restart,
    _empty_datagram,
]

# As docs/acceleration.md lists them, with what is told instead.
_DIFFERENCES: dict[Callable[[Application], Any], Any] = {
    _nothing_and_urgent: [b"", "EAGAIN", "EAGAIN"],
    _least_amount: [[1], [1], b"1234567890"],
    _reset_told_by_send: ["ECONNRESET", "ECONNRESET", 0],
    _signal_without_restart: [1, "EAGAIN"],
}


def _told(application: Application, script: Callable[[Application], Any]) -> Any:
    try:
        application.exchange()
        return script(application)
    finally:
        application.close()


@pytest.mark.parametrize("script", _SCRIPTS, ids=lambda script: script.__name__.lstrip("_"))
@pytest.mark.parametrize("form", _FORMS)
def test_receiving_calls_say_what_they_say_without_a_hook(
    sidecar_with: Callable[[dict[str, Any]], Sidecar],
    listener: socket.socket,
    form: str,
    script: Callable[[Application], Any],
) -> None:
    endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
    route = {"match": {"destination": V4, "ports": [PORT]}, "endpoints": [endpoint]}
    settings = {"outbound": {"routes": [route]}, "acceleration": _FORMS[form]}
    expected = _told(Application(listener, {}, listener.getsockname()), script)
    hooked = HookedApplication(sidecar_with(settings), listener)
    hooked.exchange()
    hooked.wait_for_path("relay" if form == "default" else form)
    if form != "default" and script in _DIFFERENCES:
        expected = _DIFFERENCES[script]
    assert _told(hooked, script) == expected


@pytest.fixture(scope="session")
def sandboxed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sandboxed")
    return compile_program(Path(__file__).parents[1] / "hook/programs/sandboxed.c", directory)


@pytest.mark.parametrize("captured", [False, True])
def test_a_sandbox_that_allows_nothing_but_receiving_lives(
    sidecar_with: Callable[[dict[str, Any]], Sidecar],
    listener: socket.socket,
    sandboxed: Path,
    captured: bool,
) -> None:
    """By default no receiving function makes another call than the one that it is: the sandbox
    kills who does."""
    here = listener.getsockname()[1]
    route = {"match": {"destination": V4, "ports": [PORT]}, "endpoints": [f"127.0.0.1:{here}"]}
    sidecar = sidecar_with({"outbound": {"routes": [route]}, "acceleration": _FIRST_BYTE})
    address = [V4, str(PORT)] if captured else ["127.0.0.1", str(here)]  # loopback is not captured
    with (
        subprocess.Popen(
            [sandboxed, *address], env=plain_environment(**sidecar.environment)
        ) as program,
        listener.accept()[0] as far,
    ):
        far.sendall(b"data")
        far.shutdown(socket.SHUT_WR)
        assert program.wait(20) == 0
