"""Lines stay whole, whatever becomes of the others."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import sys
from pathlib import Path

import pytest

from pysidecar.line_writer import LineWriter
from pysidecar.log import lost_lines, non_blocking_log, start_writing
from tests.waiting import eventually


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    return reader, writer


def _has_size(path: Path, size: int) -> bool:
    return path.stat().st_size == size


def _read_all(reader: int) -> list[str]:
    """Until the writing end is closed."""
    text = b""
    while data := os.read(reader, 65536):
        text += data
    os.close(reader)
    return text.decode().splitlines(keepends=True)


def test_a_line_that_was_cut_by_an_error_is_completed_before_any_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a disk that is full in the middle of a line, and has room again later."""
    room = 15
    real = os.write

    def write(fd: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(28, "No space left on device")
        written = real(fd, data[:room])
        room -= written
        return written

    monkeypatch.setattr("pysidecar.line_writer.os.write", write)
    told: list[object] = []
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    writer = LineWriter(fd, name="test", limit=100, on_loss=told.append, on_recovery=told.append)
    writer.start()
    writer.write(b"0123456789\nabcdefghij\nlost\nlost too\n")
    eventually(lambda: writer.lost == 2)
    room = sys.maxsize
    writer.write(b"after\n")
    assert writer.close(5)
    assert (tmp_path / "log").read_text() == "0123456789\nabcdefghij\nafter\n"
    assert told == ["No space left on device", 2]


def test_closing_does_not_wait_for_a_reader_longer_than_asked() -> None:
    reader, writer_fd = _pipe()
    writer = LineWriter(writer_fd, name="test", limit=1000)
    writer.start()
    writer.write((b"x" * 99 + b"\n") * 100)
    assert not writer.close(0.05)
    assert writer.lost + len(_read_all(reader)) == 100 + 1, "one line is cut"


def test_the_log_tells_how_many_lines_it_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer_fd = _pipe()
    monkeypatch.setattr("pysidecar.log._STANDARD_ERROR", writer_fd)
    monkeypatch.setattr("pysidecar.log._QUEUE_LIMIT", 2000)
    before = lost_lines()
    os.write(writer_fd, b"\n" * 4096)
    with non_blocking_log(logging.INFO):
        start_writing()
        log = logging.getLogger("test")
        for number in range(5000):
            log.info("line %d", number)
        lost = lost_lines() - before
        assert 5000 - 50 - 1500 <= lost <= 5000 - 30, "the queue has 2,000 bytes, the pipe 60 KiB"
        os.read(reader, 65536)
        os.set_blocking(reader, False)
        text = b""

        def told() -> bool:
            nonlocal text
            try:
                text += os.read(reader, 65536)
            except BlockingIOError:
                return False
            return b" lines of this log are lost" in text

        eventually(told)
    assert f" WARNING {lost} lines of this log are lost".encode() in text
    assert lost_lines() - before == lost
    os.close(reader)
    os.close(writer_fd)


def test_a_full_queue_takes_nothing_more(tmp_path: Path) -> None:
    """And counts what it did not take, line by line."""
    writer = LineWriter(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), name="test", limit=5)
    writer.write(b"1\n2\n")
    writer.write(b"3\n4\n")
    writer.write(b"5\n6\n7\n")
    assert writer.lost == 3
    assert writer.close(5)
    assert (tmp_path / "log").read_text() == "1\n2\n3\n4\n"


def test_buffers_are_used_again_and_lines_stay_in_order(tmp_path: Path) -> None:
    """Those with much in them are written as they are, others are copied."""
    path = tmp_path / "log"
    writer = LineWriter(os.open(path, os.O_WRONLY | os.O_CREAT), name="test", limit=1 << 30)
    written, buffers = b"", set()
    for number in range(40):
        lines = b"%d\n" % number * (50_000 if number % 3 else 100)

        def store(buffer: bytearray, lines: bytes = lines) -> int:
            buffers.add(id(buffer))
            buffer[: len(lines)] = lines
            return len(lines)

        assert writer.fill(store) == len(lines)
        written += lines
        if number == 20:
            writer.start()
            eventually(functools.partial(_has_size, path, len(written)))
    assert writer.fill(lambda buffer: 0) == 0
    assert writer.close(5)
    assert path.read_bytes() == written
    assert len(buffers) < 30
