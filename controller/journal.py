"""The request log and the action log on disk: JSON lines, written by a thread of its own, in files of limited size.

The controller's loop only hands over what ended. The thread encodes and writes it, a few lines at a time, so that the
interpreter is never held for longer than a fraction of a millisecond.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from io import RawIOBase
from pathlib import Path

import msgspec
import structlog

from mesh.facts import LOG_VERSION, ActionFact, AmendedFact, Dropped, Fact, Header, JournalState, RequestFact
from mesh.process.files import DISK_FAULTS, not_written

LOGS: dict[str, tuple[type[Fact], ...]] = {"requests": (RequestFact, AmendedFact), "actions": (ActionFact,)}
CHUNK = 64  # lines encoded and written in one go: some 50 us
INTERVAL_S = 0.1  # between two looks for lines to write
FAULT_S = 5.0  # after the disk failed, lines are dropped for so long before it is tried again
log = structlog.get_logger("journal")


class LogFile:
    """One log, in files of limited size. The newest `files` of this log in the folder are kept, whoever wrote them.

    Not thread-safe. Raises OSError if the disk refuses lines. What the disk took of them is the end of a file, so only
    a last line can be cut short.
    """

    def __init__(self, folder: Path, header: Callable[[], Header], *, bytes_max: int, files: int, stamp: str) -> None:
        self._folder = folder
        self._header = header
        self._bytes_max = bytes_max
        self._files = files
        self._stamp = stamp  # when this controller started, and its id: part of every name
        self._count = 0  # files begun
        self._file: RawIOBase | None = None
        self._size = 0
        self._encoder = msgspec.json.Encoder()

    def write(self, lines: Sequence[Fact | Dropped]) -> None:
        """The lines are in the file. If it is full, the next lines begin a new one."""
        if self._file is None:
            self._file = self._begin()
        data = self._encoder.encode_lines(lines)
        try:
            _write_all(self._file, data)
        except OSError:
            self.close()
            raise
        self._size += len(data)
        if self._size >= self._bytes_max:
            self.close()

    def close(self) -> None:
        """The next line begins a new file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _begin(self) -> RawIOBase:
        self._folder.mkdir(parents=True, exist_ok=True)
        header = self._header()
        self._count += 1
        path = self._folder / f"{header.log}-{self._stamp}-{self._count:06d}.jsonl"
        self._remove_old(header.log)
        data = self._encoder.encode_lines([header])
        file = path.open("xb", buffering=0)
        try:
            _write_all(file, data)
        except OSError:
            file.close()
            path.unlink()  # without a header nobody could read it
            raise
        self._size = len(data)
        return file

    def _remove_old(self, name: str) -> None:
        """So many old files are left that there is room for one more."""
        found = []
        for path in self._folder.glob(f"{name}-*.jsonl"):
            try:
                found.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:
                continue  # another controller was quicker
        for _, path in sorted(found)[: max(0, len(found) + 1 - self._files)]:
            path.unlink(missing_ok=True)


def _write_all(file: RawIOBase, data: bytes) -> None:
    """All of the data is in the file, though a disk that is nearly full takes a part first. Raises: OSError."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


class Journal:
    """Both logs of one controller. The loop calls `start`, `offer`, `state` and `stop`; the rest is for the thread."""

    def __init__(
        self, folder: Path, controller: str, policy: str, *, bytes_max: int, files: int, pending_max: int
    ) -> None:
        self._folder = folder
        self._pending: deque[Fact] = deque()  # offered and not taken, oldest first, at most pending_max
        self._pending_max = pending_max
        self._refused = 0  # lines for which there was no room; written by the loop
        self._lost = 0  # lines that the disk refused; written by the thread, as are all below
        self._reported = 0  # how many of both the log tells of
        self._written = 0
        self._fault = ""
        self._retry_s = 0.0  # the disk is not tried before
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{controller}"
        self._files: dict[str, LogFile] = {}  # {log: its files}
        for name in LOGS:
            header = _header_maker(name, controller, policy)
            self._files[name] = LogFile(folder, header, bytes_max=bytes_max, files=files, stamp=stamp)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """What is offered is written from now on."""
        self._thread.start()

    def offer(self, facts: Sequence[Fact]) -> None:
        """The facts are to be written; those for which there is no room are dropped and counted."""
        pending = self._pending
        room = self._pending_max - len(pending)
        if len(facts) <= room:
            pending.extend(facts)
            return
        pending.extend(facts[: max(0, room)])
        self._refused += len(facts) - max(0, room)

    def state(self) -> JournalState:
        """How many lines were written, dropped and are waiting, and what fault the disk has."""
        return JournalState(
            on=True,
            folder=str(self._folder),
            written=self._written,
            dropped=self._refused + self._lost,
            waiting=len(self._pending),
            fault=self._fault,
        )

    def stop(self, timeout_s: float = 5.0) -> None:
        """All that was offered is written and the files are closed, or the time is up."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        left = self._refused + self._lost + len(self._pending)
        if left:
            log.warning("telemetry_incomplete", lines_missing=left, lines=self._written)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # serving goes first
        while not self._stopping.wait(INTERVAL_S):
            self.drain()
        self.close()

    def close(self) -> None:
        """All that was offered is written, and the files are closed."""
        self.drain()
        for file in self._files.values():
            file.close()

    def drain(self) -> None:
        """All that was offered is written, or dropped and counted where the disk refuses it."""
        pending = self._pending
        while pending:
            self._write([pending.popleft() for _ in range(min(CHUNK, len(pending)))])
        missing = self._refused + self._lost
        if missing > self._reported and not self._fault:
            dropped = Dropped(count=missing - self._reported)
            why = "the disk does not keep up" if missing > self._lost else "the disk refused them"
            log.warning("telemetry_dropped", lines=dropped.count, total=missing, why=why)
            if any([self._attempt(file, [dropped]) for file in self._files.values()]):
                self._reported = missing

    def _write(self, facts: list[Fact]) -> None:
        for name, file in self._files.items():
            kinds = LOGS[name]
            mine = [fact for fact in facts if type(fact) in kinds]
            if mine and self._attempt(file, mine):
                self._written += len(mine)
            else:
                self._lost += len(mine)

    def _attempt(self, file: LogFile, lines: Sequence[Fact | Dropped]) -> bool:
        """The lines are written. False if the disk refuses them, or refused others a moment ago."""
        if self._fault and time.monotonic() < self._retry_s:
            return False
        try:
            file.write(lines)
        except OSError as error:
            if not self._fault:
                log.error(
                    "telemetry_failed",
                    folder=str(self._folder),
                    error=str(not_written(self._folder, error, "GEARMESH_TELEMETRY_DIR")),
                    advice="lines are dropped, and counted; it is tried again",
                )
            self._fault = str(error)
            self._retry_s = time.monotonic() + FAULT_S
            return False
        self._fault = ""
        return True


def _header_maker(name: str, controller: str, policy: str) -> Callable[[], Header]:
    def make() -> Header:
        return Header(
            log=name,
            version=LOG_VERSION,
            controller=controller,
            policy=policy,
            clock_s=time.monotonic(),
            unix_s=time.time(),
        )

    return make


def check_folder(folder: Path) -> list[str]:
    """What is wrong with the setting that names the folder of logs: nothing, or one sentence.

    Nothing is wrong with it while its disk is full, read-only or broken: then lines are dropped and counted.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
            return []
    except OSError as error:
        if error.errno in DISK_FAULTS:
            return []
        return [f"telemetry_dir={str(folder)!r}: cannot be made: {error.strerror}"]
    return [f"telemetry_dir={str(folder)!r}: cannot be written"]
