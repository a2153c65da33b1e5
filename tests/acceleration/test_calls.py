"""Calls of the application on an accelerated connection do what they do on any other."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceleration.support import (
    MAPPED,
    NEVER,
    V4,
    CallError,
    HookedApplication,
    receive,
)

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close resets


@pytest.fixture(params=["full", "local", "relay"])
def path(request: pytest.FixtureRequest) -> str:
    """The relay's behaviour is what is asked of the other paths."""
    return str(request.param)


@pytest.fixture
def application(start: Callable[..., HookedApplication], path: str) -> HookedApplication:
    """One whose data is redirected by now, or relayed."""
    running = start(path)
    running.exchange()
    running.wait_for_path(path)
    return running


@pytest.mark.parametrize("path", ["full", "local"])
def test_what_goes_one_way_is_no_round_trip(
    start: Callable[..., HookedApplication], path: str
) -> None:
    application = start(path, after_bytes=NEVER, after_round_trips=4)
    for _ in range(20):
        application("s.sendall(b'x')")
        assert receive(application.far, 1) == b"x"
    assert application.path == "relay"
    application.exchange(8)
    application.wait_for_path(path)


# ---- reading ----


def test_blocked_receive_is_not_woken_by_what_is_not_data(application: HookedApplication) -> None:
    # Its own data that leaves wakes whoever waits for the socket to be writable.
    application("import threading")
    application("t = threading.Thread(target=s.sendall, args=(bytes(8 << 20),)); t.start()")
    application.begin("s.recv(100)")
    receive(application.far, 8 << 20)
    assert not application.answers(0.2)
    application.far.sendall(b"at last")
    assert application.end() == b"at last"


@pytest.mark.parametrize("call", ["s.recv(100)", "os.read(s.fileno(), 100)", "s.recvfrom(100)[0]"])
def test_blocked_receive_ends_with_data(application: HookedApplication, call: str) -> None:
    application.begin(call)
    assert not application.answers(0.1)
    application.far.sendall(b"data")
    assert application.end() == b"data"


@pytest.mark.parametrize("call", ["s.recv(100)", "os.read(s.fileno(), 100)", "s.recvfrom(100)[0]"])
def test_blocked_receive_ends_with_the_end(application: HookedApplication, call: str) -> None:
    application.begin(call)
    assert not application.answers(0.1)
    application.far.shutdown(socket.SHUT_WR)
    assert application.end() == b""


@pytest.mark.parametrize("call", ["s.recv(100)", "os.read(s.fileno(), 100)", "s.recvfrom(100)[0]"])
def test_blocked_receive_ends_with_a_reset(application: HookedApplication, call: str) -> None:
    application.begin(call)
    assert not application.answers(0.1)
    application.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    application.far.close()
    with pytest.raises(CallError, match="ECONNRESET"):
        application.end()


def test_receive_that_was_blocked_before_goes_on(
    start: Callable[..., HookedApplication], path: str
) -> None:
    application = start(path, after_bytes=5, after_round_trips=NEVER)
    application.begin("s.recv(100)")
    assert not application.answers(0.1)
    application.far.sendall(b"hello")
    assert application.end() == b"hello"
    application.wait_for_path(path)
    application.begin("s.recv(100)")
    assert not application.answers(0.1)
    application.far.sendall(b"and more")
    assert application.end() == b"and more"


def begin_to_pay_in_recv(application: HookedApplication) -> None:
    """Five bytes, while its thread `t` is blocked in a receive whose data goes to `got`."""
    application("import threading; got = []")
    application("t = threading.Thread(target=lambda: got.append(s.recv(100))); t.start()")
    time.sleep(0.1)  # it is blocked in recv, most probably
    application("s.sendall(b'hello')")
    assert receive(application.far, 5) == b"hello"


def test_receive_that_is_blocked_while_its_socket_is_attached_gets_the_data(
    start: Callable[..., HookedApplication], path: str
) -> None:
    application = start(path, after_bytes=5, after_round_trips=NEVER)
    begin_to_pay_in_recv(application)
    application.wait_for_path(path)
    application.far.sendall(b"answer")
    application("t.join(5)")
    assert application("got") == [b"answer"]
    application.exchange()


