"""Standard output and standard error that never wait for whoever reads them.

What is written leaves at once where the reader has room for it; the rest waits in a bounded queue, which a thread
empties. What exceeds the bounds is dropped, and counted; a line says how much once the reader reads again. `print` and
libraries written in Python are served likewise. What libraries written in C write goes to the same place without the
queue, and is lost where there is no room.
"""

import atexit
import contextlib
import io
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn

LINES_MAX = 10_000  # waiting for the reader
BYTES_MAX = 4 << 20  # likewise; what is printed, and is no line of a log, may take half of it
FLUSH_S = 0.5  # longest wait for the reader when the process ends
PARTIAL_MAX = 1 << 16  # bytes without a line's end that are kept together


def _notice(lines: int) -> str:
    return f"({lines} lines were left out while nobody read them)\n"


class Outlet:
    """The way to one descriptor. Any thread may write, and no call but `flush` waits."""

    def __init__(self, descriptor: int, direct: int = -1) -> None:
        """`direct`: another descriptor of the same file, which does not block; -1: there is none."""
        self._descriptor, self._direct = descriptor, direct
        self._queue: deque[bytes] = deque()  # what waits; the first of it may be on its way
        self._bytes = 0  # in the queue
        self._untold = 0  # lines dropped, of which no notice was written yet
        self.dropped = 0  # lines
        self.notice: Callable[[int], str] = _notice  # the line that tells of so many dropped ones
        self._lock = threading.RLock()  # a destructor may write while its thread is here
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._forked)

    def write(self, data: bytes, *, printed: bool = False) -> None:
        """The data, whole lines, leaves in this order, or is dropped. `printed`: it is no line of a log."""
        with self._lock:
            if not self._queue and self._direct >= 0:
                data = self._at_once(data)
                if not data:
                    return
            most = BYTES_MAX // 2 if printed else BYTES_MAX
            if len(self._queue) >= LINES_MAX or self._bytes + len(data) > most:
                self._drop(data)
                return
            self._put(data)

    def flush(self, within_s: float) -> bool:
        """Returns whether everything has left, or was dropped, within that time."""
        until_s = time.monotonic() + within_s
        with self._changed:
            while self._queue:
                left_s = until_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    return not self._queue
        return True

    def _at_once(self, data: bytes) -> bytes:
        """Returns what the reader had no room for."""
        try:
            sent = os.write(self._direct, data)
        except BlockingIOError:
            return data
        except OSError:
            self._drop(data)  # the reader is gone
            return b""
        if sent == len(data):
            self._tell()
        return data[sent:]

    def _put(self, data: bytes) -> None:
        self._queue.append(data)
        self._bytes += len(data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="output", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _drop(self, data: bytes) -> None:
        lines = data.count(b"\n") or 1
        self.dropped += lines
        self._untold += lines

    def _tell(self) -> None:
        """Something has left: if nothing waits, and lines were dropped before, it is told."""
        if self._untold and not self._queue:
            lines, self._untold = self._untold, 0
            self._put(self.notice(lines).encode(errors="backslashreplace"))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                head = self._queue[0]
            sent, failed = self._send(head)
            with self._changed:
                if failed:
                    self._drop(head)
                    sent = len(head)
                self._bytes -= sent
                if sent < len(head):
                    self._queue[0] = head[sent:]
                    continue
                self._queue.popleft()
                if not failed:
                    self._tell()
                self._changed.notify_all()

    def _send(self, data: bytes) -> tuple[int, bool]:
        """Waits for the reader. Returns (bytes that left, whether the rest never can)."""
        try:
            return os.write(self._descriptor, data), False
        except BlockingIOError:  # whoever started us made it so
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll()
            return 0, False
        except OSError:  # the reader is gone, or the disk takes nothing
            return 0, True

    def _forked(self) -> None:
        """In a child that was forked: what waits is its parent's to write."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue, self._bytes, self._untold, self._thread = deque(), 0, 0, None


class OutletFile(io.RawIOBase):
    """The file behind `sys.stdout` or `sys.stderr`: whole lines go to the outlet."""

    name = "<output>"

    def __init__(self, outlet: Outlet, descriptor: int, *, printed: bool = True) -> None:
        super().__init__()
        self._outlet, self._number, self._printed = outlet, descriptor, printed
        self._partial = b""  # a line that has no end yet
        self._lock = threading.RLock()

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor that it stands for."""
        return self._number

    def isatty(self) -> bool:
        """Whether that is a terminal."""
        return os.isatty(self._number)

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Takes all of it, and does not wait."""
        with self._lock:
            whole, end, self._partial = (self._partial + bytes(data)).rpartition(b"\n")
            if end:
                self._outlet.write(whole + end, printed=self._printed)
            if len(self._partial) > PARTIAL_MAX:
                self.flush()
        return len(data)

    def flush(self) -> None:
        """A line that has no end yet leaves, too."""
        with self._lock:
            partial, self._partial = self._partial, b""
            if partial:
                self._outlet.write(partial, printed=self._printed)


class Output:
    """Both outlets of this process: one, where both lead to the same place."""

    def __init__(self, out: Outlet, err: Outlet) -> None:
        self.out, self.err = out, err
        self.last: list[Callable[[], None]] = []  # called before the process ends: what is still to be written

    @property
    def dropped(self) -> int:
        """Lines that were dropped so far."""
        return self.out.dropped + (0 if self.err is self.out else self.err.dropped)

    def lines(self) -> io.TextIOWrapper:
        """A file for the lines of a log."""
        return _text(OutletFile(self.out, sys.stdout.fileno(), printed=False))

    def finish(self, within_s: float = FLUSH_S) -> None:
        """The process is about to end: what waits leaves, unless nobody reads it within that time."""
        for write in self.last:
            write()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        until_s = time.monotonic() + within_s
        self.out.flush(within_s)
        self.err.flush(max(0.0, until_s - time.monotonic()))


def take_over() -> Output:
    """From now on neither `sys.stdout` nor `sys.stderr` waits for its reader; nor do the descriptors 1 and 2, if they
    are pipes or terminals. At the end of the process what waits has FLUSH_S to leave.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    out = _outlet(1)
    err = out if _place(1) == _place(2) else _outlet(2)
    if err is out:
        os.dup2(1, 2)
    sys.stdout, sys.stderr = _text(OutletFile(out, 1)), _text(OutletFile(err, 2))
    output = Output(out, err)
    atexit.register(output.finish)
    _taken.append(output)
    return output


_taken: list[Output] = []  # by this process: one, or none


def leave(code: int) -> NoReturn:
    """The process ends at once with `code`, and nothing else is cleaned up; what it wrote has FLUSH_S to leave."""
    for output in _taken:
        output.finish()
    os._exit(code)


def _outlet(descriptor: int) -> Outlet:
    """The outlet of a descriptor, which itself does not block from now on, if that can be."""
    blocking = os.dup(descriptor)
    direct = _opened_again(descriptor)
    if direct >= 0:
        os.dup2(direct, descriptor)
    return Outlet(blocking, direct)


def _opened_again(descriptor: int) -> int:
    """Another description of the same pipe or terminal, which does not block; -1 if there can be none.

    The flag belongs to the open file description, which others (a shell, say) have in common with us: so ours is new.
    A regular file opened again would be written from its beginning; a socket cannot be opened.
    """
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(descriptor))):
        return -1
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # no /proc, another user's terminal, nobody reads
        return -1


def _place(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _text(file: OutletFile) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True)
