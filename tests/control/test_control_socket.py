"""Who may have the control socket, and what is left by a kill."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from pysidecar.errors import StartError
from pysidecar.interception.control_socket import ControlSocket


def seqpacket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def release(control: ControlSocket) -> None:
    control.listener.close()
    control.remove()


def test_it_listens_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "made" / "hook.sock"
    control = ControlSocket(path, 0o600)
    with seqpacket() as client:
        client.connect(str(path))
    release(control)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "directory"), [(0o600, 0o700), (0o660, 0o750), (0o666, 0o755), (0o606, 0o705)]
)
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_permissions_are_as_configured(
    tmp_path: Path, mode: int, directory: int, umask: int
) -> None:
    before = os.umask(umask)
    try:
        control = ControlSocket(tmp_path / "made" / "hook.sock", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(control.path.stat().st_mode) == mode
    assert stat.S_IMODE(control.path.parent.stat().st_mode) == directory
    release(control)


def test_one_left_by_a_kill_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hook.sock"
    with seqpacket() as left:
        left.bind(str(path))
    control = ControlSocket(path, 0o600)
    with seqpacket() as client:
        client.connect(str(path))
    release(control)


def test_two_never_share_a_path(tmp_path: Path) -> None:
    path = tmp_path / "hook.sock"
    control = ControlSocket(path, 0o600)
    with pytest.raises(StartError, match=r"hook\.sock .* is in use by this very process"):
        ControlSocket(path, 0o600)
    with seqpacket() as client:
        client.connect(str(path))
    release(control)


def test_a_socket_that_somebody_serves_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hook.sock"
    with seqpacket() as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(StartError, match="is in use by this very process"):
            ControlSocket(path, 0o600)
        assert path.exists()


def test_another_kind_of_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hook.sock"
    path.write_text("precious")
    with pytest.raises(StartError, match="there is a file that is not a socket"):
        ControlSocket(path, 0o600)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_parent_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="does not exist; make it, or configure another"):
        ControlSocket(tmp_path / "a" / "b" / "hook.sock", 0o600)


def test_a_directory_that_everyone_can_write_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(StartError, match="lets everyone replace files"):
        ControlSocket(directory / "hook.sock", 0o600)
    directory.chmod(0o1777)
    release(ControlSocket(directory / "hook.sock", 0o600))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make another user's directory")
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, 12345, -1)
    with pytest.raises(StartError, match="belongs to another user"):
        ControlSocket(directory / "hook.sock", 0o600)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    os.chown(link, 12345, -1, follow_symlinks=False)
    with pytest.raises(StartError, match="belongs to another user"):
        ControlSocket(link / "hook.sock", 0o600)