def test_receive_that_is_blocked_until_more_has_come_gets_it(
    start: Callable[..., HookedApplication], path: str
) -> None:
    """Some of it would come by TCP and the rest would not, so such a socket is left alone."""
    application = start(path, after_bytes=5, after_round_trips=NEVER)
    application("s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)")
    begin_to_pay_in_recv(application)
    time.sleep(0.5)  # for all tries to attach it
    application.far.sendall(b"hello")
    time.sleep(0.1)
    application.far.sendall(b"again")
    application("t.join(5)")
    assert application("got") == [b"helloagain"]
    assert application.path == "relay"


def test_receive_timeout(application: HookedApplication) -> None:
    application("s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack('ll', 0, 300000))")
    application("before = time.monotonic()")
    with pytest.raises(CallError, match="EAGAIN"):
        application("s.recv(1)")
    assert 0.29 < application("time.monotonic() - before") < 5
    application.deliver(b"x")
    assert application("s.recv(1)") == b"x"


def test_signal_handler_interrupts_receive(application: HookedApplication) -> None:
    application("old = signal.signal(signal.SIGALRM, lambda *_: time.sleep(0))")
    application("old = signal.setitimer(signal.ITIMER_REAL, 0.1)")
    application.begin("s.recv(10)")  # Python calls again
    assert not application.answers(0.4)
    application.far.sendall(b"data")
    assert application.end() == b"data"


@pytest.mark.parametrize(
    "call",
    [
        "s.recv(12, socket.MSG_WAITALL)",
        "s.recvfrom(12, socket.MSG_WAITALL)[0]",
        "s.recvmsg(12, 0, socket.MSG_WAITALL)[0]",
    ],
)
def test_waiting_for_all(application: HookedApplication, call: str) -> None:
    application.begin(call)
    for part in (b"one ", b"two ", b"three"):
        assert not application.answers(0.1)
        application.far.sendall(part)
    assert application.end() == b"one two thre"
    assert application("s.recv(10)") == b"e"


def test_waiting_for_all_in_several_pieces_of_memory(application: HookedApplication) -> None:
    application("pieces = [bytearray(3), bytearray(5), bytearray(0), bytearray(4)]")
    application.begin("s.recvmsg_into(pieces, 0, socket.MSG_WAITALL)[0]")
    for part in (b"ab", b"cdefghi", b"jkl"):
        assert not application.answers(0.1)
        application.far.sendall(part)
    assert application.end() == 12
    assert application("[bytes(piece) for piece in pieces]") == [b"abc", b"defgh", b"", b"ijkl"]


def test_waiting_for_all_gives_what_came_before_the_end(application: HookedApplication) -> None:
    application.begin("s.recv(12, socket.MSG_WAITALL)")
    application.far.sendall(b"part")
    assert not application.answers(0.1)
    application.far.shutdown(socket.SHUT_WR)
    assert application.end() == b"part"
    assert application("s.recv(12, socket.MSG_WAITALL)") == b""


def test_waiting_for_all_does_not_swallow_a_reset(application: HookedApplication) -> None:
    application.begin("s.recv(12, socket.MSG_WAITALL)")
    application.far.sendall(b"part")
    assert not application.answers(0.1)
    application.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    application.far.close()
    assert application.end() == b"part"
    with pytest.raises(CallError, match="ECONNRESET"):
        application("s.recv(12, socket.MSG_WAITALL)")


def test_peeking(application: HookedApplication) -> None:
    application.deliver(b"abcdef")
    assert application("s.recv(3, socket.MSG_PEEK)") == b"abc"
    assert application("s.recv(100, socket.MSG_PEEK)") == b"abcdef"
    assert application("s.recv(100)") == b"abcdef"
    application("s.setblocking(False)")
    with pytest.raises(CallError, match="EAGAIN"):
        application("s.recv(1, socket.MSG_PEEK)")


def test_how_much_there_is_to_read(application: HookedApplication) -> None:
    application("n = array.array('i', [7])")
    application("fcntl.ioctl(s, termios.FIONREAD, n)")
    assert application("n[0]") == 0
    application.deliver(b"abcdef")
    application("fcntl.ioctl(s, termios.FIONREAD, n)")
    assert application("n[0]") == 6


