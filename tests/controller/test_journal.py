"""controller/journal.py: lines reach the disk in files of limited size, and what does not is counted."""

import contextlib
import errno
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog

from controller.journal import Journal, LogFile, check_folder
from gearmesh.telemetry.journals import read_actions, read_requests
from mesh.facts import Header
from tests.disks import refuse
from tests.facts import ACTION, REQUEST
from tests.messages import names


def log_file(folder: Path, *, bytes_max: int = 1 << 20, files: int = 3, stamp: str = "s") -> LogFile:
    """A request log of controller c."""

    def header() -> Header:
        return Header(log="requests", version=1, controller="c", policy="atc", clock_s=1.0, unix_s=2.0)

    return LogFile(folder, header, bytes_max=bytes_max, files=files, stamp=stamp)


def journal(folder: Path, **options: int) -> Journal:
    """A journal that is not started."""
    return Journal(folder, "controller-1", "atc", **{"bytes_max": 1 << 20, "files": 3, "pending_max": 1000, **options})


def test_every_file_begins_with_a_header_and_a_full_one_is_followed_by_the_next(tmp_path: Path) -> None:
    log = log_file(tmp_path, bytes_max=2 * len(msgspec.json.encode(REQUEST)))
    for _ in range(4):
        log.write([REQUEST])
    log.close()
    files = [path.name for path in sorted(tmp_path.iterdir())]
    assert files == ["requests-s-000001.jsonl", "requests-s-000002.jsonl"]
    for path in tmp_path.iterdir():
        first, *rest = path.read_bytes().splitlines()
        assert msgspec.json.decode(first)["version"] == 1
        assert rest == [msgspec.json.encode(REQUEST)] * 2


def test_only_so_many_files_of_a_log_are_kept_whoever_wrote_them(tmp_path: Path) -> None:
    (tmp_path / "requests-a-000001.jsonl").write_text("old")
    (tmp_path / "actions-a-000001.jsonl").write_text("of the other log")
    log = log_file(tmp_path, bytes_max=1, files=3)
    for _ in range(5):
        log.write([REQUEST])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "actions-a-000001.jsonl", "requests-s-000003.jsonl", "requests-s-000004.jsonl", "requests-s-000005.jsonl",
    ]  # fmt: skip


def test_a_journal_writes_all_that_was_offered_in_order_into_both_logs(tmp_path: Path) -> None:
    writing = journal(tmp_path / "new" / "folder")
    writing.start()
    requests = [msgspec.structs.replace(REQUEST, request=i) for i in range(300)]
    for i in range(0, 300, 3):
        writing.offer([*requests[i : i + 3], ACTION])
    writing.stop()
    state = writing.state()
    assert (state.written, state.dropped, state.waiting, state.fault) == (400, 0, 0, "")
    (log,) = read_requests(tmp_path / "new" / "folder")
    assert log.facts == requests
    assert log.headers[0].controller == "controller-1"
    assert abs(log.headers[0].unix_s - time.time()) < 60
    (log_of_actions,) = read_actions(tmp_path / "new" / "folder")
    assert log_of_actions.facts == [ACTION] * 100


def test_what_finds_no_room_is_dropped_counted_and_noted_in_the_log(tmp_path: Path) -> None:
    writing = journal(tmp_path, pending_max=10)
    writing.offer([REQUEST] * 8)
    writing.offer([REQUEST] * 5)
    writing.offer([REQUEST])
    assert (writing.state().waiting, writing.state().dropped) == (10, 4)
    writing.start()
    writing.stop()
    (log,) = read_requests(tmp_path)
    assert (len(log.facts), log.dropped) == (10, 4)


def test_a_disk_that_refuses_costs_lines_which_are_counted_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    writing = journal(tmp_path / "file")
    writing.start()
    writing.offer([REQUEST, ACTION])
    writing.stop()
    state = writing.state()
    assert (state.written, state.dropped) == (0, 2)
    assert "File exists" in state.fault or "Not a directory" in state.fault


@contextlib.contextmanager
def disk_for(bytes_max: int) -> Iterator[None]:
    """No file can grow beyond so many bytes meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_logs_that_can_be_read(tmp_path: Path) -> None:
    log = log_file(tmp_path)
    log.write([REQUEST])
    (file,) = tmp_path.iterdir()
    with disk_for(file.stat().st_size + 30), pytest.raises(OSError, match="large"):
        log.write([REQUEST])
    with disk_for(30), pytest.raises(OSError, match="large"):
        log.write([REQUEST])
    log.write([REQUEST])
    log.close()
    (read,) = read_requests(tmp_path)
    assert (len(read.facts), len(read.headers), read.cut) == (2, 2, 1)


def test_what_the_disk_refused_is_told_in_the_log_once_it_takes_lines_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.journal.FAULT_S", 0.0)
    (tmp_path / "logs").write_text("in the way")
    writing = journal(tmp_path / "logs")
    writing.offer([REQUEST] * 3)
    writing.drain()
    assert writing.state().fault
    (tmp_path / "logs").unlink()
    writing.offer([REQUEST])
    writing.drain()
    (log,) = read_requests(tmp_path / "logs")
    assert (len(log.facts), log.dropped) == (1, 3)
    assert (writing.state().written, writing.state().dropped, writing.state().fault) == (1, 3, "")
    writing.drain()
    (log,) = read_requests(tmp_path / "logs")
    assert log.dropped == 3
    writing.close()


def test_a_folder_that_cannot_be_made_is_said_so_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (fault,) = check_folder(tmp_path / "file" / "logs")
    assert fault.startswith("telemetry_dir=")
    assert check_folder(tmp_path / "logs") == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC], ids=os.strerror)
def test_a_disk_that_takes_nothing_is_no_wrong_setting_and_its_lines_are_counted(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, tmp_path, "mkdir", number)
    assert check_folder(tmp_path / "logs") == []
    writing = journal(tmp_path / "logs")
    with structlog.testing.capture_logs() as lines:
        writing.offer([REQUEST])
        writing.drain()
    assert writing.state().dropped == 1
    (line,) = lines
    assert names(line["error"], str(tmp_path / "logs"), os.strerror(number), "GEARMESH_TELEMETRY_DIR")
    writing.close()
