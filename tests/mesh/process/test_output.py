"""mesh/process/output.py: real pipes that nobody reads, that are read again, and whose reader is gone."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.process import output
from mesh.process.output import Outlet
from scripts import ROOT
from tests.loops import LIMIT_S

PIPE_BYTES = 65_536  # of Linux
LINE = b"x" * 99 + b"\n"


@dataclass
class Pipe:
    """A pipe, an outlet into it, and its reader."""

    outlet: Outlet
    ends: list[int]
    rest: bytes = b""  # read, and no line yet that was asked for

    def read(self, lines: int) -> list[bytes]:
        """The next lines, as many."""
        found: list[bytes] = []
        while len(found) < lines:
            head, end, rest = self.rest.partition(b"\n")
            if end:
                self.rest = rest
                found.append(head)
                continue
            assert select.select([self.ends[0]], [], [], LIMIT_S)[0], found[-1:]
            self.rest += os.read(self.ends[0], 4096)
        return found

    def hang_up(self) -> None:
        """The reader is gone."""
        os.close(self.ends.pop(0))


@pytest.fixture(params=["waits", "at once"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    """With a thread that alone writes, as into a file; and with what there is room for written at once."""
    reading, writing = os.pipe()
    ends = [reading, writing]
    direct = -1
    if request.param == "at once":
        direct = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
        ends.append(direct)
    made = Pipe(Outlet(writing, direct), ends)
    yield made
    if reading in ends:
        made.hang_up()  # what still waits is dropped
    made.outlet.flush(LIMIT_S)
    for end in made.ends:
        os.close(end)


def test_lines_arrive_in_order_from_whatever_thread(pipe: Pipe) -> None:
    def write(name: bytes) -> None:
        for i in range(200):
            pipe.outlet.write(b"%b %d\n" % (name, i))

    threads = [threading.Thread(target=write, args=(name,)) for name in (b"a", b"b")]
    for thread in threads:
        thread.start()
    lines = pipe.read(400)
    for thread in threads:
        thread.join()
    for name in (b"a", b"b"):
        assert [line for line in lines if line.startswith(name)] == [b"%b %d" % (name, i) for i in range(200)]


def test_nobody_waits_for_a_reader_that_stands_still_and_it_is_told_what_it_missed(pipe: Pipe) -> None:
    most = output.BYTES_MAX // len(LINE) + PIPE_BYTES // len(LINE)
    for _ in range(2 * most):
        pipe.outlet.write(LINE)  # returns, though nobody reads
    dropped = pipe.outlet.dropped
    assert 2 * most - dropped <= output.LINES_MAX + PIPE_BYTES // len(LINE) + 1
    assert not pipe.outlet.flush(0.0)
    lines = pipe.read(2 * most - dropped + 1)
    assert set(lines[:-1]) == {LINE.rstrip()}
    assert re.findall(rb"\d+", lines[-1]) == [b"%d" % dropped]
    pipe.outlet.write(b"again\n")
    assert pipe.read(1) == [b"again"]
    assert pipe.outlet.flush(LIMIT_S)
    assert pipe.outlet.dropped == dropped


def test_what_is_printed_leaves_room_for_the_log(pipe: Pipe) -> None:
    for _ in range(2 * output.BYTES_MAX // PIPE_BYTES):
        pipe.outlet.write(b"p" * (PIPE_BYTES - 1) + b"\n", printed=True)
    before = pipe.outlet.dropped
    pipe.outlet.write(b"the log's\n")
    assert pipe.outlet.dropped == before > 0


def test_a_reader_that_is_gone_keeps_nobody_and_its_lines_are_counted(pipe: Pipe) -> None:
    pipe.hang_up()
    for _ in range(100):
        pipe.outlet.write(LINE)
    assert pipe.outlet.flush(LIMIT_S)
    assert pipe.outlet.dropped == 100


PRELUDE = "import os, sys, time\nfrom mesh.process import output\nmine = output.take_over()\n"


def started(script: str, **options: object) -> "subprocess.Popen[bytes]":
    """A Python process whose output was taken over."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", PRELUDE + script], env=environment, **options)  # type: ignore[call-overload,no-any-return]


FULL = "for _ in range(3000): print('x' * 99)\nfor _ in range(3000): print('x' * 99, file=sys.stderr)\n"