@pytest.mark.parametrize("size", [2 << 20, 2_200_000, 2_500_000, 24 << 20])
def test_edge_triggered_reader_may_stop_at_a_short_read(
    application: HookedApplication, size: int
) -> None:
    """epoll(7) allows it. More than a window waits, so that both queues have data."""
    application("s.setblocking(False)")
    application("e = select.epoll(); e.register(s, select.EPOLLIN | select.EPOLLET)")
    application(
        "def read_all(left):\n"
        "    while left:\n"
        "        if not e.poll(5): return left\n"
        "        while left:\n"
        "            try: got = len(s.recv(70000))\n"
        "            except BlockingIOError: break\n"
        "            left -= got\n"
        "            if got < 70000: break\n"
        "    return 0"
    )
    application.far.settimeout(0.5)
    sent = 0
    while sent < size:  # until everything between is full
        try:
            sent += application.far.send(bytes(min(1 << 20, size - sent)))
        except TimeoutError:
            break
    assert application(f"read_all({sent})") == 0


@pytest.mark.parametrize("flags", ["os.SPLICE_F_NONBLOCK", "0"])
def test_splicing_from_it(application: HookedApplication, flags: str) -> None:
    """That flag is about the pipe: whether the socket is waited for is the socket's matter."""
    application("r, w = os.pipe()")
    splice = f"os.splice(s.fileno(), w, 100000, flags={flags})"
    application.begin(splice)
    assert not application.answers(0.1)
    application.far.sendall(b"spliced")
    assert application.end() == 7
    assert application("os.read(r, 100)") == b"spliced"
    application("s.setblocking(False)")
    with pytest.raises(CallError, match="EAGAIN"):
        application(splice)
    application.deliver(b"again")
    assert application(splice) == 5
    assert application("os.read(r, 100)") == b"again"
    application.far.shutdown(socket.SHUT_WR)
    application("select.select([s], [], [], 5)[0] != []")
    assert application(splice) == 0


def test_splicing_into_a_full_pipe_loses_nothing(application: HookedApplication) -> None:
    data = bytes(range(256)) * 1200  # more than the pipe's 64 KiB
    application.far.sendall(data)
    application("r, w = os.pipe(); s.setblocking(False); data = b''")
    application(
        f"while len(data) < {len(data)}:\n"
        "    select.select([s], [], [], 5)\n"
        "    try:\n"
        "        while True: os.splice(s.fileno(), w, 1 << 20, flags=os.SPLICE_F_NONBLOCK)\n"
        "    except BlockingIOError: pass\n"
        "    while select.select([r], [], [], 0)[0]: data += os.read(r, 1 << 20)"
    )
    assert application("data") == data


def test_more_than_the_pipe_holds_is_spliced_when_it_is_read(
    application: HookedApplication,
) -> None:
    data = bytes(range(256)) * 1200
    application.far.sendall(data)
    application("import threading; r, w = os.pipe(); data = b''")
    application(
        "def splice():\n"
        f"    left = {len(data)}\n"
        "    while left: left -= os.splice(s.fileno(), w, left)\n"
    )
    application("t = threading.Thread(target=splice); t.start()")
    application(f"while len(data) < {len(data)}: data += os.read(r, 1000)")
    assert application("data") == data


# ---- writing ----


def test_sending_a_file(application: HookedApplication) -> None:
    data = bytes(range(256)) * 8000
    application(f"f = tempfile.TemporaryFile(); f.write({bytes(range(256))!r} * 8000); f.flush()")
    application(
        f"def send(at=0):\n"
        f"    while at < {len(data)}: at += os.sendfile(s.fileno(), f.fileno(), at, 1 << 20)\n"
    )
    application.begin("send()")
    assert receive(application.far, len(data)) == data
    application.end()


@pytest.mark.parametrize("ip", [V4, MAPPED])
def test_both_ways_for_every_kind_of_socket(
    start: Callable[..., HookedApplication], path: str, ip: str
) -> None:
    application = start(path, ip)
    application.exchange(20)
    application.wait_for_path(path)


