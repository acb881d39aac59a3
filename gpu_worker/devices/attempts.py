"""Records on disk of preparations that ended the worker, so that the next worker knows of them.

While a version is prepared, a file says so. A worker that finds such a file knows that the previous worker ended during
that preparation: the version hung the device, broke it, or ended the process. After DEATHS_MAX such ends the version is
refused, until one of its files, the device or its drivers change, or the record is removed.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from gpu_worker.packages.package import Package
from mesh.codes import PackageCode
from mesh.errors import NotWritten, PackageError
from mesh.process.files import write_whole

DEATHS_MAX = 2
RECORDS_MAX = 200  # records of one device; the oldest are removed
log = structlog.get_logger("worker")


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of a record."""

    ref: str
    kind: str  # of the device, with the versions of its drivers
    files: dict[str, tuple[int, int]]  # {name: (bytes, modification time in ns)}
    began_s: float | None = None  # wall clock at the begin of the preparation; None if none runs
    deaths: int = 0  # workers that ended while they prepared it
    last_s: float | None = None  # wall clock at which the last of these preparations began

    def same(self, other: "Attempt") -> bool:
        """Returns whether both have the same files on the same kind of device."""
        return (self.ref, self.kind, self.files) == (other.ref, other.kind, other.files)


# -- rules. Pure ------------------------------------------------------------------------------------------------------


def begun(found: Attempt | None, wanted: Attempt, *, now: float) -> Attempt | None:
    """Returns the record to write before `wanted` is prepared; None if it has ended too many workers.

    `found`: the record that exists, if any.
    """
    if found is None or not found.same(wanted):
        return msgspec.structs.replace(wanted, began_s=now)
    return None if found.deaths >= DEATHS_MAX else msgspec.structs.replace(found, began_s=now)


def ended(attempt: Attempt, *, well: bool) -> Attempt | None:
    """Returns the record to keep after the preparation ended, with a version or a refusal; None to remove it."""
    return None if well or not attempt.deaths else msgspec.structs.replace(attempt, began_s=None)


def died(found: Attempt) -> Attempt | None:
    """Returns the record after the worker that wrote it is gone; None if it was not preparing this version."""
    if found.began_s is None:
        return None
    return msgspec.structs.replace(found, began_s=None, deaths=found.deaths + 1, last_s=found.began_s)


# -- files ------------------------------------------------------------------------------------------------------------


class Attempts:
    """The records of one device. The device's lock is held, so no other process uses them. Any thread may call it."""

    def __init__(self, folder: Path, device: str, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder / device.replace(":", "-")
        self._device, self._clock = device, clock
        self._running: dict[str, Attempt] = {}  # {ref: its record, as it was written}
        self._closed = False
        self._lock = threading.Lock()  # writing or removing a record and remembering it is one step

    def open(self) -> None:
        """A preparation that an earlier worker did not finish counts against its version."""
        with contextlib.suppress(OSError):
            files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
            for file in (*files[:-RECORDS_MAX], *self._folder.glob("*.tmp")):
                file.unlink()
            for file in files[-RECORDS_MAX:]:
                found = _read(file)
                dead = died(found) if found is not None else None
                if dead is not None:
                    log.warning("preparation_ended_worker", ref=dead.ref, device=self._device, times=dead.deaths)
                    self._write(dead)

    def begin(self, package: Package, kind: str) -> None:
        """The record says that the version is being prepared. Raises: PackageError if it must not be prepared."""
        wanted = Attempt(ref=package.ref, kind=kind, files=_files(package))
        file = self._file(package.ref)
        found = _read(file)
        attempt = begun(found, wanted, now=self._clock())
        if attempt is None:
            assert found is not None
            raise PackageError(package.ref, [_refusal(found, self._device, file)], PackageCode.ENDED_WORKER)
        with self._lock:
            if not self._closed:
                self._running[package.ref] = attempt
                self._write(attempt)

    def end(self, ref: str, *, well: bool) -> None:
        """The preparation has ended, with a version or a refusal."""
        with self._lock:
            attempt = self._running.pop(ref, None)
            if attempt is None:
                return
            left = ended(attempt, well=well)
            if left is not None:
                self._write(left)
                return
            with contextlib.suppress(OSError):
                self._file(ref).unlink()

    def close(self) -> None:
        """The worker ends normally: preparations that run or are still to come count against no version."""
        with self._lock:
            self._closed = True
        for ref in list(self._running):
            self.end(ref, well=False)

    def _file(self, ref: str) -> Path:
        return self._folder / f"{ref.replace(':', '@')}.json"

    def _write(self, attempt: Attempt) -> None:
        """The record is on disk as a whole; it is flushed, because the machine itself may crash next."""
        try:
            write_whole(self._file(attempt.ref), msgspec.json.format(msgspec.json.encode(attempt)), flushed=True)
        except NotWritten as error:
            advice = "if its preparation ends this process, the next one will not know"
            log.warning("preparation_not_recorded", ref=attempt.ref, error=str(error), advice=advice)


def _read(file: Path) -> Attempt | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Attempt)
    except (OSError, msgspec.MsgspecError):
        return None  # a record that cannot be read counts against no version


def _files(package: Package) -> dict[str, tuple[int, int]]:
    """Returns the sizes and times of the files that decide what the preparation does."""
    paths = (package.manifest, package.graph, package.weights_file, package.example_file)
    found = {path.name: _stat(path) for path in paths if path is not None}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items() if stat is not None}


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None  # whoever reads the file will report the error


def _refusal(found: Attempt, device: str, file: Path) -> str:
    last = datetime.fromtimestamp(found.last_s or 0.0, UTC).isoformat(" ", "seconds")
    return (
        f"preparing it on {device} ended the worker {found.deaths} times, the last of them begun at {last}: the device "
        f"hung or failed, or the process was killed. To try it again, remove {file} and deploy it"
    )
