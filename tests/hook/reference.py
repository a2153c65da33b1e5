"""A sidecar for the hook's tests: small, in this process, and independent of the data plane.

It implements the sidecar's side of ``hook/contract.h`` with plain sockets and threads: the policy
page, the control socket, parking by simultaneous open, and listeners for PROXY v2 headers. It can
also misbehave: stand still, die, answer nonsense, leave a page half-written.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from mmap import mmap
from pathlib import Path

MAGIC, VERSION = 0x4B48534D, 3
MEMO_MAGIC = 0x4D48534D
PAGE_SIZE = 1048576
TICKET = bytes(range(1, 17))
STARTING, SERVING, DRAINING, GONE = range(4)
UNIX, HEADER = range(2)
REFUSE, DIRECT, WAIT = range(3)
WAITS, PARKED, ASKS = 1, 2, 4
CAPTURE, EXCLUDE, ASK = range(3)
RELAYED = 1  # a memo's kind
MAX_LISTENERS, MAX_PARKS, MAX_OWN = 16, 16, 64

_ADDRESS = struct.Struct("=16sHHI")
_HEAD = struct.Struct("=4I Q 6I 108s 3I 16s 2I")
_REQUEST = struct.Struct("=I2H 24s 16s")
_ANSWER = struct.Struct("=I2H i 24s")
_SEQUENCE, _STATE, _ALIVE, _ELSEWHERE = 8, 12, 16, _HEAD.size - 32
_RULES_AT = _HEAD.size + (MAX_LISTENERS + MAX_PARKS + MAX_OWN) * _ADDRESS.size

_SO_PEERNAME, _SO_ATTACH_FILTER, _TCP_FASTOPEN_KEY = 28, 26, 33
_TCP_SYN_SENT = 2
_HOLD = "hold"
_MAPPED = 0xFFFF << 32  # ::ffff:0.0.0.0

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Direct:
    """To one who asks: connect it yourself, there."""

    endpoint: Endpoint


# What to do for a destination: relay there, fail with this errno, "direct", "away" (there is no
# room for it), "hold" (never answer), "hang up" (likewise, and close), or send these bytes as the
# answer.
Decision = Endpoint | Direct | int | str | bytes


def pack_address(host: str, port: int, scope: int = 0) -> bytes:
    ip = ip_address(host)
    packed = b"\0" * 10 + b"\xff\xff" + ip.packed if ip.version == 4 else ip.packed
    return _ADDRESS.pack(packed, port, 0, scope)


def unpack_address(raw: bytes) -> Endpoint:
    packed, port, _, _ = _ADDRESS.unpack(raw)
    ip = IPv6Address(packed)
    return (str(ip.ipv4_mapped or ip), port)


def pack_rules(excluded: Sequence[str], asked: Sequence[str]) -> bytes:
    """Rules that exclude these prefixes, or have the hook ask; they must not overlap."""
    spans: list[tuple[int, int, int]] = []
    verdicts = [(text, EXCLUDE) for text in excluded] + [(text, ASK) for text in asked]
    for text, verdict in verdicts:
        network: IPv4Network | IPv6Network = ip_network(text)
        first, last = int(network[0]), int(network[-1])
        if network.version == 4:
            spans.append((_MAPPED + first, _MAPPED + last, verdict))
        elif first <= _MAPPED <= last:  # IPv4 is no part of IPv6
            spans += [(first, _MAPPED - 1, verdict), (_MAPPED + 2**32, last, verdict)]
        else:
            spans.append((first, last, verdict))
    spans.sort()
    boundaries = [(0, -1)]
    for index, (first, last, _) in enumerate(spans):
        boundaries.append((first, index))
        if last + 1 < 2**128:
            boundaries.append((last + 1, -1))
    body = b"".join(start.to_bytes(16, "big") + struct.pack("=i", at) for start, at in boundaries)
    body += b"".join(struct.pack("=iII", -1, index, 1) for index in range(len(spans)))
    body += b"".join(
        struct.pack("=HHI", 0, 65535, 4 * index + verdict)
        for index, (_, _, verdict) in enumerate(spans)
    )
    return struct.pack("=4I", 16 + len(body), len(boundaries), len(spans), len(spans)) + body


@dataclass(frozen=True, slots=True)
class Request:
    """One captured connect, as the sidecar saw it."""

    transport: int
    destination: Endpoint
    flags: int
    pid: int
    uid: int | None  # None: of a header, which does not tell
    command: str
    source: Endpoint | None = None
    scope: int = 0  # of the destination


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def open_park(host: str) -> socket.socket:
    """A listener that drops every segment."""
    park = socket.socket(_family(host))
    park.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    drop_all = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    park.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    park.bind((host, 0))
    park.listen(1)
    return park


def _unmapped(name: tuple[str, int]) -> Endpoint:
    host = name[0].removeprefix("::ffff:") if "." in name[0] else name[0]
    return (host, name[1])


def _peer_in_syn_sent(parked: socket.socket) -> Endpoint:
    """The park that a socket is connected to; getpeername does not tell in this state."""
    if parked.family == socket.AF_INET:
        raw = parked.getsockopt(socket.SOL_SOCKET, _SO_PEERNAME, 16)
        return (socket.inet_ntop(socket.AF_INET, raw[4:8]), int.from_bytes(raw[2:4], "big"))
    raw = parked.getsockopt(socket.SOL_SOCKET, _SO_PEERNAME, 28)
    port = int.from_bytes(raw[2:4], "big")
    return _unmapped((socket.inet_ntop(socket.AF_INET6, raw[8:24]), port))


def _hung_up(control: socket.socket) -> bool:
    """Whether the caller has stopped waiting."""
    poll = select.poll()
    poll.register(control, select.POLLRDHUP)
    return bool(poll.poll(0))


def _state(connection: socket.socket) -> int:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]


def _relay(left: socket.socket, right: socket.socket) -> None:
    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    with left, right:
        back = threading.Thread(target=pump, args=(right, left), daemon=True)
        back.start()
        pump(left, right)
        back.join()


class Sidecar:
    """Ready when made. ``routes`` decides by destination; what it does not name is ``fallback``."""

    def __init__(
        self,
        directory: Path,
        *,
        parks: Sequence[str] = ("127.0.0.1", "127.0.0.2", "::1"),
        listeners: Sequence[str] = ("127.0.0.1", "127.0.0.2", "::1"),
        transport: int = UNIX,
        when_away: int = REFUSE,
        wait_ms: int = 0,
        excluded: Sequence[str] = ("127.0.0.0/8", "::1/128"),
        asked: Sequence[str] = (),
        own: Sequence[Endpoint] = (),
        backlog: int = 128,
        fallback: Decision = errno.ECONNREFUSED,
        accepting: bool = True,
        server_uid: int | None = None,
    ) -> None:
        self.directory = directory
        self.control_path = directory / "hook.sock"
        self.policy_path = directory / "hook.policy"
        self.routes: dict[Endpoint, Decision] = {}
        self.fallback = fallback
        self.requests: list[Request] = []
        self.errors: list[str] = []
        self.accepted: set[str] = set()  # hosts of the listeners that had a connection
        self.seen = threading.Condition()
        self.transport, self.when_away, self.wait_ms = transport, when_away, wait_ms
        self.excluded, self.asked, self.own = list(excluded), list(asked), list(own)
        self.state = SERVING
        self.server_uid = os.geteuid() if server_uid is None else server_uid
        self.elsewhere = bool(asked)
        self.full = False
        self.holds = False  # requests on the control socket, whatever is decided for them
        self._waiting: list[tuple[socket.socket, socket.socket, int]] = []
        self._held: list[socket.socket] = []
        self.parks = [open_park(host) for host in parks]
        self.listeners = []
        for host in listeners:
            listener = socket.socket(_family(host))
            listener.bind((host, 0))
            listener.listen(backlog)
            self.listeners.append(listener)
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control_path.unlink(missing_ok=True)
        self.control.bind(str(self.control_path))
        self.control.listen(backlog)
        self._frozen = threading.Event()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._create_page()
        if accepting:
            self.accept_all()
        self._start(self._beat)

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # ---- The page ----

    def _create_page(self) -> None:
        fresh = self.policy_path.with_suffix(".new")
        with fresh.open("w+b") as file:
            file.truncate(PAGE_SIZE)
            self._page = mmap(file.fileno(), PAGE_SIZE)
        self._sequence = random.randrange(0, 2**31, 2)
        self.publish()
        fresh.rename(self.policy_path)

    def publish(self, *, torn: bool = False) -> None:
        """Writes the page; ``torn`` stops half-way, as a writer does that is killed."""

        def addresses(sockets: Sequence[socket.socket], room: int) -> bytes:
            return b"".join(pack_address(*one.getsockname()[:2]) for one in sockets).ljust(
                room * _ADDRESS.size, b"\0"
            )

        struct.pack_into("=I", self._page, _SEQUENCE, (self._sequence + 1) & 0xFFFFFFFF)
        if torn:
            return
        self._sequence = (self._sequence + 2) & 0xFFFFFFFF
        rules = pack_rules(self.excluded, self.asked)
        self._page[_RULES_AT : _RULES_AT + len(rules)] = rules
        own = b"".join(pack_address(*one) for one in self.own)
        body = (
            addresses(self.listeners, MAX_LISTENERS)
            + addresses(self.parks, MAX_PARKS)
            + own.ljust(MAX_OWN * _ADDRESS.size, b"\0")
        )
        self._page[_HEAD.size : _RULES_AT] = body
        head = _HEAD.pack(
            MAGIC,
            VERSION,
            (self._sequence - 1) & 0xFFFFFFFF,
            self.state,
            time.monotonic_ns(),
            self.transport,
            self.when_away,
            self.wait_ms,
            len(self.listeners),
            len(self.parks),
            len(self.own),
            str(self.control_path).encode(),
            0,
            self.elsewhere,
            self.server_uid,
            TICKET,
            self.full,
            0,
        )
        self._page[: _HEAD.size] = head
        struct.pack_into("=I", self._page, _SEQUENCE, self._sequence)

    def _beat(self) -> None:
        while not self._ended.wait(0.1):
            if not self._frozen.is_set():
                self.beat()

    def beat(self, seconds_ago: float = 0.0) -> None:
        struct.pack_into("=Q", self._page, _ALIVE, time.monotonic_ns() - int(seconds_ago * 1e9))

    # ---- Misbehaviour ----

    def freeze(self) -> None:
        """As SIGSTOP: accepts nothing, and its last sign of life is long ago."""
        self._frozen.set()
        self.beat(seconds_ago=10)

    def kill(self) -> None:
        """As SIGKILL: everything closes, the files stay."""
        self._ended.set()
        for control, parked, _ in self._waiting:
            control.close()
            parked.close()
        for one in [self.control, *self.listeners, *self._held]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in [self.control, *self.listeners, *self.parks, *self._held]:
            one.close()

    # ---- Connections ----

    def accept_all(self) -> None:
        self._start(self._accept, self.control, self._serve_control)
        for listener in self.listeners:
            self._start(self._accept, listener, self._serve_header)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        listener.settimeout(0.05)
        while not self._ended.is_set():
            if self._frozen.is_set():
                time.sleep(0.05)
                continue
            try:
                connection = listener.accept()[0]
            except TimeoutError:
                continue
            except OSError:
                return
            connection.settimeout(None)
            threading.Thread(target=self._guarded, args=(serve, connection), daemon=True).start()

    def _guarded(self, serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
        with connection:
            try:
                serve(connection)
            except Exception as error:  # a test's fixture asserts that there was none
                self.errors.append(repr(error))

    def _note(self, request: Request) -> Decision:
        with self.seen:
            self.requests.append(request)
            self.seen.notify_all()
        return self.routes.get(request.destination, self.fallback)

    def wait_for_requests(self, count: int = 1) -> list[Request]:
        """All requests, once there are so many: those with a header come at their own time."""
        with self.seen:
            assert self.seen.wait_for(lambda: len(self.requests) >= count, timeout=10), (
                self.requests
            )
            return list(self.requests)

    def _serve_control(self, control: socket.socket) -> None:
        with control:
            data, ancillary, _, _ = control.recvmsg(256, socket.CMSG_SPACE(4))
            if not data:
                return  # a hook whose socket turned out not to need it
            fds = array.array("i")
            for level, kind, payload in ancillary:
                assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                fds.frombytes(payload)
            (fd,) = fds
            parked = socket.socket(fileno=fd)
            magic, version, flags, raw, command = _REQUEST.unpack(data)
            assert (magic, version) == (MAGIC, VERSION)
            pid, uid, _ = struct.unpack(
                "=3i", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            )
            request = Request(
                UNIX,
                unpack_address(raw),
                flags,
                pid,
                uid,
                command.rstrip(b"\0").decode(),
                scope=_ADDRESS.unpack(raw)[3],
            )
            decision = self._note(request)
            if decision == _HOLD or self.holds:
                with self.seen:
                    self._waiting.append((control.dup(), parked, flags))
                    self.seen.notify_all()
                return
            with parked:
                self._decide(control, parked, flags, decision)

    def wait_until_abandoned(self) -> None:
        """Until the oldest caller on hold waits no longer: it has hung up, or, if it only asked,
        sent the request itself.
        """
        with self.seen:
            assert self.seen.wait_for(lambda: bool(self._waiting), timeout=10)
            control = self._waiting[0][0]
        assert select.select([control], [], [], 10)[0]

    def release(self, decision: Decision) -> None:
        """Decides the oldest connect that is on hold."""
        with self.seen:
            assert self.seen.wait_for(lambda: bool(self._waiting), timeout=10)
            control, parked, flags = self._waiting.pop(0)
        self._start(self._release, control, parked, flags, decision)

    def _release(
        self, control: socket.socket, parked: socket.socket, flags: int, decision: Decision
    ) -> None:
        with control, parked:
            self._decide(control, parked, flags, decision)

    def _decide(
        self, control: socket.socket, parked: socket.socket, flags: int, decision: Decision
    ) -> None:
        def answer(action: int, error: int = 0, endpoint: bytes = bytes(24)) -> bool:
            """To one who asked but does not wait for it any more: the request itself follows."""
            if flags & (WAITS | ASKS) or not flags & PARKED:
                try:
                    control.send(_ANSWER.pack(MAGIC, VERSION, action, error, endpoint))
                except OSError:
                    if flags & ASKS and action != 0:
                        parked.close()
                        self._serve_control(control.dup())
                    return False
            return True

        if isinstance(decision, bytes):
            control.send(decision)
        elif decision == "hang up":
            pass
        elif decision == "direct":
            answer(1)
        elif decision == "away":
            if flags & PARKED and not flags & WAITS:
                self._fail(parked, errno.ECONNREFUSED)
            answer(4)
        elif isinstance(decision, Direct):
            answer(1, endpoint=pack_address(*decision.endpoint))
        elif flags & ASKS and not isinstance(decision, int):
            answer(0)
            parked.close()
            self._serve_control(control.dup())  # the request itself
        elif isinstance(decision, tuple):
            with socket.create_connection(decision) as upstream:
                if flags & PARKED:
                    ours = self._cross(parked)
                    answer(0)
                else:
                    struct.pack_into("=I", self._page, _ELSEWHERE, 1)
                    with self._listen_for(parked) as listener:
                        if not answer(3, endpoint=pack_address(*listener.getsockname()[:2])):
                            return
                        ours = listener.accept()[0]
                control.close()
                parked.close()
                _relay(ours, upstream)
        else:
            assert isinstance(decision, int)
            if flags & PARKED and (not flags & WAITS or _hung_up(control)):
                self._fail(parked, decision)
            answer(2, decision)

    def _cross(self, parked: socket.socket, *, withholds: bool = False) -> socket.socket:
        """A simultaneous open. Who withholds the ACK leaves the other side in SYN_RECV."""
        assert _state(parked) == _TCP_SYN_SENT
        park = _peer_in_syn_sent(parked)
        ours = socket.socket(_family(park[0]))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, int(withholds))
        ours.bind(park)
        ours.connect(_unmapped(parked.getsockname()[:2]))
        return ours

    def _listen_for(self, unparked: socket.socket) -> socket.socket:
        host = "::1" if unparked.family == socket.AF_INET6 else "127.0.0.1"
        return socket.create_server((host, 0), family=_family(host))

    def _fail(self, parked: socket.socket, error: int) -> None:
        memo = bytearray(parked.getsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_KEY, 32))
        assert struct.unpack_from("=I2H", memo) == (MEMO_MAGIC, RELAYED, 0)
        struct.pack_into("=H", memo, 6, error)
        parked.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_KEY, memo)
        with self._cross(parked, withholds=True) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("2i", 1, 0))

    def _serve_header(self, connection: socket.socket) -> None:
        try:
            head = self._read(connection, 16)
        except ConnectionResetError:
            head = b""
        if not head:
            return  # a hook whose socket turned out not to need it
        assert head[:12] == b"\r\n\r\n\0\r\nQUIT\n", head
        assert head[12] == 0x21, head
        body = self._read(connection, int.from_bytes(head[14:16], "big"))
        width = {0x11: 4, 0x21: 16}[head[13]]
        source, destination = body[:width], body[width : 2 * width]
        ports = struct.unpack("!2H", body[2 * width : 2 * width + 4])
        tlvs, rest = {}, body[2 * width + 4 :]
        while rest:
            size = int.from_bytes(rest[1:3], "big")
            tlvs[rest[0]], rest = rest[3 : 3 + size], rest[3 + size :]
        assert tlvs[0xE4] == TICKET
        assert tlvs.keys() <= {0xE0, 0xE2, 0xE3, 0xE4}

        def endpoint(raw: bytes, port: int) -> Endpoint:
            return (
                _unmapped((str(ip_address(raw)), port))
                if len(raw) == 4
                else unpack_address(_ADDRESS.pack(raw, port, 0, 0))
            )

        with self.seen:
            self.accepted.add(connection.getsockname()[0])
        request = Request(
            HEADER,
            endpoint(destination, ports[1]),
            0,
            int.from_bytes(tlvs[0xE0], "big"),
            None,
            tlvs[0xE2].decode(),
            endpoint(source, ports[0]),
            int.from_bytes(tlvs.get(0xE3, b""), "big"),
        )
        assert request.source == _unmapped(connection.getpeername()[:2])
        decision = self._note(request)
        if isinstance(decision, tuple):
            # A client that has left again may have taken the test's server with it.
            with contextlib.suppress(ConnectionRefusedError):
                _relay(connection, socket.create_connection(decision))
        elif decision == _HOLD:
            self._held.append(connection.dup())

    def _read(self, connection: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = connection.recv(size - len(data))
            if not part:
                assert not data, f"closed after {data!r}"
                break
            data += part
        return data