# ---- urgent data ----


@pytest.mark.parametrize("before", [True, False])
def test_urgent_data_sent_loses_no_other(
    start: Callable[..., HookedApplication], path: str, before: bool
) -> None:
    """The relay reads past the urgent byte, as everyone does who does not look for it."""
    application = start(path, after_bytes=1 if before else 0, after_round_trips=NEVER)
    if not before:
        application.exchange()
    application("s.sendall(b'one ')")
    application("s.send(b'!', socket.MSG_OOB)")
    application("s.sendall(b'two ')")
    application("s.shutdown(socket.SHUT_WR)")
    data = b""
    while part := application.far.recv(100):
        data += part
    assert data.replace(b"!", b"") == b"one two "
    application.far.sendall(b"answer")
    assert receive_all(application) == b"answer"


def receive_all(application: HookedApplication) -> Any:
    return application("s.recv(6, socket.MSG_WAITALL)")


@pytest.mark.parametrize("before", [True, False])
def test_urgent_data_received_loses_no_other(
    start: Callable[..., HookedApplication], path: str, before: bool
) -> None:
    application = start(path, after_bytes=1 if before else 0, after_round_trips=NEVER)
    if not before:
        application.exchange()
    application.far.sendall(b"one ")
    application.far.send(b"!", socket.MSG_OOB)
    application.far.sendall(b"two ")
    application.far.shutdown(socket.SHUT_WR)
    data = b""
    while part := application("s.recv(100)"):
        data += part
    assert data.replace(b"!", b"") == b"one two "


# ---- ends ----


def test_half_closed_by_the_application(application: HookedApplication) -> None:
    application("s.sendall(b'question')")
    application("s.shutdown(socket.SHUT_WR)")
    assert receive(application.far, 8) == b"question"
    assert application.far.recv(1) == b""
    for _ in range(3):
        application.far.sendall(b"answer")
        assert application("s.recv(6, socket.MSG_WAITALL)") == b"answer"
    application.far.sendall(b"unread until after the end" * 1000)
    application.far.close()
    time.sleep(0.1)
    data = application("b''.join(iter(lambda: s.recv(5000), b''))")
    assert data == b"unread until after the end" * 1000


def test_half_closed_by_the_server(application: HookedApplication) -> None:
    application.far.sendall(b"answer")
    application.far.shutdown(socket.SHUT_WR)
    assert application("s.recv(6, socket.MSG_WAITALL)") == b"answer"
    assert application("s.recv(6)") == b""
    for _ in range(3):
        application("s.sendall(b'question')")
        assert receive(application.far, 8) == b"question"
    application("s.sendall(bytes(100000)); s.close()")
    assert receive(application.far, 100000) == bytes(100000)
    assert application.far.recv(1) == b""


def test_reset_by_the_application(application: HookedApplication) -> None:
    application(f"s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, {_RESET!r})")
    application("s.close()")
    with pytest.raises(ConnectionResetError):
        application.far.recv(1)


def test_reset_by_the_server(application: HookedApplication) -> None:
    application.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    application.far.close()
    with pytest.raises(CallError, match="ECONNRESET"):
        application("s.recv(1)")
    with pytest.raises(CallError, match="EPIPE"):
        application("s.send(b'x')")


def test_close_with_unread_data_ends_the_connection(
    application: HookedApplication, path: str
) -> None:
    application.deliver(b"nobody reads this")
    application("s.close()")
    # The kernel does not look into the queue of redirected data before it closes a socket.
    with contextlib.nullcontext() if path != "relay" else pytest.raises(ConnectionResetError):
        assert application.far.recv(1) == b""


# ---- time ----


def test_uploads_alone_keep_a_connection_from_being_idle(
    start: Callable[..., HookedApplication], path: str
) -> None:
    application = start(path, idle_timeout="1s")
    application.exchange()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        application("s.sendall(b'x')")
        assert application.far.recv(1) == b"x"
        time.sleep(0.1)
    application.exchange()
    # … and then it is.
    before = time.monotonic()
    with pytest.raises(CallError, match="ECONNRESET"):
        application("s.recv(1)")
    assert 0.8 < time.monotonic() - before < 5