@pytest.mark.parametrize(
    "write",
    [
        FULL,
        "import ctypes\nfor _ in range(3000): ctypes.CDLL(None).puts(b'x' * 99)\nctypes.CDLL(None).fflush(None)\n",
        "import logging\nfor _ in range(3000): logging.warning('x' * 99)\n",
        "sys.stdout.write('x' * 300_000); sys.stdout.buffer.write(b'x' * 300_000); sys.stderr.flush()\n",
    ],
    ids=["print", "from C", "logging", "no line"],
)
@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_a_process_whose_output_nobody_reads_goes_on_and_ends_in_time(write: str, where: str) -> None:
    if where == "pipe":
        ours, theirs = os.pipe()
    else:
        ours, theirs = pty.openpty()
    told, tell = os.pipe()
    process = started(
        f"{write}os.write({tell}, b'!')\n", stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, pass_fds=(tell,)
    )
    os.close(theirs)
    os.close(tell)
    try:
        assert os.read(told, 1) == b"!", "it did not wait"
        assert process.wait(LIMIT_S) == 0, "at its end, for a moment only"
    finally:
        process.kill()
        process.wait()
        os.close(told)
        os.close(ours)


def test_a_terminal_that_was_stopped_gets_it_all_once_it_goes_on() -> None:
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)  # as Ctrl-S does
    told, tell = os.pipe()
    process = started(
        f"print('in between'); os.write({tell}, b'!'); sys.stdin.read()",
        stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, pass_fds=(tell,),
    )  # fmt: skip
    os.close(tell)
    assert os.read(told, 1) == b"!"
    assert not select.select([ours], [], [], 0)[0]
    termios.tcflow(theirs, termios.TCOON)
    assert select.select([ours], [], [], LIMIT_S)[0]
    assert os.read(ours, 100) == b"in between\r\n"
    process.communicate(timeout=LIMIT_S)
    for descriptor in (ours, theirs, told):
        os.close(descriptor)


@pytest.mark.parametrize("end", ["", "output.leave(7)", "raise SystemExit(7)", "sys.stdout.write('no end')"])
def test_what_was_written_last_has_left_when_the_process_ends(end: str, tmp_path: Path) -> None:
    script = f"for i in range(1000): print(i)\n{end}"
    piped = started(script, stdout=subprocess.PIPE)
    out, _ = piped.communicate(timeout=LIMIT_S)
    with open(tmp_path / "file", "wb") as file:
        filed = started(script, stdout=file)
        filed.wait(LIMIT_S)
    for text in (out, (tmp_path / "file").read_bytes()):
        lines = text.decode().split("\n")
        assert lines[:1000] == list(map(str, range(1000)))
        assert lines[1000] == ("no end" if "no end" in end else "")
    assert piped.returncode == filed.returncode == (7 if "7" in end else 0)


def test_both_streams_in_one_file_are_in_order_and_what_was_there_before_stays(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.write(b"before\n")
        file.flush()
        process = started(
            "for i in range(9):\n print(i, file=(sys.stdout, sys.stderr)[i % 2])", stdout=file, stderr=file
        )
        assert process.wait(LIMIT_S) == 0
    assert (tmp_path / "file").read_text().split() == ["before", *map(str, range(9))]


def test_a_full_disk_behind_the_output_is_counted_and_told_when_it_takes_something_again(tmp_path: Path) -> None:
    script = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"  # as a disk without room does: EFBIG
        "for i in range(5): print('lost')\n"
        f"assert mine.out.flush({LIMIT_S})\nassert mine.dropped == 5\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "print('written')\n"
    )
    with open(tmp_path / "file", "wb") as file:
        process = started(script, stdout=file)
        assert process.wait(LIMIT_S) == 0
    first, second = (tmp_path / "file").read_text().splitlines()
    assert first == "written"
    assert "5 lines" in second


def test_a_child_that_was_forked_writes_its_own_lines_once_and_not_its_parents() -> None:
    script = (
        "import signal\nread, write = os.pipe()\n"
        "for _ in range(2000): print('x' * 99)\n"  # fills the pipe, and the queue
        "pid = os.fork()\n"
        "if not pid:\n print('the child', flush=True); output.leave(0)\n"
        "os.waitpid(pid, 0)\nprint('the parent')\n"
    )
    process = started(script, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=LIMIT_S)
    lines = out.decode().splitlines()
    assert lines.count("x" * 99) == 2000
    assert lines.count("the parent") == 1
    assert lines.count("the child") <= 1, "it had FLUSH_S for that"
