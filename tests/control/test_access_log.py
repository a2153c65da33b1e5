"""The access log: whole lines, in order, and never in the way."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from pysidecar import access_log
from pysidecar.access_log import AccessLog
from pysidecar.address import Address
from pysidecar.dataplane import LOG_TEXTS, End, ffi, lib


def line(number: int, end: End = End.EOF, process: bytes = b"a\nb") -> bytes:
    """As the data plane makes it."""
    record = ffi.new(
        "struct dp_record *",
        {
            "opened_ns": 1706933106_789000000,
            "duration_ns": 1_500_000,
            "bytes_sent": number,
            "source": Address("127.0.0.1", 40000).to_native(),
            "original_destination": Address("2001:db8::1", 80).to_native(),
            "pid": 7,
            "error": 111 if end is End.UPSTREAM_CONNECT else 0,
            "transport": lib.DP_TRANSPORT_UNIX,
            "end": end,
            "command": process,
        },
    )
    text = ffi.new("char[]", lib.DP_LOG_LINE_BYTES)
    return bytes(ffi.buffer(text, lib.dp_log_line(LOG_TEXTS, record, text)))


def test_a_record_is_one_line_of_json(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log")
    log.start()
    log.write(line(3, End.UPSTREAM_CONNECT))
    log.close()
    assert json.loads((tmp_path / "log").read_text()) == {
        "time": "2024-02-03T04:05:06.789Z",
        "type": "connection",
        "direction": "outbound",
        "transport": "unix",
        "source": "127.0.0.1:40000",
        "original_destination": "[2001:db8::1]:80",
        "upstream": None,
        "action": "relay",
        "path": "relay",
        "bytes_sent": 3,
        "bytes_received": 0,
        "rtt_ms": None,
        "duration_ms": 1.5,
        "pid": 7,
        "uid": 0,
        "process": "a\nb",
        "error": "upstream connect failed: ECONNREFUSED",
    }


def test_what_a_process_calls_itself_does_not_reach_a_terminal(tmp_path: Path) -> None:
    """C1 controls, a change of the direction of writing, and DEL, which JSON lets pass."""
    name = "a\x9b2J\u202eb\x7f\x1b"
    log = AccessLog(tmp_path / "log")
    log.start()
    log.write(line(1, process=name.encode()))
    log.close()
    text = (tmp_path / "log").read_bytes().rstrip(b"\n").decode("ascii")
    assert text.isprintable()
    assert json.loads(text)["process"] == name


def test_everything_is_written_in_order_at_close(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log")
    log.start()
    for start in range(0, 5000, 50):
        log.write(b"".join(line(number) for number in range(start, start + 50)))
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(each)["bytes_sent"] for each in lines] == list(range(5000))


def test_it_goes_on_in_another_file(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "a")
    log.start()
    log.reopen(tmp_path / "unused")
    log.reopen(tmp_path / "b")
    log.write(line(1))
    with pytest.raises(IsADirectoryError):
        log.reopen(tmp_path)
    log.close()
    assert len((tmp_path / "b").read_text().splitlines()) == 1


def test_a_stalled_reader_costs_records_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "_QUEUE_LIMIT", 100)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(pipe)
    log.start()
    written = 0
    while log.lost_records == 0:  # the pipe's 64 KiB and the queue are full at some time
        log.write(line(written))
        written += 1
    os.set_blocking(reader, True)
    received = bytearray()

    def drain() -> None:
        while data := os.read(reader, 65536):
            received.extend(data)

    thread = threading.Thread(target=drain)
    thread.start()
    log.close()
    thread.join()
    os.close(reader)
    lines = received.decode().splitlines()
    assert len(lines) == written - log.lost_records
    assert all(json.loads(each)["process"] == "a\nb" for each in lines)


def test_a_failing_disk_is_reported_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(Path("/dev/full"))
    log.start()
    log.write(line(1) + line(2))
    log.write(line(3))
    log.close()
    assert log.lost_records == 3
    assert [entry.getMessage() for entry in caplog.records] == [
        "access log /dev/full: No space left on device; records are lost"
    ]


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AccessLog(tmp_path / "missing" / "log")
