"""How long this machine keeps ready work waiting by itself, so that nobody is blamed for it.

An end-to-end test that says how late an answer may be asks these, which run beside it, and adds what they saw:
a process pinned to each core, which wants a short turn every millisecond; a task of the test's own loop, since whoever
asks may be late as well; and the kernel's account of how long the threads in question were ready and not run.
"""

import asyncio
import bisect
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

CORES_MAX = 8  # with a canary; where there are more, one is free for whoever is ready
LOOP_TICK_S = 0.005
NOTICED_S = 0.0005  # timers are this late on idle machines
PINNED = """
import os, sys, time
core, tick_s, noticed_s, parent = int(sys.argv[1]), 0.001, float(sys.argv[2]), os.getppid()
os.sched_setaffinity(0, {core})
while os.getppid() == parent:
    due = time.monotonic() + tick_s
    time.sleep(tick_s)
    now = time.monotonic()
    if now - due > noticed_s:
        os.write(1, b"%.6f %.6f\\n" % (due, now))
"""

Interval = tuple[float, float]  # from when a turn was due until it was had, of time.monotonic()


class Canaries:
    """What they have seen until now."""

    def __init__(self, watched: Callable[[], Iterable[int]], files: Iterable[Path]) -> None:
        self._watched = watched  # pids, as they are at the moment
        self._files = list(files)  # what the pinned ones write
        self._loop: list[Interval] = []
        self._ready_s: dict[tuple[int, str], float] = {}  # {(pid, thread): ready and not run, so far}
        self._ready: list[Interval] = [(time.monotonic(), 0.0)]  # (when, of all threads so far), in order
        self._account()

    async def watch(self) -> None:
        """Looks until it is cancelled."""
        while True:
            due = time.monotonic() + LOOP_TICK_S
            await asyncio.sleep(LOOP_TICK_S)
            now = time.monotonic()
            if now - due > NOTICED_S:
                self._loop.append((due, now))
            self._account()

    def waited_s(self, began_s: float, ended_s: float) -> float:
        """How long, between these two instants, the machine may have kept somebody waiting."""
        self._account()
        seen = [*self._loop, *(interval for file in self._files for interval in read(file))]
        first = max(0, bisect.bisect(self._ready, (began_s, 0.0)) - 1)
        last = min(bisect.bisect(self._ready, (ended_s, 0.0)), len(self._ready) - 1)
        return covered_s(seen, began_s, ended_s) + self._ready[last][1] - self._ready[first][1]

    def _account(self) -> None:
        total = self._ready[-1][1]
        for pid in self._watched():
            for thread, ready_s in ready_and_not_run_s(pid).items():
                total += ready_s - self._ready_s.get((pid, thread), 0.0 if len(self._ready) > 1 else ready_s)
                self._ready_s[pid, thread] = ready_s
        self._ready.append((time.monotonic(), total))


def covered_s(intervals: Iterable[Interval], began_s: float, ended_s: float) -> float:
    """How much of the time between these instants lies in any of the intervals."""
    total, at = 0.0, began_s
    for start, end in sorted(intervals):
        start, end = max(start, at), min(end, ended_s)
        if end > start:
            total, at = total + end - start, end
    return total


def read(file: Path) -> Iterable[Interval]:
    """Whole lines of a pinned canary."""
    for line in file.read_text().split("\n")[:-1]:
        due, now = line.split()
        yield float(due), float(now)


def ready_and_not_run_s(pid: int) -> dict[str, float]:
    """{thread: seconds} of a process, as Linux accounts for them; of nobody where it does not, or who is gone."""
    found = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found[thread] = int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    return found


@contextlib.contextmanager
def pinned(folder: Path) -> Iterator[list[Path]]:
    """A canary sits on each core until the block ends, and writes into one of these files."""
    cores = sorted(os.sched_getaffinity(0))[:CORES_MAX]
    files = [folder / f"canary-{core}" for core in cores]
    with contextlib.ExitStack() as stack:
        for core, file in zip(cores, files, strict=True):
            command = [sys.executable, "-S", "-E", "-c", PINNED, str(core), str(NOTICED_S)]
            process = stack.enter_context(subprocess.Popen(command, stdout=stack.enter_context(file.open("w"))))
            stack.callback(process.kill)
        yield files


@contextlib.asynccontextmanager
async def canaries(folder: Path, watched: Callable[[], Iterable[int]]) -> AsyncIterator[Canaries]:
    """They run until the block ends. `watched`: the processes whose lateness is in question."""
    with pinned(folder) as files:
        seen = Canaries(watched, files)
        watching = asyncio.create_task(seen.watch())
        try:
            yield seen
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
