"""How much memory a run takes in this process: the kernel's own peak, which counts what every library allocates."""

import ctypes
from pathlib import Path

from gpu_worker.core.surfaces import Point

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # Source: proc(5), /proc/pid/clear_refs
FIELDS = ("VmHWM", "RssAnon", "RssFile", "RssShmem")
_libc = ctypes.CDLL(None)


class MemoryGauge:
    """The peak of the process's own memory while something runs, beyond what it had before.

    Pages of files and of the arena do not count. What other threads allocate meanwhile does, so a reading may be too
    high: who doubts one reads again, and takes the least. Only the first of equal runs in a row is read: before it, all
    that earlier runs have freed is given back to the system, as it would hide what this one takes, and getting it again
    takes the run some time.
    """

    def __init__(self) -> None:
        self._last: tuple[str, Point] | None = None  # (ref, batch and extents) of the last run
        self._floors: dict[str, int] = {}  # {ref: bytes before its first run}
        self._before = 0  # bytes before this run

    def begin(self, ref: str, point: Point) -> bool:
        """A run begins. Returns whether `read` may be asked once it has ended: not every kernel lets a process know."""
        if self._last == (ref, point):
            return False
        self._last = (ref, point)
        try:
            _libc.malloc_trim(0)
            self._before = _status()["RssAnon"]
            CLEAR.write_text(RESET_PEAK)
        except (OSError, KeyError, AttributeError):  # AttributeError: this C library has no malloc_trim
            return False
        self._floors.setdefault(ref, self._before)
        return True

    def read(self, ref: str, *, kept: bool = False) -> int:
        """Returns the bytes that the run, which has ended, took at its peak; at least 1.

        `kept`: its engine keeps for later runs what one took; so what earlier runs of the version took counts, too.
        """
        found = _status()
        peak = found["VmHWM"] - found["RssFile"] - found["RssShmem"]
        return max(1, peak - (self._floors[ref] if kept else self._before))

    def forget(self, ref: str) -> None:
        """The version is measured no more."""
        self._floors.pop(ref, None)


def _status() -> dict[str, int]:
    """Returns bytes by name. Raises: OSError."""
    found = {}
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name in FIELDS:
            found[name] = int(value.split()[0]) << 10
    return found
