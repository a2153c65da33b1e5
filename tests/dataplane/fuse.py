"""A file whose last close waits for ever: a FUSE file system that answers everything but FLUSH.

Run as root in a mount namespace of its own; the file is passed on a control socket as another user.
"""

from __future__ import annotations

import array
import ctypes
import os
import signal
import socket
import struct
import sys
import tempfile

_LOOKUP, _FORGET, _GETATTR, _OPEN, _RELEASE, _FLUSH, _INIT = 1, 2, 3, 14, 18, 25, 26
_HEADER = struct.Struct("=IIQQIIII")
_ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")
_FILE = 2  # its node


def _attributes(node: int) -> bytes:
    mode = 0o40755 if node == 1 else 0o100666
    return _ATTRIBUTES.pack(node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(code: int, node: int) -> bytes | None:
    if code == _INIT:
        return struct.pack("=IIIIHHIIHHI", 7, 23, 0, 0, 12, 10, 4096, 1, 0, 0, 0)[:24]
    if code == _LOOKUP:
        return struct.pack("=QQQQII", _FILE, 0, 0, 0, 0, 0) + _attributes(_FILE)
    if code == _GETATTR:
        return struct.pack("=QII", 0, 0, 0) + _attributes(node)
    if code == _OPEN:
        return struct.pack("=QII", 7, 0, 0)
    return None


def _serve(device: int) -> None:
    while True:
        request = os.read(device, 1 << 17)
        _, code, unique, node, *_ = _HEADER.unpack_from(request)
        if code in (_FLUSH, _FORGET, _RELEASE):
            continue  # the first is what this is about, the others expect no answer
        body = _answer(code, node)
        error = 0 if body is not None else -38  # ENOSYS
        body = body or b""
        os.write(device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


def open_file() -> tuple[int, int]:
    """A descriptor of such a file, and the process that is its file system. To be killed before any
    other that has the file, or those wait for it; it ends by itself after a minute."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    directory = tempfile.mkdtemp()
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"t", directory.encode(), b"fuse.t", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    daemon = os.fork()
    if daemon == 0:
        signal.alarm(60)
        _serve(device)
    os.close(device)
    return os.open(f"{directory}/file", os.O_RDWR), daemon


def main() -> None:
    uid, path, message = int(sys.argv[1]), sys.argv[2], bytes.fromhex(sys.argv[3])
    file, daemon = open_file()
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.seteuid(uid)
    control.connect(path)
    rights = array.array("i", [file])
    control.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    print("sent", flush=True)
    sys.stdin.read()
    os.seteuid(0)
    os.kill(daemon, signal.SIGKILL)


if __name__ == "__main__":
    main()
